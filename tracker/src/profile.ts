/**
 * The traits of the page's own person, as they are and as they change: a file of its own (`script-profile.js`), which the
 * tracker loads when the page calls `umami.profile`. It follows the person whom `identify` named, if the website signed the
 * id (docs/follow.md), while the page can be seen.
 *
 * Browsers keep either file for a day, so each may meet an older one of the other: what passes between them stays.
 */
import { sleep } from "./lock";
import { attempt } from "./store";

export type Traits = { [key: string]: unknown };

/** Gets the traits and their version, now and after each change; none of it any more once it has returned false. */
export type Callback = (traits: Traits, version: string) => unknown;

/** Where to ask, and for whom: of the page at this time. */
export type Me = [host: string, website: string | undefined, id: string | undefined, signature: string | undefined];

/** The script tag of this file: through it the tracker passes what the page called `umami.profile` with. */
export type ProfileScript = HTMLScriptElement & { callback: Callback; me: () => Me };

/** What this file replaces of the tracker. */
interface Tracker {
  profile(callback: Callback): unknown;
  identify(...sent: unknown[]): unknown;
  follows?: unknown;
}

const { callback, me } = document.currentScript as ProfileScript;

const enum Ms {
  /** The server sends something every 15 s; a connection that is silent for longer leads nowhere. */
  SILENCE_MAX = 45_000,
  BACKOFF_MAX = 60_000,
  RETRY_AFTER_MAX = 600_000,
}

const callbacks = new Set<Callback>();

/** What the page has been shown last; nothing before the first event about this person. */
let shown: [traits: Traits, version: string] | undefined;
/** The person that is followed. */
let followed: string | undefined;
/** Ends the present stream. */
let stream: AbortController | undefined;

const show = (callback: Callback): void => {
  // Each gets a copy of its own: it may change it.
  const [traits, version] = shown!;
  if (attempt(() => callback({ ...traits }, version)) === false) callbacks.delete(callback);
};

const take = (event: string): void => {
  const data = /^data: (.*)$/m.exec(event);
  if (!/^event: traits$/m.test(event) || !data) return;
  const { traits, version } = JSON.parse(data[1]!);
  shown = [traits, version];
  callbacks.forEach(show);
  if (!callbacks.size) stream!.abort();
};

/** Reads one stream to its end. Gives how long to wait before the next one, in ms; undefined if there is to be none. */
const read = async ({ signal }: AbortController, alive: () => void): Promise<number | undefined> => {
  const [host, website, id, signature] = me();
  const answer = await fetch(host + "/api/me/stream?website=" + website, {
    headers: {
      Authorization: "Bearer " + signature,
      "X-Dashi-Id": encodeURIComponent(id!),
      ...(shown && { "Last-Event-ID": shown[1] }),
    },
    cache: "no-store",
    credentials: "omit",
    signal,
  });
  const { ok, status } = answer;
  if (!ok) {
    if (status > 499 || status === 429 || status === 408) return +answer.headers.get("Retry-After")! * 1_000 || 0;
    console.warn("Profile refused", status);
    return undefined;
  }
  const reader = answer.body!.getReader();
  const text = new TextDecoder();
  let rest = "";
  for (;;) {
    alive();
    const { done, value } = await reader.read();
    if (done || signal.aborted) return 0;
    const events = (rest + text.decode(value, { stream: true })).split("\n\n");
    rest = events.pop()!;
    events.forEach(take);
  }
};

/** Follows the present person with one stream after the other, as long as this is the newest call. */
const follow = async (): Promise<void> => {
  if (stream) stream.abort();
  const [, , id, signature] = me();
  const person = id + " " + signature;
  if (person !== followed) shown = undefined;
  followed = person;
  const own = (stream = new AbortController());
  const isNewest = (): boolean => own === stream && !document.hidden && !!callbacks.size;
  for (let failures = 0; id && signature && isNewest(); failures++) {
    let silence: number | undefined;
    const one = new AbortController();
    const end = (): void => one.abort();
    own.signal.addEventListener("abort", end);
    const alive = (): void => {
      clearTimeout(silence);
      silence = setTimeout(end, Ms.SILENCE_MAX);
      failures = 0;
    };
    let wait: number | undefined = 0;
    try {
      wait = await read(one, alive);
    } catch {
      // The connection broke, or nobody was there.
    }
    clearTimeout(silence);
    own.signal.removeEventListener("abort", end);
    if (wait === undefined) return;
    const backoff = Math.min(2 ** failures * 500, Ms.BACKOFF_MAX) * (1 + Math.random());
    await sleep(backoff + Math.min(wait, Ms.RETRY_AFTER_MAX));
  }
};

attempt(() => {
  const umami = window.umami as Tracker;
  // The page may have called more than once before this file was there: it runs for each call.
  if (!umami.follows) {
    umami.follows = true;
    const { identify } = umami;
    umami.identify = (...sent) => {
      const identified = identify(...sent);
      follow();
      return identified;
    };
    umami.profile = (another) => {
      if (typeof another !== "function") return;
      callbacks.add(another);
      if (shown) show(another);
      if (callbacks.size < 2) follow();
    };
    addEventListener("visibilitychange", () => (document.hidden ? stream && stream.abort() : follow()));
  }
  umami.profile(callback);
});
