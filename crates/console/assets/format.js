// Numbers and times as people read them, in the browser's language.

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 12,345 */
export const count = (value) => (isNumber(value) ? whole.format(value) : "–");

/** 12.3K */
export const brief = (value) => (isNumber(value) ? (Math.abs(value) < 10_000 ? whole.format(value) : short.format(value)) : "–");

/** A rate: two significant digits when small. */
export const rate = (value) => {
  if (!isNumber(value)) return "–";
  if (value === 0) return "0";
  if (value < 10) return value.toFixed(1);
  return brief(Math.round(value));
};

/** 0.4 ms, 12 ms, 1.3 s */
export const ms = (value) => {
  if (!isNumber(value)) return "–";
  if (value === 0) return "0 ms";
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1_000) return `${Math.round(value)} ms`;
  return seconds(value / 1_000);
};

/** 4.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h */
export const seconds = (value) => {
  if (!isNumber(value)) return "–";
  if (value === 0) return "0 s";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 60) return `${Math.round(value)} s`;
  const all = Math.round(value);
  const pair = (large, name, small, other) => {
    const rest = Math.floor((all % large) / small);
    return `${Math.floor(all / large)} ${name}${rest ? ` ${rest} ${other}` : ""}`;
  };
  if (all < 3_600) return pair(60, "min", 1, "s");
  if (all < 86_400) return pair(3_600, "h", 60, "min");
  return pair(86_400, "d", 3_600, "h");
};

export const bytes = (value) => {
  if (!isNumber(value)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = value < 1_000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  return `${(value / 1_000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
};

/** 38%, 4.2%, <0.1%; never 100% or 0% of something else than all or nothing. */
export const percent = (value) => {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size > 0 && size < 0.001) return "<0.1%";
  const digits = (size > 0 && size < 0.1) || (size > 0.99 && size < 1) ? 1 : 0;
  return size > 0.999 && size < 1 ? "99.9%" : `${(value * 100).toFixed(digits)}%`;
};

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minutes = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const timeOfDay = (at) => (at ? clock.format(at) : "–");
export const hourMinute = (at) => (at ? minutes.format(at) : "–");
export const dateTime = (at) => (at ? moment.format(at) : "–");

/** "3 min ago" */
export const ago = (at, now = Date.now()) => (at ? `${seconds(Math.max(0, Math.round((now - at) / 1_000)))} ago` : "never");

/** waiting_for_store → waiting for store */
export const words = (name) => String(name ?? "–").replaceAll("_", " ");
