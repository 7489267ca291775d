import assert from "node:assert/strict";
import { test } from "node:test";
import { BASE, ENDPOINT, ORIGIN, Site, sent, settle } from "./browser.mjs";

const open = async (options) => {
  const site = new Site();
  const page = await site.open(options);
  await site.advance(400);
  return { site, page };
};

const silent = async (options, storage = {}) => {
  const site = new Site();
  Object.assign(site.localStorage, storage);
  const page = await site.open(options);
  await page.umami.track("x");
  await page.umami.identify("me");
  await site.advance(20_000);
  await page.leave();
  assert.deepEqual(site.requests, []);
  assert.deepEqual(site.queued, []);
};

test("a page view is sent when the page is complete, with the base payload", async () => {
  const site = new Site();
  const page = await site.open({ readyState: "interactive" });
  assert.deepEqual(site.requests, []);
  await page.fire("load");
  assert.deepEqual(sent(site), [["event", BASE]]);
  const [{ url, options }] = site.requests;
  assert.equal(url, ENDPOINT);
  const { method, keepalive, credentials, headers } = options;
  assert.deepEqual({ method, keepalive, credentials }, { method: "POST", keepalive: true, credentials: "omit" });
  assert.deepEqual({ ...headers }, { "Content-Type": "application/json" });
});

test("without data-website-id nothing is sent", () => silent({ attributes: { "data-website-id": undefined } }));

test("without a script tag nothing is sent and nothing breaks", () => silent({ src: null }));

test("umami.disabled in localStorage turns tracking off", () => silent({}, { "umami.disabled": "1" }));

test("umami.disabled works at once", async () => {
  const { site, page } = await open();
  site.localStorage.setItem("umami.disabled", "1");
  await page.umami.track("x");
  assert.equal(site.requests.length, 1);
});

test("data-host-url is the base of the endpoint", async () => {
  for (const host of ["https://other.example/base", "https://other.example/base/"]) {
    const { site } = await open({ attributes: { "data-host-url": host } });
    assert.equal(site.requests[0].url, "https://other.example/base/api/send");
  }
});

test("the endpoint is beside the script unless told otherwise", async () => {
  for (const [src, endpoint] of [
    ["https://stats.example/script.js", ENDPOINT],
    ["https://stats.example/a/b/x.js?v=1/2#/3", "https://stats.example/a/b/api/send"],
    ["http://stats.example:8080/script.js", "http://stats.example:8080/api/send"],
  ]) {
    const { site } = await open({ src });
    assert.equal(site.requests[0].url, endpoint);
  }
});

test("data-tag is sent as tag", async () => {
  const { site } = await open({ attributes: { "data-tag": "blue" } });
  assert.equal(site.requests[0].payload.tag, "blue");
});

test("data-auto-track=false leaves everything to the page", async () => {
  const { site, page } = await open({ attributes: { "data-auto-track": "false" } });
  page.history.pushState({}, "", "/next");
  await page.element("button", { "data-umami-event": "x" }).click();
  await page.fire("pageshow", { persisted: true });
  await site.advance(1_000);
  assert.deepEqual(site.requests, []);
  await page.umami.track("by hand");
  assert.equal(site.requests[0].payload.name, "by hand");
});

test("data-do-not-track=true honours the browser's wish in each of its forms", async () => {
  const attributes = { "data-do-not-track": "true" };
  for (const doNotTrack of ["1", 1, "yes"]) {
    await silent({ attributes, navigator: { doNotTrack } });
    await silent({ attributes, globals: { doNotTrack } });
  }
  for (const doNotTrack of ["0", "unspecified", null, undefined]) {
    const { site } = await open({ attributes, navigator: { doNotTrack } });
    assert.equal(site.requests.length, 1, `doNotTrack ${doNotTrack}`);
  }
});

test("data-auto-pageview=false sends no page view until it is asked for, and all else as ever", async () => {
  const { site, page } = await open({ attributes: { "data-auto-pageview": "false", "data-performance": "true" } });
  assert.deepEqual(site.requests, []);
  page.history.pushState({}, "", "/next");
  await page.back();
  await page.forward();
  await page.fire("pageshow", { persisted: true });
  await site.advance(400);
  assert.deepEqual(
    site.requests.map(({ kind }) => kind),
    ["performance", "performance", "performance"],
  );
  site.requests.length = 0;
  await page.element("button", { "data-umami-event": "buy" }).click();
  await page.umami.track("signup");
  await page.umami.track();
  const { title, ...rest } = BASE;
  const base = { ...rest, title, url: `${ORIGIN}/next`, referrer: `${ORIGIN}/start?a=1#top` };
  assert.deepEqual(sent(site), [
    ["event", { ...base, name: "buy", data: {} }],
    ["event", { ...base, name: "signup" }],
    ["event", base],
  ]);
  await page.leave();
  assert.deepEqual(
    site.requests.slice(3).map(({ kind }) => kind),
    ["performance"],
  );
});

test("data-auto-pageview says nothing unless it is false, and data-auto-track=false goes before it", async () => {
  for (const [attributes, views] of [
    [{ "data-auto-pageview": "true" }, 1],
    [{ "data-auto-pageview": "" }, 1],
    [{ "data-auto-pageview": "no" }, 1],
    [{ "data-auto-pageview": "true", "data-auto-track": "false" }, 0],
  ]) {
    const { site } = await open({ attributes });
    assert.equal(site.requests.length, views, JSON.stringify(attributes));
  }
});

test("data-distinct-id is the id from the first page view on, until identify names another", async () => {
  const { site, page } = await open({ attributes: { "data-distinct-id": "user-1" } });
  await page.umami.track("x");
  await page.umami.identify({ plan: "pro" });
  await page.umami.identify("user-2");
  await page.umami.track("y");
  assert.deepEqual(
    site.requests.map(({ kind, payload }) => [kind, payload.id]),
    [
      ["event", "user-1"],
      ["event", "user-1"],
      ["identify", "user-1"],
      ["identify", "user-2"],
      ["event", "user-2"],
    ],
  );
  const nobody = await open({ attributes: { "data-distinct-id": "" } });
  assert.deepEqual(sent(nobody.site), [["event", BASE]]);
});

test("without data-do-not-track=true the browser's wish does not count", async () => {
  for (const value of [undefined, "false"]) {
    const { site } = await open({ attributes: { "data-do-not-track": value }, navigator: { doNotTrack: "1" } });
    assert.equal(site.requests.length, 1);
  }
});

test("data-domains limits tracking to its list", async () => {
  await silent({ attributes: { "data-domains": "other.example,example" } });
  for (const list of ["shop.example", "other.example, shop.example", "\n  other.example,\n  shop.example\n"]) {
    const { site } = await open({ attributes: { "data-domains": list } });
    assert.equal(site.requests.length, 1);
  }
});

test("data-exclude-search and data-exclude-hash strip url and referrer", async () => {
  const url = `${ORIGIN}/start?a=1&b=?#top?c=2`;
  const referrer = "https://search.example/find?q=x#there";
  for (const [attributes, expected] of [
    [{}, [url, referrer]],
    [{ "data-exclude-search": "true" }, [`${ORIGIN}/start#top?c=2`, "https://search.example/find#there"]],
    [{ "data-exclude-hash": "true" }, [`${ORIGIN}/start?a=1&b=?`, "https://search.example/find?q=x"]],
    [{ "data-exclude-search": "true", "data-exclude-hash": "true" }, [`${ORIGIN}/start`, "https://search.example/find"]],
    [{ "data-exclude-search": "yes" }, [url, referrer]],
  ]) {
    const { site } = await open({ url, referrer, attributes });
    const { payload } = site.requests[0];
    assert.deepEqual([payload.url, payload.referrer], expected);
  }
});

test("what is excluded does not make another page", async () => {
  const { site, page } = await open({ attributes: { "data-exclude-hash": "true", "data-exclude-search": "true" } });
  page.history.pushState({}, "", "/start?a=2#else");
  await site.advance(400);
  assert.equal(site.requests.length, 1);
});

test("the referrer of the page's own origin is not sent, one that only begins like it is", async () => {
  for (const [referrer, expected] of [
    [`${ORIGIN}/before`, ""],
    [`${ORIGIN}.evil.example/`, `${ORIGIN}.evil.example/`],
    ["", ""],
  ]) {
    const { site } = await open({ referrer });
    assert.equal(site.requests[0].payload.referrer, expected);
  }
});

test("data-fetch-credentials is passed on", async () => {
  const { site } = await open({ attributes: { "data-fetch-credentials": "same-origin" } });
  assert.equal(site.requests[0].options.credentials, "same-origin");
});

const beforeSend = (hook) => open({ attributes: { "data-before-send": "hook" }, globals: { hook } });

test("data-before-send may change what is sent", async () => {
  const calls = [];
  const { site } = await beforeSend((kind, payload) => {
    calls.push([kind, { ...payload }]);
    return { website: payload.website, url: "/changed" };
  });
  assert.deepEqual(calls, [["event", { ...BASE, tag: undefined, id: undefined }]]);
  assert.deepEqual(sent(site), [["event", { website: BASE.website, url: "/changed" }]]);
  assert.match(site.requests[0].payload.messageId, /^[0-9a-f-]{36}$/);
});

test("data-before-send cancels with anything falsy, by throwing and by rejecting", async () => {
  for (const hook of [
    () => false,
    () => undefined,
    () => null,
    async () => false,
    () => {
      throw new Error("hook");
    },
    async () => {
      throw new Error("hook");
    },
  ]) {
    const { site, page } = await beforeSend(hook);
    await page.umami.track("x");
    assert.deepEqual(site.requests, []);
    assert.deepEqual(site.queued, []);
  }
});

test("data-before-send may take its time; order and time of the events stay", async () => {
  const decisions = [];
  const { site, page } = await beforeSend((_kind, payload) => new Promise((resolve) => decisions.push(() => resolve(payload))));
  page.umami.identify("me");
  page.umami.track("later");
  const at = Math.floor(site.clock.ms / 1_000);
  await site.advance(60_000);
  assert.deepEqual(site.requests, []);
  for (const decide of decisions.reverse()) {
    assert.deepEqual(site.requests, []);
    decide();
    await settle();
  }
  assert.deepEqual(
    site.requests.map(({ kind, payload }) => [kind, payload.name, payload.id]),
    [
      ["event", undefined, undefined],
      ["identify", undefined, "me"],
      ["event", "later", "me"],
    ],
  );
  assert.equal(site.requests[2].payload.timestamp, at);
});

test("who turns tracking off while data-before-send decides is not tracked", async () => {
  let decide;
  const { site } = await beforeSend((_kind, payload) => new Promise((resolve) => (decide = () => resolve(payload))));
  site.localStorage.setItem("umami.disabled", "1");
  decide();
  await settle();
  assert.deepEqual([...site.requests, ...site.queued], []);
});

test("a data-before-send that does not exist changes nothing", async () => {
  const { site } = await open({ attributes: { "data-before-send": "nowhere" } });
  assert.deepEqual(sent(site), [["event", BASE]]);
});
