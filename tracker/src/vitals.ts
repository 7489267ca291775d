/** Web vitals of the current page view. Times in ms; CLS has no unit. */
import { attempt } from "./store";

export type Vitals = { [name in "lcp" | "inp" | "cls" | "fcp" | "ttfb"]?: number };

/** What the browsers' newest entry types hold beyond the standard declarations. */
type Entry = PerformanceEntry & { value: number; hadRecentInput: boolean; interactionId: number };

const enum Max {
  /** The collector refuses more. */
  VALUE = 60_000,
}

let vitals: Vitals = {};
/** Nothing to report until somebody watches. */
let reported = true;
let shiftsSum = 0;
let shiftsFirst = 0;
let shiftsLast = 0;

const observers: (() => void)[] = [];

/** Starts measuring the page view that began with the page. */
export const watchVitals = (): void => {
  reported = false;
  attempt(() => raise("ttfb", (performance.getEntriesByType("navigation")[0] as PerformanceResourceTiming).responseStart));
  // What a hidden page paints says nothing about what somebody saw.
  if (!document.hidden) {
    observe("largest-contentful-paint", ({ startTime }) => raise("lcp", startTime));
    observe("paint", ({ name, startTime }) => name.endsWith("l-paint") && raise("fcp", startTime));
  }
  if (observe("layout-shift", shifted)) raise("cls", 0);
  observe("first-input", interacted);
  observe("event", interacted);
};

/** What has been measured of this page view, once. */
export const takeVitals = (): Vitals | "" | undefined => {
  if (reported) return undefined;
  reported = true;
  observers.forEach((flush) => flush());
  return Object.keys(vitals)[0] && vitals;
};

/** Starts measuring the next view of a page that stays: only what can happen again. */
export const restartVitals = (): void => {
  reported = false;
  vitals = "cls" in vitals ? { cls: 0 } : {};
  shiftsSum = 0;
};

/** Later values count if they are larger; those of LCP are. */
const raise = (name: keyof Vitals, value: number): void => {
  vitals[name] = Math.max(vitals[name] || 0, Math.min(value, Max.VALUE));
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
  if (hadRecentInput) return;
  if (startTime - shiftsLast > 1_000 || startTime - shiftsFirst > 5_000) {
    shiftsSum = 0;
    shiftsFirst = startTime;
  }
  shiftsLast = startTime;
  shiftsSum += value;
  raise("cls", shiftsSum);
};
