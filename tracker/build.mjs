// Builds dist/script.js from src/script.ts. With --check it builds into a temporary file instead and fails unless the
// checked-in file is the same, byte for byte, and small enough.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const GZIP_BYTES_MAX = 3072;

const here = fileURLToPath(new URL(".", import.meta.url));
const checkedIn = join(here, "dist/script.js");
const check = process.argv.includes("--check");
const temporary = check && mkdtempSync(join(tmpdir(), "dashi-tracker-"));
const outfile = temporary ? join(temporary, "script.js") : checkedIn;

const fail = (message) => {
  console.error(`error: ${message}`);
  process.exitCode = 1;
};

try {
  await build({
    absWorkingDir: here,
    entryPoints: ["src/script.ts"],
    outfile,
    bundle: true,
    minify: true,
    format: "iife",
    target: "es2018",
    charset: "utf8",
    legalComments: "none",
    logLevel: "warning",
    // Without the project's own one, which would only add "use strict".
    tsconfigRaw: {},
  });
  const built = readFileSync(outfile);
  if (check && !built.equals(readFileSync(checkedIn))) {
    fail("dist/script.js is not what src/ builds; run `npm run build`");
  }
  const gzipBytes = gzipSync(built, { level: 9 }).length;
  console.log(`script.js: ${built.length} bytes, ${gzipBytes} gzipped of ${GZIP_BYTES_MAX}`);
  if (gzipBytes > GZIP_BYTES_MAX) fail(`script.js is ${gzipBytes - GZIP_BYTES_MAX} bytes too large`);
  // The server writes COLLECT_API_ENDPOINT over it.
  const paths = built.toString().split("/api/send").length - 1;
  if (paths !== 1) fail(`/api/send stands ${paths} times in script.js, not once`);
} finally {
  if (temporary) rmSync(temporary, { recursive: true });
}
