// How the amount of one request came to be: what happened, the time, the prices, the lines and their sum.

import { get, usagePath } from "./api.js";
import { card, el, foundAt, table } from "./dom.js";
import { count, many, money, moment, ms } from "./numbers.js";
import { waterfall } from "./waterfall.js";

// What a line is for, how it is reckoned, and what its price is for.
const LINES = {
  request: ["request", (line) => `${count(line.quantity)} × ${count(line.price_nanos)}`, ({ price }) => `${price} a request`],
  memory: ["memory", (line) => `${count(line.quantity)} ms × ${count(line.times)} bytes × ${count(line.price_nanos)} ÷ ${count(line.per)}, rounded up`, ({ price, per }) => `${price} a GiB-second, which is ${per} byte-ms: the bytes of a GiB × the ms of a second`],
  cpu: ["processor", (line) => `${count(line.quantity)} µs × ${count(line.price_nanos)} ÷ ${count(line.per)}, rounded up`, ({ price, per }) => `${price} a processor-second, which is ${per} µs`],
};

function ofTokens(what) {
  const words = what.replaceAll("_", " ");
  return [words, (line) => `${count(line.quantity)} × ${count(line.price_nanos)} ÷ ${count(line.per)}, rounded up`, ({ price, per }) => `${price} for ${per} ${words}`];
}

function how(line) {
  const [words, sum, price] = LINES[line.what] ?? ofTokens(line.what);
  return { words, sum: sum(line), amount: line.amount_nanos, price: price({ price: count(line.price_nanos), per: count(line.per) }) };
}

function happened({ record, bill_wake: billed }) {
  const fed = record.tokens_in - record.tokens_cached;
  return [
    ["Key", record.project ? `${record.key}, of project ${record.project}` : record.key],
    ["Function", [record.function, ", found ", foundAt(record)]],
    ["Came", moment(record.came_unix_ms)],
    ["Ended", `${moment(record.ended_unix_ms)}, ${record.outcome.replaceAll("_", " ")}, status ${record.status}`],
    ["Queue", `${ms(record.queue_us)}, not billed`],
    ["Wake", `${ms(record.wake_us)} waited for; its part is ${ms(record.wake_share_us)}, ${billed === false ? "not billed" : "billed"}`],
    ["Prompt", `${ms(record.prefill_us)}; ${many(fed, "token")}, and ${count(record.tokens_cached)} from the cache`],
    ["Answer", `${ms(record.decode_us)}; ${many(record.tokens_out, "token")}`],
    ["Its share", `${ms(record.share_us)} of its instance's time, billed; requests in it at once divide it`],
    record.budget_reached && ["Budget", "reached: the answer was stopped there"],
  ].filter(Boolean);
}

const list = (rows) => el("dl", { class: "facts" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

function bill(explained) {
  const { record, currency, bill: made, bill_wake: billed } = explained;
  if (!made) return el("p", {}, `It was charged by version ${record.price_version} of the prices, which the book holds no more: ${money(record.cost_nanos, currency)}.`);
  const exact = record.share_us + (billed ? record.wake_share_us : 0);
  const columns = [
    { name: "For", cell: (row) => row.words },
    { name: "How", cell: (row) => row.sum },
    { name: `10⁻⁹ ${currency}`, number: true, cell: (row) => count(row.amount) },
  ];
  const rows = made.lines.map(how);
  const prices = rows.map((row) => row.price).join("; ");
  if (made.waived_nanos > 0) rows.push({ words: "waived", sum: "past the budget, not charged", amount: -made.waived_nanos });
  rows.push({ words: "Cost", sum: money(record.cost_nanos, currency), amount: record.cost_nanos, total: true });
  return [
    el("p", {}, `${(exact / 1000).toFixed(3)} ms, rounded up to ${count(made.billed_ms)} ms; ${count(record.memory_bytes)} bytes reserved; prices of version ${made.price_version}.`),
    table("Bill", columns, rows, ""),
    prices && el("p", { class: "hint" }, `Prices are in 10⁻⁹ ${currency}: ${prices}.`),
    explained.agrees === false && el("p", { class: "error" }, "The prices of this version were changed since: the lines do not give the cost."),
  ];
}

export function request(who, id) {
  const place = el("div", {}, el("p", { class: "none" }, "Looking it up…"));
  const root = el("div", {}, el("h1", {}, "Request"), el("p", { class: "lead" }, el("code", {}, id)), place);
  async function refresh() {
    const explained = await get(`${usagePath(who)}/${encodeURIComponent(id)}`).catch((error) => {
      place.replaceChildren();
      throw error;
    });
    const instances = who.kind === "admin" ? await get("/ember/v1/instances") : { wakes: [] };
    place.replaceChildren(
      card("Bill", bill(explained)),
      card("What happened", list(happened(explained))),
      card("To the first token", waterfall([explained.record], instances.wakes)),
    );
  }
  return { root, refresh, everyMs: 0 };
}
