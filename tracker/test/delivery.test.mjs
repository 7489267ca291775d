import assert from "node:assert/strict";
import { test } from "node:test";
import { batched, failing, HANG_UP, NEVER, ok, ORIGIN, Site, script, settle, taken } from "./browser.mjs";

const MANUAL = { attributes: { "data-auto-track": "false" } };
const HOUR = 3_600_000;
/** Every pause is halfway into its jitter, so that events a few ms apart are all late, or all not, when it ends. */
const HALF_JITTER = { globals: { Math: Object.create(Math, { random: { value: () => 0.5 } }) } };

const names = (requests) => requests.map(({ payload }) => payload.name);

/** Gaps between the tries of one event, in ms. */
const gaps = (requests) => requests.slice(1).map(({ at }, index) => at - requests[index].at);

test("an event is tried again after a network error, 408, 429 and 5xx, with the same messageId", async () => {
  for (const answer of [HANG_UP, ...[408, 429, 500, 502, 503, 504].map((status) => failing(status))]) {
    const site = new Site();
    const page = await site.open(MANUAL);
    site.answer = () => (site.requests.length < 3 ? answer : ok());
    page.umami.track("x");
    await site.advance(60_000);
    assert.deepEqual(names(site.requests), ["x", "x", "x"], JSON.stringify(answer));
    assert.equal(new Set(site.requests.map(({ payload }) => payload.messageId)).size, 1);
    assert.deepEqual(site.queued, []);
  }
});

test("any other 4xx drops the event and lets the next one pass", async () => {
  for (const status of [400, 401, 403, 404, 413, 422]) {
    const site = new Site();
    const page = await site.open(MANUAL);
    site.answer = ({ payload }) => (payload.name === "bad" ? failing(status) : ok());
    page.umami.track("bad");
    page.umami.track("good");
    await site.advance(10 * HOUR);
    assert.deepEqual(names(site.requests), ["bad", "good"]);
    assert.deepEqual(site.queued, []);
  }
});

test("the wait doubles from 1 s to 5 min, and jitter at most doubles it again", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => HANG_UP;
  page.umami.track("x");
  await site.advance(2 * HOUR);
  const waits = gaps(site.requests);
  assert.ok(waits.length > 12, `${waits.length} waits`);
  waits.forEach((wait, index) => {
    const least = Math.min(1_000 * 2 ** index, 300_000);
    assert.ok(wait >= least - 1 && wait <= 2 * least + 1, `wait ${index} is ${wait} ms`);
  });
  assert.ok(new Set(waits.slice(9).map(Math.round)).size > 1, "no jitter");
});

test("a success ends the doubling", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => (site.requests.length <= 5 ? HANG_UP : ok());
  page.umami.track("x");
  await site.advance(HOUR);
  site.answer = ({ payload }) => (payload.name === "y" && site.requests.length <= 8 ? HANG_UP : ok());
  page.umami.track("y");
  await site.advance(HOUR);
  const again = site.requests.filter(({ payload }) => payload.name === "y");
  assert.ok(gaps(again)[0] <= 2_001, `${gaps(again)[0]} ms`);
});

test("Retry-After is waited for, and back-off comes on top so that clients spread", async () => {
  for (const [header, least, most] of [
    ["30", 31_000, 32_001],
    ["0", 1_000, 2_001],
    ["Wed, 21 Oct 2026 07:28:00 GMT", 1_000, 2_001],
    ["-100", 1_000, 2_001],
    ["99999999", 3_601_000, 3_602_001],
  ]) {
    const site = new Site();
    const page = await site.open(MANUAL);
    site.answer = () => (site.requests.length < 2 ? failing(429, { "Retry-After": header }) : ok());
    page.umami.track("x");
    await site.advance(2 * HOUR);
    const [wait] = gaps(site.requests);
    assert.ok(wait >= least && wait <= most, `${wait} ms for ${header}`);
  }
});

test("nothing is sent during a pause: not by new events, another page, another tab or leaving", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => failing(503, { "Retry-After": "60" });
  await page.umami.track("first");
  await page.umami.track("second");
  const other = await site.open(MANUAL);
  await other.umami.track("third");
  await page.hide();
  await page.leave();
  await site.open(MANUAL);
  assert.deepEqual(names(site.requests), ["first"]);
  site.answer = () => ok();
  await site.advance(59_000);
  assert.equal(site.requests.length, 1);
  await site.advance(10_000);
  assert.deepEqual(taken(site), ["first", "second", "third"]);
});

test("events leave one request after the other, in the order in which they happened", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  let answer;
  site.answer = () => new Promise((resolve) => (answer = resolve));
  for (const [index, name] of ["a", "b", "c"].entries()) {
    page.umami.track(name);
    await settle();
    assert.equal(site.requests.length, index + 1);
    answer(ok());
    await settle();
  }
  for (const name of ["d", "e"]) page.umami.track(name);
  await settle();
  assert.equal(site.requests.length, 4, "what happens now has its time from its arrival");
  for (const name of ["d", "e"]) {
    answer(ok());
    await settle();
  }
  assert.deepEqual(taken(site), ["a", "b", "c", "d", "e"]);
  assert.deepEqual(site.batches, [["a"], ["b"], ["c"], ["d"], ["e"]]);
});

test("what has waited leaves in one request, as soon as its session has a token; identify by itself", async () => {
  const site = new Site();
  const page = await site.open({ ...MANUAL, ...HALF_JITTER });
  site.answer = () => HANG_UP;
  for (const name of ["a", "b", "c"]) page.umami.track(name);
  page.umami.identify("me");
  for (const name of ["d", "e", "f"]) page.umami.track(name);
  await settle();
  site.requests.length = 0;
  site.answer = () => ok();
  await site.advance(2_001);
  assert.deepEqual(site.batches, [["a"], ["b", "c"], [undefined], ["d", "e", "f"]]);
  assert.deepEqual([...new Set(site.requests.map(({ url }) => url))], [
    "https://stats.example/api/send",
    "https://stats.example/api/batch",
  ]);
  assert.ok(site.requests.every(({ payload }) => payload.timestamp));
  const { options } = site.requests[1];
  assert.deepEqual([options.method, options.keepalive, options.credentials], ["POST", true, "omit"]);
  assert.deepEqual({ ...options.headers }, { "Content-Type": "application/json", "x-umami-cache": "token-1" });
});

test("what other pages left behind leaves in few requests of a size that browsers let outlive a page", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const gone = await site.open(MANUAL);
  for (let count = 0; count < 20; count++) gone.umami.track("x", { text: "y".repeat(2_000) });
  gone.umami.identify("me", { plan: "free" });
  gone.umami.identify("me", { plan: "pro" });
  for (let count = 0; count < 20; count++) gone.umami.track("x", { text: "y".repeat(2_000) });
  await settle();
  await gone.leave();
  await site.advance(10_000);
  site.requests.length = 0;
  site.answer = () => ok();
  await site.open(MANUAL);
  await site.advance(10_000);
  assert.equal(taken(site).length, 42);
  assert.ok(site.batches.length <= 10, `${site.batches.length} requests`);
  const identifies = site.requests.filter(({ kind }) => kind === "identify");
  assert.deepEqual(
    identifies.map(({ payload, number }) => [payload.data.plan, site.batches[number].length]),
    [
      ["free", 1],
      ["pro", 1],
    ],
  );
  for (const { options } of site.requests) assert.ok(options.keepalive && options.body.length < 20_000);
});

const BATCH = ["taken", "bad", "busy", "blocked", "broken", "also taken"];
const VERDICTS = { bad: failing(400), busy: failing(503), blocked: failing(403), broken: failing(500) };

/** A page with a token whose events of these names have waited and are just being sent together. */
const openBatch = async (site, names = BATCH, options = MANUAL) => {
  const page = await site.open({ ...options, ...HALF_JITTER });
  const { answer } = site;
  site.answer = () => ok();
  await page.umami.track("first");
  site.answer = () => HANG_UP;
  for (const name of names) page.umami.track(name);
  await settle();
  // The first of them has been tried. Of what follows the tests count.
  assert.deepEqual(site.batches, [["first"], [names[0]]]);
  site.requests.pop();
  site.answer = answer;
  await site.advance(2_001);
  return page;
};

test("each event of a batch has its own verdict: taken, dropped with a warning, or sent again by itself", async () => {
  const site = new Site();
  site.answer = ({ payload: { name } }) => (site.batches.length < 3 && VERDICTS[name]) || ok();
  const page = await openBatch(site);
  await site.advance(60_000);
  assert.deepEqual(site.batches, [["first"], BATCH, ["busy"], ["broken"]]);
  assert.deepEqual(taken(site), ["first", "taken", "also taken", "busy", "broken"]);
  assert.deepEqual(site.queued, []);
  assert.deepEqual(
    page.warnings.map(([, status, body]) => [status, JSON.parse(body).payload.name]),
    [
      [400, "bad"],
      [403, "blocked"],
    ],
  );
});

test("events of a batch beyond a limit of the collector are sent again after Retry-After, and the others are done", async () => {
  for (const status of [429, 503]) {
    const site = new Site();
    site.answer = ({ payload: { name } }) => (site.batches.length < 3 && name === "beyond" ? failing(status) : ok());
    site.batchAnswer = (answers) => ({ ...batched(answers), headers: { "Retry-After": "30" } });
    const page = await openBatch(site, ["fits", "beyond", "fits too"]);
    await site.advance(30_000);
    assert.deepEqual(site.batches, [["first"], ["fits", "beyond", "fits too"]]);
    await site.advance(30_000);
    assert.deepEqual(site.batches, [["first"], ["fits", "beyond", "fits too"], ["beyond"]]);
    assert.deepEqual(taken(site), ["first", "fits", "fits too", "beyond"]);
    assert.deepEqual([site.queued, page.warnings], [[], []]);
  }
});

test("an event of a batch that is refused again and again goes the way of a single one, and holds up no other for long", async () => {
  const site = new Site();
  site.answer = ({ payload }) => (payload.name === "poison" ? failing(500) : ok());
  const page = await openBatch(site, ["poison", "fine"]);
  assert.deepEqual(site.batches, [["first"], ["poison", "fine"]]);
  assert.deepEqual(taken(site), ["first", "fine"]);
  page.umami.track("later");
  await site.advance(2 * HOUR);
  assert.deepEqual(taken(site), ["first", "fine", "later"]);
  assert.equal(names(site.requests).filter((name) => name === "poison").length, 11);
  assert.deepEqual(site.queued, []);
});

test("a batch that fails as a whole, or whose answer tells nothing of its events, is sent one by one", async () => {
  for (const answer of [
    HANG_UP,
    ...[400, 403, 404, 405, 408, 413, 429, 500, 502, 503].map((status) => failing(status)),
    { status: 200, body: "<html>" },
    { status: 200, body: {} },
    { status: 200, body: null },
    ok(),
    { status: 200, body: { size: 6, processed: 0, errors: 6, details: [], cache: null } },
    { status: 200, body: { size: 6, processed: 5, errors: 1, details: [{ index: 1 }], cache: null } },
  ]) {
    const site = new Site();
    site.batchAnswer = () => answer;
    await openBatch(site);
    await site.advance(60_000);
    assert.deepEqual(site.batches, [["first"], BATCH, ...BATCH.map((name) => [name])], JSON.stringify(answer));
    assert.deepEqual(taken(site), ["first", ...BATCH]);
    assert.deepEqual(site.queued, []);
  }
});

test("an answer to a batch that came too late for its page is sent for again, with the same messageIds", async () => {
  const site = new Site();
  site.answer = () => NEVER;
  const page = await openBatch(site, ["a", "b"]);
  await page.leave();
  site.answer = () => ok();
  await site.open(MANUAL);
  await site.advance(1_000);
  assert.deepEqual(site.batches, [["first"], ["a", "b"], ["a", "b"]]);
  const ids = site.requests.map(({ payload }) => payload.messageId);
  assert.deepEqual(ids.slice(1, 3), ids.slice(3));
});

test("with another path of the endpoint, beside which nothing is known, events leave one by one", async () => {
  const site = new Site();
  await openBatch(site, BATCH, { ...MANUAL, source: script.replace("/api/send", "/take/this") });
  assert.deepEqual(site.batches, [["first"], ...BATCH.map((name) => [name])]);
});

test("an event that is dropped is told of on the console, one that is taken or waits is not", async () => {
  for (const [status, warned] of [
    [400, true],
    [403, true],
    [404, true],
    [503, false],
    [200, false],
  ]) {
    const site = new Site();
    const page = await site.open(MANUAL);
    site.answer = () => (status === 200 ? ok() : failing(status));
    await page.umami.track("x");
    assert.deepEqual(
      page.warnings.map(([, said, body]) => [said, JSON.parse(body).payload.name]),
      warned ? [[status, "x"]] : [],
    );
  }
});

test("order holds through an outage, identify included", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => HANG_UP;
  page.umami.track("before");
  page.umami.identify("me");
  page.umami.track("after");
  await site.advance(3_000);
  site.answer = () => ok();
  await site.advance(60_000);
  assert.deepEqual(
    site.events.map(({ kind, payload }) => [kind, payload.name, payload.id]),
    [
      ["event", "before", undefined],
      ["identify", undefined, "me"],
      ["event", "after", "me"],
    ],
  );
});

test("an event sent on the first try has no timestamp; one sent late says when it happened", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  await page.umami.track("at once");
  site.answer = () => HANG_UP;
  const happened = Math.floor(site.clock.ms / 1_000);
  page.umami.track("late");
  await site.advance(500);
  page.umami.track({ url: "/own", timestamp: 1_700_000_000 });
  page.umami.track({ url: "/none", timestamp: 0 });
  await site.advance(HOUR);
  site.answer = () => ok();
  await site.advance(HOUR);
  const [first, ...tries] = site.requests;
  assert.equal("timestamp" in first.payload, false);
  assert.equal("timestamp" in tries[0].payload, false);
  const [, late, own, none] = site.events;
  assert.ok(Math.abs(none.payload.timestamp - happened) <= 1, "0 is no time");
  assert.equal(late.payload.timestamp, happened);
  assert.equal(own.payload.timestamp, 1_700_000_000);
});

test("events survive reload and crash, and keep their order and time", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const first = await site.open(MANUAL);
  const happened = Math.floor(site.clock.ms / 1_000);
  first.umami.track("a");
  first.umami.track("b");
  await settle();
  await first.leave();
  const second = await site.open(MANUAL);
  second.umami.track("c");
  await settle();
  second.crash();
  await site.advance(5 * 60_000);
  assert.equal(site.queued.length, 3);
  site.answer = () => ok();
  const third = await site.open(MANUAL);
  third.umami.track("d");
  await site.advance(1_000);
  assert.deepEqual(taken(site), ["a", "b", "c", "d"]);
  assert.deepEqual(
    site.events.map(({ payload }) => payload.timestamp),
    [happened, happened, happened, undefined],
  );
  assert.deepEqual(Object.keys(site.localStorage), []);
});

test("an event whose answer was lost is sent again with the same messageId", async () => {
  const site = new Site();
  site.answer = () => NEVER;
  const page = await site.open(MANUAL);
  page.umami.track("x");
  await settle();
  await page.leave();
  site.answer = () => ok();
  await site.open(MANUAL);
  assert.deepEqual(names(site.requests), ["x", "x"]);
  assert.equal(site.requests[0].payload.messageId, site.requests[1].payload.messageId);
});

test("a request without answer is given up after 30 s and tried again", async () => {
  const site = new Site();
  site.answer = () => (site.requests.length === 1 ? NEVER : ok());
  const page = await site.open(MANUAL);
  page.umami.track("x");
  await site.advance(29_000);
  assert.equal(site.requests.length, 1);
  await site.advance(4_000);
  assert.deepEqual(taken(site), ["x"]);
});

test("leaving sends at once what waits behind a slow answer", async () => {
  for (const way of ["leave", "hide"]) {
    const site = new Site();
    site.answer = () => NEVER;
    const page = await site.open(MANUAL);
    for (const name of ["a", "b", "c"]) page.umami.track(name);
    await settle();
    assert.deepEqual(names(site.requests), ["a"]);
    await page[way]();
    assert.deepEqual(names(site.requests), ["a", "b", "c"]);
  }
});

test("a data-before-send that never answers does not keep a leaving page from sending the rest", async () => {
  const site = new Site();
  site.answer = () => NEVER;
  const hook = (_kind, payload) => (payload.name === "stuck" ? new Promise(() => {}) : payload);
  const page = await site.open({ attributes: { ...MANUAL.attributes, "data-before-send": "hook" }, globals: { hook } });
  for (const name of ["a", "b", "stuck"]) page.umami.track(name);
  await settle();
  await page.leave();
  assert.deepEqual(names(site.requests), ["a", "b"]);
});

test("events that fail side by side count as one failure", async () => {
  const site = new Site();
  let hangUp;
  const outage = new Promise((resolve) => (hangUp = () => resolve(HANG_UP)));
  site.answer = () => outage;
  const page = await site.open(MANUAL);
  for (const name of ["a", "b", "c", "d", "e", "f"]) page.umami.track(name);
  await page.hide();
  assert.equal(site.requests.length, 6);
  hangUp();
  await site.advance(2_001);
  assert.equal(site.requests.length, 7);
});

test("a short pause never replaces a longer one", async () => {
  const site = new Site();
  const answers = [];
  site.answer = () => new Promise((resolve) => answers.push(resolve));
  const page = await site.open(MANUAL);
  for (const name of ["a", "b"]) page.umami.track(name);
  await page.hide();
  answers[0](failing(503, { "Retry-After": "60" }));
  await settle();
  answers[1](HANG_UP);
  await site.advance(60_000);
  assert.equal(site.requests.length, 2);
});

test("a page in the background waits for its turn", async () => {
  const site = new Site();
  site.answer = () => NEVER;
  const page = await site.open(MANUAL);
  page.umami.track("a");
  await settle();
  await page.hide();
  page.umami.track("b");
  await settle();
  assert.deepEqual(names(site.requests), ["a"]);
});

test("at most 50 events are stored; more than that wait in the page", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const page = await site.open(MANUAL);
  for (let count = 0; count < 80; count++) page.umami.track(`event ${count}`);
  await settle();
  assert.equal(site.queued.length, 50);
  site.answer = () => ok();
  await site.advance(60_000);
  assert.equal(taken(site).length, 80);
  assert.deepEqual(
    taken(site).map((name) => +name.slice(6)),
    [...Array(80).keys()],
  );
});

test("what waits in the page is bounded, too", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const page = await site.open(MANUAL);
  for (let count = 0; count < 700; count++) page.umami.track("x");
  await settle();
  site.answer = () => ok();
  await site.advance(60_000);
  assert.equal(taken(site).length, 550);
});

test("a burst on a working network loses nothing", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  for (let count = 0; count < 300; count++) page.umami.track("x");
  await site.advance(60_000);
  assert.equal(taken(site).length, 300);
});

test("an event is given up after 24 hours", async () => {
  for (const [hours, expected] of [
    [23, ["x"]],
    [25, []],
  ]) {
    const site = new Site();
    site.answer = () => HANG_UP;
    const page = await site.open(MANUAL);
    page.umami.track("x");
    await settle();
    await page.leave();
    site.clock.ms += hours * HOUR;
    site.answer = () => ok();
    await site.open(MANUAL);
    assert.deepEqual(taken(site), expected);
    assert.deepEqual(site.queued, []);
  }
});

test("a server that fails on one event (500) holds up the others for less than an hour", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = ({ payload }) => (payload.name === "poison" ? failing(500) : ok());
  page.umami.track("poison");
  page.umami.track("fine");
  await site.advance(5 * 60_000);
  assert.deepEqual(taken(site), []);
  await site.advance(HOUR);
  assert.deepEqual(taken(site), ["fine"]);
});

test("a single 500 after a long outage drops nothing, nor do many at once", async () => {
  const site = new Site();
  const page = await site.open(MANUAL);
  site.answer = () => HANG_UP;
  page.umami.track("x");
  await site.advance(2 * HOUR);
  site.answer = () => failing(500);
  await site.advance(10 * 60_000);
  site.answer = () => HANG_UP;
  for (let count = 0; count < 20; count++) page.umami.track("y");
  await site.advance(HOUR);
  site.answer = () => ok();
  await site.advance(HOUR);
  assert.equal(taken(site).length, 21);

  let fail;
  const failed = new Promise((resolve) => (fail = () => resolve(failing(500))));
  site.answer = () => failed;
  for (let count = 0; count < 20; count++) page.umami.track("z");
  await page.hide();
  fail();
  await settle();
  site.answer = () => ok();
  await site.advance(HOUR);
  assert.equal(taken(site).length, 41);
});

test("without localStorage events wait in the page", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const page = await site.open({ ...MANUAL, storage: false });
  page.umami.track("a");
  page.umami.track("b");
  await site.advance(500);
  site.answer = () => ok();
  await site.advance(10_000);
  assert.deepEqual(taken(site), ["a", "b"]);
});

test("a full localStorage does not lose events", async () => {
  const site = new Site();
  site.localStorage.setItem = () => {
    throw new Error("QuotaExceededError");
  };
  Object.defineProperty(site.localStorage, "setItem", { enumerable: false });
  site.answer = () => (site.requests.length < 3 ? HANG_UP : ok());
  const page = await site.open(MANUAL);
  page.umami.track("a");
  await site.advance(60_000);
  assert.deepEqual(taken(site), ["a"]);
});

test("a localStorage that was full for a while does not end the pauses", async () => {
  const site = new Site();
  let full = true;
  Object.defineProperty(site.localStorage, "setItem", {
    enumerable: false,
    value(key, text) {
      if (full) throw new Error("QuotaExceededError");
      this[key] = String(text);
    },
  });
  site.answer = () => HANG_UP;
  const page = await site.open(MANUAL);
  page.umami.track("a");
  await site.advance(500);
  full = false;
  await site.advance(HOUR);
  assert.ok(site.requests.length < 25, `${site.requests.length} requests`);
});

test("a large event goes without keepalive, which browsers limit, and is not stored", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const page = await site.open(MANUAL);
  page.umami.track("large", { text: "x".repeat(30_000) });
  await settle();
  assert.deepEqual(site.queued, []);
  site.answer = () => ok();
  await site.advance(60_000);
  assert.deepEqual(taken(site), ["large"]);
  assert.equal(site.requests[0].options.keepalive, false);
});

test("two tabs never send the same event at once", async () => {
  for (const secure of [true, false]) {
    const site = new Site();
    const underWay = new Map();
    let most = 0;
    let outage = true;
    site.answer = async ({ number }) => {
      if (outage) return HANG_UP;
      underWay.set(number, true);
      most = Math.max(most, underWay.size);
      await settle();
      underWay.delete(number);
      return ok();
    };
    const tabs = [await site.open({ ...MANUAL, secure }), await site.open({ ...MANUAL, secure })];
    for (const [index, tab] of tabs.entries()) for (const name of ["a", "b", "c"]) tab.umami.track(name + index);
    await site.advance(800);
    outage = false;
    await site.advance(60_000);
    assert.equal(taken(site).length, 6);
    assert.equal(most, 1, `secure ${secure}`);
    const answered = site.requests.filter((request) => request.answered !== HANG_UP);
    assert.equal(answered.length, 6, "an event was sent twice");
  }
});

test("without Web Locks a tab keeps its turn for as long as it needs", async () => {
  const site = new Site();
  const page = await site.open({ ...MANUAL, secure: false });
  let answer;
  site.answer = () => new Promise((resolve) => (answer = resolve));
  page.umami.track("slow");
  await site.advance(100);
  const other = await site.open({ ...MANUAL, secure: false });
  other.umami.track("x");
  await site.advance(25_000);
  assert.equal(site.requests.length, 1);
  site.answer = () => ok();
  answer(ok());
  await site.advance(1_000);
  assert.deepEqual(taken(site), ["slow", "x"]);
});

test("a tab that vanished inside the lock keeps nobody out for long", async () => {
  for (const secure of [true, false]) {
    const site = new Site();
    site.answer = () => (site.requests.length === 1 ? NEVER : ok());
    const gone = await site.open({ ...MANUAL, secure });
    gone.umami.track("a");
    await settle();
    gone.crash();
    const page = await site.open({ ...MANUAL, secure });
    page.umami.track("b");
    await site.advance(4_000);
    assert.deepEqual(taken(site), ["a", "b"]);
  }
});

test("a tab that is frozen inside the lock keeps nobody out for ever", async () => {
  const site = new Site();
  site.answer = () => (site.requests.length === 1 ? NEVER : ok());
  const frozen = await site.open(MANUAL);
  frozen.umami.track("a");
  await settle();
  site.clock.forget(frozen);
  const page = await site.open(MANUAL);
  page.umami.track("b");
  await site.advance(61_000);
  assert.deepEqual(taken(site), ["a", "b"]);
});

test("queues of other websites and collectors are left alone", async () => {
  const site = new Site();
  site.answer = () => HANG_UP;
  const page = await site.open(MANUAL);
  page.umami.track("mine");
  await site.advance(100);
  page.crash();
  await site.advance(HOUR);
  site.answer = () => ok();
  await site.open({ attributes: { ...MANUAL.attributes, "data-website-id": "22222222-2222-4222-8222-222222222222" } });
  await site.open({ attributes: { ...MANUAL.attributes, "data-host-url": "https://other.example" } });
  await site.advance(HOUR);
  assert.equal(site.queued.length, 1);
  assert.equal(site.requests.length, 1);
});

test("nonsense in localStorage does no harm", async () => {
  const site = new Site();
  const scope = `dashi https://stats.example/api/send 11111111-1111-4111-8111-111111111111 `;
  Object.assign(site.localStorage, {
    [`${scope}retry`]: "nonsense",
    [`${scope}lock`]: "nonsense",
    [`${scope}#nonsense`]: "x",
    [`${scope}#${site.clock.ms}`]: "",
    "something else": `${ORIGIN}`,
  });
  site.answer = ({ payload }) => (payload ? ok() : failing(400));
  const page = await site.open({ ...MANUAL, secure: false });
  await page.umami.track("x");
  await site.advance(1_000);
  assert.deepEqual(taken(site), ["x"]);
  assert.deepEqual(site.queued, []);
});

test("a clock that was set back does not stop sending", async () => {
  const site = new Site();
  site.answer = () => failing(503, { "Retry-After": "3600" });
  const page = await site.open(MANUAL);
  await page.umami.track("x");
  await page.leave();
  site.localStorage.setItem("dashi https://stats.example/api/send 11111111-1111-4111-8111-111111111111 lock", site.clock.ms);
  site.clock.ms -= 20 * HOUR;
  site.answer = () => ok();
  await site.open({ ...MANUAL, secure: false });
  await site.advance(1_000);
  assert.deepEqual(taken(site), ["x"]);
});
