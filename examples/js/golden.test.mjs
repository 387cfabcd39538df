// BUNDLE=... PROBES=... node --test
import assert from "node:assert";
import { readFile } from "node:fs/promises";
import test from "node:test";
import * as ort from "onnxruntime-node";
import { openBundle, prove, report } from "./vit_edge.mjs";

const from = (folder) => async (name) => new Uint8Array(await readFile(`${folder}/${name}`));
test("the answers are those of the reference", async () => {
  const bundle = await openBundle(ort, from(process.env.BUNDLE));
  const proof = await prove(bundle, from(process.env.PROBES));
  assert.ok(proof.holds, report(proof));
});
