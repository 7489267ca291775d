/**
 * Text by key, in localStorage so that other pages of the site find it, or in this page's memory where localStorage is
 * blocked or full.
 */
const memory = new Map<string, string | number>();

const enum Max {
  MEMORY_ITEMS = 500,
}

/** Runs `work`; gives nothing if it throws. */
export const attempt = <T>(work: () => T): T | undefined => {
  try {
    return work();
  } catch {
    return undefined;
  }
};

export const read = (key: string): string | null | undefined =>
  (memory.get(key) as string) || attempt(() => localStorage.getItem(key));

export const write = (key: string, text: string | number): void => {
  try {
    localStorage.setItem(key, text as string);
    // Read first, an older text there would hide this one.
    memory.delete(key);
  } catch {
    writeMemory(key, text);
  }
};

/** Keeps `text` in this page only; the oldest goes when there is too much. */
export const writeMemory = (key: string, text: string | number): void => {
  memory.set(key, text);
  if (memory.size > Max.MEMORY_ITEMS) memory.delete([...memory.keys()][0]!);
};

export const remove = (key: string): void => {
  memory.delete(key);
  attempt(() => localStorage.removeItem(key));
};

/** How many ms from now the time stored under `key` is. More than `most` is left over from before the clock was set back. */
export const msUntil = (key: string, most: number): number => {
  const ms = +read(key)! - Date.now();
  return ms > 0 && ms <= most ? ms : 0;
};

/** The keys that begin with `prefix`, sorted. */
export const keys = (prefix: string): string[] =>
  [...memory.keys()]
    .concat(attempt(() => Object.keys(localStorage)) || [])
    .filter((key) => key.startsWith(prefix))
    .sort();
