// A browser small enough to read: pages that run the built script, with a clock, a network, storage and locks that a
// test controls. Pages of one `Site` share an origin, as tabs do.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import vm from "node:vm";

const built = (name) => readFileSync(new URL(`../dist/${name}`, import.meta.url), "utf8");
/** The built scripts as text. */
export const script = built("script.js");
export const vitalsScript = built("script-vitals.js");
export const profileScript = built("script-profile.js");
const compile = (source) => new vm.Script(source, { filename: "script.js" });
const compiled = compile(script);

export const WEBSITE = "11111111-1111-4111-8111-111111111111";
export const ORIGIN = "https://shop.example";
export const ENDPOINT = "https://stats.example/api/send";

/** Lets promises run as far as they get. */
export const settle = async () => {
  for (let turn = 0; turn < 8; turn++) await new Promise(setImmediate);
};

class Clock {
  ms = Date.UTC(2026, 4, 1, 12);
  #timers = new Map();
  #ids = 0;

  start(work, delay, every, owner) {
    const id = ++this.#ids;
    const wait = Math.max(0, Number(delay) || 0);
    this.#timers.set(id, { at: this.ms + wait, work, every: every && wait, owner });
    return id;
  }

  stop(id) {
    this.#timers.delete(id);
  }

  forget(owner) {
    for (const [id, timer] of this.#timers) if (timer.owner === owner) this.#timers.delete(id);
  }

  /** Lets `ms` pass, running what falls due in its order. */
  async advance(ms) {
    const end = this.ms + ms;
    await settle();
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      const [id, timer] = due;
      this.ms = Math.max(this.ms, timer.at);
      if (timer.every) timer.at += timer.every;
      else this.#timers.delete(id);
      timer.work();
      await settle();
    }
    this.ms = end;
  }
}

class FakeStorage {
  getItem(key) {
    return Object.hasOwn(this, key) ? this[key] : null;
  }
  setItem(key, text) {
    this[key] = String(text);
  }
  removeItem(key) {
    delete this[key];
  }
}

/** Web Locks, exclusive mode only. */
class Locks {
  #queues = new Map();

  request(owner, name, { signal }, work) {
    return new Promise((resolve, reject) => {
      const queue = this.#queues.get(name) ?? [];
      this.#queues.set(name, queue);
      const entry = { owner, begin: () => ((entry.begun = true), resolve(work().finally(() => this.#leave(queue, entry)))) };
      signal.onTimeout(() => entry.begun || (this.#leave(queue, entry), reject(new Error("AbortError"))));
      queue.push(entry);
      if (queue.length === 1) entry.begin();
    });
  }

  #leave(queue, entry) {
    const index = queue.indexOf(entry);
    if (index < 0) return;
    queue.splice(index, 1);
    if (index === 0) queue[0]?.begin();
  }

  release(owner) {
    for (const queue of this.#queues.values()) {
      for (const entry of queue.filter((each) => each.owner === owner).reverse()) this.#leave(queue, entry);
    }
  }
}

/** The collector's answer: a status with headers and a body, or nothing. */
export const ok = (fields = {}) => ({ status: 200, body: { cache: "token-1", sessionId: "s", visitId: "v", ...fields } });
export const failing = (status, headers = {}) => ({ status, headers, body: { error: { status } } });
export const HANG_UP = "hang up";
export const NEVER = "never";

/** The collector's answer to a batch whose events, sent alone, would have got these answers. */
export const batched = (answers) => {
  const word = answers.find((answer) => typeof answer === "string");
  if (word) return word;
  const isOk = ({ status }) => status < 300;
  if (answers.every(({ status }) => status === 503)) return answers[0];
  const details = answers.flatMap((answer, index) => (isOk(answer) ? [] : [{ index, response: answer.body }]));
  const cache = answers.filter(isOk).map(({ body }) => body?.cache).find(Boolean) ?? null;
  const [size, errors] = [answers.length, details.length];
  return { status: 200, body: { size, processed: size - errors, errors, details, cache } };
};

export class Site {
  clock = new Clock();
  localStorage = new FakeStorage();
  locks = new Locks();
  /**
   * Every event that reached the collector, in order: kind, payload, token, url, options, at, and the number of its
   * request, which those of a batch share.
   */
  requests = [];
  /** The answer to an event, alone or in a batch; a promise or one of the words above, too. */
  answer = () => ok();
  /** The answer to a batch as a whole, made of the answers to its events. */
  batchAnswer = (answers) => batched(answers);
  /** Addresses of the scripts that pages loaded, and the text of each; nothing where there is no such file. */
  loaded = [];
  file = (src) => (/-vitals\.js$/.test(src) ? vitalsScript : /-profile\.js$/.test(src) ? profileScript : undefined);
  /** The streams that pages asked for, in order: url, headers, whether the page ended it, and `answer`, which begins it. */
  streams = [];
  /** The answer to a stream's request; a stream whose events the test sends, if nothing is set. */
  streamAnswer = () => ({ status: 200 });

  /** Opens a page of the site in a new tab. */
  async open(options = {}) {
    // Loading takes time; and events of different pages have their order from the clock.
    this.clock.ms += 10;
    const page = new Page(this, options);
    await settle();
    return page;
  }

  /** The names of the events of each request. */
  get batches() {
    const batches = [];
    for (const { number, payload } of this.requests) (batches[number] ??= []).push(payload.name);
    return batches;
  }

  /** Events the collector took, each once. */
  get events() {
    const seen = new Map();
    for (const request of this.requests) {
      if (request.answered?.status === 200 && !seen.has(request.payload.messageId)) {
        seen.set(request.payload.messageId, request);
      }
    }
    return [...seen.values()];
  }

  get queued() {
    return Object.keys(this.localStorage).filter((key) => key.startsWith("dashi ") && key.includes("#"));
  }

  async advance(ms) {
    await this.clock.advance(ms);
  }
}

export class Element {
  #handlers = [];

  constructor(page, name, held = {}, parent = null) {
    Object.assign(this, { page, name, held, parent });
  }
  getAttribute(name) {
    return this.held[name] ?? null;
  }
  hasAttribute(name) {
    return name in this.held;
  }
  get attributes() {
    return Object.entries(this.held).map(([name, value]) => ({ name, value }));
  }
  get href() {
    return this.name === "a" && this.hasAttribute("href") ? new URL(this.held.href, this.page.location.href).href : "";
  }
  /** Enough of selectors for a comma list of tag names, [name], [name=value], [name~=value] and :not(…) of those. */
  matches(selectors) {
    const one = (selector) => {
      const [, tag, rest] = /^([a-z]*)(.*)$/.exec(selector);
      if (tag && tag !== this.name) return false;
      const parts = rest.match(/:not\(\[[^\]]*\]\)|\[[^\]]*\]/g) ?? [];
      assert.equal(parts.join(""), rest, `the fake browser does not know the selector ${selector}`);
      return parts.every((part) => {
        if (part.startsWith(":not(")) return !one(part.slice(5, -1));
        const [, name, operator, value] = /^\[([a-z-]+)(?:(~?=)([^\]]*))?\]$/.exec(part);
        if (!operator) return this.hasAttribute(name);
        if (!this.hasAttribute(name)) return false;
        const held = this.getAttribute(name);
        const wanted = value.replace(/^"(.*)"$/, "$1");
        return operator === "=" ? held === wanted : held.split(/\s+/).includes(wanted);
      });
    };
    return selectors.split(",").some(one);
  }
  closest(selectors) {
    return this.matches(selectors) ? this : (this.parent?.closest(selectors) ?? null);
  }
  onClick(handler) {
    this.#handlers.push(handler);
  }
  /** Clicks as a user does; gives the event. */
  async click(fields = {}) {
    const event = {
      type: "click",
      target: this,
      button: 0,
      defaultPrevented: false,
      preventDefault() {
        this.defaultPrevented = true;
      },
      stopPropagation() {
        this.stopped = true;
      },
      ...fields,
    };
    const listeners = this.page.listeners("click");
    for (const { capture, listener } of listeners) if (capture) listener(event);
    for (let element = this; element; element = element.parent) {
      if (!event.stopped) element.#handlers.forEach((handler) => handler(event));
    }
    for (const { capture, listener } of listeners) if (!capture && !event.stopped) listener(event);
    await settle();
    return event;
  }
}

export class Page {
  /** Addresses the script sent the tab to. */
  assigned = [];
  /** What the script wrote to the console. */
  warnings = [];
  errors = [];
  #listeners = [];
  #entries = [];
  #position = 0;
  #observers = [];
  #alive = true;

  constructor(site, options) {
    const {
      url = `${ORIGIN}/start?a=1#top`,
      referrer = "",
      attributes = {},
      src = "https://stats.example/script.js",
      source = script,
      globals = {},
      navigator = {},
      readyState = "complete",
      hidden = false,
      title = "Start",
      secure = true,
      storage = true,
      entryTypes = ["largest-contentful-paint", "paint", "layout-shift", "first-input", "event"],
    } = options;
    this.site = site;
    this.entryTypes = entryTypes;
    this.#entries = [url];
    const page = this;
    const parsed = () => new URL(page.#entries[page.#position]);
    this.location = {
      get href() {
        return parsed().href;
      },
      set href(value) {
        page.assigned.push(new URL(value, parsed()).href);
      },
      get origin() {
        return parsed().origin;
      },
      get hostname() {
        return parsed().hostname;
      },
    };
    const dataset = {};
    for (const [name, value] of Object.entries({ "data-website-id": WEBSITE, ...attributes })) {
      if (value !== undefined) dataset[name.slice(5).replace(/-([a-z])/g, (_, letter) => letter.toUpperCase())] = value;
    }
    this.document = {
      currentScript: src === null ? null : { dataset, src, nonce: "page's nonce" },
      title,
      referrer,
      readyState,
      hidden,
      createElement: (name) => ({ name }),
      head: { append: (element) => this.#load(element) },
    };
    const opened = site.clock.ms;
    this.history = {
      pushState: (_state, _title, to) => page.#go(to, 1),
      replaceState: (_state, _title, to) => page.#go(to, 0),
    };
    const { clock } = site;
    const timer = (every) => (work, delay) => clock.start(work, delay, every, page);
    this.window = vm.createContext({
      document: this.document,
      location: this.location,
      history: this.history,
      screen: { width: 1920, height: 1080 },
      navigator: {
        language: "en-GB",
        ...(secure && { locks: { request: (...args) => site.locks.request(page, ...args) } }),
        ...navigator,
      },
      crypto: secure ? { randomUUID: () => crypto.randomUUID() } : {},
      performance: {
        now: () => clock.ms - opened + 1,
        getEntriesByType: (type) => (type === "navigation" ? [{ responseStart: 81.5 }] : []),
      },
      PerformanceObserver: this.#performanceObserver(),
      Date: { now: () => clock.ms },
      setTimeout: timer(false),
      clearTimeout: (id) => clock.stop(id),
      setInterval: timer(true),
      clearInterval: (id) => clock.stop(id),
      AbortController,
      TextDecoder,
      AbortSignal: { timeout: (ms) => ({ onTimeout: (work) => clock.start(work, ms, false, page) }) },
      addEventListener: (type, listener, capture = false) => this.#listeners.push({ type, listener, capture }),
      fetch: (...args) => this.#fetch(...args),
      console: { warn: (...args) => this.warnings.push(args) },
      ...globals,
    });
    this.window.window = this.window;
    Object.defineProperty(this.window, "localStorage", {
      get: () => {
        if (!storage) throw new Error("SecurityError");
        return site.localStorage;
      },
    });
    (source === script ? compiled : compile(source)).runInContext(this.window);
  }

  get umami() {
    return this.window.umami;
  }

  listeners(type) {
    return this.#listeners.filter((each) => each.type === type);
  }

  async fire(type, fields = {}) {
    for (const { listener } of this.listeners(type)) listener({ type, ...fields });
    await settle();
  }

  /** Loads a script that the page's own one has added, as soon as `site.file` gives its text. */
  async #load(element) {
    assert.equal(element.name, "script");
    this.site.loaded.push({ src: element.src, nonce: element.nonce });
    const source = await this.site.file(element.src);
    if (source === undefined || !this.#alive) return;
    this.document.currentScript = element;
    try {
      compile(source).runInContext(this.window);
    } catch (error) {
      // A browser reports it and goes on.
      this.errors.push(error);
    }
    this.document.currentScript = null;
  }

  element(name, attributes, parent) {
    return new Element(this, name, attributes, parent);
  }

  #go(to, step) {
    const url = new URL(to ?? this.location.href, this.location.href);
    if (url.origin !== this.location.origin) throw new Error("SecurityError");
    this.#position += step;
    this.#entries.splice(this.#position, Infinity, url.href);
  }

  /** A click on a link within the page, or a change of location.hash. */
  async jump(hash) {
    this.#go(hash, 1);
    await this.fire("popstate");
  }

  async back(steps = 1) {
    this.#position -= steps;
    await this.fire("popstate");
  }

  async forward() {
    await this.back(-1);
  }

  async hide() {
    this.document.hidden = true;
    await this.fire("visibilitychange");
  }

  async show() {
    this.document.hidden = false;
    await this.fire("visibilitychange");
  }

  /** The tab goes elsewhere or is closed. Requests under way still arrive; nobody hears their answers. */
  async leave() {
    for (const { listener } of this.listeners("pagehide")) listener({ type: "pagehide" });
    this.document.hidden = true;
    for (const { listener } of this.listeners("visibilitychange")) listener({ type: "visibilitychange" });
    await settle();
    this.crash();
    await settle();
  }

  /** The page is gone, without a word. */
  crash() {
    this.#alive = false;
    this.site.clock.forget(this);
    this.site.locks.release(this);
  }

  /** A stream: what its test sends arrives at the page, until one of them ends it. */
  #stream(url, { headers, signal, ...options }) {
    const { site } = this;
    const { status, headers: answered = {} } = site.streamAnswer();
    let [arrived, wake] = [[], () => {}];
    const arrive = (item) => (arrived.push(item), wake(), settle());
    const stream = {
      url,
      headers: { ...headers },
      options: { ...options },
      at: site.clock.ms,
      ended: false,
      send: (text) => arrive({ done: false, value: typeof text === "string" ? new TextEncoder().encode(text) : text }),
      end: () => arrive({ done: true }),
      breakOff: () => arrive(new TypeError("network error")),
    };
    signal.addEventListener("abort", () => ((stream.ended = true), arrive(new Error("AbortError"))));
    site.streams.push(stream);
    const read = async () => {
      while (!arrived[0]) await new Promise((resolve) => (wake = resolve));
      const item = arrived.shift();
      if (item instanceof Error) throw item;
      return item;
    };
    return Promise.resolve({
      status,
      ok: status === 200,
      headers: { get: (name) => answered[name] ?? null },
      body: { getReader: () => ({ read }) },
    });
  }

  #fetch(url, options) {
    if (/\/api\/me\/stream\?/.test(url)) return this.#stream(url, options);
    const { site } = this;
    const sent = JSON.parse(options.body);
    const isBatch = Array.isArray(sent);
    assert.ok(!isBatch || sent.length > 1);
    assert.equal(isBatch, url.endsWith("/api/batch"));
    const token = options.headers["x-umami-cache"];
    const number = (site.requests.at(-1)?.number ?? -1) + 1;
    const requests = [sent].flat().map(({ type: kind, payload, ...others }) => {
      assert.deepEqual(others, {});
      return { url, options, kind, payload, token, at: site.clock.ms, page: this, number };
    });
    site.requests.push(...requests);
    return new Promise((resolve, reject) => {
      const onlyAlive = (work) => (value) => this.#alive && work(value);
      options.signal.onTimeout(onlyAlive(() => reject(new Error("TimeoutError"))));
      Promise.all(requests.map((request) => site.answer(request))).then((answers) => {
        const answer = isBatch ? site.batchAnswer(answers) : answers[0];
        requests.forEach((request, index) => {
          request.answered = typeof answer === "string" || answer.status !== 200 ? answer : answers[index];
        });
        if (answer === NEVER) return;
        if (answer === HANG_UP) return onlyAlive(reject)(new TypeError("Failed to fetch"));
        const { status, headers = {}, body } = answer;
        onlyAlive(resolve)({
          status,
          ok: status >= 200 && status < 300,
          headers: { get: (name) => headers[name] ?? null },
          json: async () => (typeof body === "string" ? JSON.parse(body) : structuredClone(body)),
        });
      });
    });
  }

  #performanceObserver() {
    const observers = this.#observers;
    const { entryTypes } = this;
    return class PerformanceObserver {
      static supportedEntryTypes = entryTypes;
      #callback;
      pending = [];
      constructor(callback) {
        this.#callback = callback;
      }
      observe(options) {
        assert.ok(entryTypes.includes(options.type), `a browser warns about the unknown entry type ${options.type}`);
        assert.equal(options.buffered, true);
        this.type = options.type;
        observers.push(this);
      }
      takeRecords() {
        return this.pending.splice(0);
      }
      deliver() {
        const entries = this.takeRecords();
        this.#callback({ getEntries: () => entries });
      }
    };
  }

  /** The browser has measured something; `hold` keeps it from the script until it asks. */
  measure(type, entry, { hold = false } = {}) {
    for (const observer of this.#observers.filter((each) => each.type === type)) {
      observer.pending.push(entry);
      if (!hold) observer.deliver();
    }
  }
}

/** The fields of a base payload on the page that `open` gives without options. */
export const BASE = {
  website: WEBSITE,
  screen: "1920x1080",
  language: "en-GB",
  title: "Start",
  hostname: "shop.example",
  url: `${ORIGIN}/start?a=1#top`,
  referrer: "",
};

const withoutId = ({ messageId, ...payload }) => payload;

/** What the collector got, without the message ids: [kind, payload]. */
export const sent = (site) => site.requests.map(({ kind, payload }) => [kind, withoutId(payload)]);

/** The names, or addresses for page views, of what the collector took, in order. */
export const taken = (site) => site.events.map(({ kind, payload }) => payload.name ?? `${kind} ${payload.url}`);
