// The real binary, `dashi serve`, on files of its own, and what its tables hold. DASHI names the binary.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createWriteStream, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

const BINARY = process.env.DASHI;
const SECRET = "end to end";
const WAIT_MS_MAX = 30_000;

/** Asks `condition` until it gives something true, which it returns; fails with `what` when that takes too long. */
export const until = async (what, condition) => {
  const deadline = Date.now() + WAIT_MS_MAX;
  for (;;) {
    const result = await condition();
    if (result) return result;
    if (Date.now() > deadline) assert.fail(`no ${typeof what === "function" ? what() : what} within ${WAIT_MS_MAX} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

export class Dashi {
  #folder;
  #process;
  #ended;
  #listen = "127.0.0.1:0";
  #role = "serve";
  #settings = {};
  /** The website that its events are for. */
  website;

  /** Starts it with one website. `settings` are variables of its environment. */
  static async start(settings = {}) {
    assert.ok(BINARY, "DASHI names no binary; scripts/tracker e2e sets it");
    const dashi = new Dashi();
    dashi.#settings = settings;
    dashi.#folder = mkdtempSync(join(tmpdir(), "dashi-e2e-"));
    dashi.website = (await dashi.command("website", "add", "--name", "e2e")).trim();
    await dashi.start();
    return dashi;
  }

  get url() {
    return `http://${this.#listen}`;
  }

  #files(log = "log.db", store = "store.db") {
    const path = (name) => `sqlite:${join(this.#folder, name)}`;
    return ["--log", path(log), "--store", path(store)];
  }

  get #options() {
    return { env: { PATH: process.env.PATH, APP_SECRET: SECRET, ...this.#settings }, cwd: this.#folder };
  }

  /** Runs another command on its files; gives the output. */
  async command(...args) {
    return (await run(BINARY, [...args, ...this.#files()], this.#options)).stdout;
  }

  /**
   * Starts it (again), on the port that it had. `settings`, if given, are variables of its environment from now on, `role` is
   * the command: `serve`, `collect`, `project`.
   */
  async start(settings = this.#settings, role = this.#role) {
    this.#settings = settings;
    this.#role = role;
    const args = [role, "--listen", this.#listen, ...this.#files()];
    const child = spawn(BINARY, args, { ...this.#options, stdio: ["ignore", "pipe", "pipe"] });
    this.#process = child;
    this.#ended = new Promise((resolve) => child.on("exit", (code, signal) => resolve(signal ?? code)));
    const output = createWriteStream(join(this.#folder, "output"), { flags: "a" });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (chunk) => {
        said += chunk;
        output.write(chunk);
      });
    }
    const serving = /"message":"serving","address":"([^"]+)"/;
    await until(
      () => `serving Dashi: ${said}`,
      () => serving.test(said) || child.exitCode !== null,
    );
    assert.equal(child.exitCode, null, `dashi serve ended: ${said}`);
    this.#listen = serving.exec(said)[1];
    await until("readiness", async () => (await fetch(`${this.url}/health/ready`).catch(() => ({}))).ok);
  }

  /** Ends it: SIGTERM drains, SIGKILL does not. */
  async stop(signal = "SIGTERM") {
    this.#process.kill(signal);
    assert.equal(await this.#ended, signal === "SIGTERM" ? 0 : signal);
  }

  /** Waits until every record in the log has been applied or set aside; gives the totals of `dashi status`. */
  async settled() {
    const totals = async () => JSON.parse(await this.command("status", "--json")).totals;
    return until("end of the lag", async () => {
      const now = await totals();
      return now.lag_records === 0 && now;
    });
  }

  /** All rows of a table, oldest first. */
  async rows(table) {
    const sql = `select * from ${table} order by created_at, rowid`;
    const { stdout } = await run("sqlite3", ["-readonly", "-json", join(this.#folder, "store.db"), sql]);
    return JSON.parse(stdout || "[]");
  }

  /** Changes its tables behind its back, as somebody with a shell does. */
  async sql(text) {
    await run("sqlite3", ["-cmd", ".timeout 10000", join(this.#folder, "store.db"), text]);
  }

  /** Makes the tables again from the log and compares them with the ones that there are. */
  async replayed() {
    const again = `sqlite:${join(this.#folder, "again.db")}`;
    await this.command("replay", "--into", again);
    await run(BINARY, ["compare", `sqlite:${join(this.#folder, "store.db")}`, again], this.#options);
  }

  /** Whether any of its files has this text: event log, tables, output. */
  holds(text) {
    const paths = readdirSync(this.#folder, { recursive: true }).map((name) => join(this.#folder, name));
    return paths.some((path) => statSync(path).isFile() && readFileSync(path).includes(text));
  }

  /** Ends it and takes its files away. */
  async remove() {
    this.#process.kill("SIGKILL");
    await this.#ended;
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

// How Umami computes ids, written down again: the rows are checked against this, not against Dashi's own idea.
const sha512 = (...parts) => createHash("sha512").update(parts.join("")).digest("hex");

const uuid5 = (namespace, name) => {
  const bytes = createHash("sha1").update(Buffer.from(namespace.replaceAll("-", ""), "hex")).update(name).digest().subarray(0, 16);
  bytes[6] = (bytes[6] & 0x0f) | 0x50;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
};

const salted = (...parts) => uuid5("6ba7b810-9dad-11d1-80b4-00c04fd430c8", sha512(...parts, sha512(SECRET)));

const startOf = (period, ms) => {
  const date = new Date(ms);
  date.setUTCMinutes(0, 0, 0);
  if (period === "month") date.setUTCHours(0), date.setUTCDate(1);
  return sha512(date.toUTCString());
};

/** The session of who sent something at `ms`. */
export const sessionId = (website, { id, userAgent, ip = "127.0.0.1" }, ms) =>
  id ? salted(website, id) : salted(website, ip, userAgent, startOf("month", ms));

/** The visit of a session that begins at `ms`. */
export const visitId = (session, ms) => salted(session, startOf("hour", ms));

/** The row's id of an event that its client has named. */
export const eventId = (website, messageId) => uuid5(website, `message:${messageId}`);
