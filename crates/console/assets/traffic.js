// A website's traffic, by the same API that Umami's clients use.

import { ask, repeat } from "./data.js";
import { h, panel, put, table } from "./dom.js";
import { ago, brief, count, isNumber, percent, seconds } from "./format.js";
import { journey } from "./journey.js";
import { country, language } from "./places.js";
import { plot } from "./plot.js";
import { bucketLabel, bucketTick, dateText, RANGES, rangeOf } from "./ranges.js";

/** The lists: a title, and the values that each can show, by the API's name. */
const LISTS = [
  ["Pages", { path: "Path", title: "Title", entry: "First page", exit: "Last page" }],
  ["Sources", { referrer: "Referrer", utmSource: "Campaign source", utmMedium: "Campaign medium", utmCampaign: "Campaign" }],
  ["Events", { event: "Name" }],
  ["Places", { country: "Country", region: "Region", city: "City", language: "Language" }],
  ["Browsers", { browser: "Browser" }],
  ["Systems", { os: "System", screen: "Screen" }],
  ["Devices", { device: "Device" }],
];

/** Names by which a value can be filtered; the others are shown only. */
const FILTERS = {
  path: "Page",
  title: "Title",
  referrer: "Referrer",
  event: "Event",
  country: "Country",
  region: "Region",
  city: "City",
  language: "Language",
  browser: "Browser",
  os: "System",
  device: "Device",
  screen: "Screen",
  utmSource: "Source",
  utmMedium: "Medium",
  utmCampaign: "Campaign",
};

const ROWS = 8;

/** A value as people read it. */
const written = (type, value) => {
  if (!value) return type === "referrer" ? "(direct)" : "(none)";
  if (type === "country") return country(value);
  if (type === "language") return language(value);
  return value;
};

export const traffic = async (place, { signal, failed, session, rest }) => {
  place.append(h("h1", { class: "unseen" }, "Traffic"));
  let websites;
  try {
    ({ websites } = await ask("data/websites", { signal }));
  } catch (error) {
    if (!signal.aborted) failed(error);
    return;
  }
  const website = websites.find(({ id }) => id === rest[0]) ?? websites[0];
  if (!website) {
    place.append(h("p", { class: "panel" }, "No website is registered: add one in Umami's dashboard, or with `dashi website add`."));
    return;
  }
  const root = `${session.api}/websites/${website.id}`;
  if (rest[1] === "session") return journey(place, { signal, failed, root, website, id: rest[2] });
  overview(place, { signal, failed, root, websites, website, range: rest[1], filters: new URLSearchParams(rest[2] ?? "") });
};

const address = (website, range, filters) => {
  const text = filters.toString();
  return `#traffic/${website.id}/${range}${text ? `/${encodeURIComponent(text)}` : ""}`;
};

const overview = (place, { signal, failed, root, websites, website, range: name, filters }) => {
  const range = () => rangeOf(name);
  const unit = range().unit;
  const go = (next) => {
    location.hash = address(next.website ?? website, next.range ?? range().name, next.filters ?? filters);
  };
  const without = (type) => {
    const next = new URLSearchParams(filters);
    next.delete(type);
    return next;
  };
  const filtered = (type, value) => {
    const next = without(type);
    next.set(type, value);
    return next;
  };

  const tiles = {
    visitors: tile("Visitors"),
    visits: tile("Visits"),
    views: tile("Views"),
    bounces: tile("Bounce rate"),
    time: tile("Visit time"),
    active: tile("Here now"),
  };
  const series = plot({
    title: "Views and visitors",
    series: [
      { name: "views", key: "views", format: count },
      { name: "visitors", key: "visitors", format: count },
      { name: "views before", key: "before", format: count },
    ],
    axis: brief,
    label: bucketLabel(unit),
    tick: bucketTick(unit),
    least: 4,
  });
  series.element.classList.add("compared");
  const chips = [...filters].map(([type, value]) =>
    h(
      "a",
      { class: "chip", href: address(website, range().name, without(type)), "aria-label": `Remove the filter ${FILTERS[type] ?? type}` },
      `${FILTERS[type] ?? type}: ${written(type, value)} `,
      h("span", { "aria-hidden": "true" }, "×"),
    ),
  );
  const lists = LISTS.map(([title, types]) => list(title, types, { website, range, filtered, root, signal }));
  const sessions = panel("Sessions", { id: "sessions" });
  place.append(
    h("div", { class: "controls" }, chooseWebsite(websites, website, go), chooseRange(range(), website, filters, go)),
    chips.length > 0 && h("div", { class: "chips", "aria-label": "Filters" }, chips),
    h("div", { class: "tiles" }, Object.values(tiles).map((each) => each.element)),
    series.element,
    h("div", { class: "lists" }, lists.map((each) => each.element)),
    sessions,
  );
  for (const child of [...place.childNodes]) if (child.nodeType === Node.TEXT_NODE) child.remove();

  const query = (more = {}) => {
    const { startAt, endAt } = range();
    const timezone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    // An operator stands before each value, so that a value with a point is no operator.
    const wanted = [...filters].map(([type, value]) => [type, `eq.${value}`]);
    return new URLSearchParams([...Object.entries({ startAt, endAt, ...(more.zone ? { timezone } : {}), ...more.add }), ...wanted]);
  };

  repeat(
    async () => {
      const [stats, points, now] = await Promise.all([
        ask(`${root}/stats?${query()}`, { signal }),
        ask(`${root}/pageviews?${query({ zone: true, add: { unit, compare: "prev" } })}`, { signal }),
        ask(`${root}/active`, { signal }),
      ]);
      showTotals(tiles, stats, now);
      showSeries(series, points);
      await Promise.all(lists.map((each) => each.load(query)));
      const { data } = await ask(`${root}/sessions?${query({ add: { pageSize: 10 } })}`, { signal });
      showSessions(sessions, website, data);
    },
    10_000,
    signal,
    failed,
  );
};

const tile = (name) => {
  const [value, note] = [h("strong", {}, "–"), h("small", {}, " ")];
  const element = h("div", { class: "tile" }, h("span", {}, name), value, note);
  return {
    element,
    show(text, more) {
      put(value, text);
      put(note, more);
    },
  };
};

/** "▲ 12% from 1,200", beside the time before. */
const change = (now, before, write) => {
  if (!isNumber(before) || !isNumber(now)) return " ";
  if (before === 0) return now === 0 ? "as before" : `from ${write(0)}`;
  const ratio = now / before - 1;
  if (ratio >= 9) return `▲ ×${Math.round(now / before)} from ${write(before)}`;
  if (Math.abs(ratio) < 0.0005) return `as before, ${write(before)}`;
  return `${ratio > 0 ? "▲" : "▼"} ${percent(Math.abs(ratio))} from ${write(before)}`;
};

const showTotals = (tiles, stats, { visitors }) => {
  const before = stats.comparison ?? {};
  const share = (part, whole) => (whole ? part / whole : whole === 0 ? 0 : undefined);
  const both = (of) => [of(stats), of(before)];
  const show = (place, of, write) => {
    const [now, then] = both(of);
    place.show(write(now), change(now, then, write));
  };
  show(tiles.visitors, (each) => each.visitors, brief);
  show(tiles.visits, (each) => each.visits, brief);
  show(tiles.views, (each) => each.pageviews, brief);
  const [rate, rateBefore] = both((each) => share(each.bounces, each.visits));
  // A percentage of a percentage would be read as points, and one of no visits is none.
  tiles.bounces.show(percent(rate), before.visits > 0 ? `${rate > rateBefore ? "▲" : rate < rateBefore ? "▼" : ""} from ${percent(rateBefore)}` : " ");
  show(tiles.time, (each) => share(each.totaltime, each.visits), seconds);
  tiles.active.show(count(visitors), "in the last 5 minutes");
};

const showSeries = (series, { pageviews, sessions, compare }) => {
  const at = (x) => new Date(/[Zz]|[+-]\d\d:?\d\d$/.test(x) ? x : `${x.replace(" ", "T")}Z`).getTime();
  const visitors = new Map(sessions.map(({ x, y }) => [x, y]));
  const before = compare?.pageviews ?? [];
  // The one before has as many buckets, but for a change of the clocks: the first of both stand side by side.
  const points = pageviews.map(({ x, y }, index) => ({ at: at(x), views: y, visitors: visitors.get(x) ?? 0, before: before[index]?.y ?? null }));
  if (points.length) series.show(points, points[0].at, points.at(-1).at);
  else series.show([], Date.now() - 1, Date.now());
};

const chooseWebsite = (websites, website, go) =>
  h(
    "label",
    {},
    h("span", { class: "unseen" }, "Website"),
    h(
      "select",
      { id: "website", onchange: (event) => go({ website: websites.find(({ id }) => id === event.target.value), filters: new URLSearchParams() }) },
      websites.map(({ id, name, domain }) => h("option", { value: id, selected: id === website.id }, domain && domain !== name ? `${name} (${domain})` : name)),
    ),
  );

const chooseRange = (range, website, filters, go) => {
  const from = h("input", { type: "date", value: dateText(range.startAt), max: dateText(Date.now()), "aria-label": "From" });
  const to = h("input", { type: "date", value: dateText(range.endAt), "aria-label": "To, inclusive" });
  const chosen = () => from.value && to.value && from.value <= to.value && go({ range: `${from.value}~${to.value}` });
  from.addEventListener("change", chosen);
  to.addEventListener("change", chosen);
  return [
    h(
      "div",
      { class: "choices", role: "group", "aria-label": "Time" },
      Object.entries(RANGES).map(([name, { title }]) =>
        h("a", { href: address(website, name, filters), "aria-current": name === range.name ? "true" : undefined }, title),
      ),
    ),
    h("div", { class: "dates" }, from, h("span", { "aria-hidden": "true" }, "–"), to),
  ];
};

/** A list of values with their counts, each a link that filters by it. */
const list = (title, types, { website, range, filtered, root, signal }) => {
  const names = Object.entries(types);
  let [type] = names[0];
  const body = h("div", { class: "bars" });
  let query = null;
  const choice =
    names.length > 1 &&
    h(
      "select",
      {
        "aria-label": `${title} by`,
        onchange: (event) => {
          type = event.target.value;
          body.replaceChildren();
          if (query) load(query).catch(() => put(body, h("p", { class: "hint" }, "The server does not answer.")));
        },
      },
      names.map(([name, text]) => h("option", { value: name }, text)),
    );
  const load = async (next) => {
    query = next;
    const asked = type;
    const rows = await ask(`${root}/metrics?${query({ add: { type, limit: ROWS } })}`, { signal });
    if (asked !== type) return;
    const most = Math.max(1, ...rows.map(({ y }) => y));
    put(
      body,
      rows.length
        ? rows.map(({ x, y }) => {
            const name = written(type, x);
            const bar = h("i", { "aria-hidden": "true" });
            bar.style.setProperty("--share", `${(y / most) * 100}%`);
            const line = [bar, h("span", { class: "name", title: name }, name), h("b", {}, count(y))];
            return FILTERS[type] && x
              ? h("a", { class: "row", href: address(website, range().name, filtered(type, x)), "aria-label": `${name}: ${count(y)}; show only this` }, line)
              : h("div", { class: "row" }, line);
          })
        : h("p", { class: "hint" }, "Nothing in this time."),
    );
  };
  const element = h("section", { class: "panel list", id: `list-${title.toLowerCase()}` }, h("div", { class: "head" }, h("h2", {}, title), choice), body);
  return { element, load };
};

const showSessions = (place, website, rows) => {
  const heading = place.firstElementChild;
  const path = (session) => `#traffic/${website.id}/session/${session.id}`;
  place.replaceChildren(
    heading,
    table(
      [
        { title: "Session", of: (each) => h("a", { href: path(each) }, each.distinctId || each.id.slice(0, 8)) },
        { title: "Last seen", of: (each) => ago(new Date(each.lastAt).getTime()) },
        { title: "Visits", number: true, of: (each) => count(each.visits) },
        { title: "Views", number: true, of: (each) => count(each.views) },
        { title: "Place", of: (each) => [each.city, country(each.country)].filter(Boolean).join(", ") || "–" },
        { title: "Client", of: (each) => [each.browser, each.os, each.device].filter(Boolean).join(" · ") || "–" },
      ],
      rows,
      { caption: "Sessions, the last seen first", empty: "No session in this time." },
    ),
  );
};
