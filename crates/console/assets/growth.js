// A growth of the number of partitions, from its beginning until the projection has passed its barriers everywhere.

import { h, panel, replaceBody, table } from "./dom.js";
import { count, seconds, words } from "./format.js";

/** Returns `{ element, show(layout) }`; the element is hidden while nothing grows. */
export const growth = () => {
  const element = panel("Growth", { id: "growth" });
  element.hidden = true;
  return {
    element,
    show(layout) {
      const step = stepOf(layout);
      element.hidden = !step;
      if (!step) return;
      const waiting = layout.of_partitions.filter((each) => each.waits_for.length);
      replaceBody(
        element,
        h("p", {}, step.text),
        h("progress", { max: Math.max(1, step.of), value: step.done, "aria-label": "Growth" }),
        step.note && h("p", { class: "hint" }, step.note),
        waiting.length > 0 &&
          table(
            [
              { title: "Partition", of: (each) => String(each.partition) },
              { title: "Waits for the barriers of", of: (each) => each.waits_for.join(", ") },
            ],
            waiting,
            { caption: "Partitions that wait at the barrier" },
          ),
      );
    },
  };
};

/** The step that it is at, or nothing. */
const stepOf = ({ partitions, passed, growth }) => {
  if (growth?.state === "draining") {
    const { to, acknowledged, processes, awaits, age_ms } = growth;
    return {
      text: `From ${count(partitions)} to ${count(to)} partitions: ${count(acknowledged)} of ${count(processes)} collectors have acknowledged it, for ${seconds(age_ms / 1_000)}.`,
      done: acknowledged,
      of: processes,
      note: awaits.length > 0 && `Not acknowledged by ${awaits.join(", ")}. One that has ended for good is left out with dashi partitions grow --without NAME.`,
    };
  }
  if (growth) {
    return { text: `From ${count(partitions)} to ${count(growth.to)} partitions: ${words(growth.state)}, the barriers are being written.`, done: 0, of: 1 };
  }
  if (passed >= partitions) return null;
  return {
    text: `The log has ${count(partitions)} partitions now; the projection has passed the barrier in ${count(passed)} of them.`,
    done: passed,
    of: partitions,
    note: "Events of sessions that moved wait until the partitions that they come from have passed it.",
  };
};
