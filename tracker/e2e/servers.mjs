// What the end-to-end tests run against, all on loopback: a site of a few pages, and the collector as the browser sees
// it. The collector is a fake that takes everything, or, with COLLECTOR_URL, a gate in front of a real one. Either way
// it writes down what came through and can be out of order.
import { readFileSync } from "node:fs";
import http from "node:http";

const script = readFileSync(new URL("../dist/script.js", import.meta.url));

const listen = async (handler) => {
  const server = http.createServer(handler);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () => (server.closeAllConnections(), new Promise((resolve) => server.close(resolve))),
  };
};

const bodyOf = async (request) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
};

/** As Umami's: §1.1 of the contract; and Retry-After, which a script of another origin may only read if it is exposed. */
const CORS = {
  "Access-Control-Allow-Origin": "*",
  "Access-Control-Allow-Headers": "*",
  "Access-Control-Allow-Methods": "GET, DELETE, POST, PUT",
  "Access-Control-Expose-Headers": "Retry-After",
};

export const startCollector = async (upstream) => {
  const collector = {
    /** "up", "503" (with Retry-After), "hang up", or "lost answers": events arrive but their answers do not. */
    mode: "up",
    /** Every event that was taken in, also the second copy of one: kind, payload, token, when it began and ended, the reply. */
    taken: [],
    refused: 0,
    /** How long an answer takes. */
    delayMs: 0,
    website: process.env.WEBSITE_ID ?? "11111111-1111-4111-8111-111111111111",
  };

  const answer = (response, status, headers, body) => {
    response.writeHead(status, { ...CORS, ...headers });
    response.end(body);
  };

  const forward = async (request, body) => {
    const { host: _host, connection: _connection, "content-length": _length, ...headers } = request.headers;
    const reply = await fetch(new URL(request.url, upstream), {
      method: request.method,
      headers,
      ...(body.length ? { body } : {}),
    });
    return { status: reply.status, type: reply.headers.get("content-type"), body: Buffer.from(await reply.arrayBuffer()) };
  };

  const fake = () => ({
    status: 200,
    type: "application/json",
    body: JSON.stringify({ cache: `token-${collector.taken.length + 1}`, sessionId: "s", visitId: "v" }),
  });

  const server = await listen(async (request, response) => {
    const body = await bodyOf(request);
    if (request.method === "GET" && request.url === "/script.js") {
      const reply = upstream ? await forward(request, body) : { status: 200, type: "text/javascript", body: script };
      return answer(response, reply.status, { "Content-Type": reply.type, "Cache-Control": "max-age=3600" }, reply.body);
    }
    if (request.method === "OPTIONS") return answer(response, 204, {});
    if (request.method !== "POST" || request.url !== "/api/send") return answer(response, 404, {}, "{}");
    if (collector.mode === "503" || collector.mode === "hang up") {
      collector.refused++;
      if (collector.mode === "hang up") return request.socket.destroy();
      return answer(response, 503, { "Retry-After": "1", "Content-Type": "application/json" }, '{"error":{"status":503}}');
    }
    const began = performance.now();
    const reply = upstream ? await forward(request, body) : fake();
    await new Promise((resolve) => setTimeout(resolve, collector.delayMs));
    const token = request.headers["x-umami-cache"];
    const { type: kind, payload } = JSON.parse(body);
    collector.taken.push({ kind, payload, token, began, ended: performance.now(), status: reply.status, reply: String(reply.body) });
    if (collector.mode === "lost answers") return request.socket.destroy();
    return answer(response, reply.status, { "Content-Type": reply.type }, reply.body);
  });
  return Object.assign(collector, server);
};

const page = (collector, title, body, attributes = "") => `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>${title}</title>
    <link rel="icon" href="data:,">
    <style>
      body { font: 18px/1.5 sans-serif; margin: 3rem auto; max-width: 36rem }
      nav a, button { margin-right: 1rem }
    </style>
    <script defer src="${collector.url}/script.js" data-website-id="${collector.website}" data-performance="true"${attributes}></script>
  </head>
  <body>
    <h1>${title}</h1>
    ${body}
  </body>
</html>`;

const NAVIGATION = `<nav>
  <a id="home" href="/">Home</a>
  <a id="shop" href="/shop">Shop</a>
  <a id="cart" href="/cart" data-umami-event="to cart" data-umami-event-from="navigation">Cart</a>
  <a id="app" href="/app/">App</a>
</nav>
<p><button id="buy" data-umami-event="buy" data-umami-event-plan="pro">Buy</button></p>`;

const APP = `<nav>
  <a href="/app/inbox">Inbox</a>
  <a href="/app/settings" data-umami-event="settings">Settings</a>
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
    if (!link || link.hash) return;
    event.preventDefault();
    history.pushState({}, "", link.href);
    show();
  });
  addEventListener("popstate", show);
</script>`;

export const startSite = (collector) =>
  listen((request, response) => {
    const { pathname } = new URL(request.url, "http://site");
    const pages = { "/": "Home", "/shop": "Shop", "/cart": "Cart" };
    response.setHeader("Content-Type", "text/html; charset=utf-8");
    if (pathname.startsWith("/app/")) return response.end(page(collector, "App", APP));
    if (pathname in pages) return response.end(page(collector, pages[pathname], NAVIGATION));
    response.writeHead(404);
    return response.end();
  });
