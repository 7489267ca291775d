// Lanes: historical events that wait in front of the log until live ones leave room.

import { h, panel, replaceBody, table } from "./dom.js";
import { ago, brief, bytes, count, percent, rate, seconds } from "./format.js";
import { plot } from "./plot.js";

/** The time over which the share and the rate are means. */
const MEAN_MS = 30_000;

/** Whether a note about a spool is about a lane. */
export const isLane = (each) => each.state === "historical";

/**
 * Returns `{ element, show({ points, from, now, lane, noted }) }`: `lane` is that of this process, `noted` those of all, as their
 * collectors noted them. The element is hidden where there never was history.
 */
export const lanes = () => {
  const facts = h("dl", { class: "tiles", id: "lane" });
  const flow = plot({
    title: "Events into the log per second",
    series: [
      { name: "live", key: "live_per_s", format: rate },
      { name: "historical", key: "historical_per_s", format: rate },
    ],
    axis: brief,
    least: 4,
  });
  const list = h("div", { class: "below" }, h("h3", {}, "By collector"));
  const element = panel("Lanes of historical events", { id: "lanes" }, facts, flow.element, list);
  element.hidden = true;
  return {
    element,
    show({ points, from, now, lane, noted }) {
      const isUsed = lane && (lane.records > 0 || lane.taken > 0 || lane.forwarded > 0);
      element.hidden = !isUsed && !noted.length;
      facts.hidden = !isUsed;
      flow.element.hidden = !isUsed;
      if (isUsed) {
        flow.show(points, from, now);
        facts.replaceChildren(...factsOf(lane, points.filter((each) => each.at > now - MEAN_MS)));
      }
      list.hidden = !noted.length;
      if (noted.length) replaceBody(list, tableOf(noted));
    },
  };
};

const factsOf = (lane, points) => {
  const mean = (key) => points.reduce((all, each) => all + (each[key] ?? 0), 0) / Math.max(1, points.length);
  const [live, historical] = [mean("live_per_s"), mean("historical_per_s")];
  const shrinks = historical > 0 && lane.records > 0;
  return [
    fact("Waiting", count(lane.records), lane.records ? `the oldest for ${seconds(lane.oldest_wait_s)}` : "no event"),
    fact("Of its bound", percent(lane.bytes / Math.max(1, lane.bytes_max)), `${bytes(lane.bytes)} of ${bytes(lane.bytes_max)}`, lane.full ? "bad" : ""),
    fact("Into the log", `${rate(historical)}/s`, shrinks ? `${seconds(lane.records / historical)} at this pace` : lane.waits ? "live events come first" : "nothing waits"),
    fact("Its share", live + historical > 0 ? percent(historical / (live + historical)) : "–", "of all that enters"),
    fact("Gone into the log", brief(lane.forwarded), `of ${brief(lane.taken)} that came`),
    fact("Set aside", count(lane.set_aside), "too large for the log", lane.set_aside ? "bad" : ""),
  ];
};

const fact = (name, value, note, state = "") => h("div", { class: "tile", "data-state": state }, h("dt", {}, name), h("dd", {}, h("strong", {}, value), h("small", {}, note)));

const tableOf = (noted) =>
  table(
    [
      { title: "Lane of", of: (each) => each.collector },
      { title: "Events", number: true, of: (each) => count(each.records) },
      { title: "Size", number: true, of: (each) => bytes(each.bytes) },
      { title: "Oldest", number: true, of: (each) => (each.oldest_at_ms ? ago(each.oldest_at_ms) : "–") },
      { title: "Noted", number: true, of: (each) => ago(each.noted_at_ms) },
      { title: "Waits", class: "wide", of: (each) => each.full ?? each.trouble ?? "–" },
    ],
    noted,
    { caption: "Lanes that hold events" },
  );
