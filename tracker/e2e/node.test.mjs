// Umami's own client for servers, as its registry has it, sending to a real Dashi.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Umami } from "@umami/node";
import { Dashi, sessionId, visitId } from "./dashi.mjs";

let dashi;

before(async () => {
  dashi = await Dashi.start();
});

after(() => dashi.remove());

/** What the client says it is when nobody tells it otherwise. */
const OWN_AGENT = `Mozilla/5.0 Umami/${process.version}`;

const answer = async (response) => {
  assert.equal(response.status, 200);
  const { cache, sessionId: session, visitId: visit, ...others } = await response.json();
  assert.ok(cache);
  assert.deepEqual(others, {});
  return { session, visit };
};

const data = (rows) => rows.map(({ data_key, data_type, string_value, number_value }) => [data_key, data_type, string_value, number_value]).sort();

test("@umami/node: every call gives its rows", async () => {
  const umami = new Umami({ websiteId: dashi.website, hostUrl: dashi.url });
  const { session, visit } = await answer(await umami.track("signup", { plan: "pro", seats: 3, at: new Date(Date.UTC(2026, 4, 1)) }));
  await answer(await umami.track("no data"));
  await answer(
    await umami.track({ url: "/docs?utm_source=mail", title: "Docs", hostname: "docs.example", referrer: "https://www.search.example/find?q=x" }),
  );
  await answer(await umami.track({ url: "/docs", name: "download", data: { file: "a.zip" } }));
  await answer(await umami.identify({ plan: "pro", seats: 3 }));
  await answer(await umami.identify({ seats: 4 }));
  umami.reset();
  await answer(await umami.identify({ region: "north" }));
  // Each call is an event of its own, also with the same words.
  for (const one of await Promise.all(Array.from({ length: 25 }, () => umami.track("many")))) await answer(one);

  const other = new Umami({ websiteId: dashi.website, hostUrl: dashi.url });
  other.init({ userAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0" });
  const theirs = await answer(await other.track({ url: "/other", id: "user-1" }));

  const totals = await dashi.settled();
  assert.deepEqual(totals, { ...totals, in_log: 33, applied: 33, duplicate: 0, dead: 0, missing: 0, unaccounted: 0, lag_records: 0 });

  const events = await dashi.rows("website_event");
  const mine = events.filter(({ session_id }) => session_id === session);
  assert.equal(events.length, 30);
  assert.equal(mine.length, 29);
  const [{ created_at }] = mine;
  assert.equal(session, sessionId(dashi.website, { userAgent: OWN_AGENT }, created_at));
  assert.equal(visit, visitId(session, created_at));
  for (const row of mine) assert.equal(row.visit_id, visitId(session, row.created_at));
  assert.equal(theirs.session, sessionId(dashi.website, { id: "user-1" }));

  const brief = ({ event_type, event_name, url_path, url_query, page_title, hostname, referrer_domain, referrer_path, utm_source }) =>
    [event_type, event_name, url_path, url_query, page_title, hostname, referrer_domain, referrer_path, utm_source];
  assert.deepEqual(mine.filter(({ event_name }) => event_name !== "many").map(brief), [
    [2, "signup", "", "", null, "localhost", null, null, null],
    [2, "no data", "", "", null, "localhost", null, null, null],
    [1, null, "/docs", "utm_source=mail", "Docs", "docs.example", "search.example", "/find", "mail"],
    [2, "download", "/docs", "", null, "localhost", null, null, null],
  ]);
  assert.equal(mine.filter(({ event_name }) => event_name === "many").length, 25);

  const dataRows = await dashi.rows("event_data");
  const dataOf = (name) => {
    const { event_id } = mine.find(({ event_name }) => event_name === name);
    return data(dataRows.filter(({ website_event_id }) => website_event_id === event_id));
  };
  assert.deepEqual(dataOf("signup"), [
    ["at", 4, "2026-05-01T00:00:00.000Z", null],
    ["plan", 1, "pro", null],
    ["seats", 2, "3.0000", 3],
  ]);
  assert.deepEqual(dataOf("download"), [["file", 1, "a.zip", null]]);
  assert.equal(dataRows.length, 4);

  const properties = await dashi.rows("session_data");
  assert.ok(properties.every(({ session_id, distinct_id }) => session_id === session && distinct_id === null));
  assert.deepEqual(data(properties), [
    ["plan", 1, "pro", null],
    ["region", 1, "north", null],
    ["seats", 2, "4.0000", 4],
  ]);

  const sessions = (await dashi.rows("session")).map(({ session_id, distinct_id, browser, os, device }) => [session_id, distinct_id, browser, os, device]);
  assert.deepEqual(
    sessions.sort(),
    [
      [session, null, null, null, "desktop"],
      [theirs.session, "user-1", "firefox", "Linux", "desktop"],
    ].sort(),
  );
  await dashi.replayed();
});

test("@umami/node: with Dashi gone a call rejects, and works again as soon as it is back", async () => {
  const umami = new Umami({ websiteId: dashi.website, hostUrl: dashi.url });
  await dashi.stop();
  await assert.rejects(umami.track("lost"));
  await dashi.start();
  await answer(await umami.track("back"));
  await dashi.settled();
  const names = (await dashi.rows("website_event")).map(({ event_name }) => event_name);
  assert.deepEqual([names.filter((name) => name === "lost"), names.filter((name) => name === "back")], [[], ["back"]]);
});
