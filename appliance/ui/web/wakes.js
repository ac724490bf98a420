// The waterfall of the latest requests, live. It asks what has happened, and calls no function.

import { Latest, get } from "./api.js";
import { card, el, looked, show } from "./dom.js";
import { waterfall } from "./waterfall.js";

const SHOWN = 30;

export function wakes(who) {
  const [latest, rows] = [new Latest(), el("div")];
  const only = el("input", { id: "woken", type: "checkbox" });
  const root = el(
    "div",
    {},
    el("h1", {}, "Wakes"),
    el("p", { class: "lead" }, "Where the time to the first token went, newest first, all on one scale."),
    card("Latest requests", el("label", { class: "check" }, only, " only those that woke a function"), rows),
  );
  async function refresh() {
    const instances = who.kind === "admin" ? await get("/ember/v1/instances") : { wakes: [] };
    const records = await latest.read(who);
    const shown = records.filter((record) => !only.checked || (looked(record) && record.tier !== "running")).slice(0, SHOWN);
    show(rows, [shown, only.checked], () => waterfall(shown, instances.wakes, "wake"));
  }
  only.addEventListener("change", () => refresh().catch(() => {}));
  return { root, refresh, everyMs: 2_000 };
}
