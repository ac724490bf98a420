// What was used, and what it cost: sums by group, and single requests to be explained.

import { Latest, get, usagePath } from "./api.js";
import { card, el, foundAt, meter, requestLink, show, table, tier } from "./dom.js";
import { clock, count, hour, money, ms, zone } from "./numbers.js";

const SHOWN = 25;
const SPANS = [["1h", "hour"], ["24h", "24 hours"], ["168h", "7 days"], ["720h", "30 days"]];
const GROUPS_SHOWN = 200;

function choice(id, label, options) {
  const select = el("select", { id }, options.map(([value, words]) => el("option", { value }, words)));
  return [select, el("span", { class: "choice" }, el("label", { for: id }, label), select)];
}

function sums(usage, by) {
  const all = usage.data.reduce((sum, row) => sum + row.cost_nanos, 0);
  const name = (group) => (by === "hour" ? hour(Number(group)) : by === "tier" ? tier(group) : group || "none");
  const columns = [
    { name: by[0].toUpperCase() + by.slice(1) + (by === "hour" ? `, ${zone(Date.now())}` : ""), cell: (row) => (row.total ? "All" : name(row.group)) },
    { name: "Requests", number: true, cell: (row) => count(row.requests) },
    { name: "Tokens in", number: true, cell: (row) => count(row.tokens_in) },
    { name: "cached", number: true, cell: (row) => count(row.tokens_cached) },
    { name: "out", number: true, cell: (row) => count(row.tokens_out) },
    { name: "Wake", number: true, cell: (row) => ms(row.wake_us) },
    { name: "Work", number: true, cell: (row) => ms(row.prefill_us + row.decode_us) },
    { name: `Cost, ${usage.currency}`, number: true, cell: (row) => money(row.cost_nanos) },
    { name: "Share", cell: (row) => meter("Share of the cost", row.cost_nanos, all, all > 0 ? `${((100 * row.cost_nanos) / all).toFixed(1)} %` : "0 %") },
  ];
  const fields = ["requests", "tokens_in", "tokens_cached", "tokens_out", "wake_us", "prefill_us", "decode_us", "cost_nanos"];
  const whole = Object.fromEntries(fields.map((field) => [field, usage.data.reduce((sum, row) => sum + row[field], 0)]));
  const rows = [...usage.data].sort((a, b) => (by === "hour" ? b.group - a.group : b.cost_nanos - a.cost_nanos)).slice(0, GROUPS_SHOWN);
  const shown = rows.length > 1 ? [...rows, { ...whole, total: true }] : rows;
  const more = usage.data.length - rows.length;
  return [table(`Usage by ${by}`, columns, shown, "Nothing was used in this time."), more > 0 && el("p", { class: "dim" }, `and ${count(more)} more`)];
}

function requests(records, currency) {
  const columns = [
    { name: `Came, ${zone(Date.now())}`, cell: (row) => requestLink(row.request, "use", clock(row.came_unix_ms)) },
    { name: "Key", cell: (row) => row.key },
    { name: "Function", cell: (row) => row.function },
    { name: "Found", cell: foundAt },
    { name: "Ended", cell: (row) => row.outcome.replaceAll("_", " ") },
    { name: "Tokens", number: true, cell: (row) => `${count(row.tokens_in)} + ${count(row.tokens_out)}` },
    { name: `Cost, ${currency}`, number: true, cell: (row) => money(row.cost_nanos) },
  ];
  return [table("Latest requests", columns, records, "No request has ended yet.")];
}

export function usage(who) {
  const groups = ["function", "key", "project", "tier", "hour"].filter((by) => who.kind === "admin" || by !== "key");
  const [by, byChoice] = choice("by", "By", groups.map((group) => [group, group]));
  const [since, sinceChoice] = choice("since", "Last", SPANS);
  since.value = "24h";
  const [table, list, latest] = [el("div"), el("div"), new Latest()];
  const id = el("input", { id: "request-id", placeholder: "req-…", required: true, pattern: "\\s*req-[0-9a-f]{32}\\s*", maxlength: 64, spellcheck: "false", autocomplete: "off", title: "req- and 32 hexadecimal digits" });
  const asked = (event) => {
    event.preventDefault();
    location.hash = `#request/${id.value.trim()}`;
  };
  const form = el("form", { class: "row", onsubmit: asked }, el("label", { for: "request-id" }, "Request"), id, el("button", { type: "submit" }, "Explain"));
  const root = el(
    "div",
    {},
    el("h1", {}, "Usage"),
    card("Sums", el("div", { class: "row" }, byChoice, sinceChoice), table),
    card("Requests", form, el("p", { class: "dim" }, "A request's name is in its receipt and in the header x-request-id."), list),
  );
  async function refresh() {
    const asked = [by.value, since.value];
    const found = await get(`${usagePath(who)}?by=${asked[0]}&since=${asked[1]}`);
    // Another choice has been made meanwhile, and is asked for.
    if (String(asked) !== String([by.value, since.value])) return;
    show(table, [found.data, asked], () => sums(found, asked[0]));
    const records = (await latest.read(who)).slice(0, SHOWN);
    show(list, records, () => requests(records, found.currency));
  }
  [by, since].forEach((select) => select.addEventListener("change", () => refresh().catch(() => {})));
  return { root, refresh, everyMs: 5_000 };
}
