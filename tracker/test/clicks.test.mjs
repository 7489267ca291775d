import assert from "node:assert/strict";
import { test } from "node:test";
import { BASE, failing, NEVER, ok, ORIGIN, Site, sent, settle } from "./browser.mjs";

const open = async () => {
  const site = new Site();
  const page = await site.open();
  site.requests.length = 0;
  return { site, page };
};

const EVENT = { "data-umami-event": "buy" };

test("a click on an element with data-umami-event sends its name and data", async () => {
  const { site, page } = await open();
  const attributes = { class: "x", ...EVENT, "data-umami-event-plan": "pro", "data-umami-event-seat-count": "3", "data-umami": "no" };
  const event = await page.element("div", attributes).click();
  assert.deepEqual(sent(site), [["event", { ...BASE, name: "buy", data: { plan: "pro", "seat-count": "3" } }]]);
  assert.equal(event.defaultPrevented, false);
});

test("a click within the closest a or button counts, within another element not", async () => {
  const { site, page } = await open();
  for (const [name, count] of [
    ["button", 1],
    ["a", 2],
    ["div", 2],
  ]) {
    const outer = page.element(name, EVENT);
    await page.element("b", {}, page.element("span", {}, outer)).click();
    assert.equal(site.requests.length, count, name);
  }
  await page.element("span", {}, page.element("button", {}, page.element("a", EVENT))).click();
  assert.equal(site.requests.length, 2, "the closest of them has none");
});

test("an element of its own goes before the closest a or button", async () => {
  const { site, page } = await open();
  await page.element("span", { "data-umami-event": "inner" }, page.element("button", EVENT)).click();
  assert.equal(site.requests[0].payload.name, "inner");
});

test("handlers of the page cannot hide a click, and clicks without the attribute are nothing", async () => {
  const { site, page } = await open();
  const button = page.element("button", EVENT);
  button.onClick((event) => {
    event.stopPropagation();
    button.attributes = {};
  });
  await button.click();
  await page.element("button").click();
  await page.fire("click", { target: null });
  await page.fire("click", { target: {} });
  assert.equal(site.requests.length, 1);
});

test("a link of this tab is followed when its event has been sent", async () => {
  const { site, page } = await open();
  let answer;
  site.answer = () => new Promise((resolve) => (answer = resolve));
  const link = page.element("a", { href: "/cart?x=1", ...EVENT });
  const event = await page.element("b", {}, link).click();
  assert.equal(event.defaultPrevented, true);
  await site.advance(100);
  assert.deepEqual(page.assigned, []);
  answer(ok());
  await settle();
  assert.deepEqual(page.assigned, [`${ORIGIN}/cart?x=1`]);
});

test("a link waits half a second at most, and not at all during a pause", async () => {
  const { site, page } = await open();
  site.answer = () => NEVER;
  const link = page.element("a", { href: "https://other.example/", target: "_self", ...EVENT });
  await link.click();
  await site.advance(499);
  assert.deepEqual(page.assigned, []);
  await site.advance(1);
  assert.deepEqual(page.assigned, ["https://other.example/"]);

  const second = await open();
  second.site.answer = () => failing(503);
  await second.page.element("a", { href: "/x", ...EVENT }).click();
  await second.page.element("a", { href: "/y", ...EVENT }).click();
  assert.deepEqual(second.page.assigned, [`${ORIGIN}/x`, `${ORIGIN}/y`]);
});

test("links that do not replace this page are left to the browser; their clicks count", async () => {
  for (const [attributes, fields] of [
    [{ target: "_blank" }, {}],
    [{ target: "frame" }, {}],
    [{ download: "" }, {}],
    [{ rel: "nofollow noreferrer" }, {}],
    [{ href: "mailto:a@example.org" }, {}],
    [{ href: "javascript:void 0" }, {}],
    [{}, { ctrlKey: true }],
    [{}, { metaKey: true }],
    [{}, { shiftKey: true }],
    [{}, { altKey: true }],
    [{}, { button: 1 }],
    [{}, { defaultPrevented: true }],
  ]) {
    const { site, page } = await open();
    const link = page.element("a", { href: "/x", ...EVENT, ...attributes });
    const event = await link.click(fields);
    await site.advance(1_000);
    assert.equal(site.requests.length, 1);
    assert.deepEqual(page.assigned, [], JSON.stringify([attributes, fields]));
    assert.equal(event.defaultPrevented, !!fields.defaultPrevented);
  }
});

test("a link that a router takes over is not followed", async () => {
  const { site, page } = await open();
  const link = page.element("a", { href: "/x", ...EVENT });
  link.onClick((event) => {
    event.preventDefault();
    page.history.pushState({}, "", "/x");
  });
  await link.click();
  await site.advance(1_000);
  assert.deepEqual(page.assigned, []);
  assert.deepEqual(
    site.requests.map(({ payload }) => [payload.name, payload.url.replace(ORIGIN, "")]),
    [
      ["buy", "/start?a=1#top"],
      [undefined, "/x"],
    ],
  );
});

test("a link without the attribute is never touched, nor is one after a tracked click", async () => {
  const { page } = await open();
  await page.element("button", EVENT).click();
  const event = await page.element("a", { href: "/x" }).click();
  assert.equal(event.defaultPrevented, false);
  assert.deepEqual(page.assigned, []);
});
