// Elements, made from values. Text goes in as text nodes, so nothing that a server says is ever read as markup.

export const byId = (id) => document.getElementById(id);

// el("a", { href: "#x", class: "y", onclick: f, vars: { "--part": 3 } }, "text", node)
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") Object.entries(value).forEach(([key, text]) => node.style.setProperty(key, text));
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

const FEW_COLUMNS = 4;

// Columns are { name, number, cell(row) }; a cell of a first column names its row. On a small screen the cells of many columns
// stand below each other, each after its column's name; the roles keep it a table there.
export function table(caption, columns, rows, none) {
  if (rows.length === 0) return el("p", { class: "none" }, none);
  const head = columns.map((column) => el("th", { scope: "col", role: "columnheader", class: column.number && "number" }, column.name));
  const cell = (column, row, first) =>
    el(first ? "th" : "td", { scope: first && "row", role: first ? "rowheader" : "cell", class: column.number && "number", "data-name": column.name }, column.cell(row));
  const body = rows.map((row) => el("tr", { role: "row", class: row.total && "total" }, columns.map((column, index) => cell(column, row, index === 0))));
  const parts = [el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head)), el("tbody", { role: "rowgroup" }, body)];
  const all = el("table", { role: "table", class: columns.length > FEW_COLUMNS && "stacks" }, el("caption", { class: "hidden" }, caption), parts);
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption }, all);
}

// How much of a whole is used, as a bar beside its words.
export function meter(label, value, whole, words) {
  const share = whole > 0 ? Math.min(1, value / whole) : 0;
  const bar = { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(share * 100), "aria-valuetext": words };
  return el("div", { ...bar, vars: { "--share": share } }, el("span"));
}

const SIGNS = { running: "●", parked: "◐", stored: "○", cold: "◌" };

export const tier = (name) =>
  el("span", { class: `tier ${SIGNS[name] ? name : "cold"}` }, el("span", { "aria-hidden": "true" }, SIGNS[name] ?? "◌"), ` ${name}`);

// Whether a request came so far that its function was looked for.
export const looked = (record) => record.memory_bytes > 0;

export const foundAt = (record) => (looked(record) ? tier(record.tier) : "–");

export const card = (title, ...children) => el("section", { class: "card", "aria-label": title }, el("h2", {}, title), children);

export const stat = (label, value, note) =>
  el("div", { class: "stat" }, el("dt", {}, label), el("dd", {}, value, note && el("small", {}, note)));

// Puts children in, unless they would say the same; who had the focus keeps it.
export function show(root, seen, children) {
  const state = JSON.stringify(seen);
  if (root.shown === state) return;
  root.shown = state;
  const focused = root.contains(document.activeElement) ? document.activeElement.id : "";
  root.replaceChildren(...children().flat(3).filter(Boolean));
  if (focused) byId(focused)?.focus({ preventScroll: true });
}

export function announce(text) {
  byId("status").textContent = text;
}

export function problem(text) {
  byId("problem").textContent = text ?? "";
  byId("problem").hidden = !text;
}

export const requestLink = (id, place, text) =>
  el("a", { id: `${place}-${id}`, href: `#request/${id}`, title: id }, text ?? id.slice(0, 12));
