/**
 * Events on their way to the collector, oldest first, each kept until it has been answered for good.
 *
 * An event lies in localStorage from the moment it happens, so it survives navigation, reload and crash: whichever page
 * of the site comes next sends it. Pages take turns, so events leave in order and no two pages send the same one at
 * once. An event is sent again when a navigation swallowed its answer, or when another page has just sent it and the
 * browser has not yet spread its removal. That is harmless, since its message id stays the same.
 *
 * Several late events of one session leave in one request, and each is kept or dropped by its own verdict in the answer.
 */
import { exclusively } from "./lock";
import { batchEndpoint, endpoint, isOff, settings, stop, website } from "./settings";
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
  BATCH_CHARS = 15_000,
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

/** The state of one identity on this page: the collector's token. `identify` begins another. */
export interface Session {
  token?: string;
}

/** This page's events and the session each began in. Its answer reaches no other session's token. */
const own = new Map<string, Session>();
/** Events in flight. */
const inFlight = new Set<string>();
/** Events that a batch left waiting: from then on each is sent by itself. */
const alone = new Set<string>();

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
        for (const waiting = keys(item); waiting[0]; ) await deliver(waiting.splice(0, batchSize(waiting)));
      }),
    )
    .then(schedule));

/**
 * How many of these events, from the first on, leave in one request. The events of a request arrive in one moment: so those
 * whose arrival is their time leave by themselves, and so does identify, of which the last is to win.
 */
const batchSize = (waiting: string[]): number => {
  const begunIn = own.get(waiting[0]!);
  // The answer to the first event of a session brings the token for the others.
  if (batchEndpoint === endpoint || (begunIn && !begunIn.token)) return 1;
  let chars = 0;
  const end = waiting.findIndex((key) => {
    const body = read(key) + "";
    return (
      alone.has(key) ||
      own.get(key) !== begunIn ||
      Date.now() - timeOf(key) < Min.LATE_MS ||
      /^{"type":"i/.test(body) ||
      (chars += body.length) > Max.BATCH_CHARS
    );
  });
  return end < 0 ? waiting.length : end || 1;
};

/** When the event under this key happened, in ms. */
const timeOf = (key: string): number => parseInt(key.slice(item.length));

/** The page may end any moment: sends its events at once, without waiting for a turn. */
export const flush = (): Promise<unknown> => Promise.all([...own.keys()].map((key) => deliver([key]))).then(schedule);

const schedule = (): void => {
  clearTimeout(timer);
  if (!isOff() && keys(item).some((key) => !inFlight.has(key))) timer = setTimeout(drain, pause());
};

/** How many ms to wait before the next try. Pages share it. */
const pause = (): number => msUntil(retry, Max.PAUSE_MS);

/** Sends these events of one session, and forgets those that have been answered for good. */
const deliver = async (group: string[]): Promise<void> => {
  if (isOff() || pause()) return;
  const begunIn = own.get(group[0]!) || {};
  const sent: string[] = [];
  const bodies: string[] = [];
  for (const key of group) {
    if (inFlight.has(key)) continue;
    const body = read(key);
    const ms = timeOf(key);
    const age = Date.now() - ms;
    if (body && Math.abs(age) < Max.EVENT_MS) {
      inFlight.add(key);
      sent.push(key);
      bodies.push(age < Min.LATE_MS ? body : withTime(body, ms));
    } else forget(key);
  }
  if (!sent[0]) return;
  const [statuses, retryAfterS] = await post(bodies, begunIn);
  /** The status of an event that is to be sent again, if there is one. */
  let again: number | undefined;
  sent.forEach((key, index) => {
    inFlight.delete(key);
    const status = statuses[index]!;
    if (!status || status === 408 || status === 429 || status > 500 || (status === 500 && serverErrors < Max.SERVER_ERRORS)) {
      again = status;
      if (bodies[1]) alone.add(key);
    } else {
      if (status > 399) console.warn("Event refused", status, bodies[index]);
      forget(key);
    }
  });
  if (again === undefined) {
    failures = serverErrors = 0;
    remove(retry);
  } else {
    // Events sent side by side fail together: all but the first find a pause, and that counts once.
    const left = pause();
    if (!left) {
      failures++;
      if (again === 500) serverErrors++;
    }
    const backoff = Math.min(2 ** failures * 500, Max.BACKOFF_MS) * (1 + Math.random());
    const wait = backoff + Math.min(retryAfterS, Max.RETRY_AFTER_S) * 1_000;
    write(retry, Date.now() + Math.max(wait, left, backoff));
  }
};

const forget = (key: string): void => {
  remove(key);
  own.delete(key);
  alone.delete(key);
};

/**
 * Sends events in one request. Gives the status of each and how many seconds to wait at least before the next try. It is
 * 0 without an answer, and for all events of a batch whose answer does not answer for each.
 */
const post = async (bodies: string[], begunIn: Session): Promise<[statuses: number[], retryAfterS: number]> => {
  const isBatch = bodies[1];
  const body = isBatch ? `[${bodies}]` : bodies[0]!;
  let statuses = bodies.map(() => 0);
  let retryAfterS = 0;
  try {
    const answer = await fetch(isBatch ? batchEndpoint : endpoint, {
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
    const { ok, status } = answer;
    if (!isBatch) statuses = [status];
    retryAfterS = +answer.headers.get("Retry-After")! || 0;
    const { cache, disabled, details, errors } = await answer.json();
    if (ok && cache && typeof cache === "string") begunIn.token = cache;
    if (disabled) stop();
    if (isBatch && ok && details.length === errors) {
      const verdicts = bodies.map(() => status);
      for (const { index, response } of details) verdicts[index] = +response.error.status || 0;
      statuses = verdicts;
    }
  } catch {
    // An answer that is no JSON has been given all the same.
  }
  return [statuses, retryAfterS];
};

const withTime = (body: string, ms: number): string =>
  attempt(() => {
    const event = JSON.parse(body);
    event.payload.timestamp = event.payload.timestamp || Math.floor(ms / 1_000);
    return JSON.stringify(event);
  }) || body;
