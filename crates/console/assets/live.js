// Events as they are applied.

import { ask, repeat } from "./data.js";
import { h, panel, put } from "./dom.js";
import { count, rate, timeOfDay } from "./format.js";
import { country } from "./places.js";
import { plot } from "./plot.js";
import { follow } from "./stream.js";

/** Rows that are shown. */
const ROWS = 40;

/** How long the plot reaches back. */
const SPAN_MS = 2 * 60_000;

export const live = (place, { signal, failed, session }) => {
  const now = h("strong", {}, "–");
  const visitors = h("div", { class: "tile" }, h("span", {}, "Sessions live now"), now, h("small", {}, "with an event in the last 5 minutes"));
  const perSecond = h("strong", {}, "–");
  const speed = h("div", { class: "tile" }, h("span", {}, "Applied"), perSecond, h("small", {}, "per second, this page's last 10"));
  const since = h("strong", {}, "0");
  const total = h("div", { class: "tile" }, h("span", {}, "Applied"), since, h("small", {}, "since this page was opened"));
  const pulse = plot({
    title: "Events applied",
    series: [{ name: "per second", key: "value", format: rate }],
    axis: (value) => count(value),
    least: 4,
  });
  const stop = h("button", { type: "button", class: "quiet", "aria-pressed": "false" }, "Hold");
  const performance_ = h("input", { type: "checkbox" });
  const state = h("span", { class: "hint", role: "status" }, "Connecting …");
  const body = h("tbody", {});
  const list = panel(
    "Events",
    { id: "events" },
    h("div", { class: "actions" }, stop, h("label", { class: "check" }, performance_, " Web vitals, too"), state),
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Events, the newest first" },
      h(
        "table",
        { class: "events" },
        h("thead", {}, h("tr", {}, ["Time", "Website", "Type", "Page or event", "Place", "Client"].map((title) => h("th", { scope: "col" }, title)))),
        body,
      ),
    ),
  );
  place.append(h("h1", { class: "unseen" }, "Live"), h("div", { class: "tiles three" }, visitors, speed, total), pulse.element, list);

  const names = new Map();
  const seconds = new Map();
  let rows = [];
  let held = false;
  let opened = 0;
  let filled = false;

  const shown = () => rows.filter((event) => performance_.checked || event.type !== "performance").slice(0, ROWS);
  const row = (event) =>
    h(
      "tr",
      { "data-id": event.id, class: filled ? "new" : undefined },
      h("td", { class: "time" }, timeOfDay(event.at_ms)),
      h("td", {}, names.get(event.website) ?? event.website.slice(0, 8)),
      h("td", {}, h("span", { class: `badge ${event.type}` }, event.type)),
      h("td", { class: "wide" }, h("a", { href: `#traffic/${event.website}/session/${event.session}`, title: "The session's journey" }, event.type === "identify" ? "identify" : (event.name ?? event.path)), event.name && event.path ? h("small", {}, ` on ${event.path}`) : null),
      h("td", {}, country(event.country) ?? "–"),
      h("td", {}, [event.browser, event.os, event.device].filter(Boolean).join(" · ") || "–"),
    );
  const show = () => {
    if (held) return;
    const wanted = shown();
    if (!wanted.length) {
      body.replaceChildren(h("tr", {}, h("td", { class: "empty", colspan: 6 }, "No event was applied since this process started.")));
      return;
    }
    const known = new Map([...body.children].filter((child) => child.dataset.id).map((child) => [child.dataset.id, child]));
    body.replaceChildren(...wanted.map((event) => known.get(event.id) ?? row(event)));
    filled = true;
  };
  stop.addEventListener("click", () => {
    held = !held;
    stop.setAttribute("aria-pressed", held);
    put(stop, held ? "Go on" : "Hold");
    show();
  });
  performance_.addEventListener("change", show);

  follow("data/live", {
    signal,
    state: (error) => put(state, error ? error.message : ""),
    on: {
      applied({ applied, events }) {
        opened += applied;
        put(since, count(opened));
        const second = Math.floor(Date.now() / 1_000);
        seconds.set(second, (seconds.get(second) ?? 0) + applied);
        const known = new Set(rows.map((event) => event.id));
        // Newest first, by the time of the commit.
        rows = [...events.filter((event) => !known.has(event.id)).reverse(), ...rows].slice(0, 400);
        show();
      },
      end() {},
    },
  });

  const began = Math.floor(Date.now() / 1_000);
  const tick = () => {
    const last = Math.floor(Date.now() / 1_000) - 1;
    for (const second of seconds.keys()) if (second < last - SPAN_MS / 1_000) seconds.delete(second);
    const points = Array.from({ length: SPAN_MS / 1_000 }, (_, at) => {
      const second = last - SPAN_MS / 1_000 + 1 + at;
      return { at: second * 1_000, value: second < began ? null : (seconds.get(second) ?? 0) };
    });
    pulse.show(points, (last + 1) * 1_000 - SPAN_MS, last * 1_000);
    put(perSecond, rate(points.slice(-10).reduce((sum, point) => sum + point.value, 0) / 10));
  };
  tick();
  const timer = setInterval(() => document.hidden || tick(), 1_000);
  signal.addEventListener("abort", () => clearInterval(timer));
  show();

  repeat(
    async () => {
      const { websites } = await ask("data/websites", { signal });
      if (websites.some(({ id, name }) => names.get(id) !== name)) {
        for (const { id, name } of websites) names.set(id, name);
        // With their names now.
        body.replaceChildren();
        filled = false;
        show();
      }
      const active = await Promise.all(
        websites.slice(0, 20).map(({ id }) => ask(`${session.api}/websites/${id}/active`, { signal })),
      );
      put(now, count(active.reduce((sum, { visitors }) => sum + visitors, 0)));
    },
    5_000,
    signal,
    failed,
  );
};
