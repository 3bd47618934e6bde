// Builds src/ into the folder of static files that the server has, or into the folder that is named.
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(process.argv[2] ?? join(here, "../runtime/pocketvlm/server/static"));
const { outputFiles } = await build({
    entryPoints: [join(here, "src/main.tsx"), join(here, "src/style/main.css")],
    entryNames: "[name]",
    outdir: target,
    write: false,
    bundle: true,
    minify: true,
    format: "iife",
    target: ["es2022", "chrome111", "firefox113", "safari16.4"],
    legalComments: "none",
    charset: "utf8",
    logLevel: "warning",
});
await rm(target, { recursive: true, force: true }); // only now: a build that fails leaves the last one
await mkdir(target, { recursive: true });
for (const { path, contents } of outputFiles) await writeFile(path, contents);
for (const name of ["index.html", "icon.svg"]) await copyFile(join(here, "src", name), join(target, name));
await copyFile(join(here, "../docs/sample.png"), join(target, "sample.png"));
await writeFile(join(target, "LICENSES.txt"), await licenses(), "utf8");

// The licences of the libraries ask for their texts to go along.
async function licenses() {
    const { dependencies } = JSON.parse(await readFile(join(here, "package.json"), "utf8"));
    const names = [...Object.keys(dependencies), "@preact/signals-core"].sort();
    const texts = await Promise.all(names.map(licenseOf));
    return texts.join("\n" + "=".repeat(72) + "\n\n");
}

async function licenseOf(name) {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    for (const file of ["LICENSE", "LICENSE.md"]) {
        try {
            const text = await readFile(join(folder, file), "utf8");
            return `${name} ${version} (${license})\n\n${text.replaceAll("\r\n", "\n").trim()}\n`;
        } catch {
            // the next name
        }
    }
    throw new Error(`${name} has no licence file`);
}
