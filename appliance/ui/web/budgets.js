// Budgets: what may be spent, what is, and when that begins anew.

import { get } from "./api.js";
import { card, el, meter, show, table } from "./dom.js";
import { money, moment, span } from "./numbers.js";

const used = (row) => row.spent_nanos + row.reserved_nanos;

function standing(row) {
  if (used(row) >= row.hard_nanos) return "used up";
  return row.soft_nanos !== null && row.spent_nanos >= row.soft_nanos ? "past its soft limit" : "within";
}

const COLUMNS = [
  { name: "Of", cell: (row) => row.of },
  { name: "Limit", number: true, cell: (row) => `${money(row.hard_nanos, row.currency)} a ${row.period}` },
  { name: "Soft limit", number: true, cell: (row) => (row.soft_nanos === null ? "–" : money(row.soft_nanos)) },
  { name: "Spent", number: true, cell: (row) => money(row.spent_nanos) },
  { name: "Reserved", number: true, cell: (row) => money(row.reserved_nanos) },
  { name: "Left", number: true, cell: (row) => money(Math.max(0, row.hard_nanos - used(row))) },
  { name: "Used", cell: (row) => [meter(`Budget of ${row.of}`, used(row), row.hard_nanos, percent(row)), el("small", {}, percent(row))] },
  { name: "Stands", cell: standing },
  { name: "Resets", cell: (row) => `${moment(row.resets_unix_ms)} (in ${span(row.resets_unix_ms - Date.now())})` },
];

const percent = (row) => `${row.hard_nanos > 0 ? ((100 * used(row)) / row.hard_nanos).toFixed(1) : "100.0"} %`;

export function budgets(who) {
  const place = el("div");
  const lead = "Reserved before a request runs, settled after it; requests at once cannot overshoot.";
  const root = el("div", {}, el("h1", {}, "Budgets"), el("p", { class: "lead" }, lead), card("Budgets", place));
  async function refresh() {
    const own = async () => [(await get("/ember/v1/key")).budget].filter(Boolean);
    const rows = who.kind === "admin" ? (await get("/ember/v1/budgets")).data : await own();
    const none = who.kind === "admin" ? "None is set: ember budget set function:NAME 20.00/month does that." : "This key has none of its own.";
    show(place, [rows, Math.floor(Date.now() / 60_000)], () => [table("Budgets", COLUMNS, rows, none)]);
  }
  return { root, refresh, everyMs: 10_000 };
}
