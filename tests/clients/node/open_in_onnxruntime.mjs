// Runs an artifact's UNet on its golden cases from JavaScript, with onnxruntime-node. Usage: node open_in_onnxruntime.mjs ARTIFACT
//
// A stranger's client has nothing of ours: the golden file's form and the proof's yardstick are repeated here, as in golden_reader.py.

import { readFileSync } from "node:fs";
import { join } from "node:path";

import { Float16Array } from "@petamoriken/float16";
import * as ort from "onnxruntime-node";

const BARS = { fp32: 0.01, fp16: 0.1 };
const READERS = { F32: Float32Array, BOOL: Uint8Array, U8: Uint8Array };

/** A safetensors file: its metadata, and a function that gives a tensor by name. */
function safetensors(path) {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + length));
  const tensor = (name) => {
    const { dtype, shape, data_offsets: [begin, end] } = header[name];
    // A copy begins at an address that any element size divides.
    const own = bytes.subarray(8 + length + begin, 8 + length + end).slice();
    return { shape, data: new READERS[dtype](own.buffer, own.byteOffset, own.byteLength / READERS[dtype].BYTES_PER_ELEMENT) };
  };
  return { metadata: header.__metadata__, tensor };
}

const distance = (a, b) => Math.sqrt(a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0));

/** A tensor of the type that the graph's input has. */
function feed(type, shape, values) {
  if (type === "float32") return new ort.Tensor("float32", Float32Array.from(values), shape);
  if (type === "float16") return new ort.Tensor("float16", new Uint16Array(Float16Array.from(values).buffer), shape);
  throw new Error(`an input of type ${type}`);
}

const numbers = ({ type, data }) => (type === "float16" && data instanceof Uint16Array ? new Float16Array(data.buffer, data.byteOffset, data.length) : data);

let [passed, failed] = [0, 0];
function line(ok, text) {
  if (ok) passed += 1;
  else failed += 1;
  console.log(`${ok ? "ok  " : "FAIL"} onnxruntime-node: ${text}`);
}

const percent = (value, digits) => `${(100 * value).toFixed(digits)}%`;

const artifact = process.argv[2];
if (!artifact) {
  console.error("usage: node open_in_onnxruntime.mjs ARTIFACT");
  process.exit(2);
}
const golden = safetensors(join(artifact, "edit", "golden.safetensors"));
const content = JSON.parse(golden.metadata.content);
const bar = BARS[content.precision];
const session = await ort.InferenceSession.create(join(artifact, "unet", "model.onnx"), { executionProviders: ["cpu"] });
const types = Object.fromEntries(session.inputMetadata.map(({ name, type }) => [name, type]));

const cases = content.cases.map((entry) => {
  const at = (name) => golden.tensor(entry[name]);
  return {
    ...entry,
    inputs: Object.fromEntries(Object.entries(entry.inputs).map(([name, tensor]) => [name, golden.tensor(tensor)])),
    hook: at("hook").data,
    neutral: at("neutral").data,
    unedited: at("unedited").data,
    fired: Object.values(entry.fires).some((name) => golden.tensor(name).data.some((value) => value)),
  };
});
// Where the edit is silent its smallest effect elsewhere stands in as the yardstick; such a case has no control.
const floor = Math.min(...cases.filter((c) => c.fired).map((c) => distance(c.hook, c.neutral)));

for (const { kind, timestep, inputs, hook, neutral, unedited, fired } of cases) {
  const feeds = Object.fromEntries(Object.entries(inputs).map(([name, { shape, data }]) => [name, feed(types[name], shape, data)]));
  const found = numbers((await session.run(feeds)).out_sample);
  const scale = fired ? distance(hook, neutral) : floor;
  const [share, control] = [distance(found, hook) / scale, distance(unedited, hook) / scale];
  const about = `UNet (${kind}, t=${timestep}, ${inputs.sample.shape.join("x")})`;
  // Written so that NaN fails.
  line(share <= bar, `${about}: ${percent(share, 5)} of the edit's effect from the hook (allowed ${percent(bar, 2)}, unedited ${percent(control, 0)})`);
  if (fired && !(control > bar)) line(false, `${about}: control: the unedited model would pass too, so this comparison proves nothing`);
}
process.exit(passed && !failed ? 0 : 1);
