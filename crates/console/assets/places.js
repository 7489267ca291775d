// Names of countries and languages, by the browser.

const names = (type) => {
  const display = new Intl.DisplayNames(undefined, { type, fallback: "none" });
  return (code) => {
    if (!code) return null;
    try {
      return display.of(code) ?? code;
    } catch {
      // A code that is none.
      return code;
    }
  };
};

/** "DE" → "Germany" */
export const country = names("region");

/** "en-GB" → "British English" */
export const language = names("language");
