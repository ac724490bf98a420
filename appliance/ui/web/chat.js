// A chat with a function, streamed; below each answer what it took and what it cost. Nothing of it is kept anywhere.

import { Refused, chat as ask, get, usagePath, whyNot } from "./api.js";
import { announce, el, requestLink, tier } from "./dom.js";
import { count, money } from "./numbers.js";

const TURNS_MAX = 200;
const TRIES = 7;
const PAUSE_MS = 250;
const NEAR_PX = 80;

const rest = (ms) => new Promise((done) => setTimeout(done, ms));

const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));

function facts({ receipt, firstMs, tokens, perSecond, ended }) {
  // Memory is reserved for what came so far that its function was looked for.
  const looked = receipt?.memory_mib > 0;
  return el(
    "dl",
    { class: "timings" },
    looked && fact("found", tier(receipt.tier)),
    receipt && receipt.queue_ms >= 1 && fact("queue", `${receipt.queue_ms.toFixed(1)} ms`),
    looked && fact("wake", `${receipt.wake_ms.toFixed(1)} ms`),
    firstMs !== undefined && fact("first token", `${firstMs.toFixed(0)} ms`),
    tokens > 0 && fact("tokens", count(tokens)),
    perSecond > 0 && fact("speed", `${perSecond.toFixed(1)} tokens/s`),
    receipt && fact("cost", money(receipt.cost_nanos, receipt.currency)),
    ended && fact("ended", ended),
    receipt && fact("bill", requestLink(receipt.request_id, "chat", "explain")),
  );
}

const told = (heard) => [heard.error && el("p", { class: "error" }, whyNot(heard.error)), facts(heard)].filter(Boolean);

// What a request that was broken off or refused had used, once the ledger has it.
async function receiptOf(who, id) {
  for (let tried = 0; tried < TRIES; tried += 1) {
    await rest(PAUSE_MS * 2 ** tried);
    try {
      const found = await get(`${usagePath(who)}/${id}`);
      if (found.record.ended_unix_ms > 0 && found.receipt) return found;
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 404) return undefined;
    }
  }
  return undefined;
}

export function chat(who) {
  const turns = [];
  let running;
  // Which conversation it is: an answer that ends after another was begun is not that one's.
  let talk = 0;
  const model = el("select", { id: "model" });
  const log = el("div", { class: "log", role: "log", tabindex: "0", "aria-label": "Conversation" });
  const text = el("textarea", { id: "message", rows: "2", required: true, maxlength: "100000", placeholder: "Ask something" });
  const send = el("button", { type: "submit", class: "primary" }, "Send");
  const stop = el("button", { type: "button", disabled: true, onclick: () => running?.abort() }, "Stop");
  const anew = el("button", { type: "button", onclick: () => clear() }, "New chat");

  function clear() {
    running?.abort();
    talk += 1;
    turns.length = 0;
    log.replaceChildren();
    text.focus();
  }

  function busy(is) {
    [send.disabled, stop.disabled, log.ariaBusy] = [is, !is, String(is)];
  }

  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;

  // The end stays in sight, unless somebody has scrolled up to read.
  function grow(change) {
    const follow = atEnd();
    change();
    if (follow) log.scrollTop = log.scrollHeight;
  }

  // Where somebody reads: a look at another view takes the log to its top.
  let reads;
  log.addEventListener("scroll", () => (reads = atEnd() ? undefined : log.scrollTop));
  const entered = () => (log.scrollTop = reads ?? log.scrollHeight);

  function bubble(role, words) {
    const said = el("p", { class: "said" }, words);
    const below = el("div", { class: "below" });
    const by = el("span", { class: "role" }, role === "user" ? "You" : model.value);
    log.append(el("div", { class: `bubble ${role}` }, by, said, below));
    log.scrollTop = log.scrollHeight;
    return { said, below };
  }

  async function answer(body, place, signal) {
    const began = performance.now();
    const heard = { text: "", firstMs: undefined, receipt: undefined, tokens: 0, perSecond: 0, id: undefined, ended: undefined };
    const take = (event) => {
      if (event.error) throw new Refused(0, event.error.message);
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) {
        heard.firstMs ??= performance.now() - began;
        heard.text += piece;
        grow(() => (place.said.textContent = heard.text));
      }
      const reason = event.choices?.[0]?.finish_reason;
      if (reason && reason !== "stop") heard.ended = reason;
      if (event.usage) [heard.receipt, heard.tokens] = [event.usage.ember, event.usage.completion_tokens];
      if (event.timings) heard.perSecond = event.timings.predicted_per_second;
    };
    const waits = (words) => grow(() => (place.below.textContent = words));
    try {
      await ask(body, signal, { began: (id) => (heard.id = id), heard: take, waits });
    } catch (error) {
      if (!signal.aborted) heard.error = error;
      heard.id ??= error.request;
      heard.ended = signal.aborted ? "stopped" : undefined;
    }
    return heard;
  }

  async function finish(heard, place) {
    const tell = (more) => grow(() => place.below.replaceChildren(...told({ ...heard, ...more })));
    if (!heard.text) place.said.remove();
    tell();
    announce(heard.error ? `No answer: ${whyNot(heard.error)}` : heard.ended === "stopped" ? "Stopped." : "Answered.");
    if (heard.receipt || !heard.id) return;
    const found = await receiptOf(who, heard.id);
    if (found) tell({ receipt: found.receipt, tokens: found.record.tokens_out });
  }

  async function sent(event) {
    event.preventDefault();
    const words = text.value.trim();
    if (!words || running || !model.value) return;
    text.value = "";
    bubble("user", words);
    turns.push({ role: "user", content: words });
    const [place, control] = [bubble("assistant", ""), new AbortController()];
    running = control;
    busy(true);
    const body = { model: model.value, messages: turns.slice(-TURNS_MAX), stream: true, stream_options: { include_usage: true } };
    const of = talk;
    const heard = await answer(body, place, control.signal);
    if (of === talk && heard.text) turns.push({ role: "assistant", content: heard.text });
    else if (of === talk) turns.pop();
    running = undefined;
    busy(false);
    await finish(heard, place);
  }

  const typed = (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  };
  text.addEventListener("keydown", typed);
  const keys = el("p", { class: "hint", id: "keys" }, "Enter sends, Shift+Enter begins a line, Escape stops.");
  text.setAttribute("aria-describedby", "keys");
  const form = el(
    "form",
    { class: "ask", onsubmit: sent },
    el("label", { for: "message", class: "hidden" }, "Message"),
    text,
    el("div", { class: "row" }, send, stop, anew),
    keys,
  );
  const root = el(
    "div",
    { class: "chat" },
    el("div", { class: "row spread" }, el("h1", {}, "Chat"), el("span", { class: "choice" }, el("label", { for: "model" }, "Function"), model)),
    el("section", { class: "card", "aria-label": "Chat" }, log, form),
  );

  async function refresh() {
    const names = (await get("/v1/models")).data.map((entry) => entry.id);
    const known = [...model.options].map((option) => option.value);
    if (JSON.stringify(names) === JSON.stringify(known)) return;
    const chosen = model.value;
    model.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    if (names.includes(chosen)) model.value = chosen;
  }
  return { root, refresh, entered, everyMs: 15_000, leave: () => running?.abort() };
}
