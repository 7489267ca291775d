/** Clicks on elements with `data-umami-event`, or on what lies within them. Source: docs/umami-contract.md §19.1. */
import { sleep } from "./lock";
import { attempt } from "./store";

const enum Name {
  EVENT = "data-umami-event",
  /** An element whose event has no name leaves the click to those around it. */
  NAMED = '[data-umami-event]:not([data-umami-event=""])',
  DATA = "data-umami-event-",
  /** Links that do not replace this page, or whose referrer an assigned address would give away. */
  LEFT_ALONE = "[download],[target]:not([target=_self]),[rel~=noreferrer]",
}

const enum Max {
  /** How long a link waits for its event to be sent. The event is safe in any case. */
  LINK_MS = 500,
}

export const watchClicks = (track: (name: string, data: { [key: string]: string }) => Promise<unknown>): void => {
  let tracked: Event;
  let sent: Promise<unknown>;

  // First of all, since the page's own handlers may change the element or end the event's way.
  addEventListener(
    "click",
    (event) =>
      attempt(() => {
        const element = (event.target as Element).closest(Name.NAMED);
        if (!element) return;
        const data: { [key: string]: string } = {};
        for (const { name, value } of element.attributes) {
          if (name.startsWith(Name.DATA)) data[name.slice(Name.DATA.length)] = value;
        }
        tracked = event;
        sent = track(element.getAttribute(Name.EVENT)!, data);
      }),
    true,
  );

  // Last of all, since a router may have taken the link over.
  addEventListener("click", (event) =>
    attempt(() => {
      const link = (event.target as Element).closest("a");
      if (
        link &&
        tracked === event &&
        !(event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) &&
        /^http/.test(link.href) &&
        !link.matches(Name.LEFT_ALONE)
      ) {
        event.preventDefault();
        const { href } = link;
        Promise.race([sent, sleep(Max.LINK_MS)]).then(() => (location.href = href));
      }
    }),
  );
};
