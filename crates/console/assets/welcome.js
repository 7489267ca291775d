// The first minute: until an event is in the log, the page shows how to send one.

import { ask } from "./data.js";
import { copyable, h, put } from "./dom.js";

/** Umami's answer to an event of a robot: accepted in form, and not kept. */
const isOfRobot = (response, answer) => response.ok && answer?.beep === "boop";

/** Fills `place` while the log is empty. `show(records, ofRobots)` is told how many records there are, and how many requests were a robot's. */
export const welcome = (place, { session, signal }) => {
  const { collects, script_path, send_path } = session.process;
  let shown = false;
  let done = false;
  let tag = "";
  const robots = h("p", { class: "hint", role: "status" });
  const root = location.href.replace(/\/console\/.*$/, "");

  const fill = async () => {
    const { websites } = await ask("data/websites", { signal });
    const website = websites[0];
    if (!website) {
      put(
        place,
        h(
          "section",
          { class: "panel welcome" },
          h("h2", {}, "Add a website"),
          h("p", {}, "No website is registered, so no event is taken. Add one in Umami's dashboard, or with"),
          copyable("dashi website add --name 'My site' --domain example.com", "the command"),
        ),
      );
      return;
    }
    tag = `<script defer src="${root}${script_path}" data-website-id="${website.id}"></script>`;
    const result = h("p", { class: "hint", role: "status" });
    const send = h("button", { type: "button" }, "Send a test event");
    send.addEventListener("click", async () => {
      send.disabled = true;
      try {
        const response = await fetch(`..${send_path}`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({
            type: "event",
            payload: {
              website: website.id,
              hostname: location.hostname,
              url: "/hello-from-the-console",
              title: "Hello from the console",
              language: navigator.language,
              screen: `${screen.width}x${screen.height}`,
            },
          }),
        });
        const answer = await response.json();
        if (response.ok && answer.cache) put(result, "Accepted and durable. A moment later it is applied.");
        else if (isOfRobot(response, answer)) put(result, `It was not recorded: this browser names itself “${navigator.userAgent}”, which is taken for a robot.`);
        else put(result, `The server answered ${response.status}: ${JSON.stringify(answer)}`);
      } catch (error) {
        put(result, `It could not be sent: ${error.message}`);
      }
      send.disabled = false;
    });
    put(
      place,
      h(
        "section",
        { class: "panel welcome", id: "welcome" },
        h("h2", {}, "Waiting for the first event"),
        h("p", {}, `Paste this line into a page of the website “${website.name}”, and open the page:`),
        copyable(tag, "the tag"),
        h("p", {}, "Or do without a page:"),
        h("p", { class: "actions" }, send),
        result,
        robots,
      ),
    );
  };

  return {
    show(records, ofRobots) {
      if (ofRobots) {
        const requests = ofRobots === 1 ? "1 request was" : `${ofRobots} requests were`;
        const why = "not recorded, since their user agents are those of robots, as curl's and a headless browser's are; ingest.disable_bot_check takes them, too.";
        put(robots, `${requests} answered and ${why}`);
      }
      if (records > 0 && shown && !done) {
        done = true;
        put(
          place,
          h(
            "section",
            { class: "panel welcome arrived" },
            h("p", { role: "status" }, "The first event has arrived. Each one is in the log before it is answered, and in the tables a moment later. ", h("a", { href: "#live" }, "Live"), " shows them as they are applied."),
            tag && h("p", {}, "The line for your pages:"),
            tag && copyable(tag, "the tag"),
          ),
        );
      }
      if (records === 0 && !shown && collects) {
        shown = true;
        fill().catch((error) => !signal.aborted && put(place, h("p", { class: "panel" }, error.message)));
      }
    },
  };
};
