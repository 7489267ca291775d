// One session: who it is, and what it did, visit by visit.

import { ask } from "./data.js";
import { h, panel } from "./dom.js";
import { count, dateTime, seconds, timeOfDay } from "./format.js";
import { country, language } from "./places.js";

const TYPES = { 1: "view", 2: "event", 3: "link", 4: "pixel", 5: "performance" };

/** Later than anything that a session did: the API wants an end. */
const soon = () => Date.now() + 86_400_000;

export const journey = async (place, { signal, failed, root, website, id }) => {
  try {
    await show(place, { signal, root, website, id });
  } catch (error) {
    if (!signal.aborted) failed(error);
  }
};

const show = async (place, { signal, root, website, id }) => {
  const at = `${root}/sessions/${encodeURIComponent(id)}`;
  const [session, properties] = await Promise.all([ask(at, { signal }), ask(`${at}/properties`, { signal })]);
  const from = session.firstAt ? new Date(session.firstAt).getTime() : 0;
  const activity = await ask(`${at}/activity?${new URLSearchParams({ startAt: String(from), endAt: String(soon()) })}`, { signal });

  const facts = [
    ["Session", id],
    ["Person", session.distinctId],
    ["First seen", dateTime(new Date(session.firstAt).getTime())],
    ["Last seen", dateTime(new Date(session.lastAt).getTime())],
    ["Visits", count(session.visits)],
    ["Views", count(session.views)],
    ["Events", count(session.events)],
    ["Time", session.totaltime === undefined ? null : seconds(Number(session.totaltime))],
    ["Place", [session.city, session.region, country(session.country)].filter(Boolean).join(", ")],
    ["Client", [session.browser, session.os, session.device, session.screen].filter(Boolean).join(" · ")],
    ["Language", language(session.language)],
  ].filter(([, value]) => value);
  const value = (property) => property.numberValue ?? property.dateValue ?? property.stringValue ?? "–";
  place.append(
    h("p", { class: "back" }, h("a", { href: `#traffic/${website.id}` }, `Traffic of ${website.name}`)),
    h("h2", { class: "title" }, session.distinctId || `Session ${id.slice(0, 8)}`),
    h(
      "div",
      { class: "columns" },
      panel("Facts", {}, h("dl", { class: "facts" }, facts.map(([name, text]) => [h("dt", {}, name), h("dd", {}, String(text))]))),
      panel(
        "Properties",
        {},
        properties.length
          ? h("dl", { class: "facts" }, properties.map((property) => [h("dt", {}, property.dataKey), h("dd", {}, String(value(property)))]))
          : h("p", { class: "hint" }, "No identify has set any."),
      ),
    ),
    panel("Journey", { id: "journey" }, visits(activity)),
  );
};

/** The newest visit first, each in the order of its events. */
const visits = (activity) => {
  const rows = activity.map((row) => ({ ...row, at: new Date(row.createdAt).getTime() })).sort((a, b) => a.at - b.at);
  const byVisit = new Map();
  for (const row of rows) byVisit.set(row.visitId, [...(byVisit.get(row.visitId) ?? []), row]);
  if (!rows.length) return h("p", { class: "hint" }, "No event is known of it.");
  return [...byVisit.values()].reverse().map((events) =>
    h(
      "section",
      { class: "visit" },
      h("h3", {}, dateTime(events[0].at), h("small", {}, ` ${events.length === 1 ? "1 event" : `${count(events.length)} events`} in ${seconds(Math.round((events.at(-1).at - events[0].at) / 1_000))}`)),
      h(
        "ol",
        { class: "timeline" },
        events.map((event) => {
          const type = TYPES[event.eventType] ?? "event";
          return h(
            "li",
            { class: type },
            h("time", {}, timeOfDay(event.at)),
            h("span", { class: `badge ${type}` }, type),
            h("span", {}, event.eventName ? `${event.eventName} on ${event.urlPath}` : event.urlPath, event.referrerDomain && type === "view" ? h("small", {}, ` from ${event.referrerDomain}`) : null),
          );
        }),
      ),
    ),
  );
};
