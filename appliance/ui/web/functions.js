// Deployed functions: where each stands, and how large its model and its snapshot are.

import { get } from "./api.js";
import { card, el, show, table, tier } from "./dom.js";
import { bytes, count } from "./numbers.js";

const COLUMNS = [
  { name: "Function", cell: (row) => row.name },
  { name: "Tier", cell: (row) => tier(row.tier) },
  { name: "Instances", number: true, cell: (row) => `${row.instances} of ${row.max}` },
  { name: "Reserved each", number: true, cell: (row) => bytes(row.reserved_bytes) },
  { name: "Model", number: true, cell: (row) => bytes(row.model_bytes) },
  { name: "Snapshot", number: true, cell: (row) => (row.snapshot?.file_bytes ? bytes(row.snapshot.file_bytes) : "none") },
  { name: "of the model", number: true, cell: (row) => share(row.snapshot?.file_bytes, row.model_bytes) },
  { name: "In memory", number: true, cell: (row) => (row.snapshot?.parked_bytes ? bytes(row.snapshot.parked_bytes) : "–") },
  { name: "Usable", cell: (row) => (row.snapshot ? (row.snapshot.current ? "yes" : "no: taken again at the next wake") : "–") },
];

const share = (part, whole) => (part && whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

export function functions() {
  const [place, lead] = [el("div"), el("p", { class: "lead" })];
  const root = el("div", {}, el("h1", {}, "Functions"), lead, card("Functions and their snapshots", place));
  async function refresh() {
    const [all, snapshots] = await Promise.all([get("/ember/v1/functions"), get("/ember/v1/snapshots")]);
    const rows = all.data.map((row) => ({ ...row, snapshot: snapshots.data.find((entry) => entry.function === row.name) }));
    const stored = snapshots.data.reduce((sum, entry) => sum + entry.file_bytes, 0);
    lead.textContent = `${count(rows.length)} deployed; snapshots take ${bytes(stored)} on disk.`;
    show(place, rows, () => [table("Functions and their snapshots", COLUMNS, rows, "No function is deployed: ember deploy FILE.toml does that.")]);
  }
  return { root, refresh, everyMs: 5_000 };
}
