// Requests to the server of the page, with the key if there is one.

const KEY = "dashi console key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An answer that is no success. `status` is 0 if there was none. */
export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const headers = (more = {}) => (key.get() ? { ...more, authorization: `Bearer ${key.get()}` } : more);

/**
 * Asks for JSON at a path beside the page.
 * @param {string} path
 * @param {{ signal?: AbortSignal, method?: string, body?: unknown }} options
 */
export const ask = async (path, { signal, method = "GET", body } = {}) => {
  let response;
  try {
    const timeout = AbortSignal.timeout(20_000);
    response = await fetch(path, {
      method,
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      headers: headers(body === undefined ? {} : { "content-type": "application/json" }),
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failed(0, "The server does not answer.");
  }
  const text = await response.text();
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Failed(response.status, `The server answered ${response.status} without JSON.`);
  }
  if (!response.ok) throw new Failed(response.status, value?.error?.message ?? `The server answered ${response.status}.`);
  return value;
};

/**
 * Calls `act(signal)` at once and then `every` ms after each end, while the page is visible, until the signal is aborted.
 * `failed(error)` is told of each failure, and of `null` once it is over.
 */
export const repeat = (act, every, signal, failed) => {
  let timer;
  let running = false;
  let failing = false;
  const run = async () => {
    clearTimeout(timer);
    if (signal.aborted || running || document.hidden) return;
    running = true;
    try {
      await act(signal);
      if (failing) failed(null);
      failing = false;
    } catch (error) {
      if (!signal.aborted) {
        failing = true;
        failed(error);
        if (!(error instanceof Failed)) console.error(error);
      }
    }
    running = false;
    timer = setTimeout(run, failing ? Math.max(every, 2_000) : every);
  };
  document.addEventListener("visibilitychange", run, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  run();
};
