// The frame of the page: its views, the key, the theme, and whether the server is ready.

import { ask, Failed, key, repeat } from "./data.js";
import { h, put } from "./dom.js";
import { live } from "./live.js";
import { pipeline } from "./pipeline.js";
import { traffic } from "./traffic.js";

/** Each view: a title, and a function that fills the place until the signal is aborted. */
/** @type {[string, string, (place: HTMLElement, page: any) => unknown][]} */
const VIEWS = [
  ["pipeline", "Pipeline", pipeline],
  ["live", "Live", live],
  ["traffic", "Traffic", traffic],
];

const by = (id) => document.getElementById(id);
let leave = new AbortController();
let session = null;

const notify = (text) => {
  by("notice").hidden = !text;
  put(by("notice"), text ?? "");
};

/** What a failed request means for the whole page. */
const failed = (error) => {
  if (error === null) return notify(null);
  if (error instanceof Failed && error.status === 401) return start();
  notify(error.message ?? String(error));
};

const show = () => {
  if (!session?.may_read) return;
  leave.abort();
  leave = new AbortController();
  const [name, ...rest] = location.hash.slice(1).split("/");
  const [found, title, view] = VIEWS.find(([known]) => known === name) ?? VIEWS[0];
  document.title = `${title} · Dashi`;
  for (const link of by("views").querySelectorAll("a")) {
    if (link.dataset.view === found) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  notify(null);
  by("view").replaceChildren();
  view(by("view"), { signal: leave.signal, failed, session, rest: rest.map((part) => decodeURIComponent(part)) });
};

const askForKey = () => {
  document.title = "Dashi";
  const input = h("input", { id: "key", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const wrong = h("p", { class: "bad", role: "alert" });
  const form = h(
    "form",
    {
      class: "panel lock",
      onsubmit: async (event) => {
        event.preventDefault();
        key.set(input.value.trim());
        try {
          const answer = await ask("data/session");
          if (answer.may_read) return start();
          put(wrong, "The server does not know this key.");
        } catch (error) {
          put(wrong, error.message);
        }
        key.set(null);
      },
    },
    h("h2", {}, session?.has_keys ? "A key, please" : "The console is closed"),
    session?.has_keys
      ? [
          h("p", {}, "The console needs one of the server's API keys (setting ", h("code", {}, "api.keys"), ")."),
          h("label", { for: "key" }, "API key"),
          input,
          wrong,
          h("button", { type: "submit" }, "Open"),
          h("p", { class: "hint" }, "The key stays in this tab and goes only to this server."),
        ]
      : [
          h("p", {}, "This server can be reached by others, and no API key is set, so nobody can read the console from here."),
          h("p", {}, "Make one, set its hash, and start the server again:"),
          h("pre", {}, h("code", {}, "dashi keys new\nDASHI_API_KEYS=sha256:… dashi serve …")),
        ],
  );
  by("view").replaceChildren(form);
  input.focus();
};

const start = async () => {
  leave.abort();
  try {
    session = await ask("data/session");
  } catch (error) {
    notify(`${error.message} Trying again …`);
    setTimeout(start, 2_000);
    return;
  }
  notify(null);
  by("views").hidden = !session.may_read;
  if (!session.may_read) return askForKey();
  const { version, collects, projects, base_path } = session.process;
  session.api = `..${base_path}/api`;
  const role = collects && projects ? "collects and applies" : collects ? "collects" : "applies";
  put(by("about"), `Dashi ${version} · this process ${role} · ${session.may_write ? "with a key" : "without a key: nothing is changed here"}`);
  show();
};

/** Readiness in the bar, for every view. */
const health = () =>
  repeat(
    async (signal) => {
      let response;
      try {
        response = await fetch("../health/ready", { signal, cache: "no-store" });
      } catch {
        throw new Failed(0, "away");
      }
      const { ready, checks } = await response.json();
      const first = Object.entries(checks).find(([, text]) => text !== "ok");
      by("health").className = `health ${ready ? (first ? "warn" : "good") : "bad"}`;
      by("health").title = first ? `${first[0]}: ${first[1]}` : "Every check succeeds";
      put(by("health"), ready ? (first ? `Ready; ${first[0].replaceAll("_", " ")} fails` : "Ready") : "Not ready");
    },
    3_000,
    new AbortController().signal,
    (error) => {
      if (!error) return;
      by("health").className = "health bad";
      put(by("health"), "No answer");
    },
  );

const THEMES = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" };
const theme = (next) => {
  const names = Object.keys(THEMES);
  const stored = localStorage.getItem("dashi console theme");
  const now = next ?? (names.includes(stored) ? stored : "auto");
  document.documentElement.dataset.theme = now;
  localStorage.setItem("dashi console theme", now);
  put(by("theme"), THEMES[now]);
  by("theme").setAttribute("aria-label", `Colours: ${now}`);
  by("theme").onclick = () => theme(names[(names.indexOf(now) + 1) % names.length]);
};

theme();
by("views").append(...VIEWS.map(([name, title]) => h("a", { href: `#${name}`, "data-view": name }, title)));
addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", (event) => {
  // Its target is not a view.
  event.preventDefault();
  by("view").focus();
});
health();
start();
