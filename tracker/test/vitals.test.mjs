import assert from "node:assert/strict";
import { test } from "node:test";
import { BASE, NEVER, ORIGIN, Site, settle, vitalsScript } from "./browser.mjs";

const open = async (options = {}) => {
  const site = new Site();
  const page = await site.open({ ...options, attributes: { "data-performance": "true", ...options.attributes } });
  return { site, page };
};

const reports = (site) => site.requests.filter(({ kind }) => kind === "performance").map(({ payload }) => payload);

const values = (site) =>
  reports(site).map(({ lcp, inp, cls, fcp, ttfb }) => JSON.parse(JSON.stringify({ lcp, inp, cls, fcp, ttfb })));

const measureAll = (page) => {
  page.measure("paint", { name: "first-paint", startTime: 100 });
  page.measure("paint", { name: "first-contentful-paint", startTime: 120 });
  page.measure("largest-contentful-paint", { startTime: 150 });
  page.measure("largest-contentful-paint", { startTime: 900.5 });
  page.measure("first-input", { interactionId: 7, duration: 24 });
  page.measure("event", { interactionId: 8, duration: 96 });
  page.measure("event", { interactionId: 9, duration: 56 });
  page.measure("event", { interactionId: 0, duration: 500 });
  page.measure("layout-shift", { startTime: 200, value: 0.05, hadRecentInput: false });
};

const ALL = { lcp: 900.5, inp: 96, cls: 0.05, fcp: 120, ttfb: 81.5 };

test("10 s after load what has been measured is sent, once, on top of the base payload", async () => {
  const { site, page } = await open();
  measureAll(page);
  await site.advance(9_999);
  assert.equal(reports(site).length, 0);
  await site.advance(1);
  const [{ messageId, ...payload }] = reports(site);
  assert.deepEqual(payload, { ...BASE, ...ALL });
  await page.hide();
  await page.leave();
  await site.advance(60_000);
  assert.equal(reports(site).length, 1);
});

test("hiding or leaving the page sends it earlier, with what the browser still held back", async () => {
  for (const way of ["hide", "leave"]) {
    const { site, page } = await open();
    page.measure("event", { interactionId: 1, duration: 200 }, { hold: true });
    await page[way]();
    assert.deepEqual(values(site), [{ inp: 200, cls: 0, ttfb: 81.5 }]);
    await site.advance(60_000);
    assert.equal(reports(site).length, 1);
  }
});

test("a history navigation reports the view before it, then only what can happen again", async () => {
  const { site, page } = await open();
  measureAll(page);
  page.history.pushState({}, "", "/two");
  page.measure("layout-shift", { startTime: 5_000, value: 0.2, hadRecentInput: false });
  page.measure("event", { interactionId: 12, duration: 48 });
  await site.advance(10_000);
  page.history.pushState({}, "", "/three");
  await page.leave();
  assert.deepEqual(values(site), [ALL, { inp: 48, cls: 0.2 }, { cls: 0 }]);
  assert.deepEqual(
    site.requests.map(({ kind, payload }) => [kind, payload.url.replace(ORIGIN, "")]),
    [
      ["event", "/start?a=1#top"],
      ["performance", "/start?a=1#top"],
      ["event", "/two"],
      ["performance", "/two"],
      ["event", "/three"],
      ["performance", "/three"],
    ],
  );
});

test("each view has its own 10 s and its own shifts", async () => {
  const { site, page } = await open();
  page.measure("layout-shift", { startTime: 4_900, value: 0.5, hadRecentInput: false });
  await site.advance(5_000);
  page.history.pushState({}, "", "/two");
  page.measure("layout-shift", { startTime: 5_100, value: 0.25, hadRecentInput: false });
  await site.advance(9_999);
  assert.equal(reports(site).length, 1);
  await site.advance(1);
  assert.deepEqual(
    values(site).map(({ cls }) => cls),
    [0.5, 0.25],
  );
});

test("CLS is the largest sum of shifts less than 1 s apart within 5 s, without those after input", async () => {
  const { site, page } = await open();
  const shift = (startTime, value, hadRecentInput = false) =>
    page.measure("layout-shift", { startTime, value, hadRecentInput });
  shift(100, 0.5);
  shift(1_500, 0.25);
  shift(2_300, 0.25);
  shift(2_400, 9, true);
  shift(3_200, 0.25);
  shift(9_000, 0.125);
  await site.advance(10_000);
  assert.equal(values(site)[0].cls, 0.75);
  const long = await open();
  for (let ms = 10_000; ms <= 17_000; ms += 500) {
    long.page.measure("layout-shift", { startTime: ms, value: 1, hadRecentInput: false });
  }
  await long.site.advance(10_000);
  assert.equal(values(long.site)[0].cls, 11);
});

test("values stay within what the collector takes", async () => {
  const { site, page } = await open();
  page.measure("largest-contentful-paint", { startTime: 95_000 });
  page.measure("event", { interactionId: 1, duration: 70_000 });
  await site.advance(10_000);
  assert.deepEqual(values(site), [{ lcp: 60_000, inp: 60_000, cls: 0, ttfb: 81.5 }]);
});

test("a page opened in the background reports no paint", async () => {
  const { site, page } = await open({ hidden: true });
  page.measure("largest-contentful-paint", { startTime: 5_000 });
  await site.advance(10_000);
  assert.deepEqual(values(site), [{ cls: 0, ttfb: 81.5 }]);
});

test("a browser that measures little or nothing reports little or nothing", async () => {
  const some = await open({ entryTypes: ["paint"] });
  some.page.measure("paint", { name: "first-contentful-paint", startTime: 120 });
  await some.site.advance(10_000);
  some.page.history.pushState({}, "", "/two");
  await some.site.advance(20_000);
  assert.deepEqual(values(some.site), [{ fcp: 120, ttfb: 81.5 }]);
  const none = await open({ globals: { PerformanceObserver: undefined, performance: undefined } });
  await none.site.advance(20_000);
  assert.deepEqual(values(none.site), []);
  assert.equal(none.site.requests.length, 1);
});

test("without data-performance=true nothing is measured", async () => {
  for (const value of [undefined, "false"]) {
    const { site, page } = await open({ attributes: { "data-performance": value } });
    measureAll(page);
    await page.history.pushState({}, "", "/two");
    await site.advance(20_000);
    await page.leave();
    assert.deepEqual(reports(site), []);
  }
});

test("before the page is complete there is no view to report on", async () => {
  const { site, page } = await open({ readyState: "loading" });
  await site.advance(20_000);
  await page.leave();
  assert.deepEqual(site.requests, []);
});

test("data-before-send sees performance, too, also while leaving", async () => {
  const { site, page } = await open({
    attributes: { "data-before-send": "hook" },
    globals: { hook: async (kind, payload) => (kind === "performance" ? { ...payload, tag: "seen" } : payload) },
  });
  site.answer = () => NEVER;
  page.umami.track("slow");
  await settle();
  await page.leave();
  assert.equal(reports(site)[0].tag, "seen");
});

test("the file that measures is loaded where it is asked for only, from beside the script, under any name of that", async () => {
  for (const [src, expected] of [
    ["https://stats.example/script.js", "https://stats.example/script-vitals.js"],
    ["https://stats.example/script.js?v=1.2/3.js", "https://stats.example/script-vitals.js"],
    ["https://stats.example/umami/stats.js#x", "https://stats.example/umami/stats-vitals.js"],
    ["https://stats.example/s/t", "https://stats.example/s/t-vitals.js"],
  ]) {
    for (const [attributes, loaded] of [
      [{ "data-performance": "true" }, [{ src: expected, nonce: "page's nonce" }]],
      [{ "data-performance": "true", "data-auto-track": "false" }, [{ src: expected, nonce: "page's nonce" }]],
      [{ "data-performance": "false" }, []],
      [{}, []],
      [{ "data-performance": "true", "data-website-id": undefined }, []],
      [{ "data-performance": "true", "data-domains": "other.example" }, []],
    ]) {
      const site = new Site();
      await site.open({ src, attributes });
      assert.deepEqual(site.loaded, loaded, `${src} ${JSON.stringify(attributes)}`);
    }
  }
});

/** A page whose second file arrives when `arrive` is called. */
const openSlowly = async (options = {}) => {
  const site = new Site();
  let arrive;
  site.file = () => new Promise((resolve) => (arrive = () => (resolve(vitalsScript), settle())));
  const page = await site.open({ ...options, attributes: { "data-performance": "true" } });
  return { site, page, arrive: () => arrive() };
};

test("a file that comes late reports what was measured before it came", async () => {
  const { site, page, arrive } = await openSlowly();
  await site.advance(8_000);
  await arrive();
  measureAll(page);
  await site.advance(9_999);
  assert.deepEqual(values(site), []);
  await site.advance(1);
  assert.deepEqual(values(site), [ALL]);
});

test("a file that comes after a navigation measures the view that is shown, and nothing of the one before", async () => {
  const { site, page, arrive } = await openSlowly();
  await site.advance(3_000);
  page.history.pushState({}, "", "/two");
  await arrive();
  measureAll(page);
  page.measure("layout-shift", { startTime: 2_900, value: 0.5, hadRecentInput: false });
  page.measure("layout-shift", { startTime: 3_500, value: 0.25, hadRecentInput: false });
  await site.advance(10_000);
  assert.deepEqual(values(site), [{ inp: 96, cls: 0.25 }]);
  assert.equal(reports(site)[0].url, `${ORIGIN}/two`);
});

test("without the second file all else works", async () => {
  for (const text of [undefined, "", "<!doctype html>"]) {
    const site = new Site();
    site.file = async () => text;
    const page = await site.open({ attributes: { "data-performance": "true" } });
    page.history.pushState({}, "", "/two");
    await site.advance(20_000);
    await page.umami.track("x");
    await page.leave();
    assert.deepEqual(
      site.requests.map(({ kind, payload }) => [kind, payload.name]),
      [
        ["event", undefined],
        ["event", undefined],
        ["event", "x"],
      ],
    );
  }
});
