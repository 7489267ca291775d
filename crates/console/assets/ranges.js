// The time that a traffic view is about, and its unit.

const DAY = 86_400_000;

/** The beginning of the day, so many days later. */
export const dayStart = (at, days = 0) => {
  const date = new Date(at);
  return new Date(date.getFullYear(), date.getMonth(), date.getDate() + days).getTime();
};

const monthStart = (at, months) => {
  const date = new Date(at);
  return new Date(date.getFullYear(), date.getMonth() + months, 1).getTime();
};

/** By its name in the address: a title, and what it covers now. Ends are inclusive, as the API's are. */
export const RANGES = {
  today: { title: "Today", of: (now) => ({ startAt: dayStart(now), endAt: dayStart(now, 1) - 1, unit: "hour" }) },
  "24h": { title: "24 hours", of: (now) => ({ startAt: now - DAY, endAt: now, unit: "hour" }) },
  "7d": { title: "7 days", of: (now) => ({ startAt: dayStart(now, -6), endAt: dayStart(now, 1) - 1, unit: "day" }) },
  "30d": { title: "30 days", of: (now) => ({ startAt: dayStart(now, -29), endAt: dayStart(now, 1) - 1, unit: "day" }) },
  "90d": { title: "90 days", of: (now) => ({ startAt: dayStart(now, -89), endAt: dayStart(now, 1) - 1, unit: "day" }) },
  "12m": { title: "12 months", of: (now) => ({ startAt: monthStart(now, -11), endAt: dayStart(now, 1) - 1, unit: "month" }) },
};

/** A range by its name: one of those, or two days such as `2026-11-01~2026-11-07`. */
export const rangeOf = (name, now = Date.now()) => {
  if (RANGES[name]) return { name, ...RANGES[name].of(now) };
  const [from, to] = (name ?? "").split("~").map((text) => new Date(`${text}T00:00:00`).getTime());
  if (!(from <= to)) return { name: "7d", ...RANGES["7d"].of(now) };
  const endAt = dayStart(to, 1) - 1;
  const days = (endAt - from) / DAY;
  return { name, startAt: from, endAt, unit: days <= 2 ? "hour" : days <= 180 ? "day" : "month" };
};

/** 2026-11-07, of the day here. */
export const dateText = (at) => {
  const date = new Date(at);
  const two = (number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
};

const forms = {
  hour: { hour: "2-digit", minute: "2-digit", weekday: "short" },
  day: { day: "numeric", month: "short" },
  month: { month: "short", year: "numeric" },
};
const tickForms = { ...forms, hour: { hour: "2-digit", minute: "2-digit" } };
const format = (of, unit, at) => new Intl.DateTimeFormat(undefined, of[unit] ?? of.hour).format(at);

/** A bucket's beginning in words, and on an axis. */
export const bucketLabel = (unit) => (at) => format(forms, unit, at);
export const bucketTick = (unit) => (at) => format(tickForms, unit, at);
