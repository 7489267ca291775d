// The pipeline: from requests to rows, now and over the last ten minutes.

import { ask, repeat } from "./data.js";
import { copyable, h, panel, put, replaceBody, table } from "./dom.js";
import { ago, brief, bytes, count, dateTime, ms, percent, rate, seconds, words } from "./format.js";
import { growth } from "./growth.js";
import { isLane, lanes } from "./lanes.js";
import { letters } from "./letters.js";
import { plot } from "./plot.js";
import { welcome } from "./welcome.js";

/** How long the plots reach back. */
const SPAN_MS = 10 * 60_000;

/** Partitions in the table; of more, those with the largest lag. */
const ROWS_MAX = 24;

export const pipeline = (place, { signal, failed, session, rest }) => {
  if (rest[0] === "dead-letters") return letters(place, { signal, failed, session, rest: rest.slice(1) });

  const tiles = {
    accepted: tile("Accepted"),
    applied: tile("Applied"),
    rejected: tile("Rejected"),
    append: tile("Append, 99 %"),
    lag: tile("Lag"),
    dead: tile("Dead letters", "#pipeline/dead-letters"),
  };
  const rates = plot({
    title: "Events per second",
    series: [
      { name: "accepted", key: "accepted_per_s", format: rate },
      { name: "applied", key: "applied_per_s", format: rate },
      { name: "rejected", key: "rejected_per_s", format: rate },
    ],
    axis: brief,
    least: 4,
  });
  const latency = plot({
    title: "Time until an event is durable",
    series: [
      { name: "99 %", key: "append_p99_ms", format: ms },
      { name: "median", key: "append_p50_ms", format: ms },
    ],
    axis: ms,
    least: 5,
  });
  const lag = plot({
    title: "Age of the oldest event not applied",
    series: [{ name: "lag", key: "lag_s", format: seconds }],
    axis: seconds,
    least: 2,
  });
  const commit = plot({
    title: "Time of a transaction",
    series: [{ name: "99 %", key: "commit_p99_ms", format: ms }],
    axis: ms,
    least: 10,
  });
  const hello = h("div", {});
  const attention = h("div", {});
  const sum = panel("The account of all records", { id: "account" });
  const strips = { records: lagStrip("records"), seconds: lagStrip("time") };
  const partitions = panel("Partitions", { id: "partitions" });
  const outcomes = panel("Requests since the start", { id: "outcomes" });
  const tables = panel("Tables", { id: "tables" });
  const growing = growth();
  const history = lanes();
  const spools = panel("Spools", { id: "spools" });
  place.append(
    h("h1", { class: "unseen" }, "Pipeline"),
    hello,
    attention,
    h("div", { class: "tiles" }, Object.values(tiles).map((each) => each.element)),
    h("div", { class: "plots" }, [rates, latency, lag, commit].map((each) => each.element)),
    sum,
    growing.element,
    partitions,
    history.element,
    spools,
    h("div", { class: "columns" }, outcomes, tables),
  );
  spools.hidden = true;
  const greeting = welcome(hello, { session, signal });

  let samples = [];
  let pulse = null;
  let status = null;
  let before = null;
  /** What a rebuild had done at the last answers. */
  let built = [];

  const showPulse = () => {
    if (!pulse) return;
    const now = pulse.now_ms;
    const points = samples.map((sample) => ({ ...sample, at: sample.at_ms }));
    // As far back as the process knows, and two minutes at least.
    const from = Math.max(now - SPAN_MS, Math.min(points[0]?.at ?? now, now - 2 * 60_000));
    for (const each of [rates, latency, lag, commit]) each.show(points, from, now);
    history.show({ points, from, now, lane: pulse.lane, noted: (status?.spools ?? []).filter(isLane) });
    const last = samples.at(-1) ?? {};
    tiles.accepted.show(rate(last.accepted_per_s), "per second");
    tiles.rejected.show(rate(last.rejected_per_s), "per second");
    tiles.append.show(ms([...samples].reverse().find((sample) => sample.append_p99_ms !== null)?.append_p99_ms), "until durable");
    if (last.applied_per_s !== null && last.applied_per_s !== undefined) tiles.applied.show(rate(last.applied_per_s), "per second");
    const rows = Object.entries(pulse.submissions).sort((a, b) => b[1] - a[1]);
    const total = rows.reduce((all, [, number]) => all + number, 0);
    showOutcomes(outcomes, rows, total, session);
  };

  const showStatus = () => {
    if (!status) return;
    const { totals } = status;
    if (!session.process.projects && before) {
      const s = (status.at - before.at) / 1_000;
      tiles.applied.show(rate(Math.max(0, totals.applied - before.totals.applied) / s), "per second, by all processes");
    }
    const oldest = Math.max(0, ...partitionsNow(status, pulse, session).map((each) => each.lag_seconds));
    tiles.lag.show(brief(totals.lag_records), totals.lag_records ? `events, the oldest ${seconds(oldest)}` : "events", oldest > 60 ? "warn" : "");
    const { open, waiting, discarded } = status.dead_letters;
    const more = [waiting && `${count(waiting)} waiting`, discarded && `${count(discarded)} discarded`].filter(Boolean);
    tiles.dead.show(brief(open), more.join(", ") || "to look at", open ? "bad" : "");
    showAttention(attention, status);
    showSum(sum, status);
    growing.show(status.layout);
    showPartitions(partitions, strips, status, pulse, session);
    built = since(built, status);
    showTables(tables, status, built);
    const noted = status.spools.filter((each) => !isLane(each));
    spools.hidden = !noted.length;
    if (noted.length) showSpools(spools, noted);
    greeting.show(totals.in_log + totals.spooled + totals.removed, pulse?.submissions.bot ?? 0);
  };

  repeat(
    async () => {
      const after = samples.at(-1)?.at_ms ?? 0;
      pulse = await ask(`data/pulse?after=${after}`, { signal });
      samples = [...samples, ...pulse.samples].filter((sample) => sample.at_ms > pulse.now_ms - SPAN_MS);
      showPulse();
    },
    1_000,
    signal,
    failed,
  );
  repeat(
    async () => {
      const next = await ask("data/status", { signal });
      [before, status] = [status, { ...next, at: performance.now() }];
      showStatus();
    },
    2_500,
    signal,
    failed,
  );
};

const tile = (name, href) => {
  const value = h("strong", {}, "–");
  const note = h("small", {}, " ");
  const element = h(href ? "a" : "div", { class: "tile", href }, h("span", {}, name), value, note);
  return {
    element,
    show(text, more, state = "") {
      put(value, text);
      put(note, more);
      element.dataset.state = state;
    },
  };
};

const showOutcomes = (place, rows, total, session) => {
  if (!session.process.collects) {
    return replaceBody(place, h("p", { class: "hint" }, "This process takes no events. The console of a collector shows its requests."));
  }
  replaceBody(
    place,
    table(
      [
        { title: "Outcome", of: ([name]) => words(name) },
        { title: "Events", number: true, of: ([, number]) => count(number) },
        { title: "Share", number: true, of: ([, number]) => percent(number / total) },
      ],
      rows,
      { caption: "Outcomes of requests", empty: "No request has come yet." },
    ),
  );
};

/** Everything that an operator should know of, with the remedy. */
export const concerns = (status) => {
  const out = [];
  const add = (level, text, remedy) => out.push({ level, text, remedy });
  if (status.other_log) {
    add("bad", `The store holds the projection of another log, ${status.other_log}.`, "dashi serve --accept-new-log");
  }
  for (const { refused, text, remedy } of status.topic) add(refused ? "bad" : "warn", text, remedy);
  for (const { partition, lost } of status.partitions) {
    if (lost) add("bad", `Partition ${partition}: ${lost}.`, "dashi accept-lost");
  }
  const broken = status.partitions.filter(
    (each) => each.last_error && each.last_error_kind !== "dead_letter" && !each.last_error_over_at_ms && !each.lost,
  );
  for (const each of broken.slice(0, 5)) {
    add("bad", `Partition ${each.partition} since ${dateTime(each.last_error_at_ms)}: ${each.last_error}`);
  }
  if (broken.length > 5) add("bad", `${broken.length - 5} more partitions have an error: see the table.`);
  const { unaccounted, missing, not_found } = status.totals;
  if (not_found) add("bad", `${count(not_found)} accepted events are neither in the log nor in a spool.`, "dashi audit");
  if (unaccounted) add("bad", `${count(unaccounted)} offsets are in no count.`, "dashi audit");
  if (missing) add("warn", `${count(missing)} records are missing from the log.`, "dashi status");
  if (status.dead_letters.open) {
    add("warn", `${count(status.dead_letters.open)} records could not be applied and are set aside.`, "dashi dead-letters list");
  }
  for (const spool of status.spools) {
    // Historical events wait for live ones as a rule.
    if (spool.full) add("bad", `The ${isLane(spool) ? "lane" : "spool"} of ${spool.collector} is full: ${spool.full}.`);
    else if (spool.trouble && !isLane(spool)) add("warn", `The spool of ${spool.collector}: ${spool.trouble}.`);
  }
  if (status.tables.due) add("warn", `A rebuild is due: ${status.tables.due}.`, "dashi replay run");
  const unclaimed = status.partitions.filter((each) => !each.owner && each.lag_records).length;
  if (unclaimed) add("warn", `${count(unclaimed)} partitions with events have no owner yet.`, "dashi project");
  return out;
};

const showAttention = (place, status) => {
  const found = concerns(status);
  const same = JSON.stringify(found);
  if (place.dataset.shown === same) return;
  place.dataset.shown = same;
  put(
    place,
    found.length > 0 &&
      h(
        "ul",
        { class: "concerns", "aria-label": "Needs attention" },
        found.map(({ level, text, remedy }) =>
          h("li", { class: level }, h("p", {}, text), remedy && copyable(remedy, "the command")),
        ),
      ),
  );
};

/** Two equations: all that collectors accepted is there, and all that is in the log has one outcome. */
const showSum = (place, status) => {
  const { totals } = status;
  /** @param {any[]} part */
  const term = ([name, number], sign = "") => h("span", { class: "term" }, sign && h("i", {}, sign), h("span", {}, h("b", {}, count(number)), h("small", {}, name)));
  const side = (parts) => parts.map((part, at) => term(part, at ? "+" : ""));
  const equation = (id, left, right, less, wrong) =>
    h(
      "div",
      { class: "sum", id },
      side(left),
      h("i", { class: "equals" }, "="),
      side(right),
      less.map((part) => term(part, "−")),
      h("span", { class: `verdict ${wrong ? "bad" : "good"}` }, wrong || "adds up"),
    );
  const present = ([, number]) => number;
  replaceBody(
    place,
    equation(
      "accepted",
      [["accepted by collectors", totals.accepted], ["in no collector's count", totals.untallied]],
      [
        ["in the log", totals.in_log],
        ...[["waiting in spools and lanes", totals.spooled], ["removed from the log", totals.removed]].filter(present),
      ],
      [],
      totals.not_found && `${count(totals.not_found)} not found`,
    ),
    equation(
      "outcomes-of-all",
      [["in the log", totals.in_log]],
      [
        ["applied", totals.applied],
        ["duplicate", totals.duplicate],
        ["dead", totals.dead],
        ["missing", totals.missing],
        ...[["markers", totals.markers]].filter(present),
        ["not applied yet", totals.lag_records],
      ],
      [["read again", totals.rewound], ["removed from the log", totals.removed]].filter(present),
      totals.unaccounted && `${count(totals.unaccounted)} unaccounted`,
    ),
    h(
      "p",
      { class: "hint" },
      "Collectors write their counts every two seconds; imports and commands are in none. ",
      h("code", {}, "dashi audit"),
      " compares the same by the hour, record by record.",
    ),
  );
};

/** The partitions; lag and state of those of this process as it measures them itself, every second. */
const partitionsNow = (status, pulse, session) =>
  status.partitions.map((each) => {
    const live = session.process.projects ? pulse?.partitions[each.partition] : null;
    return {
      ...each,
      lag_records: live?.lag_records ?? each.lag_records,
      lag_seconds: live?.lag_s ?? each.lag_seconds,
      state: live?.state ?? (!each.owner ? "never claimed" : session.process.projects && !pulse ? "–" : "elsewhere"),
    };
  });

/** Bars, one for each partition. */
const lagStrip = (name) => {
  const bars = h("div", { class: "strip" });
  return { bars, element: h("figure", { class: "lag" }, h("figcaption", {}, `Lag, ${name}`), bars) };
};

const showPartitions = (place, strips, status, pulse, session) => {
  const all = partitionsNow(status, pulse, session);
  const most = Math.max(1, ...all.map((each) => each.lag_records));
  const oldest = Math.max(1, ...all.map((each) => each.lag_seconds));
  // On a scale by powers: one event shows, and a million do not hide a thousand.
  const height = (value, largest) => Math.round((Math.log1p(value) / Math.log1p(largest)) * 100);
  const draw = ({ bars }, key, largest) =>
    bars.replaceChildren(
      ...all.map((each) => {
        const bar = h("i", { class: ["failed", "waiting_for_store", "waiting_for_log"].includes(each.state) ? "bad" : each.lag_seconds > 60 ? "warn" : "" });
        bar.style.height = `${Math.max(4, height(each[key], largest))}%`;
        return h("span", { title: `Partition ${each.partition}: ${count(each.lag_records)} records, ${seconds(each.lag_seconds)}` }, bar);
      }),
    );
  draw(strips.records, "lag_records", most);
  draw(strips.seconds, "lag_seconds", oldest);
  const tails = all.map((each) => each.tail).filter(Boolean);
  const shown = all.length <= ROWS_MAX ? all : [...all].sort((a, b) => b.lag_records - a.lag_records).slice(0, ROWS_MAX);
  const meter = (value, largest, text) => {
    const bar = h("i", { class: "meter", "aria-hidden": "true" });
    bar.style.setProperty("--share", `${(value / largest) * 100}%`);
    return [bar, text];
  };
  replaceBody(
    place,
    h("div", { class: "strips", "aria-hidden": "true" }, strips.records.element, strips.seconds.element),
    table(
      [
        { title: "Partition", of: (each) => String(each.partition) },
        { title: "State", of: (each) => h("span", { class: `state ${each.state === "failed" ? "bad" : each.state.startsWith("waiting") ? "warn" : ""}` }, words(each.state)) },
        { title: "Lag, records", number: true, class: "metered", of: (each) => meter(each.lag_records, most, count(each.lag_records)) },
        { title: "Lag, time", number: true, class: "metered", of: (each) => meter(each.lag_seconds, oldest, seconds(each.lag_seconds)) },
        { title: "Checkpoint", number: true, of: (each) => count(each.checkpoint) },
        { title: "High watermark", number: true, of: (each) => count(each.high_watermark) },
        { title: "Epoch", number: true, of: (each) => count(each.epoch) },
        { title: "Owner", class: "owner", of: (each) => each.owner ?? "–" },
        { title: "Last commit", number: true, of: (each) => (each.updated_at_ms ? ago(each.updated_at_ms) : "–") },
      ],
      shown,
      { caption: "Partitions of the log" },
    ),
    tails.length > 0 &&
      h("p", { class: "hint" }, `Live events come first in ${count(tails.length)} partitions: ${count(tails.reduce((sum, tail) => sum + tail.applied, 0))} are applied before the backlog.`),
    shown.length < all.length && h("p", { class: "hint" }, `The ${ROWS_MAX} partitions with the largest lag, of ${count(all.length)}.`),
  );
};

/** The answers of the last half minute about the rebuild that runs, with this one. */
const since = (built, { at, tables: { building } }) =>
  building ? [...built.filter((each) => each.number === building.number && each.at > at - 30_000), { ...building, at }] : [];

/** How long it still takes, by what it did lately; nothing if it did nothing. */
const left = (built) => {
  const [first, last] = [built[0], built.at(-1)];
  const per_s = first && ((last.done - first.done) / (last.at - first.at)) * 1_000;
  return per_s > 0 ? `, ${rate(per_s)}/s, ${seconds((last.total - last.done) / per_s)} left` : "";
};

const showTables = (place, status, built) => {
  const { generations, building, due } = status.tables;
  const progress = building && h("progress", { max: Math.max(1, building.total), value: building.done, "aria-label": "Rebuild" });
  replaceBody(
    place,
    building &&
      h(
        "div",
        { class: "building" },
        h("p", {}, `Generation ${building.number} is being built: ${count(building.done)} of ${count(building.total)} records (${percent(building.done / Math.max(1, building.total))})${left(built)}; last commit ${ago(building.committed_at_ms)}.`),
        progress,
      ),
    table(
      [
        { title: "Generation", of: (each) => String(each.number) },
        { title: "State", of: (each) => words(each.state) },
        { title: "Live since", of: (each) => dateTime(each.live_since_ms) },
        { title: "Rebuilt at", number: true, of: (each) => (each.replayed_per_s ? `${count(each.replayed_per_s)}/s` : "–") },
      ],
      generations,
      { caption: "Generations of the tables" },
    ),
    due && h("p", { class: "hint" }, `A rebuild is due: ${due}.`),
    status.umami && h("p", { class: "hint" }, `Tables of Umami ${status.umami.release}.`),
  );
};

const showSpools = (place, spools) =>
  replaceBody(
    place,
    table(
      [
        { title: "Collector", of: (each) => each.collector },
        { title: "State", of: (each) => words(each.state) },
        { title: "Events", number: true, of: (each) => count(each.records) },
        { title: "Size", number: true, of: (each) => bytes(each.bytes) },
        { title: "Set aside", number: true, of: (each) => count(each.set_aside) },
        { title: "Oldest", number: true, of: (each) => (each.oldest_at_ms ? ago(each.oldest_at_ms) : "–") },
        { title: "Noted", number: true, of: (each) => ago(each.noted_at_ms) },
      ],
      spools,
      { caption: "Spools of collectors" },
    ),
  );
