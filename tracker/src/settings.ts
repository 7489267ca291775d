/** The attributes of our own script tag, and whether tracking is on. */
import { read } from "./store";

export const script = (document.currentScript || { dataset: {}, src: "" }) as HTMLScriptElement;

export const settings: DOMStringMap = script.dataset;

export const website = settings.websiteId;

const ownFolder = script.src.replace(/[^/]*([?#].*)?$/, "");

/** Where the collector's paths begin. */
export const host = (settings.hostUrl || ownFolder).replace(/\/+$/, "");

// The server writes COLLECT_API_ENDPOINT over the path, which therefore must stand here once and nowhere else.
export const endpoint = host + "/api/send";

/** Where many events go at once: beside the endpoint, if that has Umami's name. Elsewhere nobody knows of such a path. */
export const batchEndpoint = endpoint.replace(/(\/api\/)send$/, "$1batch");

const { doNotTrack, domains } = settings;

const excluded =
  (doNotTrack === "true" &&
    /^(1|yes)$/.test((navigator.doNotTrack || (window as { doNotTrack?: unknown }).doNotTrack) as string)) ||
  (domains && !domains.split(/[\s,]+/).includes(location.hostname));

let stopped = false;

/** Ends tracking until the page is unloaded. */
export const stop = (): void => {
  stopped = true;
};

export const isOff = (): unknown => stopped || !website || excluded || read("umami.disabled");
