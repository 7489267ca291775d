// The console in headless Chromium, against a real Dashi: a page with the tracker sends events, and numbers, plots and tables
// move. Pictures go to e2e/out.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";
import { startChromium, USER_AGENT } from "./chromium.mjs";
import { Dashi, until } from "./dashi.mjs";

const OUT = fileURLToPath(new URL("out/", import.meta.url));
const WAIT_MS_MAX = 60_000;
const KEY = "a-key-of-sixteen-letters";

let dashi;
let site;
let browser;
let context;
let page;
let complaints;
let elsewhere;

/** A site whose pages have the tracker and say their path. */
const startSite = async () => {
  const server = createServer((request, response) => {
    response.setHeader("content-type", "text/html");
    response.end(
      `<!doctype html><title>Page ${request.url}</title><script defer src="${dashi.url}/script.js" data-website-id="${dashi.website}"></script>` +
        `<button data-umami-event="signup">Sign up</button>`,
    );
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () => (server.closeAllConnections(), new Promise((resolve) => server.close(resolve))),
  };
};

beforeEach(async () => {
  mkdirSync(OUT, { recursive: true });
  dashi = await Dashi.start();
  site = await startSite();
  browser = await startChromium({ viewport: { width: 1280, height: 900 } });
  ({ context, page } = browser);
  context.setDefaultTimeout(WAIT_MS_MAX);
  [complaints, elsewhere] = [[], []];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("request", (request) => request.url().startsWith(dashi.url) || elsewhere.push(request.url()));
});

afterEach(async () => {
  await browser.close();
  await site.close();
  await dashi.remove();
});

const text = (selector) => page.locator(selector).first().textContent();

/** Waits until the text at a selector contains, or matches, this. */
const shows = (selector, wanted) =>
  until(
    `${wanted} at ${selector}`,
    async () => {
      const shown = await page.locator(selector).first().textContent({ timeout: 1_000 }).catch(() => "");
      return wanted instanceof RegExp ? wanted.test(shown) : shown.includes(wanted);
    },
  );

/** A number of an equation of the account, by its name. */
const term = async (equation, name) => {
  const texts = await page.locator(`${equation} .term`, { hasText: name }).allTextContents();
  return Number(texts[0]?.replace(name, "").replaceAll(/[^0-9]/g, "") ?? NaN);
};

/** Visits pages of the site in a tab of its own. */
const visit = async (...paths) => {
  const tab = await context.newPage();
  for (const path of paths) {
    const sent = tab.waitForResponse((response) => response.url() === `${dashi.url}/api/send` && response.ok());
    await tab.goto(`${site.url}${path}`);
    await sent;
  }
  return tab;
};

/** Sends events in one request, without a page. */
const send = async (payloads) => {
  const answer = await fetch(`${dashi.url}/api/batch`, {
    method: "POST",
    headers: { "content-type": "application/json", "user-agent": USER_AGENT },
    body: JSON.stringify(payloads.map((payload) => ({ type: "event", payload: { website: dashi.website, ...payload } }))),
  });
  const text = await answer.text();
  assert.deepEqual([answer.status, JSON.parse(text).errors], [200, 0], text);
};

/** Whether anything is wider than the window. */
const fits = async () => assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0, "it fits the width");

const clean = () => {
  assert.deepEqual(complaints, [], "errors reached the page");
  assert.deepEqual(elsewhere, [], "the console asked another server");
};

test("the first minute: nothing but the page shows that it works", async () => {
  await page.goto(`${dashi.url}/console`);
  await shows("#welcome", "Waiting for the first event");
  assert.equal(
    await text("#welcome code"),
    `<script defer src="${dashi.url}/script.js" data-website-id="${dashi.website}"></script>`,
  );
  await page.screenshot({ path: join(OUT, "console-first.png") });
  // A robot's event is answered and not kept; the page says so.
  const ofRobot = await fetch(`${dashi.url}/api/send`, {
    method: "POST",
    headers: { "content-type": "application/json", "user-agent": "Googlebot/2.1" },
    body: JSON.stringify({ type: "event", payload: { website: dashi.website, url: "/", hostname: "example.com" } }),
  });
  assert.deepEqual(await ofRobot.json(), { beep: "boop" });
  await shows("#welcome", "1 request was answered and not recorded");
  await page.getByRole("button", { name: "Send a test event" }).click();
  await shows(".arrived", "The first event has arrived");
  assert.match(await text(".arrived code"), /data-website-id=/);
  await shows("#account .verdict", "adds up");
  await until("one record that is applied", async () => {
    const terms = await page.locator("#outcomes-of-all .term").allTextContents();
    return terms[0] === "1in the log" && terms[1] === "1applied";
  });
  const [row] = await dashi.rows("website_event");
  assert.equal(row.url_path, "/hello-from-the-console");
  clean();
});

test("the pipeline moves while a page sends events, by keyboard as by pointer", async () => {
  await page.goto(`${dashi.url}/console`);
  await shows("#welcome", "Waiting");
  const line = () => page.locator(".figure .line-0").first().getAttribute("d");
  await until("a plot", line);
  const tab = await visit("/one", "/two", "/three");
  await tab.close();
  // A flat line has one height; a peak has others.
  await until("a peak in the plot", async () => {
    const heights = [...(await line()).matchAll(/[ML][\d.]+ ([\d.]+)/g)].map(([, y]) => Number(y));
    return new Set(heights).size > 1;
  });
  const { in_log } = await dashi.settled();
  await until("the account of all records", async () => (await term("#outcomes-of-all", "in the log")) === in_log);
  // The collector's own count comes within seconds.
  await until("all of them in the collector's count", async () => (await term("#accepted", "accepted by collectors")) === in_log);
  assert.equal(await term("#accepted", "in the log"), in_log);
  assert.deepEqual(await page.locator("#account .verdict").allTextContents(), ["adds up", "adds up"]);
  await shows("#outcomes", /accepted\s*\d/);
  await until("eight partitions", async () => (await page.locator("#partitions tbody tr").count()) === 8);
  await shows("#partitions tbody", "running");
  await shows("#health", "Ready");

  // The first thing that a keyboard reaches leads past the bar; a plot is read off with the arrow keys.
  await page.reload();
  await shows("#account", "adds up");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "view");
  const plot = page.locator("svg.plot").first();
  await plot.focus();
  assert.notEqual(await plot.evaluate((each) => getComputedStyle(each).outlineStyle), "none", "focus shows");
  await page.keyboard.press("ArrowLeft");
  await until("a time that is read off", async () => /at \d\d:\d\d:\d\d/.test(await plot.getAttribute("aria-label")));
  clean();
});

test("events arrive live, and can be held", async () => {
  await page.goto(`${dashi.url}/console/#live`);
  await shows("#events", "No event was applied");
  const tab = await visit("/live-page");
  await shows("#events tbody", "/live-page");
  await tab.getByRole("button", { name: "Sign up" }).click();
  await shows("#events tbody", "signup");
  const row = page.locator("#events tbody tr", { hasText: "signup" });
  assert.deepEqual((await row.locator("td").allTextContents()).slice(1, 3), ["e2e", "event"]);
  await page.getByRole("button", { name: "Hold" }).click();
  await tab.goto(`${site.url}/while-held`);
  const { applied } = await dashi.settled();
  await until("all of them in the number", async () => Number(await text(".tile:nth-of-type(3) strong")) === applied);
  assert.ok(!(await text("#events tbody")).includes("/while-held"), "a held list stays");
  await page.getByRole("button", { name: "Go on" }).click();
  await shows("#events tbody", "/while-held");
  await tab.close();
  // A page that is opened later begins with the last events.
  await page.reload();
  await shows("#events tbody", "/live-page");
  await page.screenshot({ path: join(OUT, "console-live.png") });
  clean();
});

test("traffic shows pages, visitors and a session's journey", async () => {
  const tab = await visit("/", "/pricing?utm_source=mail", "/docs");
  await tab.getByRole("button", { name: "Sign up" }).click();
  await dashi.settled();
  await page.goto(`${dashi.url}/console/#traffic`);
  await shows(".choices [aria-current]", "7 days");
  await shows(".tile:nth-of-type(1) strong", "1");
  await shows(".tile:nth-of-type(3) strong", "3");
  for (const [list, value] of [
    ["pages", "/pricing"],
    ["events", "signup"],
    ["browsers", "chrome"],
    ["systems", "Linux"],
    ["devices", "laptop"],
  ]) {
    await shows(`#list-${list}`, value);
  }
  // The table moves by itself.
  await tab.goto(`${site.url}/later`);
  await shows("#list-pages", "/later");
  await page.screenshot({ path: join(OUT, "console-traffic.png"), fullPage: true });

  // Another value of a list, a filter, and its end.
  await page.getByRole("combobox", { name: "Sources by" }).selectOption("utmSource");
  await shows("#list-sources", "mail");
  await page.getByRole("link", { name: /^\/pricing: / }).click();
  await shows(".chip", "Page: /pricing");
  await shows(".tile:nth-of-type(3) strong", "1");
  await page.locator(".chip").click();
  await shows(".tile:nth-of-type(3) strong", "4");

  await page.locator("#sessions tbody a").first().click();
  await until("four pages and an event", async () => {
    const steps = await page.locator("#journey li").allTextContents();
    return ["/", "/pricing", "/docs", "signup", "/later"].every((wanted) => steps.some((step) => step.includes(wanted)));
  });
  await tab.close();
  clean();
});

test("every view fits a phone, in light and dark", async () => {
  const tab = await visit("/");
  await tab.close();
  await dashi.settled();
  await page.goto(`${dashi.url}/console`);
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const grounds = new Set();
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.setViewportSize({ width: 390, height: 844 });
    grounds.add(await ground());
    for (const [view, ready] of [
      ["pipeline", "#account .verdict"],
      ["live", "#events tbody td"],
      ["traffic", "#list-pages .row"],
    ]) {
      await page.goto(`${dashi.url}/console/#${view}`);
      await page.locator(ready).first().waitFor();
      await fits();
      await page.screenshot({ path: join(OUT, `console-${view}-phone-${colorScheme}.png`) });
    }
  }
  assert.equal(grounds.size, 2, "light and dark differ");
  // The switch overrides the system, and stays.
  const system = await ground();
  await page.getByRole("button", { name: /Colours/ }).click();
  assert.notEqual(await ground(), system);
  await page.reload();
  assert.notEqual(await ground(), system);
  clean();
});

test("a console that needs a key asks for it", async () => {
  await dashi.stop();
  await dashi.start({ DASHI_API_KEYS: KEY });
  await page.goto(`${dashi.url}/console`);
  const key = page.getByLabel("API key");
  await key.fill("not-the-key-of-this-server");
  await page.getByRole("button", { name: "Open" }).click();
  await shows(".lock .bad", "does not know this key");
  await key.fill(KEY);
  await page.getByRole("button", { name: "Open" }).click();
  await shows("#account .verdict", "adds up");
  await page.reload();
  await shows("#account .verdict", "adds up");
  await page.goto(`${dashi.url}/console/#live`);
  await shows("#events", "No event was applied");
  assert.ok(!page.url().includes("a-key"), "the key is in no address");
  clean();
});

/** Starts it again with a key, and opens the page with it. */
const openWithKey = async (settings = {}) => {
  await dashi.stop();
  await dashi.start({ ...settings, DASHI_API_KEYS: KEY });
  await page.goto(`${dashi.url}/console`);
  await page.getByLabel("API key").fill(KEY);
  await page.getByRole("button", { name: "Open" }).click();
  await shows("#account .verdict", "adds up");
};

test("a dead letter is tried again and another one discarded, and the tables follow", async () => {
  await openWithKey();
  await dashi.sql("CREATE TRIGGER no_poison BEFORE INSERT ON website_event WHEN NEW.url_path LIKE '/poison%' BEGIN SELECT RAISE(ABORT, 'poison is not taken'); END");
  const tab = await visit("/good", "/poison-one", "/poison-two");
  await tab.close();
  const paths = async () => (await dashi.rows("website_event")).map((row) => row.url_path);
  await until("two dead letters", async () => (await dashi.settled()).dead === 2);
  assert.deepEqual(await paths(), ["/good"]);
  await shows(".concerns", "2 records could not be applied");
  const tile = page.locator("a.tile", { hasText: "Dead letters" });
  await until("two dead letters in the tile", async () => (await tile.locator("strong").textContent()) === "2");
  assert.equal(await term("#outcomes-of-all", "dead"), 2);

  await tile.click();
  const rows = page.locator("main tbody tr");
  await until("two rows", async () => (await rows.count()) === 2 && (await rows.first().textContent()).includes("poison is not taken"));
  await page.screenshot({ path: join(OUT, "console-letters.png") });
  const open = async (path) => {
    for (let at = 0; at < (await rows.count()); at++) {
      await rows.nth(at).locator("a").click();
      await shows("main pre", "payload");
      if ((await text("main pre")).includes(path)) return;
      await page.goBack();
      await rows.first().locator("a").waitFor();
    }
    assert.fail(`no letter of ${path}`);
  };

  // Tried again while the cause is there: it is dead as before, and that is said.
  await open("/poison-one");
  await page.getByRole("button", { name: "Try it again" }).click();
  await shows("main [role=status]", "still dead: ");
  await shows("#facts", /Tries\s*2/);
  await page.screenshot({ path: join(OUT, "console-letter.png") });
  assert.deepEqual(await paths(), ["/good"]);
  // Without the cause it is applied, and its row is there.
  await dashi.sql("DROP TRIGGER no_poison");
  await page.getByRole("button", { name: "Try it again" }).click();
  await shows("main [role=status]", "It is settled: applied");
  await shows("#facts", /State\s*settled/);
  assert.ok(await page.getByRole("button", { name: "Discard it" }).isDisabled(), "nothing is left to decide");
  // The page asks until the letter is gone, and Chromium notes the answer.
  complaints = complaints.filter((text) => !/status of 404/.test(text));
  assert.deepEqual((await paths()).sort(), ["/good", "/poison-one"]);

  // The other one is discarded: on no list but that of the discarded ones.
  await page.getByRole("link", { name: "Dead letters" }).click();
  await until("one row", async () => (await rows.count()) === 1);
  await open("/poison-two");
  await page.getByRole("button", { name: "Discard it" }).click();
  await shows("main [role=status]", "It is discarded");
  await shows("#facts", /State\s*discarded/);
  await page.getByRole("link", { name: "Dead letters" }).click();
  await shows("main tbody", "There is none");
  await page.getByLabel("Those that were discarded").check();
  await until("it among the discarded ones", async () => (await rows.count()) === 1 && (await rows.first().textContent()).includes("discarded"));
  await page.getByRole("link", { name: "Pipeline" }).first().click();
  await until("none to look at", async () => (await tile.locator("strong").textContent()) === "0");
  assert.match(await tile.locator("small").textContent(), /1 discarded/);
  assert.deepEqual((await paths()).sort(), ["/good", "/poison-one"], "a discarded one has no row");
  assert.deepEqual(await page.locator("#account .verdict").allTextContents(), ["adds up", "adds up"]);
  clean();
});

test("historical events wait in their lane, and the page shows what it holds and its share", async () => {
  // Without a projector nothing is applied, so history waits for as long.
  await dashi.stop();
  await dashi.start({}, "collect");
  await page.goto(`${dashi.url}/console`);
  await shows("#account .verdict", "adds up");
  assert.ok(await page.locator("#lanes").isHidden(), "there was no history yet");
  const old = Math.floor(Date.now() / 1_000) - 7 * 86_400;
  for (let from = 0; from < 4_000; from += 200) {
    await send(Array.from({ length: 200 }, (_, at) => ({ url: `/old/${from + at}`, timestamp: old + at })));
  }
  await shows("#lane", /Waiting\s*[1-9]/);
  await shows("#lanes tbody", "are not applied");
  await until("it in the account", async () => (await term("#accepted", "waiting in spools and lanes")) > 0);
  assert.equal(await page.locator("#account .verdict.bad").count(), 0);
  await page.locator("#lanes").screenshot({ path: join(OUT, "console-lanes.png") });
  await page.setViewportSize({ width: 390, height: 844 });
  await fits();
  await page.setViewportSize({ width: 1280, height: 900 });

  // With one they enter the log, and the lane is empty.
  await dashi.stop();
  await dashi.start({}, "serve");
  await page.reload();
  await shows("#lane", /Waiting\s*0/);
  await until("its share", async () => /Its share\s*\d/.test(await text("#lane")));
  const { applied } = await dashi.settled();
  assert.equal(applied, 4_000);
  await until("all of them in the account", async () => (await term("#outcomes-of-all", "applied")) === 4_000);
  clean();
});

test("a growth is shown until the projection has passed its barriers", async () => {
  await dashi.stop();
  await dashi.start({}, "collect");
  const tab = await visit("/before");
  await page.goto(`${dashi.url}/console`);
  await until("eight partitions", async () => (await page.locator("#partitions tbody tr").count()) === 8);
  assert.ok(await page.locator("#growth").isHidden());
  await dashi.command("partitions", "grow", "--to", "12");
  await shows("#growth", "The log has 12 partitions now; the projection has passed the barrier in 0 of them.");
  assert.equal(await page.locator("#growth progress").getAttribute("max"), "12");
  await until("twelve partitions", async () => (await page.locator("#partitions tbody tr").count()) === 12);
  await page.locator("#growth").screenshot({ path: join(OUT, "console-growth.png") });
  await tab.goto(`${site.url}/after`);
  await tab.close();
  await dashi.stop();
  await dashi.start({}, "serve");
  await page.reload();
  await dashi.settled();
  await until("the end of the growth", async () => page.locator("#growth").isHidden());
  await shows("#partitions tbody", "running");
  clean();
});

test("a rebuild is shown with its progress, and the generation that it made", async () => {
  await dashi.stop();
  await dashi.start({ DASHI_PROJECTOR_BATCH_RECORDS_MAX: "1" });
  await send(Array.from({ length: 60 }, (_, at) => ({ url: `/page/${at}` })));
  await dashi.settled();
  await page.goto(`${dashi.url}/console`);
  await shows("#tables tbody", "live");
  // Slow enough to be watched.
  const running = dashi.command("replay", "run", "--rate", "5");
  await shows(".building", /Generation 2 is being built: \d+ of 60 records/);
  await shows(".building", /\/s, .+ left; last commit/);
  const progress = page.locator(".building progress");
  const share = async () => Number(await progress.getAttribute("value").catch(() => 60));
  const before = await share();
  await until("progress", async () => (await share()) > before);
  await running;
  await shows("#tables tbody tr:nth-child(2)", "ready");
  await until("the end of the rebuild", async () => (await page.locator(".building").count()) === 0);
  clean();
});
