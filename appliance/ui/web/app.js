// Sign in, the views, and the one loop that keeps the view that is seen up to date.
//
//   signed out ── a key that the server knows ──▶ signed in ── a view is chosen ──▶ asked, shown, asked again …
//       ▲────────── sign out, or 401 ─────────────────┘

import { Refused, get, key, whyNot } from "./api.js";
import { budgets } from "./budgets.js";
import { chat } from "./chat.js";
import { announce, byId, el, problem } from "./dom.js";
import { request } from "./explain.js";
import { functions } from "./functions.js";
import { overview } from "./overview.js";
import { usage } from "./usage.js";
import { wakes } from "./wakes.js";

const VIEWS = [
  { name: "overview", title: "Overview", make: overview },
  { name: "chat", title: "Chat", make: chat },
  { name: "wakes", title: "Wakes", make: wakes },
  { name: "usage", title: "Usage", make: usage },
  { name: "budgets", title: "Budgets", make: budgets },
  { name: "functions", title: "Functions", make: functions, admin: true },
];
const PAUSE_MS_MAX = 30_000;
const THEMES = ["auto", "light", "dark"];

let who;
let seen;
let timer;
let turn = 0;
let live = true;
let reached = true;
// The chat outlives a look at another view.
let kept;

// The view and what it shows: `#usage`, `#request/req-…`.
function place() {
  const [name, id] = location.hash.slice(1).split("/");
  if (name === "request" && id) return { name, id };
  const view = VIEWS.find((each) => each.name === name && (!each.admin || who.kind === "admin"));
  return { name: (view ?? VIEWS[0]).name };
}

function make({ name, id }) {
  if (name === "request") return request(who, id);
  if (name === "chat") return (kept ??= chat(who));
  return VIEWS.find((view) => view.name === name).make(who);
}

function enter() {
  clearTimeout(timer);
  problem();
  const at = place();
  seen = make(at);
  turn += 1;
  byId("view").replaceChildren(seen.root);
  seen.entered?.();
  byId("views").querySelectorAll("a").forEach((link) => {
    if (link.hash === `#${at.name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  const title = seen.root.querySelector("h1").textContent;
  document.title = `${title} · Ember`;
  announce(title);
  again(turn, seen.everyMs);
}

// Asks, and asks again after a pause that grows while that fails; not while nobody looks.
async function again(of, pauseMs) {
  if (!who || of !== turn) return;
  let failed = false;
  try {
    if (!document.hidden) {
      await seen.refresh();
      if (of !== turn) return;
      problem();
      standing(true);
      pauseMs = seen.everyMs;
    }
  } catch (error) {
    failed = true;
    if (of !== turn) return;
    if (error instanceof Refused && error.status === 401) return signOut("The server knows this key no more.");
    problem(whyNot(error));
    standing(error instanceof Refused);
    pauseMs = Math.min(PAUSE_MS_MAX, Math.max(1_000, pauseMs) * 2);
  }
  if (live && (failed || seen.everyMs > 0)) timer = setTimeout(() => again(of, pauseMs), pauseMs);
}

// Whether what is shown is kept up to date, and what was shown last is of now.
function standing(isReached) {
  reached = isReached;
  byId("live").textContent = !live ? "Paused" : reached ? "Live" : "Not reached";
  byId("live").classList.toggle("lost", !reached);
  byId("view").classList.toggle("stale", !reached);
}

function shell(signedIn) {
  for (const id of ["views", "who", "live", "sign-out"]) byId(id).hidden = !signedIn;
  byId("sign-in").hidden = signedIn;
}

async function signIn() {
  who = await get("/ember/v1/key");
  if (who.kind === "telemetry") {
    who = undefined;
    throw new Refused(403, "this key reads metrics and nothing else; use an admin key, or one that calls functions");
  }
  key.keep();
  const may = VIEWS.filter((view) => !view.admin || who.kind === "admin");
  byId("views").replaceChildren(...may.map((view) => el("a", { href: `#${view.name}` }, view.title)));
  byId("who").textContent = who.kind === "admin" && who.name !== "admin" ? `${who.name} (admin)` : who.name;
  byId("key").value = "";
  byId("sign-in-error").textContent = "";
  shell(true);
  enter();
}

function signOut(why = "") {
  clearTimeout(timer);
  turn += 1;
  seen?.leave?.();
  kept?.leave?.();
  key.forget();
  [who, seen, kept] = [undefined, undefined, undefined];
  byId("view").replaceChildren();
  byId("views").replaceChildren();
  byId("who").textContent = "";
  problem();
  standing(true);
  shell(false);
  document.title = "Ember";
  byId("sign-in-error").textContent = why;
  byId("key").focus();
}

async function tryKey(event) {
  event.preventDefault();
  byId("sign-in-error").textContent = "";
  key.use(byId("key").value.trim());
  try {
    await signIn();
    byId("main").focus();
  } catch (error) {
    const why = error instanceof Refused && error.status === 401 ? "This key opens nothing here" : "Not signed in";
    signOut(`${why}: ${error instanceof Refused ? error.message : "the server does not answer"}.`);
  }
}

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme").textContent = `Theme: ${name}`;
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  localStorage.setItem("ember-theme", next);
  theme(next);
}

function toggleLive() {
  live = !live;
  byId("live").setAttribute("aria-pressed", String(live));
  standing(reached);
  clearTimeout(timer);
  if (live && seen) again((turn += 1), seen.everyMs);
}

theme(THEMES.find((name) => name === localStorage.getItem("ember-theme")) ?? "auto");
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
byId("theme").addEventListener("click", nextTheme);
byId("live").addEventListener("click", toggleLive);
byId("sign-out").addEventListener("click", () => signOut());
byId("sign-in").addEventListener("submit", tryKey);
addEventListener("hashchange", () => who && enter());
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !who || !live) return;
  clearTimeout(timer);
  again((turn += 1), seen.everyMs);
});
if (key.read()) signIn().catch((error) => signOut(whyNot(error)));
else signOut();
