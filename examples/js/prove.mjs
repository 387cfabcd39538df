// node prove.mjs BUNDLE PROBES: exit code 0 where the answers hold here, 4 where they do not.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { openBundle, prove, report } from "./vit_edge.mjs";

const [bundleFolder, probesFolder] = process.argv.slice(2);
if (!probesFolder) {
  console.error("usage: node prove.mjs BUNDLE PROBES");
  process.exit(2);
}
const from = (folder) => async (name) => new Uint8Array(await readFile(join(folder, name)));
const bundle = await openBundle(ort, from(bundleFolder));
const proof = await prove(bundle, from(probesFolder));
console.log(report(proof));
process.exitCode = proof.holds ? 0 : 4;
