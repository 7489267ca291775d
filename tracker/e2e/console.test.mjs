// The console in headless Chromium, against a real Dashi: a page with the tracker sends events, and numbers, plots and tables
// move. Pictures go to e2e/out.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { Dashi, until } from "./dashi.mjs";

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
const WAIT_MS_MAX = 60_000;

let dashi;
let site;
let profile;
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
  profile = mkdtempSync(join(tmpdir(), "dashi-console-"));
  context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [...FLAGS, `--user-agent=${USER_AGENT}`],
    locale: "en-GB",
    viewport: { width: 1280, height: 900 },
  });
  context.setDefaultTimeout(WAIT_MS_MAX);
  page = context.pages()[0] ?? (await context.newPage());
  [complaints, elsewhere] = [[], []];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("request", (request) => request.url().startsWith(dashi.url) || elsewhere.push(request.url()));
});

afterEach(async () => {
  await context.close();
  await site.close();
  await dashi.remove();
  rmSync(profile, { recursive: true, force: true });
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
  await page.getByRole("button", { name: "Send a test event" }).click();
  await shows(".arrived", "The first event has arrived");
  await shows("#account .verdict", "adds up");
  await until("one record that is applied", async () => {
    const terms = await page.locator("#account .term").allTextContents();
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
  await until("the account of all records", async () => (await text("#account .term b")) === String(in_log));
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
  await dashi.start({ DASHI_API_KEYS: "a-key-of-sixteen-letters" });
  await page.goto(`${dashi.url}/console`);
  const key = page.getByLabel("API key");
  await key.fill("not-the-key-of-this-server");
  await page.getByRole("button", { name: "Open" }).click();
  await shows(".lock .bad", "does not know this key");
  await key.fill("a-key-of-sixteen-letters");
  await page.getByRole("button", { name: "Open" }).click();
  await shows("#account .verdict", "adds up");
  await page.reload();
  await shows("#account .verdict", "adds up");
  await page.goto(`${dashi.url}/console/#live`);
  await shows("#events", "No event was applied");
  assert.ok(!page.url().includes("a-key"), "the key is in no address");
  clean();
});
