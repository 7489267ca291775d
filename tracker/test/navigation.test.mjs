import assert from "node:assert/strict";
import { test } from "node:test";
import { ORIGIN, Site, taken } from "./browser.mjs";

const open = async (options) => {
  const site = new Site();
  const page = await site.open({ url: `${ORIGIN}/one`, ...options });
  return { site, page };
};

/** [path, path of the referrer, title] of each page view. */
const views = (site) =>
  site.events
    .filter(({ kind, payload }) => kind === "event" && !payload.name)
    .map(({ payload }) => [payload.url.replace(ORIGIN, ""), payload.referrer.replace(ORIGIN, ""), payload.title]);

test("pushState and replaceState to another address are page views, 300 ms later", async () => {
  for (const method of ["pushState", "replaceState"]) {
    const { site, page } = await open();
    page.history[method]({}, "", "/two?q=1");
    await site.advance(250);
    assert.equal(site.requests.length, 1);
    page.document.title = "Two";
    await site.advance(100);
    assert.deepEqual(views(site), [
      ["/one", "", "Start"],
      ["/two?q=1", "/one", "Two"],
    ]);
  }
});

test("an address that does not differ is no page view", async () => {
  const { site, page } = await open();
  page.history.replaceState({ state: 1 }, "");
  page.history.pushState({}, "", "/one");
  page.history.pushState({}, "", new URL(`${ORIGIN}/one`));
  await site.advance(1_000);
  assert.equal(site.requests.length, 1);
});

test("back and forward are page views", async () => {
  const { site, page } = await open();
  page.history.pushState({}, "", "/two");
  await site.advance(400);
  page.history.pushState({}, "", "/three");
  await site.advance(400);
  await page.back();
  await site.advance(400);
  await page.back();
  await site.advance(400);
  await page.forward();
  await site.advance(400);
  assert.deepEqual(
    views(site).map(([path, referrer]) => [path, referrer]),
    [
      ["/one", ""],
      ["/two", "/one"],
      ["/three", "/two"],
      ["/two", "/three"],
      ["/one", "/two"],
      ["/two", "/one"],
    ],
  );
});

test("each of several quick navigations counts once, with its own address", async () => {
  const { site, page } = await open();
  page.history.pushState({}, "", "/two");
  await site.advance(100);
  page.history.pushState({}, "", "/three");
  await site.advance(100);
  await page.back();
  await site.advance(1_000);
  assert.deepEqual(
    views(site).map(([path, referrer]) => [path, referrer]),
    [
      ["/one", ""],
      ["/two", "/one"],
      ["/three", "/two"],
      ["/two", "/three"],
    ],
  );
});

test("leaving right after a navigation does not lose its page view", async () => {
  const { site, page } = await open();
  page.history.pushState({}, "", "/two");
  await page.leave();
  assert.deepEqual(taken(site), [`event ${ORIGIN}/one`, `event ${ORIGIN}/two`]);
});

test("a jump to an anchor and back is no page view; a pushed one is, also on the way back", async () => {
  const { site, page } = await open();
  await page.jump("#section");
  await site.advance(400);
  await page.back();
  await site.advance(400);
  assert.equal(site.requests.length, 1);
  page.history.pushState({}, "", "#tab-1");
  await site.advance(400);
  page.history.pushState({}, "", "#tab-2");
  await site.advance(400);
  await page.back();
  await site.advance(400);
  assert.deepEqual(
    views(site).map(([path]) => path),
    ["/one", "/one#tab-1", "/one#tab-2", "/one#tab-1"],
  );
});

test("events between a navigation and its page view have the new address", async () => {
  const { site, page } = await open();
  page.history.pushState({}, "", "/two");
  await page.umami.track("x");
  assert.equal(site.requests.at(-1).payload.url, `${ORIGIN}/two`);
  assert.equal(site.requests.at(-1).payload.referrer, `${ORIGIN}/one`);
});

test("a redirect before the page is complete changes the address of its one page view", async () => {
  const { site, page } = await open({ readyState: "loading", referrer: "https://search.example/" });
  page.history.replaceState({}, "", "/two");
  await site.advance(1_000);
  await page.fire("load");
  await site.advance(1_000);
  assert.deepEqual(views(site), [["/two", "https://search.example/", "Start"]]);
});

test("history works for the page as before", async () => {
  const { page } = await open();
  page.history.pushState({}, "", "/two");
  assert.equal(page.location.href, `${ORIGIN}/two`);
  assert.throws(() => page.history.pushState({}, "", "https://other.example/"), /SecurityError/);
});

test("a page that the browser kept for back and forward counts when it is shown again", async () => {
  const { site, page } = await open();
  await page.fire("pageshow", { persisted: false });
  assert.equal(site.requests.length, 1);
  await page.hide();
  await page.show();
  await page.fire("pageshow", { persisted: true });
  assert.equal(views(site).length, 2);
});
