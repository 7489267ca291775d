/**
 * The tracker: counts page views, clicks and web vitals by the attributes of its script tag and offers `window.umami`.
 * Web vitals and the traits of the page's person are files of their own, which are loaded where they are needed.
 *
 * Nothing in here throws into the page. Written from a description of how Umami's tracker behaves, for sites that use it.
 */
import { watchClicks } from "./clicks";
import { add, beginSession, drain, flush, type Kind, type Payload, session, stamp } from "./queue";
import type { Callback, Me } from "./profile";
import { host, isOff, script, settings, website } from "./settings";
import { attempt } from "./store";
import type { Values, Vitals, VitalsScript } from "./vitals";

declare global {
  interface Window {
    umami?: unknown;
    [name: string]: unknown;
  }
}

const enum Delay {
  /** Frameworks set the title after the address. */
  VIEW_MS = 300,
}

/** The address as it is sent, without the parts that the attributes exclude. */
const clean = (url: string): string => {
  if (settings.excludeHash === "true") url = url.replace(/#.*/, "");
  return settings.excludeSearch === "true" ? url.replace(/^([^?#]*)\?[^#]*/, "$1") : url;
};

const isAutomatic = settings.autoTrack !== "false";

let url = clean(location.href);
// Of the site itself none: older versions of Umami would store the site as its own referrer.
let referrer = document.referrer.startsWith(location.origin + "/") ? "" : clean(document.referrer);
let identity = settings.distinctId || undefined;
/** The website's word that this is the identity of whoever is signed in. It is never sent with events. */
let signature = settings.signature;

const base = (): Payload => ({
  website,
  screen: `${screen.width}x${screen.height}`,
  language: navigator.language,
  title: document.title,
  hostname: location.hostname,
  url,
  referrer,
  tag: settings.tag,
  id: identity,
});

const isObject = (value: unknown): value is Payload => !!value && typeof value === "object";

/** Settles when the page's before-send function has decided on everything so far: it may take its time, order stays. */
let decided: Promise<unknown> = Promise.resolve();

/** Resolves when the event has been tried, or at once when it is not to be sent. */
const send = (kind: Kind, payload: unknown): Promise<unknown> => {
  if (isOff() || !isObject(payload)) return decided;
  const ms = stamp();
  const begunIn = session;
  const beforeSend = settings.beforeSend && window[settings.beforeSend];
  if (typeof beforeSend !== "function") return add(kind, payload, ms, begunIn);
  // A function that fails sends nothing: it may be there to take something out.
  const verdict = new Promise((resolve) => resolve(beforeSend(kind, payload))).catch(() => {});
  decided = decided.then(() => verdict);
  return decided.then((changed) => !isOff() && isObject(changed) && add(kind, changed, ms, begunIn)).catch(() => {});
};

const sendEvent = (payload: unknown): Promise<unknown> => send("event", payload);

/** Makes a function of the page's out of ours: it never throws and always gives a promise. */
const safely =
  <A extends unknown[]>(work: (...args: A) => unknown) =>
  (...args: A): Promise<unknown> =>
    Promise.resolve(attempt(() => work(...args)));

const track = safely((what?: unknown, data?: unknown) => {
  if (typeof what === "string") return sendEvent({ ...base(), name: what, data });
  if (typeof what === "function") return sendEvent(what(base()));
  return sendEvent(what == null ? base() : what);
});

const identify = safely((id?: unknown, data?: unknown, signed?: string) => {
  if (isObject(id)) {
    data = id;
    if (typeof id.id === "string") ({ id, ...data } = id);
  }
  if (typeof id === "string") identity = id;
  // The signature of another id opens nothing.
  signature = signed || signature;
  beginSession();
  return send("identify", { ...base(), data });
});

let started = false;
/** Runs while a page view waits for its title. */
let viewTimer = 0;
let vitals: Vitals | undefined;
/** When the current view began, in the page's own time; 0 while it is the page itself. */
let viewMs = 0;
const viewedUrls = new Set<string>();

const countView = (): void => {
  clearTimeout(viewTimer);
  viewTimer = 0;
  viewedUrls.add(url);
  if (settings.autoPageview !== "false") sendEvent(base());
};

/** Sends what is still to be said of the current page view. */
const finishView = (): void => {
  if (viewTimer) countView();
  if (started && vitals) vitals.report();
};

/** The page may have a new address. A `jump` to an anchor is no page view, unless it leads back to one. */
const navigated = safely((jump?: unknown) => {
  const next = clean(location.href);
  if (next === url || (jump && !viewedUrls.has(next) && next.split("#")[0] === url.split("#")[0])) return;
  if (started) {
    finishView();
    referrer = url;
    viewTimer = setTimeout(countView, Delay.VIEW_MS);
    viewMs = performance.now();
    if (vitals) vitals.restart(viewMs);
  }
  url = next;
});

const start = safely(() => {
  started = true;
  if (isAutomatic) countView();
});

const hide = safely(() => {
  finishView();
  flush();
  // And what before-send lets pass after this.
  decided.then(flush);
});

/** Loads a file that lies beside the script, with what it finds on its tag. */
const load = (name: string, held: object): void =>
  document.head.append(
    Object.assign(document.createElement("script"), held, {
      src: script.src.replace(/(\.js)?([?#].*)?$/, `-${name}.js`),
      nonce: script.nonce,
    }),
  );

attempt(() => {
  window.umami = window.umami || {
    track,
    identify,
    getSession: () => ({ cache: session.token, website }),
    // Until the file is there: it brings the function itself.
    profile: (callback: Callback) => isOff() || load("profile", { callback, me: (): Me => [host, website, identity, signature] }),
  };
  if (isAutomatic) {
    for (const name of ["pushState", "replaceState"] as const) {
      const original = history[name];
      history[name] = function (this: History, ...args) {
        original.apply(this, args);
        navigated();
      };
    }
    addEventListener("popstate", navigated);
    // A page kept for back and forward would otherwise have been loaded and counted again.
    addEventListener("pageshow", ({ persisted }) => persisted && countView());
    watchClicks(track);
  }
  addEventListener("visibilitychange", () => document.hidden && hide());
  addEventListener("pagehide", hide);
  drain();
  if (document.readyState === "complete") start();
  else addEventListener("load", start);
  if (settings.performance === "true" && !isOff()) {
    load("vitals", {
      begin: (loaded: Vitals) => {
        vitals = loaded;
        if (viewMs) loaded.restart(viewMs);
        return (values: Values) => send("performance", { ...base(), ...values });
      },
    } satisfies Pick<VitalsScript, "begin">);
  }
});
