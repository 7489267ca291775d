/**
 * Events on their way to the collector, oldest first, each kept until it has been answered for good.
 *
 * An event lies in localStorage from the moment it happens, so it survives navigation, reload and crash: whichever page
 * of the site comes next sends it. Pages take turns, so events leave in order and no two pages send the same one at
 * once. An event is sent again when a navigation swallowed its answer, or when another page has just sent it and the
 * browser has not yet spread its removal. That is harmless, since its message id stays the same.
 */
import { exclusively } from "./lock";
import { endpoint, isOff, settings, stop, website } from "./settings";
import { attempt, keys, msUntil, read, remove, write, writeMemory } from "./store";

export type Kind = "event" | "identify" | "performance";
export type Payload = { [key: string]: unknown };

/** An event that leaves later than this after it happened says when that was. */
const enum Min {
  LATE_MS = 1_000,
}

const enum Max {
  STORED_EVENTS = 50,
  EVENT_MS = 24 * 3_600_000,
  /** Browsers refuse `keepalive` above 64 KiB, and a character takes up to three bytes. Larger events are not stored. */
  SMALL_CHARS = 20_000,
  REQUEST_MS = 30_000,
  BACKOFF_MS = 300_000,
  RETRY_AFTER_S = 3_600,
  /** No pause is longer than back-off and Retry-After together. */
  PAUSE_MS = 7_200_000,
  /** A server that fails on one event again and again (500) must not hold up all others for a day. */
  SERVER_ERRORS = 10,
}

const scope = `dashi ${endpoint} ${website} `;
const item = scope + "#";
const retry = scope + "retry";

/** What one identity on this page shares: the collector's token. `identify` begins another. */
export interface Session {
  token?: string;
}

/** This page's events and the session each began in. Its answer reaches no other session's token. */
const own = new Map<string, Session>();
/** Events in flight. */
const inFlight = new Set<string>();

export let session: Session = {};

let lastMs = 0;
/** Tries that failed in a row, on this page. */
let failures = 0;
/** Those of them that were answers of 500. */
let serverErrors = 0;
let timer: number | undefined;
let turn: Promise<unknown> = Promise.resolve();

export const beginSession = (): void => {
  session = { token: "" };
};

/** The time of an event in ms, different for each so that it gives their order. */
export const stamp = (): number => (lastMs = Math.max(Date.now(), lastMs + 1));

/** Takes an event in. Resolves when a first try has been made, or when none will be made soon. */
export const add = (kind: Kind, payload: Payload, ms: number, begunIn: Session): Promise<unknown> => {
  // `randomUUID` is missing on plain http.
  const messageId = attempt(() => crypto.randomUUID()) || "" + Math.random() + Math.random();
  const body = JSON.stringify({ type: kind, payload: { ...payload, messageId: payload.messageId || messageId } });
  const key = item + ms + " " + messageId;
  own.set(key, begunIn);
  (body.length < Max.SMALL_CHARS && keys(item).length < Max.STORED_EVENTS ? write : writeMemory)(key, body);
  return drain();
};

/** Sends what is waiting, also for pages that are gone. */
export const drain = (): Promise<unknown> =>
  (turn = turn
    .then(() =>
      exclusively(scope + "lock", async () => {
        for (const key of keys(item)) await deliver(key);
      }),
    )
    .then(schedule));

/** The page may end any moment: sends its events at once, without waiting for a turn. */
export const flush = (): Promise<unknown> => Promise.all([...own.keys()].map(deliver)).then(schedule);

const schedule = (): void => {
  clearTimeout(timer);
  if (!isOff() && keys(item).some((key) => !inFlight.has(key))) timer = setTimeout(drain, pause());
};

/** How many ms to wait before the next try. Pages share it. */
const pause = (): number => msUntil(retry, Max.PAUSE_MS);

const deliver = async (key: string): Promise<void> => {
  if (inFlight.has(key) || isOff() || pause()) return;
  const body = read(key);
  const ms = parseInt(key.slice(item.length));
  if (body && Math.abs(Date.now() - ms) < Max.EVENT_MS) {
    inFlight.add(key);
    const [status, retryAfterS] = await post(Date.now() - ms < Min.LATE_MS ? body : withTime(body, ms), own.get(key) || {});
    inFlight.delete(key);
    if (!status || status === 408 || status === 429 || status > 500 || (status === 500 && serverErrors < Max.SERVER_ERRORS)) {
      // Events sent side by side fail together: all but the first find a pause, and that counts once.
      const left = pause();
      if (!left) {
        failures++;
        if (status === 500) serverErrors++;
      }
      const backoff = Math.min(2 ** failures * 500, Max.BACKOFF_MS) * (1 + Math.random());
      const wait = backoff + Math.min(retryAfterS, Max.RETRY_AFTER_S) * 1_000;
      write(retry, Date.now() + Math.max(wait, left, backoff));
      return;
    }
    failures = serverErrors = 0;
    remove(retry);
  }
  remove(key);
  own.delete(key);
};

/** Sends one event. Gives the status (0 without an answer) and how many seconds to wait at least before the next try. */
const post = async (body: string, begunIn: Session): Promise<[status: number, retryAfterS: number]> => {
  let status = 0;
  let retryAfterS = 0;
  try {
    const answer = await fetch(endpoint, {
      method: "POST",
      body,
      keepalive: body.length < Max.SMALL_CHARS,
      credentials: (settings.fetchCredentials || "omit") as RequestCredentials,
      headers: {
        "Content-Type": "application/json",
        ...(begunIn.token && { "x-umami-cache": begunIn.token }),
      },
      signal: attempt(() => AbortSignal.timeout(Max.REQUEST_MS)) as AbortSignal,
    });
    status = answer.status;
    retryAfterS = +answer.headers.get("Retry-After")! || 0;
    const { cache, disabled } = await answer.json();
    if (answer.ok && cache && typeof cache === "string") begunIn.token = cache;
    if (disabled) stop();
  } catch {
    // An answer that is no JSON has been given all the same.
  }
  return [status, retryAfterS];
};

const withTime = (body: string, ms: number): string =>
  attempt(() => {
    const event = JSON.parse(body);
    event.payload.timestamp = event.payload.timestamp || Math.floor(ms / 1_000);
    return JSON.stringify(event);
  }) || body;
