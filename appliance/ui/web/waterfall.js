// Where the time to a request's first token went: its parts, decided from its record and the wakes that are known, and drawn
// as bars with their values in words.

import { el, foundAt, requestLink } from "./dom.js";
import { clock, ms, zone } from "./numbers.js";

// In the order in which they happen.
export const PARTS = [
  ["queue", "queue", "waiting for a turn"],
  ["find", "read and decode", "finding the snapshot, reading and decoding it"],
  ["process", "sandbox and map", "making the sandboxed process, and mapping its memory; a cold one loads its model there"],
  ["ready", "threads", "starting its threads"],
  ["handover", "hand over", "from the warden to the server"],
  ["wake", "wake", "waiting for the wake, whose parts are not known"],
  ["prompt", "prompt", "feeding the prompt"],
  ["first", "first token", "the first token, until its text was there"],
];
const WORDS = Object.fromEntries(PARTS.map(([part, words]) => [part, words]));

// The wake that a request waited for: of its function, from its tier, up while it was under way; the earliest of them.
export function wakeOf(record, wakes) {
  const fits = (wake) =>
    wake.function === record.function &&
    wake.tier === record.tier &&
    wake.ended_unix_ms >= record.came_unix_ms - 50 &&
    wake.ended_unix_ms <= record.ended_unix_ms + 50;
  return wakes.filter(fits).sort((a, b) => a.ended_unix_ms - b.ended_unix_ms)[0];
}

// [{ part, us }] that follow each other from when the request came. What was waited for is the last of its wake, since others
// may have begun it; and what the wake's own parts do not account for is its hand-over.
export function parts(record, wakes) {
  const wake = record.wake_us > 0 ? wakeOf(record, wakes) : undefined;
  const shown = [{ part: "queue", us: record.queue_us }];
  if (wake) {
    const told = [["find", wake.find_us], ["process", wake.process_us], ["ready", wake.ready_us], ["handover", wake.handover_us]];
    let missed = told.reduce((sum, [, us]) => sum + us, 0) - record.wake_us;
    for (const [part, us] of told) {
      const gone = Math.min(us, Math.max(0, missed));
      missed -= gone;
      shown.push({ part, us: us - gone });
    }
    if (missed < 0) shown.at(-1).us -= missed;
  } else {
    shown.push({ part: "wake", us: record.wake_us });
  }
  shown.push({ part: "prompt", us: record.prefill_us });
  const before = shown.reduce((sum, { us }) => sum + us, 0);
  shown.push({ part: "first", us: Math.max(0, record.first_text_us - before) });
  return shown.filter(({ us }) => us > 0);
}

export const total = (shown) => shown.reduce((sum, { us }) => sum + us, 0);

const legend = (seen) =>
  el("ul", { class: "legend", "aria-label": "Parts" }, PARTS.filter(([part]) => seen.has(part)).map(([part, words, help]) => el("li", { title: help }, el("span", { class: `swatch ${part}`, "aria-hidden": "true" }), words)));

function bar(shown, longest) {
  const spans = shown.map(({ part, us }) => el("span", { class: part, vars: { "--us": us } }));
  const rest = el("span", { class: "rest", vars: { "--us": Math.max(0, longest - total(shown)) } });
  return el("div", { class: "bar", "aria-hidden": "true" }, spans, rest);
}

const words = (shown) =>
  el("p", { class: "parts" }, shown.map(({ part, us }) => el("span", {}, `${WORDS[part]} ${ms(us)}`)));

function line(record, wakes, longest, place) {
  const shown = parts(record, wakes);
  const then = record.tokens_out > 1 && `${record.tokens_out} tokens`;
  const ended = record.outcome !== "completed" && record.outcome.replaceAll("_", " ");
  const more = [then, ended].filter(Boolean).join(" · ");
  const came = `${clock(record.came_unix_ms)} ${zone(record.came_unix_ms)}`;
  const head = el(
    "div",
    { class: "line-head" },
    place ? requestLink(record.request, place, came) : came,
    el("span", { class: "name" }, record.function),
    el("span", {}, foundAt(record)),
    el("strong", {}, record.first_text_us > 0 ? `${ms(record.first_text_us)} to first token` : "no text"),
    more && el("span", { class: "dim" }, more),
  );
  return el("li", {}, head, bar(shown, longest), words(shown));
}

// The newest requests, all on one scale; each leads to its bill, but where that is the place.
export function waterfall(records, wakes, place) {
  if (records.length === 0) return [el("p", { class: "none" }, "No request has ended yet. Ask something in the chat.")];
  const all = records.map((record) => parts(record, wakes));
  const longest = Math.max(...all.map(total));
  const seen = new Set(all.flat().map(({ part }) => part));
  return [legend(seen), el("ol", { class: "waterfall" }, records.map((record) => line(record, wakes, longest, place)))];
}
