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
     * Every try to send an event, in the order of arrival: kind, payload, token, when it began and ended (ms since
     * 1970), and status and reply if Dashi answered.
     */
    tries: [],
    /** How many were turned away, by the gate or because Dashi was away. */
    refused: 0,
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

  const pass = (response, { status, headers, body }) => {
    response.writeHead(status, { ...headers, connection: "keep-alive" });
    response.end(body);
  };

  const take = async (request, response, body) => {
    const { type: kind, payload } = JSON.parse(body);
    const event = { kind, payload, token: request.headers["x-umami-cache"], began: Date.now() };
    gate.tries.push(event);
    if (gate.mode === "503" || gate.mode === "hang up") {
      gate.refused++;
      if (gate.mode === "hang up") return request.socket.destroy();
      return pass(response, { status: 503, headers: BUSY, body: '{"error":{"status":503}}' });
    }
    const answer = await forward(request, body);
    await new Promise((resolve) => setTimeout(resolve, gate.delayMs));
    Object.assign(event, { ended: Date.now(), status: answer.status, reply: String(answer.body) });
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

const page = (gate, title, body, src = `${gate.url}/script.js`) => `<!doctype html>
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
    <script defer src="${src}" data-website-id="${gate.website}" data-performance="true"></script>
  </head>
  <body>
    <h1>${title}</h1>
    ${body}
    <p id="waiting"></p>
    <script>
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

/** No tracker: a page that speaks to the collector itself. */
const PLAIN = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Plain</title><link rel="icon" href="data:,"></head><body></body></html>`;

export const startSite = (gate) =>
  listen((request, response) => {
    const { pathname } = new URL(request.url, "http://site");
    const pages = { "/": "Home", "/shop": "Shop", "/cart": "Cart" };
    response.setHeader("Content-Type", "text/html; charset=utf-8");
    if (pathname === "/plain") return response.end(PLAIN);
    if (pathname === "/renamed") return response.end(page(gate, "Renamed", NAVIGATION, `${gate.dashi.url}/stats.js`));
    if (pathname.startsWith("/app/")) return response.end(page(gate, "App", APP));
    if (pathname in pages) return response.end(page(gate, pages[pathname], NAVIGATION));
    response.writeHead(404);
    return response.end();
  });
