// The API, asked with the key that was typed in. A key that opens something is kept in sessionStorage and in no other place,
// so that it ends with the tab.

const KEY = "ember-key";
const ANSWER_MS_MAX = 15_000;
// Lines of Prometheus' text that are of use here, at most.
const LINES_MAX = 20_000;

let used = sessionStorage.getItem(KEY) ?? "";

export const key = {
  read: () => used,
  // What a header cannot carry is no key.
  use: (text) => (used = /^[\x21-\x7e]+$/.test(text) ? text : "-"),
  keep: () => sessionStorage.setItem(KEY, used),
  forget: () => {
    used = "";
    sessionStorage.removeItem(KEY);
  },
};

export class Refused extends Error {
  constructor(status, message, request) {
    super(message);
    [this.status, this.request] = [status, request];
  }
}

export const whyNot = (error) => (error instanceof Refused ? error.message : "The server does not answer.");

async function refused(response) {
  const text = await response.text();
  let message = `the server answered ${response.status}`;
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch {
    // Not one of Ember's answers: its status is all there is to say.
  }
  return new Refused(response.status, message, response.headers.get("x-request-id"));
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, authorization: `Bearer ${used}` };
  const signal = options.signal ?? AbortSignal.timeout(ANSWER_MS_MAX);
  const response = await fetch(path, { ...options, headers, signal, cache: "no-store", credentials: "omit", redirect: "error" });
  if (!response.ok) throw await refused(response);
  return response;
}

export const get = async (path) => (await ask(path)).json();

// Records, a line each, the oldest first: so many pages at most, and whether those are all.
async function records(path) {
  const rows = [];
  let after = "";
  for (let page = 0; page < PAGES_MAX; page += 1) {
    const response = await ask(`${path}&limit=${KEPT}${after}`);
    const text = await response.text();
    rows.push(...text.split("\n").filter(Boolean).map((line) => JSON.parse(line)));
    const next = response.headers.get("x-ember-next");
    if (!next) return { rows, whole: true };
    after = `&after=${encodeURIComponent(next)}`;
  }
  return { rows, whole: false };
}

// Gauges and counters by name and labels: { 'ember_cores': 2, 'ember_functions{tier="cold"}': 0 }.
export async function metrics() {
  const text = await (await ask("/metrics")).text();
  const rows = text.split("\n", LINES_MAX).filter((line) => line.startsWith("ember_"));
  return Object.fromEntries(rows.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
}

// A chat, event by event: heard(event) has what a `data:` line says, waits(text) what a comment does.
export async function chat(body, signal, { began, heard, waits }) {
  const headers = { "content-type": "application/json" };
  const response = await ask("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  began(response.headers.get("x-request-id"));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const line of parts) {
      if (line.startsWith(":")) waits(line.slice(1).trim());
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      heard(JSON.parse(data));
    }
  }
}

// Where this key finds what was used: an admin key all of it, any other its own.
export const usagePath = (who) => (who.kind === "admin" ? "/ember/v1/usage" : "/ember/v1/key/usage");

// The latest records, the last one first: looks further and further back until there are some.
const BACK = ["2m", "15m", "2h", "24h", "168h"];
const ENOUGH = 50;
const KEPT = 500;
const PAGES_MAX = 4;

export class Latest {
  #records = [];
  #since = 0;

  async read(who) {
    const since = (when) => records(`${usagePath(who)}/records?since=${when}`);
    let fresh = [];
    let all = true;
    if (this.#since > 0) {
      ({ rows: fresh, whole: all } = await since(this.#since));
    } else {
      for (const back of BACK) {
        const { rows, whole } = await since(back);
        // What is cut off are the latest: then those of less long ago are better.
        if (!whole && fresh.length > 0) break;
        fresh = rows;
        if (fresh.length >= ENOUGH) break;
      }
    }
    const known = new Set(this.#records.map((record) => record.request));
    const added = fresh.filter((record) => !known.has(record.request)).reverse();
    this.#records = [...added, ...this.#records].sort((a, b) => b.ended_unix_ms - a.ended_unix_ms).slice(0, KEPT);
    // Records of one moment may become known one after the other; but more at once than are read must be got past.
    const [last] = this.#records;
    if (last) this.#since = Math.max(1, last.ended_unix_ms - (all ? 2_000 : 0));
    return this.#records;
  }
}
