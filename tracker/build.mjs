// Builds dist/script.js from src/script.ts, and from src/vitals.ts and src/profile.ts the files that it loads. With --check it builds into a
// temporary folder instead and fails unless the checked-in files are the same, byte for byte, and small enough.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { minify } from "terser";

/** Each file by its source, with what it may weigh. */
const FILES = {
  "script.js": { source: "src/script.ts", gzipBytesMax: 3200 },
  "script-vitals.js": { source: "src/vitals.ts", gzipBytesMax: 1024 },
  "script-profile.js": { source: "src/profile.ts", gzipBytesMax: 1280 },
};

const here = fileURLToPath(new URL(".", import.meta.url));
const checkedIn = join(here, "dist");
const check = process.argv.includes("--check");
const temporary = check && mkdtempSync(join(tmpdir(), "dashi-tracker-"));
const outdir = temporary || checkedIn;

const fail = (message) => {
  console.error(`error: ${message}`);
  process.exitCode = 1;
};

const buildOne = async (name, { source, gzipBytesMax }) => {
  const outfile = join(outdir, name);
  const { outputFiles } = await build({
    absWorkingDir: here,
    entryPoints: [source],
    outfile,
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    target: "es2018",
    charset: "utf8",
    legalComments: "none",
    logLevel: "warning",
    // Without the project's own one, which would only add "use strict".
    tsconfigRaw: {},
  });
  // A second time: terser leaves 3 % less than esbuild alone.
  const { code } = await minify(outputFiles[0].text, { ecma: 2018, compress: { passes: 3 } });
  const built = Buffer.from(code + "\n");
  writeFileSync(outfile, built);
  if (check && !built.equals(readFileSync(join(checkedIn, name)))) {
    fail(`dist/${name} is not what src/ builds; run \`npm run build\``);
  }
  const gzipBytes = gzipSync(built, { level: 9 }).length;
  console.log(`${name}: ${built.length} bytes, ${gzipBytes} gzipped of ${gzipBytesMax}`);
  if (gzipBytes > gzipBytesMax) fail(`${name} is ${gzipBytes - gzipBytesMax} bytes too large`);
  return built.toString();
};

try {
  const built = {};
  for (const [name, file] of Object.entries(FILES)) built[name] = await buildOne(name, file);
  // The server writes COLLECT_API_ENDPOINT over it.
  const paths = built["script.js"].split("/api/send").length - 1;
  if (paths !== 1) fail(`/api/send stands ${paths} times in script.js, not once`);
} finally {
  if (temporary) rmSync(temporary, { recursive: true });
}
