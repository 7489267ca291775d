import assert from "node:assert/strict";
import { test } from "node:test";
import { Site, settle, WEBSITE } from "./browser.mjs";

const MANUAL = { attributes: { "data-auto-track": "false" } };
const SIGNED = { attributes: { ...MANUAL.attributes, "data-distinct-id": "ada", "data-signature": "of-ada" } };

const event = (version, traits) =>
  `id: ${version}\nevent: traits\ndata: ${JSON.stringify({ websiteId: WEBSITE, distinctId: "ada", version, traits })}\n\n`;

/** A page that follows with a callback; `calls` are what that got. */
const following = async (options = SIGNED) => {
  const site = new Site();
  const page = await site.open(options);
  const calls = [];
  page.umami.profile((traits, version) => calls.push([{ ...traits }, version]));
  await settle();
  return { site, page, calls };
};

const last = (site) => site.streams.at(-1);
const open = (site) => site.streams.filter(({ ended }) => !ended).length;

test("a page gets the traits of its person now and after each change", async () => {
  const { site, page, calls } = await following();
  assert.deepEqual(site.loaded, [{ src: "https://stats.example/script-profile.js", nonce: "page's nonce" }]);
  assert.equal(site.streams.length, 1);
  const { url, headers, options } = last(site);
  assert.equal(url, `https://stats.example/api/me/stream?website=${WEBSITE}`);
  assert.deepEqual(headers, { Authorization: "Bearer of-ada", "X-Dashi-Id": "ada" });
  assert.deepEqual(options, { cache: "no-store", credentials: "omit" });
  await last(site).send(event("1", { n: 1 }) + ":\n\n");
  await last(site).send(event("2", { n: 2, name: "Łukasz" }));
  assert.deepEqual(calls, [
    [{ n: 1 }, "1"],
    [{ n: 2, name: "Łukasz" }, "2"],
  ]);
  // A later call gets them at once, by the same stream.
  const later = [];
  page.umami.profile((traits) => later.push(traits.n));
  await last(site).send(event("3", { n: 3 }));
  assert.deepEqual([later, calls.length, site.streams.length, site.loaded.length], [[2, 3], 3, 1, 1]);
});

test("events arrive in any pieces", async () => {
  const { site, calls } = await following();
  const bytes = new TextEncoder().encode(event("1", { name: "Łukasz 😀" }));
  // One by one, in the middle of characters, too.
  for (const byte of bytes.slice(0, -1)) await last(site).send(Uint8Array.of(byte));
  assert.deepEqual(calls, []);
  await last(site).send(bytes.slice(-1));
  assert.deepEqual(calls, [[{ name: "Łukasz 😀" }, "1"]]);
  await last(site).send(event("2", { n: 2 }) + event("3", { n: 3 }) + "event: other\ndata: {}\n\n");
  assert.deepEqual(calls.slice(1).map(([, version]) => version), ["2", "3"]);
});

test("without an id and its signature nobody is asked, and events never carry the signature", async () => {
  for (const attributes of [{}, { "data-distinct-id": "ada" }, { "data-signature": "of-ada" }]) {
    const { site } = await following({ attributes: { ...MANUAL.attributes, ...attributes } });
    await site.advance(120_000);
    assert.equal(site.streams.length, 0, JSON.stringify(attributes));
  }
  const { site, page } = await following(MANUAL);
  await page.umami.identify("Łukasz K.", { n: 1 }, "of-lukasz");
  assert.equal(last(site).headers["X-Dashi-Id"], "%C5%81ukasz%20K.");
  assert.equal(last(site).headers.Authorization, "Bearer of-lukasz");
  await page.umami.track("x", { n: 1 });
  assert.ok(site.requests.length === 2 && !JSON.stringify(site.requests.map(({ payload }) => payload)).includes("of-lukasz"));
  assert.deepEqual(Object.keys(page.umami.getSession()), ["cache", "website"]);
});

test("another person takes the place of the first, whose traits are not shown again", async () => {
  const { site, page, calls } = await following();
  await last(site).send(event("1", { of: "ada" }));
  const [first] = site.streams;
  await page.umami.identify("ada", { n: 2 });
  assert.deepEqual([last(site).headers.Authorization, last(site).headers["Last-Event-ID"]], ["Bearer of-ada", "1"]);
  await page.umami.identify("bob", {}, "of-bob");
  await settle();
  assert.ok(first.ended && open(site) === 1);
  const { headers } = last(site);
  assert.deepEqual(headers, { Authorization: "Bearer of-bob", "X-Dashi-Id": "bob" });
  // What the first one still sends reaches nobody.
  await first.send(event("9", { of: "ada" }));
  const late = [];
  page.umami.profile((traits) => late.push(traits.of));
  await last(site).send(event("2", { of: "bob" }));
  assert.deepEqual([calls.map(([{ of }]) => of), late], [["ada", "bob"], ["bob"]]);
});

test("a hidden page has no stream, and one that is shown again goes on where it was", async () => {
  const { site, page, calls } = await following();
  await last(site).send(event("1", { n: 1 }));
  await page.hide();
  assert.equal(open(site), 0);
  await site.advance(600_000);
  assert.equal(site.streams.length, 1);
  await page.show();
  assert.deepEqual([open(site), last(site).headers["Last-Event-ID"]], [1, "1"]);
  await last(site).send(event("5", { n: 5 }));
  assert.deepEqual(calls.map(([{ n }]) => n), [1, 5]);
});

test("a stream that ends, breaks or is silent is opened again with what the page has", async () => {
  const { site, calls } = await following();
  await last(site).send(event("1", { n: 1 }) + 'event: resync\ndata: {"reason":"draining"}\n\n');
  for (const way of ["end", "breakOff"]) {
    const before = site.streams.length;
    await last(site)[way]();
    await site.advance(1_100);
    assert.equal(site.streams.length, before + 1, way);
    assert.equal(last(site).headers["Last-Event-ID"], "1");
  }
  // Comments keep it.
  const { length } = site.streams;
  for (let times = 0; times < 10; times++) {
    await site.advance(15_000);
    await last(site).send(":\n\n");
  }
  assert.equal(site.streams.length, length);
  await site.advance(46_100);
  assert.equal(site.streams.length, length + 1);
  await last(site).send(event("2", { n: 2 }));
  assert.deepEqual(calls.map(([{ n }]) => n), [1, 2]);
});

test("a server that is away is asked again, ever more seldom; one that refuses is not", async () => {
  const site = new Site();
  site.streamAnswer = () => ({ status: 503, headers: { "Retry-After": "30" } });
  const page = await site.open(SIGNED);
  page.umami.profile(() => {});
  await settle();
  await site.advance(29_000);
  assert.equal(site.streams.length, 1);
  await site.advance(3_000);
  assert.equal(site.streams.length, 2);
  site.streamAnswer = () => ({ status: 503 });
  await site.advance(3_600_000);
  assert.ok(site.streams.length < 70, `${site.streams.length} in an hour`);
  const gaps = site.streams.slice(-3).map(({ at }) => at);
  assert.ok(gaps[2] - gaps[1] >= 60_000 && gaps[2] - gaps[1] <= 121_000, `${gaps}`);
  for (const status of [400, 401, 404]) {
    const refusing = new Site();
    refusing.streamAnswer = () => ({ status });
    const refused = await refusing.open(SIGNED);
    refused.umami.profile(() => {});
    await refusing.advance(600_000);
    assert.equal(refusing.streams.length, 1);
    assert.deepEqual(refused.warnings, [["Profile refused", status]]);
    // A signature that fits opens it.
    refusing.streamAnswer = () => ({ status: 200 });
    await refused.umami.identify("ada", {}, "newer");
    assert.equal(last(refusing).headers.Authorization, "Bearer newer");
  }
});

test("a callback that returns false or throws harms nobody, and the last one ends the stream", async () => {
  const { site, page, calls } = await following();
  const seen = [];
  page.umami.profile((traits) => {
    seen.push(traits.n);
    traits.n = "changed";
    throw new Error("of the page");
  });
  let left = 2;
  page.umami.profile(() => --left > 0);
  for (const n of [1, 2, 3]) await last(site).send(event(`${n}`, { n }));
  assert.deepEqual([calls.map(([{ n }]) => n), seen, left], [[1, 2, 3], [1, 2, 3], 0]);
  assert.deepEqual(page.errors, []);

  const once = new Site();
  const other = await once.open(SIGNED);
  other.umami.profile(() => false);
  await settle();
  await last(once).send(event("1", {}));
  assert.equal(open(once), 0);
  await once.advance(60_000);
  assert.equal(once.streams.length, 1);
  other.umami.profile("no function");
  assert.equal(once.streams.length, 1);
  other.umami.profile(() => {});
  await settle();
  assert.deepEqual([open(once), last(once).headers["Last-Event-ID"]], [1, "1"]);
});

test("calls before the file is there are all answered, and a page without the file goes on", async () => {
  const site = new Site();
  const page = await site.open(SIGNED);
  const calls = [];
  for (const name of ["a", "b", "c"]) page.umami.profile(({ n }) => calls.push(name + n));
  await settle();
  assert.equal(open(site), 1);
  await last(site).send(event("1", { n: 1 }));
  assert.deepEqual(calls, ["a1", "b1", "c1"]);

  const without = new Site();
  without.file = () => undefined;
  const bare = await without.open(SIGNED);
  bare.umami.profile(() => {});
  await bare.umami.track("x");
  assert.equal(without.requests.length, 1);
});

test("a page that is not tracked reads nothing, and a host of its own is asked", async () => {
  const off = new Site();
  off.localStorage.setItem("umami.disabled", "1");
  const page = await off.open(SIGNED);
  page.umami.profile(() => {});
  await settle();
  assert.deepEqual([off.streams.length, off.loaded.length], [0, 0]);
  const { site } = await following({ attributes: { ...SIGNED.attributes, "data-host-url": "https://c.example/umami/" } });
  assert.equal(last(site).url, `https://c.example/umami/api/me/stream?website=${WEBSITE}`);
});
