// Plots of values over time: lines on an SVG that is as wide as its place. A pointer or the arrow keys read values off.

import { h, put, s } from "./dom.js";
import { hourMinute, timeOfDay } from "./format.js";

const HEIGHT = 168;
const MARGIN = { top: 10, right: 8, bottom: 22, left: 46 };

/** A round number at or above `value`, half of which is round, too: 1, 2, 4 or 6 times a power of ten. */
export const roundUp = (value) => {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 10].map((step) => step * power).find((step) => step >= value * 0.9999);
};

/**
 * @typedef {{ title: string, series: { name: string, key: string, format: (value: any) => string }[], axis: (value: number) => string,
 *   label?: (at: number) => string, tick?: (at: number) => string, least?: number }} Options
 */

/**
 * A plot. `series`: `[{ name, key, format }]`, read from points that have `at` in ms. `format` writes a value, `axis` one on the
 * axis. `label(at)` writes a time, `tick(at)` one on the axis. Returns `{ element, show(points, from, to) }`.
 * @param {Options} options
 */
export const plot = ({ title, series, axis, label = timeOfDay, tick, least = 1 }) => {
  const svg = s("svg", { class: "plot", height: HEIGHT, role: "img", tabindex: 0 });
  const legend = h("div", { class: "legend" });
  const values = series.map((each, at) => {
    const value = h("span", { class: "value" }, "–");
    legend.append(h("span", { class: `key key-${at}` }, h("i", {}), each.name, " ", value));
    return value;
  });
  const when = h("span", { class: "when" });
  legend.append(when);
  const element = h("figure", { class: "figure" }, h("figcaption", {}, h("h3", {}, title), legend), svg);

  let points = [];
  let range = [0, 1];
  let cursor = null;
  let width = 0;

  const inner = () => ({ w: Math.max(10, width - MARGIN.left - MARGIN.right), h: HEIGHT - MARGIN.top - MARGIN.bottom });
  const x = (at) => MARGIN.left + ((at - range[0]) / Math.max(1, range[1] - range[0])) * inner().w;
  const number = (point, key) => (typeof point?.[key] === "number" ? point[key] : null);

  const readOff = () => {
    const point = cursor === null ? points.at(-1) : points[cursor];
    series.forEach((each, at) => put(values[at], point ? each.format(number(point, each.key)) : "–"));
    put(when, cursor === null || !point ? "" : label(point.at));
  };

  const path = (key, y) => {
    let out = "";
    let drawing = false;
    for (const point of points) {
      const value = number(point, key);
      if (value === null) {
        drawing = false;
        continue;
      }
      const [px, py] = [x(point.at).toFixed(1), y(value).toFixed(1)];
      out += drawing ? `L${px} ${py}` : `M${px} ${py}`;
      drawing = true;
    }
    return out;
  };

  const draw = () => {
    width = element.clientWidth || width || 480;
    const { h: height } = inner();
    const largest = Math.max(0, ...points.flatMap((point) => series.map((each) => number(point, each.key) ?? 0)));
    const top = roundUp(Math.max(largest, least));
    const y = (value) => MARGIN.top + height - (value / top) * height;
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("width", width);
    const lines = [0, 0.5, 1].map((share) => [
      s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(top * share), y2: y(top * share) }),
      s("text", { class: "tick", x: MARGIN.left - 6, y: y(top * share) + 4, "text-anchor": "end" }, axis(top * share)),
    ]);
    const many = Math.max(2, Math.min(6, Math.floor(inner().w / 90)));
    const times = Array.from({ length: many }, (_, at) => range[0] + ((range[1] - range[0]) * at) / (many - 1));
    const write = tick ?? (range[1] - range[0] < 6 * 60_000 ? timeOfDay : hourMinute);
    const timeTicks = times.map((at, index) =>
      s(
        "text",
        { class: "tick", x: x(at), y: HEIGHT - 5, "text-anchor": index === 0 ? "start" : index === many - 1 ? "end" : "middle" },
        write(at),
      ),
    );
    const drawn = series.map((each, at) => {
      const line = path(each.key, y);
      const alone = points.length === 1 && number(points[0], each.key) !== null;
      return [
        at === 0 && line && !alone && areaBelow(line, y(0)),
        s("path", { class: `line line-${at}`, d: line }),
        alone && s("circle", { class: `dot dot-${at}`, cx: x(points[0].at), cy: y(number(points[0], each.key)), r: 3 }),
      ];
    }).reverse();
    const point = cursor === null ? null : points[cursor];
    const mark = point && [
      s("line", { class: "cursor", x1: x(point.at), x2: x(point.at), y1: MARGIN.top, y2: MARGIN.top + height }),
      series.map((each, at) => {
        const value = number(point, each.key);
        return value !== null && s("circle", { class: `dot dot-${at}`, cx: x(point.at), cy: y(value), r: 3.5 });
      }),
    ];
    svg.replaceChildren(...[lines, timeTicks, drawn, mark ?? []].flat(Infinity).filter(Boolean));
    readOff();
    const now = series.map((each, at) => `${each.name} ${values[at].textContent}`).join(", ");
    svg.setAttribute("aria-label", `${title}: ${now}${cursor === null ? "" : ` at ${when.textContent}`}`);
  };

  const areaBelow = (line, bottom) => {
    // Each unbroken part is closed down to the axis.
    const parts = line.split(/(?=M)/).filter(Boolean);
    const d = parts
      .map((part) => {
        const start = part.match(/^M([\d.]+)/)[1];
        return `${part}V${bottom}H${start}Z`;
      })
      .join("");
    return s("path", { class: "area", d });
  };

  const nearest = (at) => {
    let best = null;
    points.forEach((point, index) => {
      if (best === null || Math.abs(point.at - at) < Math.abs(points[best].at - at)) best = index;
    });
    return best;
  };
  const pointed = (event) => {
    const box = svg.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / inner().w;
    cursor = nearest(range[0] + share * (range[1] - range[0]));
    draw();
  };
  const left = () => {
    cursor = null;
    draw();
  };
  svg.addEventListener("pointermove", pointed);
  svg.addEventListener("pointerdown", pointed);
  svg.addEventListener("pointerleave", left);
  svg.addEventListener("blur", left);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape") return left();
    if (step === undefined || !points.length) return;
    event.preventDefault();
    cursor = Math.min(points.length - 1, Math.max(0, (cursor ?? points.length - 1) + step));
    draw();
  });
  new ResizeObserver(() => element.clientWidth !== width && draw()).observe(element);

  return {
    element,
    show(next, from, to) {
      // The cursor stays at its time while older points leave.
      const at = cursor === null ? null : points[cursor]?.at;
      [points, range] = [next, [from, to]];
      if (at !== null) cursor = nearest(at);
      draw();
    },
  };
};
