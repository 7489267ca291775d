// The built script in headless Chromium, sending to a real Dashi; at the end of each test its tables hold one row for
// every event, and nothing else. Pictures and a list of what was sent go to e2e/out.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";
import { startChromium, USER_AGENT } from "./chromium.mjs";
import { Dashi, eventId, sessionId, until, visitId } from "./dashi.mjs";
import { startGate, startSite } from "./servers.mjs";

const OUT = fileURLToPath(new URL("out/", import.meta.url));

let dashi;
let gate;
let site;
let browser;
let context;
let page;
let pageErrors;
const sent = {};

before(() => {
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
});

beforeEach(async () => {
  dashi = await Dashi.start();
  gate = await startGate(dashi);
  site = await startSite(gate);
  browser = await startChromium({ viewport: { width: 800, height: 450 }, screen: { width: 1280, height: 720 } });
  ({ context, page } = browser);
  pageErrors = [];
  page.on("pageerror", (error) => pageErrors.push(String(error)));
});

afterEach(async (t) => {
  sent[t.name] = gate.tries.map(({ kind, payload, status }) => ({ kind, status, ...payload }));
  await browser.close();
  await site.close();
  await gate.close();
  await dashi.remove();
  assert.deepEqual(pageErrors, [], "errors reached the page");
});

after(() => writeFileSync(join(OUT, "sent.json"), JSON.stringify(sent, null, 2)));

/** What Dashi answered, each event once, in order. */
const events = () => {
  const first = new Map();
  for (const each of gate.tries) {
    if (each.status === 200 && !first.has(each.payload.messageId)) first.set(each.payload.messageId, each);
  }
  return [...first.values()];
};

const path = (url) => url && new URL(url).pathname + new URL(url).hash;

const describe = ({ kind, payload }) =>
  kind === "event" ? (payload.name ?? `view ${path(payload.url)}`) : `${kind} ${kind === "identify" ? payload.id : path(payload.url)}`;

const described = () => events().map(describe).filter((text) => !text.startsWith("performance"));

/** Waits until `count` events beside performance have been answered. */
const answered = (count) =>
  until(
    () => `${count} events: ${JSON.stringify(described())}`,
    () => described().length >= count,
  );

const picture = (name) => page.screenshot({ path: join(OUT, `${name}.png`) });

/** Waits until so many events lie in localStorage, and the page says so. */
const queued = (count) =>
  page.waitForFunction(
    (n) =>
      Object.keys(localStorage).filter((key) => /^dashi .*#/.test(key)).length === n &&
      document.querySelector("#waiting").textContent.endsWith(`: ${n}`),
    count,
  );

const claims = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));

const describeRow = ({ event_type, event_name, url_path, distinct_id }) => {
  if (!event_type) return `identify ${distinct_id}`;
  assert.ok([1, 2, 5].includes(event_type), `event_type ${event_type}`);
  return { 1: `view ${url_path}`, 2: event_name, 5: `performance ${url_path}` }[event_type];
};

const ROUNDING = { lcp: 0.051, inp: 0.051, fcp: 0.051, ttfb: 0.051, cls: 0.000_051 };

/** Whether the row is what this try to send its event has to give. */
const rowFits = (row, { kind, payload, token, began, ended }) => {
  const { timestamp, id } = payload;
  const inTime = timestamp ? row.created_at === timestamp * 1_000 : row.created_at >= began - 5 && row.created_at <= (ended ?? began + 5_000) + 5;
  const session = sessionId(dashi.website, { id, userAgent: USER_AGENT }, row.created_at);
  if (!inTime || row.session_id !== session || row.website_id !== dashi.website) return false;
  if (kind === "identify") return row.distinct_id === (id ?? null);
  const visit = token ? claims(token).visitId : visitId(session, row.created_at);
  if (row.visit_id !== visit || row.page_title !== payload.title) return false;
  if (kind === "performance") {
    return Object.entries(ROUNDING).every(([name, most]) =>
      payload[name] === undefined ? row[name] === null : Math.abs(row[name] - payload[name]) < most,
    );
  }
  return (
    row.hostname === payload.hostname &&
    row.referrer_path === (payload.referrer ? new URL(payload.referrer).pathname : null) &&
    row.event_name === (payload.name ?? null)
  );
};

/** Leaves the site; then Dashi's tables hold exactly what is `expected`, each event once. Gives them. */
const stored = async (expected) => {
  for (const each of context.pages()) await each.goto("about:blank");
  await until(
    () => `${expected.length} events: ${JSON.stringify(events().map(describe))}`,
    () => events().length >= expected.length,
  );
  for (const { status, reply } of gate.tries) {
    if (status !== undefined) assert.ok(status === 200 && claims(JSON.parse(reply).cache), `${status} ${reply}`);
  }
  const totals = await dashi.settled();
  const names = ["website_event", "dashi_identify", "session", "event_data", "session_data"];
  const tables = Object.fromEntries(await Promise.all(names.map(async (name) => [name, await dashi.rows(name)])));
  const rows = [...tables.website_event, ...tables.dashi_identify];

  assert.deepEqual(rows.map(describeRow).sort(), [...expected].sort());
  const ids = [...new Set(gate.tries.map(({ payload }) => payload.messageId))].map((id) => eventId(dashi.website, id));
  assert.deepEqual(rows.map(({ event_id }) => event_id).sort(), ids.sort(), "one row for each message id");
  const visitors = new Map();
  for (const row of rows) {
    const tries = gate.tries.filter(({ payload }) => eventId(dashi.website, payload.messageId) === row.event_id);
    assert.ok(
      tries.some((each) => rowFits(row, each)),
      `no try gives this row: ${JSON.stringify({ row, tries })}`,
    );
    visitors.set(row.session_id, tries[0].payload.id ?? null);
  }
  assert.deepEqual(
    tables.session.map((row) => [row.session_id, row.distinct_id, row.browser, row.os, row.device, row.screen, row.language]).sort(),
    [...visitors].map((each) => [...each, "chrome", "Linux", "laptop", "1280x720", "en-GB"]).sort(),
  );
  assert.deepEqual(totals, { ...totals, applied: rows.length, dead: 0, in_log: rows.length + totals.duplicate });
  await dashi.replayed();
  return { ...tables, totals };
};

/** Data rows as an object by key. */
const dataOf = (rows) =>
  Object.fromEntries(rows.map(({ data_key, data_type, string_value, number_value }) => [data_key, data_type === 2 ? number_value : string_value]));

test("Dashi serves the script that is checked in, and lets it read Retry-After", async () => {
  const answer = await fetch(`${dashi.url}/script.js`);
  assert.equal(answer.status, 200);
  assert.match(answer.headers.get("Content-Type"), /javascript/);
  assert.match(answer.headers.get("Cache-Control"), /max-age=86400/);
  assert.equal(await answer.text(), readFileSync(new URL("../dist/script.js", import.meta.url), "utf8"));
  const vitals = await fetch(`${dashi.url}/script-vitals.js`);
  assert.equal(vitals.headers.get("Cache-Control"), answer.headers.get("Cache-Control"));
  assert.equal(await vitals.text(), readFileSync(new URL("../dist/script-vitals.js", import.meta.url), "utf8"));
  const { headers } = await fetch(`${dashi.url}/api/send`, { method: "POST", body: "{}" });
  assert.equal(headers.get("Access-Control-Expose-Headers"), "Retry-After");
});

test("a site of several pages: views, clicks, custom events, identify, vitals", async () => {
  await page.goto(`${site.url}/`);
  await answered(1);
  await page.click("#shop");
  await page.waitForURL("**/shop");
  await answered(2);
  await page.click("#buy");
  await page.evaluate(() => window.umami.identify("user-1", { plan: "pro" }));
  await page.evaluate(() => window.umami.track("signup", { seats: 3 }));
  await page.click("#cart");
  await page.waitForURL("**/cart");
  await answered(7);
  await picture("several-pages");
  const rows = await stored([
    "view /",
    "view /shop",
    "buy",
    "identify user-1",
    "signup",
    "to cart",
    "view /cart",
    "performance /",
    "performance /shop",
    "performance /cart",
  ]);

  assert.deepEqual(described(), ["view /", "view /shop", "buy", "identify user-1", "signup", "to cart", "view /cart"]);
  const by = Object.fromEntries(events().map((event) => [describe(event), event.payload]));
  const { messageId, ...base } = by["view /"];
  assert.match(messageId, /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/);
  assert.deepEqual(base, {
    website: dashi.website,
    screen: "1280x720",
    language: "en-GB",
    title: "Home",
    hostname: "127.0.0.1",
    url: `${site.url}/`,
    referrer: "",
  });
  assert.equal(by["to cart"].url, `${site.url}/shop`);
  assert.equal(by["view /cart"].id, undefined, "the identity ends with the page");
  for (const { payload } of events().filter(({ kind }) => kind === "performance")) {
    for (const name of ["ttfb", "fcp", "lcp", "cls"]) assert.equal(typeof payload[name], "number", `${name} of ${payload.url}`);
    assert.ok(payload.lcp >= payload.fcp && payload.fcp >= payload.ttfb && payload.ttfb > 0);
  }
  assert.ok(by["performance /shop"].inp > 0, "INP of the page with clicks");

  const tokens = Object.fromEntries(events().map((event) => [describe(event), event.token]));
  for (const view of ["view /", "view /shop", "view /cart"]) assert.equal(tokens[view], undefined, `token of ${view}`);
  assert.ok(tokens["buy"], "the token of the page's view goes with its events");
  assert.equal(tokens["identify user-1"], undefined, "identify begins without a token");
  assert.ok(tokens["signup"] && tokens["signup"] !== tokens["buy"], "its answer brings another");

  const dataOfEvent = (name) => {
    const { event_id } = rows.website_event.find(({ event_name }) => event_name === name);
    return dataOf(rows.event_data.filter(({ website_event_id }) => website_event_id === event_id));
  };
  assert.deepEqual(dataOfEvent("buy"), { plan: "pro" });
  assert.deepEqual(dataOfEvent("signup"), { seats: 3 });
  assert.deepEqual(dataOfEvent("to cart"), { from: "navigation" });
  assert.equal(rows.event_data.length, 3);
  assert.deepEqual(
    rows.session_data.map(({ session_id, distinct_id, data_key, string_value }) => [session_id, distinct_id, data_key, string_value]),
    [[sessionId(dashi.website, { id: "user-1" }), "user-1", "plan", "pro"]],
  );
});

test("a single-page app: navigation, back and forward, anchors, vitals per view", async () => {
  await page.goto(`${site.url}/app/`);
  await answered(1);
  await page.click("text=Inbox");
  await answered(2);
  await page.click("text=Settings");
  await answered(4);
  await picture("single-page-app");
  await page.click("text=Anchor");
  await page.goBack();
  await page.goBack();
  await answered(5);
  await page.goForward();
  await answered(6);
  await page.click("text=Mail");
  await answered(7);
  await page.goBack();
  await answered(8);
  await page.goForward();
  await answered(9);
  const views = [
    "view /app/",
    "view /app/inbox",
    "view /app/settings",
    "view /app/inbox",
    "view /app/settings",
    "view /app/settings#mail",
    "view /app/settings",
    "view /app/settings#mail",
  ];
  const rows = await stored([...views, "settings", ...views.map((view) => view.replace("view", "performance").split("#")[0])]);

  const inOrder = events().filter((event) => describe(event).startsWith("view"));
  assert.deepEqual(inOrder.map(describe), views);
  assert.deepEqual(
    inOrder.map(({ payload }) => [path(payload.referrer), payload.title]),
    views.map((_, index) => [
      index && path(inOrder[index - 1].payload.url) ? views[index - 1].slice(5) : "",
      index ? `App ${views[index].slice(5).split("#")[0]}` : "App",
    ]),
  );
  const vitals = rows.website_event.filter(({ event_type }) => event_type === 5);
  assert.deepEqual(
    vitals.map(({ url_path, lcp, cls }) => [url_path, lcp !== null, cls !== null]).sort(),
    views.map((view, index) => [view.slice(5).split("#")[0], index === 0, true]).sort(),
  );
  assert.equal(new Set(rows.website_event.map(({ visit_id }) => visit_id)).size, 1, "one visit, from the token");
});

test("a click counts below any element with data-umami-event, once, for the closest", async () => {
  await page.goto(`${site.url}/clicks`);
  await answered(1);
  const clicks = {
    "#own": "own",
    "#in-button": "button",
    "#in-link": "link",
    "#in-div": "div",
    "#button-in-section": "section",
    "#span-in-link": "span",
    "#nested": "inner",
  };
  for (const selector of [...Object.keys(clicks), "#nothing"]) await page.click(selector);
  await page.click("#way-out");
  await page.waitForURL("**/shop");
  const rows = await stored(["view /clicks", ...Object.values(clicks), "out", "view /shop", "performance /shop"]);
  assert.deepEqual(
    rows.event_data.map(({ data_key, string_value }) => [data_key, string_value]),
    [["place", "far"]],
  );
  const out = rows.website_event.find(({ event_name }) => event_name === "out");
  assert.equal(out.url_path, "/clicks");
  // 3.1's tracker counted the first three only: what it counted has the same rows as ever.
  assert.deepEqual(
    rows.website_event.filter(({ event_type }) => event_type === 2).map(({ event_name, url_path }) => [event_name, url_path.split("#")[0]]),
    [...Object.values(clicks), "out"].map((name) => [name, "/clicks"]),
  );
});

test("data-auto-pageview=false: no page view until the page asks for one, and clicks as ever", async () => {
  await page.goto(`${site.url}/asked`);
  await page.click("#buy");
  await answered(1);
  await page.evaluate(() => window.umami.track());
  await answered(2);
  await page.goto(`${site.url}/quiet/`);
  await page.click("text=Inbox");
  await page.click("text=Settings");
  await answered(3);
  await page.goBack();
  await page.evaluate(() => window.umami.track((base) => ({ ...base, title: "by hand" })));
  await answered(4);
  const rows = await stored(["buy", "view /asked", "settings", "view /app/inbox"]);
  assert.deepEqual(
    rows.website_event.map(({ page_title, referrer_path }) => [page_title, referrer_path]),
    [
      ["Asked", null],
      ["Asked", null],
      ["App /app/inbox", "/quiet/"],
      ["by hand", "/app/settings"],
    ],
  );
});

test("data-distinct-id names the visitor from the first view on, identify({ id, … }) another", async () => {
  await page.goto(`${site.url}/signed-in`);
  await answered(1);
  await page.evaluate(() => window.umami.identify({ id: "user-8", plan: "pro" }));
  await page.evaluate(() => window.umami.track("theirs"));
  await answered(3);
  const rows = await stored(["view /signed-in", "identify user-8", "theirs"]);
  assert.deepEqual(
    rows.session.map(({ session_id, distinct_id }) => [session_id, distinct_id]).sort(),
    ["user-7", "user-8"].map((id) => [sessionId(dashi.website, { id }), id]).sort(),
  );
  assert.deepEqual(
    rows.session_data.map(({ distinct_id, data_key, string_value }) => [distinct_id, data_key, string_value]),
    [["user-8", "plan", "pro"]],
  );
});

test("events that wait leave in one request, and a bad one among them costs the others nothing", async () => {
  await page.goto(`${site.url}/clicks`);
  await answered(1);
  const warnings = [];
  page.on("console", (message) => message.type() === "warning" && warnings.push(message.text()));
  gate.mode = "503";
  await page.evaluate(() => {
    window.umami.track("one");
    window.umami.track((base) => ({ ...base, website: "no website", name: "bad" }));
    window.umami.track("two");
    return window.umami.track("three");
  });
  gate.tries.length = 1;
  gate.mode = "up";
  await queued(0);
  for (const each of context.pages()) await each.goto("about:blank");
  const batch = gate.tries.filter(({ number }) => number === gate.tries.at(-1).number);
  assert.deepEqual(
    batch.map(({ payload, status }) => [payload.name, status]),
    [
      ["one", 200],
      ["bad", 400],
      ["two", 200],
      ["three", 200],
    ],
  );
  assert.equal(gate.tries.length, 5, "no event was sent again");
  assert.equal(warnings.length, 1);
  assert.match(warnings[0], /^Event refused 400 .*"name":"bad"/);
  await dashi.settled();
  const names = (await dashi.rows("website_event")).map(({ event_name }) => event_name);
  assert.deepEqual(names.sort(), ["one", "three", "two", null].sort());
});

test("events of a batch that there was no room for are sent one by one, and those that were taken are not", async () => {
  await page.goto(`${site.url}/clicks`);
  await answered(1);
  gate.mode = "503";
  await page.evaluate(() => ["one", "two", "three", "four", "five"].forEach((name) => void window.umami.track(name)));
  await until("a first try", () => gate.tries.length === 2);
  gate.tries.length = 1;
  gate.noRoomFor = new Set(["two", "four"]);
  gate.mode = "up";
  await queued(0);
  const requests = [];
  for (const { number, payload, status } of gate.tries) (requests[number] ??= []).push([payload.name, status]);
  assert.deepEqual(requests.filter(Boolean).slice(1), [
    [
      ["one", 200],
      ["two", 503],
      ["three", 200],
      ["four", 503],
      ["five", 200],
    ],
    [["two", 200]],
    [["four", 200]],
  ]);
  gate.tries = gate.tries.filter(({ status }) => status === 200);
  const { totals } = await stored(["view /clicks", "one", "two", "three", "four", "five"]);
  assert.equal(totals.duplicate, 0);
});

/** How the collector can fail: by the gate, or with Dashi really gone. */
const OUTAGES = {
  503: {},
  "hang up": {},
  "lost answers": {},
  SIGTERM: { signal: "SIGTERM" },
  SIGKILL: { signal: "SIGKILL" },
};

const begin = async (outage) => {
  if (OUTAGES[outage].signal) await dashi.stop(OUTAGES[outage].signal);
  else gate.mode = outage;
};

const end = async (outage) => {
  if (OUTAGES[outage].signal) await dashi.start();
  gate.mode = "up";
};

for (const outage of Object.keys(OUTAGES)) {
  test(`an outage (${outage}) in the middle of a visit: nothing lost, nothing doubled`, async () => {
    await page.goto(`${site.url}/`);
    await answered(1);
    const began = Date.now();
    await begin(outage);
    await page.evaluate(() => window.umami.identify("user-1", { plan: "pro" }));
    await page.click("#buy");
    const bought = Date.now();
    await page.click("#shop");
    await page.waitForURL("**/shop");
    await page.evaluate(() => window.umami.track("during the outage"));
    await page.click("#cart");
    await page.waitForURL("**/cart");
    await page.reload();
    await queued(10);
    await picture(`outage-${outage.replace(" ", "-")}`);
    const { length } = gate.tries;
    await until("another try", () => gate.tries.length > length);
    const ended = Date.now();
    await end(outage);
    await page.click("#home");
    await page.waitForURL(`${site.url}/`);
    await page.evaluate(() => window.umami.track("after the outage"));
    await queued(0);
    await picture(`after-${outage.replace(" ", "-")}`);
    const views = ["/", "/shop", "/cart", "/cart", "/"];
    const rows = await stored([
      ...views.map((view) => `view ${view}`),
      ...views.map((view) => `performance ${view}`),
      "identify user-1",
      "buy",
      "during the outage",
      "to cart",
      "after the outage",
    ]);

    assert.deepEqual(dataOf(rows.session_data), { plan: "pro" });
    assert.deepEqual(
      dataOf(rows.event_data.filter(({ data_key }) => data_key === "plan")),
      { plan: "pro" },
    );
    const buy = rows.website_event.find(({ event_name }) => event_name === "buy");
    assert.equal(buy.session_id, sessionId(dashi.website, { id: "user-1" }));
    // Within its first second an event says no time of its own, and the browser may repeat the request by itself.
    const latest = Math.max(ended, bought + 2_000);
    assert.ok(buy.created_at >= began - 1_000 && buy.created_at <= latest, "the time at which it happened");
    if (outage === "lost answers") assert.ok(rows.totals.duplicate > 0, "no event was sent again");
    else assert.ok(gate.refused > 0);
  });
}

for (const outage of ["503", "SIGTERM", "SIGKILL"]) {
  test(`an outage (${outage}) under a single-page app: nothing lost, nothing doubled, in order`, async () => {
    await page.goto(`${site.url}/app/`);
    await answered(1);
    await begin(outage);
    await page.click("text=Inbox");
    await queued(2);
    await page.click("text=Settings");
    await queued(5);
    await page.goBack();
    await queued(7);
    await picture(`app-outage-${outage}`);
    await end(outage);
    await queued(0);
    await picture(`app-after-${outage}`);
    const views = ["/app/", "/app/inbox", "/app/settings", "/app/inbox"];
    const rows = await stored([
      ...views.map((view) => `view ${view}`),
      ...views.map((view) => `performance ${view}`),
      "settings",
    ]);
    assert.deepEqual(described(), ["view /app/", "view /app/inbox", "settings", "view /app/settings", "view /app/inbox"]);
    assert.equal(new Set(rows.website_event.map(({ visit_id }) => visit_id)).size, 1, "the token outlives the outage");
    assert.ok(events().slice(1).every(({ token }) => token));
  });
}

test("Dashi is killed with events under way, again and again: nothing lost, nothing doubled", async () => {
  await page.goto(`${site.url}/`);
  await answered(1);
  const names = [];
  for (let round = 0; round < 3; round++) {
    const tries = gate.tries.length;
    for (let count = 0; count < 12; count++) names.push(`event ${names.length}`);
    await page.evaluate((batch) => batch.forEach((name) => void window.umami.track(name)), names.slice(-12));
    await until("events under way", () => gate.tries.length > tries + round);
    await dashi.stop("SIGKILL");
    await dashi.start();
    await queued(0);
  }
  await stored(["view /", "performance /", ...names]);
  assert.deepEqual(described(), ["view /", ...names]);
});

test("two tabs after an outage lose nothing, double nothing and send no event at once", async () => {
  gate.mode = "503";
  gate.delayMs = 50;
  const other = await context.newPage();
  await page.goto(`${site.url}/`);
  await other.goto(`${site.url}/shop`);
  await page.evaluate(() => window.umami.track("one"));
  await other.evaluate(() => window.umami.track("two"));
  gate.mode = "up";
  await queued(0);
  await stored(["one", "two", "view /", "view /shop", "performance /", "performance /shop"]);
  for (const [index, { payload, began }] of gate.tries.entries()) {
    const earlier = gate.tries.slice(0, index).filter((each) => each.payload.messageId === payload.messageId && each.ended);
    assert.ok(earlier.every(({ ended }) => ended <= began), `${payload.messageId} was sent by both at once`);
  }
});

test("umami.disabled: nothing is sent", async () => {
  await page.goto(`${site.url}/`);
  await answered(1);
  await page.evaluate(() => localStorage.setItem("umami.disabled", "1"));
  await page.click("#cart");
  await page.waitForURL("**/cart");
  await page.click("#buy");
  assert.equal(await page.locator("script[src*=vitals]").count(), 0, "nor is anything loaded");
  await page.evaluate(() => localStorage.removeItem("umami.disabled"));
  // Events leave in order: what was to be sent before this would be there before it.
  await page.evaluate(() => window.umami.track("again"));
  await stored(["view /", "again"]);
});

test("script, path and host have the names that the operator gives them, also under a content security policy", async () => {
  await dashi.stop();
  // The page loads the script from Dashi itself; that its events come through the gate is the host's doing.
  await dashi.start({
    TRACKER_SCRIPT_NAME: "s/stats.js",
    COLLECT_API_ENDPOINT: "/take/this",
    COLLECT_API_HOST: `${gate.url}/umami`,
    BASE_PATH: "/umami",
  });
  const paths = new Set();
  page.on("request", (request) => request.method() === "POST" && paths.add(request.url()));
  await page.goto(`${site.url}/renamed`);
  await answered(1);
  await page.click("#buy");
  await answered(2);
  await stored(["view /renamed", "buy", "performance /renamed"]);
  assert.deepEqual([...paths], [`${gate.url}/umami/take/this`]);
});

test("a page without the tracker: fetch with any Content-Type, and sendBeacon", async () => {
  await page.goto(`${site.url}/plain`);
  const replies = await page.evaluate(
    async ({ endpoint, website }) => {
      const text = (name) =>
        JSON.stringify({
          type: "event",
          payload: { website, messageId: name, name, url: location.href, title: "Plain", hostname: "127.0.0.1", screen: "1280x720", language: "en-GB" },
        });
      const post = async (name, headers) => (await fetch(endpoint, { method: "POST", headers, body: text(name) })).json();
      const json = await post("json", { "Content-Type": "application/json" });
      const withToken = await post("with token", { "Content-Type": "application/json", "x-umami-cache": json.cache });
      const plain = await post("plain", {});
      return [json, withToken, plain, navigator.sendBeacon(endpoint, text("beacon"))];
    },
    { endpoint: `${gate.url}/api/send`, website: dashi.website },
  );
  assert.equal(replies.pop(), true);
  assert.equal(new Set(replies.map(({ sessionId, visitId }) => sessionId + visitId)).size, 1);
  await stored(["json", "with token", "plain", "beacon"]);
});
