// Numbers as people read them. Pure.

export function ms(us) {
  const value = us / 1000;
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 100 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
}

export function bytes(count) {
  if (count === undefined || count === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

// Billionths as an exact decimal.
export function money(nanos, currency = "") {
  const [whole, rest] = [Math.floor(nanos / 1e9), String(nanos % 1e9).padStart(9, "0").replace(/0+$/, "")];
  return `${whole}.${rest.padEnd(2, "0")} ${currency}`.trim();
}

export const count = (number) => number.toLocaleString("en");

export const many = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

// The short name of this browser's time zone at a moment.
export const zone = (unixMs) => new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(unixMs).find(({ type }) => type === "timeZoneName").value;

export const hour = (unixMs) => new Date(unixMs).toLocaleString("sv").slice(0, 16);

export const moment = (unixMs) => `${new Date(unixMs).toLocaleString("sv")} ${zone(unixMs)}`;

export const clock = (unixMs) => new Date(unixMs).toLocaleTimeString("sv");

export function span(milliseconds) {
  const hours = milliseconds / 3_600_000;
  if (hours >= 48) return `${Math.floor(hours / 24)} days`;
  return hours >= 2 ? `${Math.floor(hours)} hours` : many(Math.max(0, Math.ceil(hours * 60)), "minute");
}

// The least of the values that so many of them do not exceed.
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}
