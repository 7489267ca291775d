// The built script in headless Chromium. COLLECTOR_URL (and WEBSITE_ID) run it against a real collector, whose own
// /script.js is then used. Pictures and a list of what was taken in go to e2e/out.
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { startCollector, startSite } from "./servers.mjs";

const OUT = fileURLToPath(new URL("out/", import.meta.url));
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
/** As a person's: collectors take "HeadlessChrome" for a bot. */
const USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";
const WAIT_MS_MAX = 30_000;

let collector;
let site;
let profile;
let context;
let page;
let consoleErrors;
const delivered = {};

before(() => {
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
});

beforeEach(async () => {
  collector = await startCollector(process.env.COLLECTOR_URL);
  site = await startSite(collector);
  profile = mkdtempSync(join(tmpdir(), "dashi-e2e-"));
  context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: FLAGS,
    userAgent: USER_AGENT,
    locale: "en-GB",
    viewport: { width: 1280, height: 720 },
  });
  page = context.pages()[0] ?? (await context.newPage());
  consoleErrors = [];
  page.on("pageerror", (error) => consoleErrors.push(String(error)));
});

afterEach(async (t) => {
  delivered[t.name] = collector.taken.map(({ kind, payload, status }) => ({ kind, status, ...payload }));
  await context.close();
  await site.close();
  await collector.close();
  rmSync(profile, { recursive: true, force: true });
  assert.deepEqual(consoleErrors, [], "errors reached the page");
});

after(() => writeFileSync(join(OUT, "delivered.json"), JSON.stringify(delivered, null, 2)));

const until = async (what, condition) => {
  const deadline = Date.now() + WAIT_MS_MAX;
  while (!condition()) {
    if (Date.now() > deadline) {
      assert.fail(`no ${what} within ${WAIT_MS_MAX} ms: ${JSON.stringify(events().map(describe))}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

/** What was taken in, each message id once, in order. */
const events = () => {
  const first = new Map();
  for (const each of collector.taken) if (!first.has(each.payload.messageId)) first.set(each.payload.messageId, each);
  return [...first.values()];
};

const path = (url) => url && new URL(url).pathname + new URL(url).hash;

const describe = ({ kind, payload }) =>
  kind === "event" ? (payload.name ?? `view ${path(payload.url)}`) : `${kind} ${kind === "identify" ? payload.id : path(payload.url)}`;

const described = () => events().map(describe).filter((text) => !text.startsWith("performance"));

const accepted = () =>
  assert.deepEqual(
    collector.taken.filter(({ status, reply }) => status !== 200 || !JSON.parse(reply).cache),
    [],
  );

const picture = (name) => page.screenshot({ path: join(OUT, `${name}.png`) });

const queued = () => page.evaluate(() => Object.keys(localStorage).filter((key) => key.startsWith("dashi ")).length);

test("a site of several pages: views, clicks, custom events, identify, vitals", async () => {
  await page.goto(`${site.url}/`);
  await until("view", () => described().length === 1);
  await page.click("#shop");
  await page.waitForURL("**/shop");
  await until("view", () => described().length === 2);
  await page.click("#buy");
  await page.evaluate(() => window.umami.identify("user-1", { plan: "pro" }));
  await page.evaluate(() => window.umami.track("signup", { seats: 3 }));
  await page.click("#cart");
  await page.waitForURL("**/cart");
  await until("view of the cart", () => described().includes("view /cart"));
  await picture("several-pages");
  await page.goto("about:blank");
  await until("vitals", () => events().filter(({ kind }) => kind === "performance").length === 3);

  assert.deepEqual(described(), [
    "view /",
    "view /shop",
    "buy",
    "identify user-1",
    "signup",
    "to cart",
    "view /cart",
  ]);
  const by = Object.fromEntries(events().map((event) => [describe(event), event.payload]));
  const { messageId, ...base } = by["view /"];
  assert.match(messageId, /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/);
  assert.deepEqual(base, {
    website: collector.website,
    screen: "1280x720",
    language: "en-GB",
    title: "Home",
    hostname: "127.0.0.1",
    url: `${site.url}/`,
    referrer: "",
  });
  assert.deepEqual(by["buy"].data, { plan: "pro" });
  assert.deepEqual(by["identify user-1"].data, { plan: "pro" });
  assert.deepEqual([by["signup"].data, by["signup"].id], [{ seats: 3 }, "user-1"]);
  assert.deepEqual([by["to cart"].data, by["to cart"].url], [{ from: "navigation" }, `${site.url}/shop`]);
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
  assert.equal(collector.taken.filter(({ payload }) => payload.timestamp).length, 0);
  accepted();
});

test("a single-page app: navigation, back and forward, anchors, vitals per view", async () => {
  await page.goto(`${site.url}/app/`);
  await until("first view", () => described().length === 1);
  await page.click("text=Inbox");
  await until("second view", () => described().length === 2);
  await page.click("text=Settings");
  await until("third view", () => described().length === 4);
  await picture("single-page-app");
  await page.click("text=Anchor");
  await page.goBack();
  await page.goBack();
  await until("view after back", () => described().length === 5);
  await page.goForward();
  await until("view after forward", () => described().length === 6);
  await page.goto("about:blank");
  await until("vitals", () => events().filter(({ kind }) => kind === "performance").length === 5);

  assert.deepEqual(described(), [
    "view /app/",
    "view /app/inbox",
    "settings",
    "view /app/settings",
    "view /app/inbox",
    "view /app/settings",
  ]);
  const views = events().filter((event) => describe(event).startsWith("view"));
  assert.deepEqual(
    views.map(({ payload }) => [path(payload.referrer), payload.title]),
    [
      ["", "App"],
      ["/app/", "App /app/inbox"],
      ["/app/inbox", "App /app/settings"],
      ["/app/settings", "App /app/inbox"],
      ["/app/inbox", "App /app/settings"],
    ],
  );
  assert.deepEqual(
    events()
      .filter(({ kind }) => kind === "performance")
      .map(({ payload }) => [path(payload.url), "lcp" in payload, "cls" in payload]),
    [
      ["/app/", true, true],
      ["/app/inbox", false, true],
      ["/app/settings", false, true],
      ["/app/inbox", false, true],
      ["/app/settings", false, true],
    ],
  );
  accepted();
});

for (const outage of ["503", "hang up", "lost answers"]) {
  test(`an outage (${outage}) in the middle of a visit: nothing lost, nothing doubled`, async () => {
    await page.goto(`${site.url}/`);
    await until("view", () => described().length === 1);
    const began = Date.now();
    collector.mode = outage;
    await page.evaluate(() => window.umami.identify("user-1"));
    await page.click("#buy");
    await page.click("#shop");
    await page.waitForURL("**/shop");
    await page.evaluate(() => window.umami.track("during the outage"));
    await page.click("#cart");
    await page.waitForURL("**/cart");
    await page.reload();
    assert.ok((await queued()) > 0);
    await picture(`outage-${outage.replace(" ", "-")}`);
    await page.waitForTimeout(1_500);
    const ended = Date.now();
    collector.mode = "up";
    await page.click("#home");
    await page.waitForURL(`${site.url}/`);
    await page.evaluate(() => window.umami.track("after the outage"));
    await until("end of the queue", () => described().includes("after the outage"));
    await page.waitForFunction(() => !Object.keys(localStorage).some((key) => key.startsWith("dashi ")));

    // A page that ends sends what it has at once, beside what is under way. So the order of arrival may differ.
    assert.deepEqual(
      described().sort(),
      [
        "view /",
        "identify user-1",
        "buy",
        "view /shop",
        "during the outage",
        "to cart",
        "view /cart",
        "view /cart",
        "view /",
        "after the outage",
      ].sort(),
    );
    assert.equal(events().filter(({ kind }) => kind === "performance").length, 4);
    const buy = collector.taken.filter(({ payload }) => payload.name === "buy").at(-1).payload;
    assert.equal(buy.id, "user-1");
    assert.ok(buy.timestamp * 1_000 >= began - 1_000 && buy.timestamp * 1_000 <= ended, "the time at which it happened");
    if (outage === "lost answers") assert.ok(collector.taken.length > events().length, "no event was sent again");
    else assert.ok(collector.refused > 0);
    accepted();
  });
}

test("an outage under a single-page app: nothing lost, nothing doubled, in order", async () => {
  await page.goto(`${site.url}/app/`);
  await until("first view", () => described().length === 1);
  collector.mode = "503";
  await page.click("text=Inbox");
  await page.waitForTimeout(400);
  await page.click("text=Settings");
  await page.waitForTimeout(400);
  await page.goBack();
  await page.waitForTimeout(1_000);
  collector.mode = "up";
  await until("views", () => described().length === 5);
  assert.deepEqual(described(), ["view /app/", "view /app/inbox", "settings", "view /app/settings", "view /app/inbox"]);
  await page.waitForFunction(() => !Object.keys(localStorage).some((key) => key.startsWith("dashi ")));
  assert.ok(collector.taken.slice(1).some(({ token }) => token), "the token outlives the outage");
  accepted();
});

test("two tabs after an outage lose nothing, double nothing and send no event at once", async () => {
  collector.mode = "503";
  collector.delayMs = 50;
  const other = await context.newPage();
  await page.goto(`${site.url}/`);
  await other.goto(`${site.url}/shop`);
  await page.evaluate(() => window.umami.track("one"));
  await other.evaluate(() => window.umami.track("two"));
  collector.mode = "up";
  await until("events of both tabs", () => described().includes("one") && described().includes("two") && described().length === 4);
  await page.waitForTimeout(3_000);
  assert.deepEqual(described().sort(), ["one", "two", "view /", "view /shop"]);
  for (const [index, { payload, began }] of collector.taken.entries()) {
    const earlier = collector.taken.slice(0, index).filter((each) => each.payload.messageId === payload.messageId);
    assert.ok(earlier.every(({ ended }) => ended <= began), `${payload.messageId} was sent by both at once`);
  }
  accepted();
});

test("umami.disabled: nothing is sent", async () => {
  await page.goto(`${site.url}/`);
  await until("view", () => described().length === 1);
  await page.evaluate(() => localStorage.setItem("umami.disabled", "1"));
  const { length } = collector.taken;
  await page.click("#cart");
  await page.waitForURL("**/cart");
  await page.click("#buy");
  await page.waitForTimeout(500);
  assert.equal(collector.taken.length, length);
});
