// A bundle of vit_edge in JavaScript, in Node.js and in browsers: the answers of Predictor, and the
// proof. The preprocessing is the bundle's own graph, so that nothing is resized here.

const text = (bytes) => new TextDecoder().decode(bytes);

/**
 * Open a bundle.
 * @param ort onnxruntime-node or onnxruntime-web.
 * @param read name of a file -> Promise of its Uint8Array.
 */
export async function openBundle(ort, read, options = {}) {
  const manifest = JSON.parse(text(await read("manifest.json")));
  if (!("preprocess.onnx" in manifest.files)) {
    throw new Error("the bundle has no preprocess.onnx: export it with vit_edge 0.3 or newer");
  }
  if ("model.onnx.data" in manifest.files) {
    const data = await read("model.onnx.data");
    options = { ...options, externalData: [{ path: "model.onnx.data", data }] };
  }
  const labels = text(await read("labels.txt")).split("\n").slice(0, -1);
  const preprocessing = await ort.InferenceSession.create(await read("preprocess.onnx"));
  const model = await ort.InferenceSession.create(await read("model.onnx"), options);
  return new Bundle(ort, manifest, labels, preprocessing, model);
}

export class Bundle {
  constructor(ort, manifest, labels, preprocessing, model) {
    Object.assign(this, { ort, manifest, labels, preprocessing, model });
  }

  /** Uint8Array[height * width * 3], RGB -> the model's input, a batch of 1. */
  async pixels(rgb, height, width) {
    const image = new this.ort.Tensor("uint8", rgb, [height, width, 3]);
    return (await this.preprocessing.run({ image })).pixels;
  }

  /** The model's input -> { output: Float32Array }. */
  async answer(pixels) {
    const found = await this.model.run({ [this.manifest.input.name]: pixels });
    return Object.fromEntries(Object.entries(found).map(([name, { data }]) => [name, data]));
  }

  /** The best classes: [{ label, score }], as `vit-edge predict` prints them. */
  async classify(rgb, height, width, topK = 5) {
    const { logits } = await this.answer(await this.pixels(rgb, height, width));
    if (!logits) throw new Error("the bundle has no classes: it embeds images");
    const scores = scoresOf(logits, this.manifest.scores);
    const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a]);
    return order.slice(0, topK).map((c) => ({ label: this.labels[c], score: scores[c] }));
  }
}

function scoresOf(logits, kind) {
  const values = Array.from(logits);
  if (kind === "none") return values;
  if (kind === "sigmoid") return values.map((v) => 1 / (1 + Math.exp(-v)));
  const largest = Math.max(...values);
  const powers = values.map((v) => Math.exp(v - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/**
 * Hold this machine against the files that `vit-edge probes BUNDLE --out DIR` wrote.
 * @param read name of a file of DIR -> Promise of its Uint8Array.
 * @returns { holds, rows: [{ what, name, found, allowed, holds }] }
 */
export async function prove(bundle, read) {
  const index = JSON.parse(text(await read("probes.json")));
  if (index.schema_version !== 1) throw new Error(`probes.json is of version ${index.schema_version}`);
  const rows = [];
  for (const probe of index.preprocessing) {
    const made = await bundle.pixels(await read(probe.rgb), probe.height, probe.width);
    const found = furthest(made, input(index, await read(probe.pixels)));
    const allowed = probe.tolerance;
    rows.push({ what: "pixels", name: probe.name, found, allowed, holds: found <= allowed });
  }
  const answers = [];
  for (const golden of index.answers) {
    const { dtype, shape } = index.input;
    const pixels = new bundle.ort.Tensor(dtype, input(index, await read(golden.pixels)), shape);
    answers.push({ found: await bundle.answer(pixels), golden });
  }
  for (const { name, least_sqnr_centred_db: allowed } of index.outputs) {
    const expected = [];
    for (const { golden } of answers) expected.push(floats(await read(golden.outputs[name])));
    const found = centredDecibels(answers.map((answer) => answer.found[name]), expected);
    rows.push({ what: "answers, dB", name, found, allowed, holds: found >= allowed });
  }
  return { holds: rows.length > index.outputs.length && rows.every((row) => row.holds), rows };
}

const floats = (bytes) => new Float32Array(bytes.slice().buffer); // little-endian, as every browser
const input = (index, bytes) => (index.input.dtype === "uint8" ? bytes : floats(bytes));

function furthest(tensor, expected) {
  if (tensor.data.length !== expected.length) return Infinity;
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const apart = Math.abs(tensor.data[i] - expected[i]);
    if (Number.isNaN(apart)) return NaN; // which is within nothing
    largest = Math.max(largest, apart);
  }
  return largest;
}

/** Signal over noise of what varies from image to image, as vit_edge.parity.statistics has it. */
function centredDecibels(found, expected) {
  const mean = expected[0].map((_, c) => expected.reduce((sum, row) => sum + row[c], 0) / expected.length);
  let signal = 0;
  let noise = 0;
  expected.forEach((row, n) => row.forEach((value, c) => {
    signal += (value - mean[c]) ** 2;
    noise += (found[n][c] - value) ** 2;
  }));
  return noise === 0 ? 300 : 10 * Math.log10(signal / noise);
}

export function report({ holds, rows }) {
  const lines = rows.map((row) => {
    const found = row.found.toPrecision(3);
    return `${row.holds ? "ok  " : "FAIL"}  ${row.what.padEnd(12)} ${row.name.padEnd(26)} ${found}`;
  });
  return [...lines, holds ? "holds" : "DOES NOT HOLD"].join("\n");
}
