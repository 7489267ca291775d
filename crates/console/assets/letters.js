// Dead letters: the list, and one of them with its record.

import { ask } from "./data.js";
import { copyable, h, panel, put, replaceBody, table } from "./dom.js";
import { bytes, count, dateTime, words } from "./format.js";

export const letters = (place, { signal, failed, session, rest }) => {
  const go = rest[0] ? one(place, { signal, session, place: rest[0] }) : list(place, { signal, discarded: false });
  go.catch((error) => !signal.aborted && failed(error));
};

const back = () => h("p", { class: "back" }, h("a", { href: "#pipeline" }, "Pipeline"));

const list = async (place, { signal, discarded }) => {
  const body = h("div", {});
  const more = h("button", { type: "button", class: "quiet", hidden: true }, "More");
  const which = h(
    "label",
    { class: "check" },
    h("input", {
      type: "checkbox",
      onchange: (event) => {
        discarded = event.target.checked;
        [rows, next] = [[], null];
        load();
      },
    }),
    " Those that were discarded",
  );
  let [rows, next] = [[], null];
  const load = async () => {
    const query = new URLSearchParams({ discarded, ...(next ? { after: next } : {}) });
    const page = await ask(`data/dead-letters?${query}`, { signal });
    rows = [...rows, ...page.dead_letters];
    next = page.next;
    more.hidden = !next;
    put(
      body,
      table(
        [
          { title: "Place", of: (each) => h("a", { href: `#pipeline/dead-letters/${each.partition}:${each.offset}` }, `${each.partition}:${each.offset}`) },
          { title: "Set aside", of: (each) => dateTime(each.set_aside_at_ms) },
          { title: "State", of: (each) => words(each.state) },
          { title: "Tries", number: true, of: (each) => count(each.tries) },
          { title: "Type", of: (each) => each.type ?? "–" },
          { title: "Error", class: "wide", of: (each) => each.error },
        ],
        rows,
        { caption: "Dead letters", empty: discarded ? "None was discarded." : "There is none: every record could be applied." },
      ),
    );
  };
  more.addEventListener("click", load);
  place.append(
    back(),
    h("h1", {}, "Dead letters"),
    h("p", { class: "hint" }, "Records that could not be decoded, or whose rows the database refused. The others went on."),
    which,
    panel("Work list", {}, body, more),
  );
  await load();
};

const one = async (place, { signal, session, place: where }) => {
  const line = await ask(`data/dead-letters/${encodeURIComponent(where)}`, { signal });
  const facts = panel("Facts", { id: "facts" });
  const show = (letter) => replaceBody(facts, h("dl", { class: "facts" }, factsOf(letter).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
  show(line.dead_letter);
  const record = line.record ?? `${atob(line.record_base64)}`;
  place.append(
    h("p", { class: "back" }, h("a", { href: "#pipeline" }, "Pipeline"), " / ", h("a", { href: "#pipeline/dead-letters" }, "Dead letters")),
    h("h1", {}, `Dead letter ${where}`),
    facts,
    panel("Record", {}, h("pre", { tabindex: 0 }, typeof record === "string" ? record : JSON.stringify(record, null, 2))),
    decide({ signal, session, where, show }),
  );
};

const factsOf = (letter) => [
  ["Error", letter.error],
  ["State", words(letter.state)],
  ["Tries", count(letter.tries)],
  ["Set aside", dateTime(letter.set_aside_at_ms)],
  ["Appended", dateTime(letter.appended_at_ms)],
  ["Received", dateTime(letter.received_at_ms)],
  ["Type", letter.type ?? "–"],
  ["Website", letter.website ?? "–"],
  ["Session", letter.session ?? "–"],
  ["Event", letter.event_id ?? "–"],
  ["Record", bytes(letter.bytes)],
];

/** Buttons with a key, commands without one. */
const decide = ({ signal, session, where, show }) => {
  const title = "What to do";
  const retry = "Mend the cause, then have it tried again: its partition's writer folds it with its own time and ids.";
  const discard = "Or mark it, so that nobody has to look at it any more:";
  if (!session.may_write) {
    return panel(
      title,
      {},
      h("p", {}, retry),
      copyable(`dashi dead-letters retry ${where}`, "the command"),
      h("p", {}, discard),
      copyable(`dashi dead-letters discard ${where}`, "the command"),
      h("p", { class: "hint" }, "With a key of api.keys, both can be done here."),
    );
  }
  const state = h("p", { class: "hint", role: "status" });
  const buttons = [];
  const command = (name, text, quiet, isDone) => {
    const button = h("button", { type: "button", class: quiet ? "quiet" : undefined }, text);
    button.addEventListener("click", async () => {
      buttons.forEach((each) => (each.disabled = true));
      try {
        put(state, "The command is being written into the log …");
        const before = (await ask(`data/dead-letters/${encodeURIComponent(where)}`, { signal })).dead_letter;
        await ask(`data/dead-letters/${encodeURIComponent(where)}/${name}`, { signal, method: "POST" });
        put(state, "The command is in the log. The partition's writer obeys when it reads it …");
        const text = await outcome(where, (now) => (show(now), isDone(now, before)), signal);
        put(state, text ?? "It is settled: applied, or a duplicate of an applied event.");
        // There is nothing left to decide.
        if (!text) return show({ ...before, state: "settled" });
      } catch (error) {
        if (!signal.aborted) put(state, error.message);
      }
      buttons.forEach((each) => (each.disabled = false));
    });
    buttons.push(button);
    return button;
  };
  return panel(
    title,
    {},
    h("p", {}, retry),
    h(
      "p",
      { class: "actions" },
      command("retry", "Try it again", false, (now, before) => now.tries > before.tries && `It was tried again and is still dead: ${now.error}`),
      command("discard", "Discard it", true, (now) => now.state === "discarded" && "It is discarded: it stays in the list of those."),
    ),
    state,
  );
};

/** Waits for the writer, for a minute; `null` once the letter is none any more. */
const outcome = async (where, isDone, signal) => {
  for (const end = Date.now() + 60_000; Date.now() < end; ) {
    await new Promise((resume) => setTimeout(resume, 500));
    try {
      const now = (await ask(`data/dead-letters/${encodeURIComponent(where)}`, { signal })).dead_letter;
      const text = isDone(now);
      if (text) return text;
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }
  return "The projector has not come to it within a minute: the pipeline shows its lag.";
};
