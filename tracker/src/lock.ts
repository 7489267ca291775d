/** One page of the site at a time: Web Locks where they are, elsewhere (plain http) a lease in localStorage. */
import { msUntil, remove, write } from "./store";

const enum Ms {
  /**
   * A page that the system has suspended can hold the lock for ever. Going on without it does no harm, because a
   * message id makes the second copy of an event void.
   */
  WAIT_MAX = 60_000,
  /** How long a page that ended inside keeps others out. */
  LEASE = 3_000,
  RENEWAL = 1_000,
}

export const sleep = (ms: number): Promise<void> => new Promise((wake) => setTimeout(wake, ms));

/** Runs `work`, which never fails, as soon as no other page is inside, or after `Ms.WAIT_MAX`. */
export const exclusively = async (name: string, work: () => Promise<void>): Promise<void> => {
  try {
    await navigator.locks.request(name, { signal: AbortSignal.timeout(Ms.WAIT_MAX) }, work);
  } catch {
    while (msUntil(name, Ms.LEASE)) await sleep(100);
    const renew = (): void => write(name, Date.now() + Ms.LEASE);
    renew();
    const renewal = setInterval(renew, Ms.RENEWAL);
    await work();
    clearInterval(renewal);
    remove(name);
  }
};
