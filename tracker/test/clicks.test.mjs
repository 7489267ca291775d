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

test("a click below any ancestor with data-umami-event counts, once and for the closest", async () => {
  for (const names of [["button"], ["a"], ["div"], ["section", "a"], ["section", "button"], ["button", "a"], ["div", "div", "svg"]]) {
    const { site, page } = await open();
    let inner = page.element(names[0], EVENT);
    for (const name of names.slice(1)) inner = page.element(name, {}, inner);
    await inner.click();
    await page.element("b", {}, page.element("span", {}, inner)).click();
    assert.deepEqual(site.batches, [["buy"], ["buy"]], names.join());
    assert.deepEqual(page.warnings, []);
  }
});

test("of elements within each other the innermost with a name counts", async () => {
  for (const [outer, inner] of [
    ["button", "span"],
    ["a", "span"],
    ["section", "a"],
    ["section", "button"],
  ]) {
    const { site, page } = await open();
    const around = page.element(outer, EVENT);
    await page.element("i", {}, page.element(inner, { "data-umami-event": "inner", "data-umami-event-x": "1" }, around)).click();
    await page.element("i", {}, page.element(inner, { "data-umami-event": "" }, around)).click();
    assert.deepEqual(
      site.requests.map(({ payload }) => [payload.name, payload.data]),
      [
        ["inner", { x: "1" }],
        ["buy", {}],
      ],
      `${inner} in ${outer}`,
    );
  }
});

test("a link within such an element is followed when the event has been sent, and so is one around it", async () => {
  for (const nest of [
    (page) => page.element("b", {}, page.element("a", { href: "/cart" }, page.element("section", EVENT))),
    (page) => page.element("b", {}, page.element("span", EVENT, page.element("a", { href: "/cart" }))),
  ]) {
    const { site, page } = await open();
    let answer;
    site.answer = () => new Promise((resolve) => (answer = resolve));
    const event = await nest(page).click();
    assert.equal(event.defaultPrevented, true);
    assert.deepEqual(page.assigned, []);
    answer(ok());
    await settle();
    assert.deepEqual(page.assigned, [`${ORIGIN}/cart`]);
    assert.deepEqual(site.batches, [["buy"]]);
  }
});

test("handlers of the page cannot hide a click, and clicks without the attribute are nothing", async () => {
  const { site, page } = await open();
  const button = page.element("button", EVENT);
  button.onClick((event) => {
    event.stopPropagation();
    button.held = {};
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
