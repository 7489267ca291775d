// The server's changes to the script before it serves it.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ENDPOINT, script, Site, vitalsScript } from "./browser.mjs";

const endpointOf = async (source, attributes = {}) => {
  const site = new Site();
  await site.open({ source, attributes });
  assert.equal(site.requests.length, 1);
  return site.requests[0].url;
};

test("the path of the endpoint stands in the script once, and another one may be written over it", async () => {
  const parts = script.split("/api/send");
  assert.equal(parts.length, 2);
  assert.equal(await endpointOf(parts.join("/collect/it")), "https://stats.example/collect/it");
});

test("a default host may be written before it; the tag's own goes before that", async () => {
  for (const line of [
    'document.currentScript.dataset.hostUrl ||= "https://default.example";',
    '(s=>{if(s)s.dataset.hostUrl=s.dataset.hostUrl||"https://default.example"})(document.currentScript);',
  ]) {
    for (const between of ["", "\n"]) {
      const source = line + between + script;
      assert.equal(await endpointOf(source), "https://default.example/api/send");
      assert.equal(await endpointOf(source, { "data-host-url": "https://own.example" }), "https://own.example/api/send");
    }
  }
  assert.equal(await endpointOf(script), ENDPOINT);
});

test("the scripts stand alone: expressions that leave no global but umami, and end in a line of their own", async () => {
  assert.match(script, /^\(\(\)=>\{[^]*\}\)\(\);\n$/);
  assert.match(vitalsScript, /^\(\(\)=>\{[^]*\}\)\(\);\n$/);
  const page = await new Site().open({ attributes: { "data-performance": "true" } });
  const before = await new Site().open({ source: "" });
  const added = Object.keys(page.window).filter((name) => !(name in before.window));
  assert.deepEqual(added, ["umami"]);
});

test("a file that measures does nothing where no tracker has asked for it", async () => {
  const site = new Site();
  const page = await site.open({ source: vitalsScript });
  await site.advance(20_000);
  await page.leave();
  assert.deepEqual([...site.requests, ...page.errors], []);
});
