// What the tests in Chromium run against beside Dashi, all on loopback: a site of a few pages, and a gate through which
// the browser reaches Dashi. The gate changes nothing, writes down what comes through, and can be out of order.
import http from "node:http";

const listen = async (handler) => {
  const server = http.createServer(handler);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () => (server.closeAllConnections(), new Promise((resolve) => server.close(resolve))),
  };
};

const bodyOf = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
};

/** As Dashi answers when it is overloaded. */
const BUSY = {
  "Access-Control-Allow-Origin": "*",
  "Access-Control-Expose-Headers": "Retry-After",
  "Content-Type": "application/json",
  "Retry-After": "1",
};

export const startGate = async (dashi) => {
  const gate = {
    /** "up", "503" (with Retry-After), "hang up", or "lost answers": events arrive but their answers do not. */
    mode: "up",
    /**
     * Every try to send an event, alone or in a batch, in the order of arrival: kind, payload, token, when it began and
     * ended (ms since 1970), the number of its request, and status and reply if Dashi answered.
     */
    tries: [],
    /** How many requests there were. */
    requests: 0,
    /** How many were turned away, by the gate or because Dashi was away. */
    refused: 0,
    /** Names of events that a batch brings back as 503, as Dashi does with those that its log had no room for. */
    noRoomFor: new Set(),
    /** How long an answer takes at least, in ms. */
    delayMs: 0,
    website: dashi.website,
    dashi,
  };

  const forward = (request, body) =>
    new Promise((resolve, reject) => {
      const { method, url: path, headers } = request;
      const upstream = http.request(new URL(path, dashi.url), { method, headers, agent: false }, async (answer) => {
        try {
          resolve({ status: answer.statusCode, headers: answer.headers, body: await bodyOf(answer) });
        } catch (error) {
          reject(error);
        }
      });
      upstream.on("error", reject);
      upstream.end(body);
    });

  /** Holds back the elements that there is no room for, and answers for them. */
  const forwardBatch = async (request, elements) => {
    const places = [...elements.keys()].filter((index) => !gate.noRoomFor.has(elements[index].payload.name));
    const passed = JSON.stringify(places.map((index) => elements[index]));
    const { "content-length": _, ...headers } = request.headers;
    const answer = await forward({ ...request, method: "POST", url: request.url, headers }, passed);
    const summary = JSON.parse(answer.body);
    const held = [...elements.keys()].filter((index) => !places.includes(index));
    const details = [
      ...summary.details.map(({ index, response }) => ({ index: places[index], response })),
      ...held.map((index) => ({ index, response: { error: { code: "unavailable", status: 503 } } })),
    ];
    const reply = { ...summary, size: elements.length, errors: details.length, details };
    return { ...answer, headers: { ...answer.headers, "content-length": undefined }, body: Buffer.from(JSON.stringify(reply)) };
  };

  const pass = (response, { status, headers, body }) => {
    response.writeHead(status, { ...headers, "content-length": body.length, connection: "keep-alive" });
    response.end(body);
  };

  const take = async (request, response, body) => {
    const began = Date.now();
    const number = gate.requests++;
    const tries = [JSON.parse(body)]
      .flat()
      .map(({ type: kind, payload }) => ({ kind, payload, token: request.headers["x-umami-cache"], began, number }));
    gate.tries.push(...tries);
    if (gate.mode === "503" || gate.mode === "hang up") {
      gate.refused++;
      if (gate.mode === "hang up") return request.socket.destroy();
      return pass(response, { status: 503, headers: BUSY, body: '{"error":{"status":503}}' });
    }
    const answer = Array.isArray(JSON.parse(body)) ? await forwardBatch(request, JSON.parse(body)) : await forward(request, body);
    await new Promise((resolve) => setTimeout(resolve, gate.delayMs));
    const reply = String(answer.body);
    const refused = new Map((JSON.parse(reply).details ?? []).map(({ index, response }) => [index, response.error.status]));
    tries.forEach((event, index) =>
      Object.assign(event, { ended: Date.now(), status: refused.get(index) ?? answer.status, reply }),
    );
    if (gate.mode === "lost answers") return request.socket.destroy();
    return pass(response, answer);
  };

  const server = await listen(async (request, response) => {
    const body = await bodyOf(request);
    try {
      if (request.method === "POST") return await take(request, response, body);
      return pass(response, await forward(request, body));
    } catch {
      // Dashi is away, or went away: the browser sees what it would see without the gate.
      gate.refused++;
      return request.socket.destroy();
    }
  });
  return Object.assign(gate, server);
};

const page = (gate, title, body, { src = `${gate.url}/script.js`, attributes = 'data-performance="true"' } = {}) => `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>${title}</title>
    <link rel="icon" href="data:,">
    <style>
      body { font: 18px/1.5 sans-serif; margin: 3rem auto; max-width: 36rem }
      nav a, button { margin-right: 1rem }
      #waiting { border-top: 1px solid #999; color: #555 }
    </style>
    <script nonce="of-this-page" defer src="${src}" data-website-id="${gate.website}" ${attributes}></script>
  </head>
  <body>
    <h1>${title}</h1>
    ${body}
    <p id="waiting"></p>
    <script nonce="of-this-page">
      const count = () => {
        const events = Object.keys(localStorage).filter((key) => /^dashi .*#/.test(key)).length;
        const text = "Events waiting in this browser: " + events;
        const line = document.querySelector("#waiting");
        if (line.textContent !== text) line.textContent = text;
      };
      count();
      setInterval(count, 50);
    </script>
  </body>
</html>`;

const NAVIGATION = `<nav>
  <a id="home" href="/">Home</a>
  <a id="shop" href="/shop">Shop</a>
  <a id="cart" href="/cart" data-umami-event="to cart" data-umami-event-from="navigation">Cart</a>
  <a id="app" href="/app/">App</a>
</nav>
<p><button id="buy" data-umami-event="buy" data-umami-event-plan="pro">Buy</button></p>`;

/** Anchors are left to the browser; a router follows all other links. */
const APP = `<nav>
  <a href="/app/inbox">Inbox</a>
  <a href="/app/settings" data-umami-event="settings">Settings</a>
  <a href="/app/settings#mail">Mail</a>
  <a href="#anchor">Anchor</a>
</nav>
<p id="view">/app/</p>
<script>
  const show = () => {
    document.title = "App " + location.pathname;
    document.querySelector("h1").textContent = document.title;
    document.querySelector("#view").textContent = location.pathname;
  };
  document.querySelector("nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || link.getAttribute("href").startsWith("#")) return;
    event.preventDefault();
    history.pushState({}, "", link.href);
    show();
  });
  addEventListener("popstate", show);
</script>`;

/** Clicks by where the attribute stands: on the target, on a link or button around it, or on any other element. */
const CLICKS = `<p><button id="own" data-umami-event="own">Own</button>
<button data-umami-event="button"><b><i id="in-button">In a button</i></b></button>
<a href="#here" data-umami-event="link"><b id="in-link">In a link</b></a></p>
<div data-umami-event="div" data-umami-event-place="far"><p><span id="in-div">In a div</span></p></div>
<section data-umami-event="section"><button><i id="button-in-section">Button in a section</i></button></section>
<a href="#there"><span data-umami-event="span"><i id="span-in-link">Span in a link</i></span></a>
<article data-umami-event="outer"><div data-umami-event="inner"><i id="nested">Nested</i></div></article>
<main data-umami-event="out"><a id="way-out" href="/shop"><i>Shop</i></a></main>
<p id="nothing">Nothing</p>`;

/** No tracker: a page that speaks to the collector itself. */
const PLAIN = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Plain</title><link rel="icon" href="data:,"></head><body></body></html>`;

export const startSite = (gate) =>
  listen((request, response) => {
    const { pathname } = new URL(request.url, "http://site");
    const pages = { "/": "Home", "/shop": "Shop", "/cart": "Cart" };
    response.setHeader("Content-Type", "text/html; charset=utf-8");
    if (pathname === "/plain") return response.end(PLAIN);
    if (pathname === "/renamed") {
      response.setHeader("Content-Security-Policy", "script-src 'nonce-of-this-page'");
      return response.end(page(gate, "Renamed", NAVIGATION, { src: `${gate.dashi.url}/umami/s/stats.js` }));
    }
    if (pathname === "/clicks") return response.end(page(gate, "Clicks", CLICKS, { attributes: "" }));
    if (pathname === "/asked") return response.end(page(gate, "Asked", NAVIGATION, { attributes: 'data-auto-pageview="false"' }));
    if (pathname.startsWith("/quiet/")) return response.end(page(gate, "App", APP, { attributes: 'data-auto-pageview="false"' }));
    if (pathname === "/signed-in") return response.end(page(gate, "Signed in", NAVIGATION, { attributes: 'data-distinct-id="user-7"' }));
    if (pathname.startsWith("/app/")) return response.end(page(gate, "App", APP));
    if (pathname in pages) return response.end(page(gate, pages[pathname], NAVIGATION));
    response.writeHead(404);
    return response.end();
  });
