import assert from "node:assert/strict";
import { test } from "node:test";
import { BASE, failing, Site, sent, settle, WEBSITE } from "./browser.mjs";

/** The requests of the calls of `use`, on a page that sends nothing by itself. */
const calls = async (use, options = {}) => {
  const site = new Site();
  const page = await site.open({ attributes: { "data-auto-track": "false" }, ...options });
  await use(page.umami, page);
  await settle();
  return sent(site);
};

test("track() sends a page view", async () => {
  assert.deepEqual(await calls((umami) => umami.track()), [["event", BASE]]);
});

test("track(name) sends an event of that name", async () => {
  assert.deepEqual(await calls((umami) => umami.track("signup")), [["event", { ...BASE, name: "signup" }]]);
});

test("track(name, data) sends data with it, as it is at the call", async () => {
  const data = { plan: "pro", seats: 3, nested: { list: [1, null] } };
  const result = await calls((umami) => {
    const mine = structuredClone(data);
    const promise = umami.track("signup", mine);
    mine.plan = "changed";
    return promise;
  });
  assert.deepEqual(result, [["event", { ...BASE, name: "signup", data }]]);
});

test("track(object) sends that object only", async () => {
  assert.deepEqual(await calls((umami) => umami.track({ website: WEBSITE, url: "/x", timestamp: 5 })), [
    ["event", { website: WEBSITE, url: "/x", timestamp: 5 }],
  ]);
});

test("track(function) sends what it makes of the base payload", async () => {
  const use = (umami) => umami.track((base) => ({ ...base, url: "/made", title: undefined }));
  const { title: _, ...rest } = BASE;
  assert.deepEqual(await calls(use), [["event", { ...rest, url: "/made" }]]);
});

test("identify(id) sends the id with it and with everything after it", async () => {
  const result = await calls(async (umami) => {
    await umami.track("before");
    await umami.identify("user-1");
    await umami.track("after");
  });
  assert.deepEqual(result, [
    ["event", { ...BASE, name: "before" }],
    ["identify", { ...BASE, id: "user-1" }],
    ["event", { ...BASE, id: "user-1", name: "after" }],
  ]);
});

test("identify(id, data) and identify(data) send data; only a text becomes the id", async () => {
  const result = await calls(async (umami) => {
    await umami.identify({ plan: "free" });
    await umami.identify("user-1", { plan: "pro" });
    await umami.identify({ plan: "team" });
    await umami.identify(42, { plan: "old" });
  });
  assert.deepEqual(result, [
    ["identify", { ...BASE, data: { plan: "free" } }],
    ["identify", { ...BASE, id: "user-1", data: { plan: "pro" } }],
    ["identify", { ...BASE, id: "user-1", data: { plan: "team" } }],
    ["identify", { ...BASE, id: "user-1", data: { plan: "old" } }],
  ]);
});

test("identify({ id, … }) takes the id out of the object, if it is a text, and leaves the page's object alone", async () => {
  const mine = { id: "user-1", plan: "pro", nested: { id: "stays" } };
  const result = await calls(async (umami) => {
    await umami.identify(mine);
    await umami.track("after");
    await umami.identify({ id: "user-2" });
    await umami.identify({ id: 42, plan: "free" });
    await umami.identify({ id: null });
    await umami.identify("user-3", { id: "a property", plan: "team" });
  });
  assert.deepEqual(result, [
    ["identify", { ...BASE, id: "user-1", data: { plan: "pro", nested: { id: "stays" } } }],
    ["event", { ...BASE, id: "user-1", name: "after" }],
    ["identify", { ...BASE, id: "user-2", data: {} }],
    ["identify", { ...BASE, id: "user-2", data: { id: 42, plan: "free" } }],
    ["identify", { ...BASE, id: "user-2", data: { id: null } }],
    ["identify", { ...BASE, id: "user-3", data: { id: "a property", plan: "team" } }],
  ]);
  assert.deepEqual(mine, { id: "user-1", plan: "pro", nested: { id: "stays" } });
});

test("the identity ends with the page", async () => {
  const site = new Site();
  const page = await site.open();
  await page.umami.identify("user-1");
  await page.leave();
  await site.open();
  assert.equal(site.requests.at(-1).payload.id, undefined);
});

test("getSession() gives token and website", async () => {
  const site = new Site();
  const page = await site.open({ readyState: "loading" });
  assert.deepEqual({ ...page.umami.getSession() }, { cache: undefined, website: WEBSITE });
  await page.fire("load");
  assert.deepEqual({ ...page.umami.getSession() }, { cache: "token-1", website: WEBSITE });
});

test("every event has its own messageId, on plain http too", async () => {
  for (const secure of [true, false]) {
    const site = new Site();
    const page = await site.open({ secure });
    for (let count = 0; count < 20; count++) page.umami.track("x");
    await site.advance(5_000);
    const ids = site.requests.map(({ payload }) => payload.messageId);
    assert.equal(ids.length, 21);
    assert.equal(new Set(ids).size, 21);
    for (const id of ids) assert.ok(id.length > 15 && id.length <= 100, id);
  }
});

test("a messageId of the page's own stays", async () => {
  const [[, payload]] = await calls((umami) => umami.track({ website: WEBSITE, messageId: "order-7" }));
  assert.deepEqual(payload, { website: WEBSITE });
  const site = new Site();
  const page = await site.open({ attributes: { "data-auto-track": "false" } });
  await page.umami.track({ website: WEBSITE, messageId: "order-7" });
  assert.equal(site.requests[0].payload.messageId, "order-7");
  for (const messageId of [undefined, null, ""]) {
    await page.umami.track({ website: WEBSITE, messageId });
    assert.ok(site.requests.at(-1).payload.messageId, "one that says nothing counts as none");
  }
});

test("nothing that the page passes makes the API throw or reject", async () => {
  const site = new Site();
  const page = await site.open({ attributes: { "data-auto-track": "false" } });
  const loop = {};
  loop.loop = loop;
  const fail = () => {
    throw new Error("page");
  };
  for (const args of [["x", loop], [loop], [fail], [() => null], [() => 3], [7], [true], [Symbol("x")], ["x", 1n]]) {
    await page.umami.track(...args);
    await page.umami.identify(...args);
  }
  await page.umami.track("works");
  assert.equal(site.requests.at(-1).payload.name, "works");
});

test("a fetch that throws, answers nonsense or is missing stays without effect on the page", async () => {
  for (const fetch of [
    () => {
      throw new Error("blocked");
    },
    async () => undefined,
    undefined,
  ]) {
    const site = new Site();
    const page = await site.open({ globals: { fetch } });
    await page.umami.track("x");
    await site.advance(10_000);
    assert.equal(site.queued.length, 2);
  }
});

test("an umami that is there already stays", async () => {
  const mine = { track() {} };
  const site = new Site();
  const page = await site.open({ globals: { umami: mine } });
  assert.equal(page.umami, mine);
});

test("track resolves also when nothing can be sent", async () => {
  const site = new Site();
  site.answer = () => failing(503, { "Retry-After": "600" });
  const page = await site.open();
  await page.umami.track("x");
  assert.equal(site.requests.length, 1);
});
