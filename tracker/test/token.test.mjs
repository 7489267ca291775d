import assert from "node:assert/strict";
import { test } from "node:test";
import { failing, HANG_UP, ok, Site, settle } from "./browser.mjs";

const MANUAL = { attributes: { "data-auto-track": "false" } };

const numbered = (site) => {
  let count = 0;
  site.answer = () => ok({ cache: `token-${++count}` });
};

const tokens = (site) => site.requests.map(({ token }) => token);

test("the newest token goes with the next event and ends with the page", async () => {
  const site = new Site();
  numbered(site);
  const page = await site.open(MANUAL);
  for (const name of ["a", "b", "c"]) await page.umami.track(name);
  await page.leave();
  const next = await site.open(MANUAL);
  await next.umami.track("d");
  assert.deepEqual(tokens(site), [undefined, "token-1", "token-2", undefined]);
});

test("a bad answer never drops the token", async () => {
  for (const bad of [
    { status: 200, body: { beep: "boop" } },
    { status: 200, body: "<html>not JSON</html>" },
    { status: 200, body: "" },
    { status: 200, body: null },
    { status: 200, body: [] },
    { status: 200, body: { cache: "" } },
    { status: 200, body: { cache: null } },
    { status: 200, body: { cache: { a: 1 } } },
    { status: 400, body: { cache: "not this one" } },
    failing(400),
    failing(403),
    failing(404),
  ]) {
    const site = new Site();
    const page = await site.open(MANUAL);
    await page.umami.track("good");
    site.answer = () => bad;
    await page.umami.track("bad");
    assert.equal(page.umami.getSession().cache, "token-1", JSON.stringify(bad));
    site.answer = () => ok();
    await page.umami.track("good");
    await site.advance(60_000);
    assert.deepEqual(tokens(site), [undefined, "token-1", "token-1"], JSON.stringify(bad));
  }
});

test("an outage does not drop the token", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  await page.umami.track("good");
  site.answer = () => (site.requests.length < 4 ? HANG_UP : ok());
  page.umami.track("x");
  await site.advance(60_000);
  assert.deepEqual(tokens(site), [undefined, "token-1", "token-1", "token-1"]);
});

test("identify drops the token; its answer brings the next one", async () => {
  const site = new Site();
  numbered(site);
  const page = await site.open(MANUAL);
  await page.umami.track("a");
  const identified = page.umami.identify("me");
  assert.equal(page.umami.getSession().cache, "");
  await identified;
  await page.umami.track("b");
  assert.deepEqual(tokens(site), [undefined, undefined, "token-2"]);
});

test("a late answer never restores an older identity", async () => {
  const site = new Site();
  const answers = [];
  site.answer = () => new Promise((resolve) => answers.push(resolve));
  const page = await site.open(MANUAL);
  page.umami.track("under way");
  await settle();
  page.umami.track("waiting");
  page.umami.identify("me");
  page.umami.track("mine");
  answers[0](ok({ cache: "anonymous-1" }));
  await settle();
  assert.equal(page.umami.getSession().cache, "");
  answers[1](ok({ cache: "anonymous-2" }));
  await settle();
  assert.equal(page.umami.getSession().cache, "");
  answers[2](ok({ cache: "mine-1" }));
  await settle();
  answers[3](ok({ cache: "mine-2" }));
  await settle();
  assert.deepEqual(tokens(site), [undefined, "anonymous-1", undefined, "mine-1"]);
  assert.equal(page.umami.getSession().cache, "mine-2");
});

test("what was begun before identify takes no newer token along and leaves it none, also when it is retried after it", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => HANG_UP;
  page.umami.track("before");
  await settle();
  page.umami.identify("me");
  let count = 0;
  site.answer = ({ payload }) => ok({ cache: `${payload.id ?? "nobody"}-${++count}` });
  await site.advance(10_000);
  await page.umami.track("after");
  assert.deepEqual(tokens(site), [undefined, undefined, undefined, "me-2"]);
});

test("what was begun before identify stays so while data-before-send decides", async () => {
  const site = new Site();
  numbered(site);
  const decisions = [];
  const page = await site.open({
    attributes: { "data-auto-track": "false", "data-before-send": "hook" },
    globals: { hook: (_kind, payload) => new Promise((resolve) => decisions.push(() => resolve(payload))) },
  });
  page.umami.track("first");
  decisions[0]();
  await settle();
  page.umami.track("before");
  page.umami.identify("me");
  decisions[1]();
  await settle();
  assert.equal(page.umami.getSession().cache, "");
  decisions[2]();
  await settle();
  assert.deepEqual(tokens(site), [undefined, "token-1", undefined]);
});

test("events that other pages left behind neither use nor change this page's token", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const gone = await site.open(MANUAL);
  await gone.umami.identify("somebody");
  gone.umami.track("left behind");
  await settle();
  await gone.leave();
  await site.advance(5_000);
  numbered(site);
  const page = await site.open(MANUAL);
  await page.umami.track("mine");
  assert.deepEqual(tokens(site), [undefined, undefined, undefined, undefined]);
  assert.equal(page.umami.getSession().cache, "token-3");
});

test("a token does not go with what another tab left behind", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  await page.umami.track("mine");
  site.answer = () => HANG_UP;
  const gone = await site.open(MANUAL);
  gone.umami.track("left behind");
  await settle();
  await gone.leave();
  await site.advance(5_000);
  site.answer = () => ok({ cache: "token-2" });
  await page.umami.track("mine again");
  assert.deepEqual(
    site.events.map(({ payload, token }) => [payload.name, token]),
    [
      ["mine", undefined],
      ["left behind", undefined],
      ["mine again", "token-1"],
    ],
  );
});

test("disabled in an answer also holds back what is waiting", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => ok({ disabled: true });
  page.umami.track("a");
  page.umami.track("b");
  await site.advance(60_000);
  await page.leave();
  assert.equal(site.requests.length, 1);
});

test("disabled in an answer ends tracking on this page, not on the next", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => ok({ disabled: true });
  await page.umami.track("a");
  await page.umami.track("b");
  page.history.pushState({}, "", "/next");
  await site.advance(60_000);
  assert.equal(site.requests.length, 1);
  await page.leave();
  const next = await site.open(MANUAL);
  await next.umami.track("c");
  assert.deepEqual(
    site.requests.map(({ payload }) => payload.name),
    ["a", "c"],
  );
});
