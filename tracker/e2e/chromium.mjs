// The browser of the tests: headless, without services of its own, and with a new profile for each start.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

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
export const USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";

/**
 * Starts Chromium with one page. `agent` is a flag, because a page that ends sends without the agent that Playwright sets;
 * `options` are Playwright's. `close()` ends it and removes its profile.
 */
export const startChromium = async ({ agent = USER_AGENT, ...options } = {}) => {
  const profile = mkdtempSync(join(tmpdir(), "dashi-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [...FLAGS, `--user-agent=${agent}`],
    locale: "en-GB",
    ...options,
  });
  const page = context.pages()[0] ?? (await context.newPage());
  const close = async () => {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  };
  return { context, page, close };
};
