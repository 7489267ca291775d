// Server-sent events over fetch: EventSource cannot send the header with the key.

import { Failed, headers } from "./data.js";

/**
 * Follows a stream of JSON messages until the signal is aborted, and opens it again when it ends. `on` has a function for each
 * name of an event; `state(error)` is told `null` when the stream is open and an error when it is not.
 */
export const follow = async (path, { signal, on, state }) => {
  let pause = 500;
  while (!signal.aborted) {
    try {
      const response = await fetch(path, { signal, headers: headers(), cache: "no-store" });
      if (!response.ok) {
        const answer = await response.json().catch(() => null);
        throw new Failed(response.status, answer?.error?.message ?? `The server answered ${response.status}.`);
      }
      state(null);
      pause = 500;
      await read(response.body, on);
    } catch (error) {
      if (signal.aborted) return;
      state(error instanceof Failed ? error : new Failed(0, "The server does not answer."));
      // These do not change by asking again.
      if ([401, 404].includes(error.status)) return;
    }
    await new Promise((resume) => setTimeout(resume, pause));
    pause = Math.min(pause * 2, 10_000);
  }
};

const read = async (body, on) => {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const field = (name) => part.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const name = field("event");
      if (name) on[name]?.(JSON.parse(field("data") ?? "null"));
    }
  }
};
