// How the box stands: functions by tier, what is leased, requests, money, and how long a first token takes.

import { Latest, get, metrics, usagePath } from "./api.js";
import { card, el, meter, show, stat, table, tier } from "./dom.js";
import { bytes, count, money, ms, quantile } from "./numbers.js";
import { waterfall } from "./waterfall.js";

const SHOWN = 5;
const TIERS = ["running", "parked", "stored", "cold"];

const leased = (label, used, whole, words) =>
  el("div", { class: "leased" }, el("p", {}, el("strong", {}, label), ` ${words}`), meter(label, used, whole, words));

function machine(found) {
  const [cores, coresLeased] = [found.ember_cores, found.ember_cores_leased];
  const [memory, memoryLeased] = [found.ember_memory_bytes, found.ember_memory_leased_bytes];
  if (cores === undefined || memory === undefined) return el("p", { class: "none" }, "The pool does not answer now.");
  return [
    leased("Cores", coresLeased, cores, `${coresLeased} of ${cores} leased`),
    leased("Memory", memoryLeased, memory, `${bytes(memoryLeased)} of ${bytes(memory)} leased`),
    el("p", { class: "dim" }, `${found.ember_slots_busy ?? 0} of ${found.ember_slots ?? 0} slots of running instances are busy.`),
  ];
}

const tiers = (found) =>
  el("dl", { class: "stats" }, TIERS.map((name) => stat(tier(name), count(found[`ember_functions{tier="${name}"}`] ?? 0))));

function firstToken(records) {
  const answered = records.filter((record) => record.first_text_us > 0 && record.outcome === "completed");
  const row = (name) => ({ name, times: answered.filter((record) => record.tier === name).map((record) => record.first_text_us) });
  const rows = TIERS.map(row).filter(({ times }) => times.length > 0);
  const time = (share) => ({ times }) => ms(quantile(times, share));
  const columns = [
    { name: "Found", cell: ({ name }) => [tier(name), name === "running" ? " (warm)" : ""] },
    { name: "Requests", number: true, cell: ({ times }) => count(times.length) },
    { name: "p50", number: true, cell: time(0.5) },
    { name: "p99", number: true, cell: time(0.99) },
  ];
  const of = el("p", { class: "dim" }, `Of the last ${count(answered.length)} answers, by where their function was found.`);
  return [table("First token by tier", columns, rows, "No answer yet."), rows.length > 0 && of];
}

// What became of the requests that were not completed, in words. Sums do not tell, records do: of those that are all known.
function rest(usage, records, others) {
  const ended = records.filter((record) => record.ended_unix_ms >= usage.since_unix_ms && record.outcome !== "completed");
  if (ended.length !== others) return others > 0 ? [`${count(others)} not completed`] : [];
  const outcomes = [...new Set(ended.map((record) => record.outcome))].sort();
  return outcomes.map((outcome) => `${count(ended.filter((record) => record.outcome === outcome).length)} ${outcome.replaceAll("_", " ")}`);
}

function totals(usage, records) {
  const sum = (field) => usage.data.reduce((all, row) => all + row[field], 0);
  const became = [`${count(sum("completed"))} completed`, ...rest(usage, records, sum("requests") - sum("completed"))].join(", ");
  return el(
    "dl",
    { class: "stats" },
    stat("Requests", count(sum("requests")), became),
    stat("Tokens out", count(sum("tokens_out")), `${count(sum("tokens_in"))} in`),
    stat("Cost", money(sum("cost_nanos"), usage.currency)),
  );
}

export function overview(who) {
  const [latest, admin] = [new Latest(), who.kind === "admin"];
  const places = { tiers: el("div"), machine: el("div"), totals: el("div"), first: el("div"), rows: el("div") };
  const root = el(
    "div",
    {},
    el("h1", {}, "Overview"),
    el(
      "div",
      { class: "grid" },
      admin && card("Functions", places.tiers),
      card(admin ? "Last 24 hours" : "Your last 24 hours", places.totals),
      admin && card("Leased", places.machine),
      card("First token", places.first),
    ),
    card("Latest requests", places.rows),
  );
  async function standing() {
    const [found, instances] = await Promise.all([metrics(), get("/ember/v1/instances")]);
    const seen = Object.entries(found).filter(([name]) => /^ember_(functions|cores|memory|slots)/.test(name));
    show(places.tiers, seen, () => [tiers(found)]);
    show(places.machine, seen, () => [machine(found)]);
    return instances.wakes;
  }
  async function refresh() {
    const wakes = admin ? await standing() : [];
    const usage = await get(`${usagePath(who)}?by=tier&since=24h`);
    const records = await latest.read(who);
    show(places.totals, [usage.data, records], () => [totals(usage, records)]);
    show(places.first, records, () => firstToken(records));
    show(places.rows, [records.slice(0, SHOWN), wakes.length], () => waterfall(records.slice(0, SHOWN), wakes, "over"));
  }
  return { root, refresh, everyMs: 4_000 };
}
