/**
 * Web vitals of the current page view: a file of its own (`script-vitals.js`), which the tracker loads where
 * `data-performance="true"`. Times in ms; CLS has no unit.
 *
 * Browsers keep either file for a day, so each may meet an older one of the other: what passes between them stays.
 */
import { attempt } from "./store";

export type Values = { [name in "lcp" | "inp" | "cls" | "fcp" | "ttfb"]?: number };

/** The functions of this file that the tracker holds. */
export interface Vitals {
  /** Sends what has been measured of this page view, if that has not happened yet. */
  report(): void;
  /** The next view of a page that stays began at `ms` of the page's own time: measures only what can happen again. */
  restart(ms: number): void;
}

/** The script tag of this file. Through it the tracker gets the functions that measure, and gives the one that sends. */
export type VitalsScript = HTMLScriptElement & { begin?: (vitals: Vitals) => (values: Values) => unknown };

/** The fields of the browsers' newest entry types beyond the standard declarations. */
type Entry = PerformanceEntry & { value: number; hadRecentInput: boolean; interactionId: number };

const enum Max {
  /** The collector refuses more. */
  VALUE = 60_000,
  /** When a view is reported that nobody has left. */
  VIEW_MS = 10_000,
}

let values: Values = {};
let reported = false;
/** When the current view began: 0 while it is the page itself. Shifts before it belong to another. */
let since = 0;
let shiftsSum = 0;
let shiftsFirst = 0;
let shiftsLast = 0;

const observers: (() => void)[] = [];

let timer: number | undefined;
let send: ((values: Values) => unknown) | undefined;

const report = (): void => {
  if (reported) return;
  reported = true;
  observers.forEach((flush) => flush());
  if (Object.keys(values)[0]) attempt(() => send!(values));
};

const schedule = (): void => {
  clearTimeout(timer);
  timer = setTimeout(report, Max.VIEW_MS);
};

const restart = (ms: number): void => {
  reported = false;
  since = ms;
  values = "cls" in values ? { cls: 0 } : {};
  shiftsSum = 0;
  schedule();
};

/** Later values count if they are larger; those of LCP are. */
const raise = (name: keyof Values, value: number): void => {
  values[name] = Math.max(values[name] || 0, Math.min(value, Max.VALUE));
};

/** The same for what happens once, while the page itself is the view. */
const raiseFirst = (name: keyof Values, value: number): void => {
  if (!since) raise(name, value);
};

/** Passes entries of `type`, also those before now, to `process`. False if the browser has none. */
const observe = (type: string, process: (entry: Entry) => void): unknown =>
  attempt(() => {
    if (!PerformanceObserver.supportedEntryTypes.includes(type)) return false;
    const processAll = (entries: PerformanceEntryList): void => (entries as Entry[]).forEach(process);
    const observer = new PerformanceObserver((list) => processAll(list.getEntries()));
    observer.observe({ type, buffered: true, durationThreshold: 40 } as PerformanceObserverInit);
    return observers.push(() => processAll(observer.takeRecords()));
  });

/** INP would leave out one of every fifty interactions, but nobody makes as many before it is reported. */
const interacted = ({ interactionId, duration }: Entry): void => {
  if (interactionId) raise("inp", duration);
};

/** CLS is the largest sum of shifts that lie at most 1 s apart and within 5 s. */
const shifted = ({ hadRecentInput, startTime, value }: Entry): void => {
  if (hadRecentInput || startTime < since) return;
  if (startTime - shiftsLast > 1_000 || startTime - shiftsFirst > 5_000) {
    shiftsSum = 0;
    shiftsFirst = startTime;
  }
  shiftsLast = startTime;
  shiftsSum += value;
  raise("cls", shiftsSum);
};

attempt(() =>
  raise("ttfb", (performance.getEntriesByType("navigation")[0] as PerformanceResourceTiming).responseStart),
);
// The paints of a hidden page are not those that a visitor saw.
if (!document.hidden) {
  observe("largest-contentful-paint", ({ startTime }) => raiseFirst("lcp", startTime));
  observe("paint", ({ name, startTime }) => name.endsWith("l-paint") && raiseFirst("fcp", startTime));
}
if (observe("layout-shift", shifted)) raise("cls", 0);
observe("first-input", interacted);
observe("event", interacted);
attempt(() => {
  send = (document.currentScript as VitalsScript).begin!({ report, restart });
});
// The view of a page begins when the page is complete.
if (document.readyState === "complete") schedule();
else addEventListener("load", schedule);
