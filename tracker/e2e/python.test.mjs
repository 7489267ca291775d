// Umami clients for servers in Python, as their registry has them, sending to a real Dashi. CLIENTS_PYTHON names an
// interpreter that has e2e/requirements.txt.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Dashi, sessionId, until, visitId } from "./dashi.mjs";

const PYTHON = process.env.CLIENTS_PYTHON;
const script = (name) => fileURLToPath(new URL(name, import.meta.url));

/** What umami-analytics says it is, lest it be taken for a bot. */
const ANALYTICS_AGENT =
  "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";

let dashi;

before(() => assert.ok(PYTHON, "CLIENTS_PYTHON names no interpreter; scripts/tracker e2e sets it"));

beforeEach(async () => {
  dashi = await Dashi.start();
});

afterEach(() => dashi.remove());

const view = ({ event_type, event_name, url_path, url_query, page_title, hostname, referrer_domain, referrer_path, utm_source }) =>
  [event_type, event_name, url_path, url_query, page_title, hostname, referrer_domain, referrer_path, utm_source];

test("umami-analytics: every call gives its rows", async () => {
  const { stdout } = await promisify(execFile)(PYTHON, [script("analytics_calls.py"), dashi.url, dashi.website]);
  const answers = JSON.parse(stdout);
  assert.equal(answers.length, 7);
  assert.deepEqual(answers.pop(), {}, "a client that is turned off sends nothing");
  for (const answer of answers) assert.deepEqual(Object.keys(answer), ["cache", "sessionId", "visitId"]);
  const theirs = answers.pop();
  assert.equal(new Set(answers.map((answer) => answer.sessionId)).size, 1);
  const [{ sessionId: session }] = answers;

  const totals = await dashi.settled();
  assert.deepEqual(totals, { ...totals, in_log: 6, applied: 6, duplicate: 0, dead: 0 });
  const events = await dashi.rows("website_event");
  assert.deepEqual(events.map(view), [
    [1, null, "/docs", "utm_source=mail", "Docs", "py.example", "search.example", "/find", "mail"],
    [2, "signup", "/join", "", "Join", "py.example", null, null, null],
    [2, "no data", "/", "", "no data", "py.example", null, null, null],
    [2, "checkout", "/checkout", "", "checkout", "py.example", null, null, null],
    [2, "later", "/later", "", "later", "py.example", null, null, null],
    [1, null, "/theirs", "", "Theirs", "py.example", null, null, null],
  ]);
  const [{ created_at }] = events;
  assert.equal(session, sessionId(dashi.website, { userAgent: ANALYTICS_AGENT }, created_at));
  for (const row of events.slice(0, -1)) {
    assert.deepEqual([row.session_id, row.visit_id], [session, visitId(session, row.created_at)]);
  }
  assert.equal(theirs.sessionId, sessionId(dashi.website, { id: "42" }));
  assert.equal(events.at(-1).session_id, theirs.sessionId);

  const names = new Map(events.map(({ event_id, event_name }) => [event_id, event_name]));
  const data = await dashi.rows("event_data");
  assert.deepEqual(
    data.map((row) => [names.get(row.website_event_id), row.data_key, row.data_type, row.string_value, row.number_value]).sort(),
    [
      ["checkout", "currency", 1, "EUR", null],
      ["checkout", "revenue", 2, "19.9900", 19.99],
      ["later", "tags", 5, '["a","b"]', null],
      ["signup", "plan", 1, "pro", null],
      ["signup", "seats", 2, "3.0000", 3],
    ],
  );
  const revenue = await dashi.rows("revenue");
  assert.deepEqual(
    revenue.map((row) => [row.session_id, names.get(row.event_id), row.event_name, row.currency, row.revenue]),
    [[session, "checkout", "checkout", "EUR", 19.99]],
  );
  const sessions = await dashi.rows("session");
  assert.deepEqual(
    sessions.map((row) => [row.session_id, row.distinct_id, row.browser, row.os, row.device, row.screen, row.language]).sort(),
    [
      [session, null, "chrome", "Mac OS", "laptop", "1920x1080", "en-US"],
      [theirs.sessionId, "42", "chrome", "Mac OS", "laptop", "390x844", "de-DE"],
    ].sort(),
  );
  await dashi.replayed();
});

let application;

after(() => application?.kill());

test("umami-asgi: each request of an application is a page view of who made it", async () => {
  application = spawn(PYTHON, [script("asgi_application.py"), `${dashi.url}/api`, dashi.website], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const said = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"]) application[name].on("data", (chunk) => (said[name] += chunk));
  await until(
    () => `port of the application: ${said.stderr}`,
    () => said.stdout.endsWith("\n") || application.exitCode !== null,
  );
  assert.equal(application.exitCode, null, said.stderr);
  const url = `http://127.0.0.1:${said.stdout.trim()}`;
  const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
  const visit = (path, headers = {}) =>
    fetch(url + path, { headers: { "User-Agent": firefox, "Accept-Language": "en-GB,en;q=0.5", ...headers } });
  for (const path of ["/", "/feed?utm_source=x", "/a/b"]) assert.equal((await visit(path)).status, 200);
  const phone = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1";
  await visit("/phone", { "User-Agent": phone, Referer: "https://www.search.example/find?q=x" });
  await until("four events", async () => (await dashi.rows("website_event")).length === 4);
  assert.deepEqual([said.stderr, application.exitCode], ["", null]);

  // It gives the path alone, so that the query is lost before Dashi sees it.
  const events = await dashi.rows("website_event");
  assert.deepEqual(events.map(view).sort(), [
    [1, null, "/", "", "", "127.0.0.1", null, null, null],
    [1, null, "/a/b", "", "", "127.0.0.1", null, null, null],
    [1, null, "/feed", "", "", "127.0.0.1", null, null, null],
    [1, null, "/phone", "", "", "127.0.0.1", "search.example", "/find", null],
  ]);
  const [{ created_at }] = events;
  const sessions = await dashi.rows("session");
  assert.deepEqual(
    sessions.map((row) => [row.session_id, row.browser, row.os, row.device, row.screen, row.language]).sort(),
    [
      [sessionId(dashi.website, { userAgent: firefox }, created_at), "firefox", "Linux", "desktop", "", "en-GB,en;q=0.5"],
      [sessionId(dashi.website, { userAgent: phone }, created_at), "ios", "iOS", "mobile", "", "en-GB,en;q=0.5"],
    ].sort(),
  );
  await dashi.replayed();
});
