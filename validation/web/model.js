// The loop of validation/backends/lean/pipeline.py around ONNX Runtime for the web. What depends on scheduler and model are numbers in page.json.

import { noise } from "./noise.js";
import { Tokenizer } from "./text.js";

/** The bytes of a file, only if they are those that the page was made with. */
export async function fetched({ url, integrity }) {
  let answer;
  try {
    // Asked for anew: one that was kept from an older page would be refused.
    answer = await fetch(url, { integrity, cache: "no-cache" });
  } catch {
    throw new Error(`${url} can't be loaded, or is not the file that this page was made with`);
  }
  if (!answer.ok) throw new Error(`${url} can't be loaded (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function runtime({ script, wasm }) {
  const code = URL.createObjectURL(new Blob([await fetched(script)], { type: "text/javascript" }));
  const ort = await import(code);
  URL.revokeObjectURL(code);
  ort.env.wasm.wasmBinary = await fetched(wasm);
  // More need headers that a plain static host doesn't send.
  ort.env.wasm.numThreads = 1;
  return ort;
}

/** Lets the page be painted before the next forward. */
const painted = () => new Promise((done) => setTimeout(done));

export class Model {
  /** Opens all networks. @param settings content of page.json @param say is told what is being done */
  static async open(settings, say = () => {}) {
    const model = new Model();
    say("loading ONNX Runtime");
    const ort = await runtime(settings.runtime);
    const session = async (name) => {
      say(`loading ${name}`);
      const { graph, data } = settings.networks[name];
      const externalData = await Promise.all(data.map(async (file) => ({ path: file.name, data: await fetched(file) })));
      return ort.InferenceSession.create(await fetched(graph), { executionProviders: ["wasm"], externalData });
    };
    const sessions = {};
    for (const name of Object.keys(settings.networks)) sessions[name] = await session(name);
    return Object.assign(model, { settings, ort, sessions, tokenizer: new Tokenizer(settings.tokenizer) });
  }

  /** The networks that draw: `unet`, and `beside` where there is one. */
  get drawing() {
    return ["unet", "beside"].filter((name) => name in this.sessions);
  }

  /**
   * One picture. @param name of the network @param wish prompt, negative prompt, and a seed or latents (a flat [C, h, w] of unit-variance noise)
   * @param say is told how many steps are done
   */
  async draw(name, { prompt, negative = "", seed, latents }, say = () => {}) {
    const { guidance, steps, start, scaling, sides: [channels, height, width], text } = this.settings;
    const { Tensor } = this.ort;
    const texts = guidance > 1 ? [negative, prompt] : [prompt];
    const size = channels * height * width;
    const ids = BigInt64Array.from(texts.flatMap((one) => this.tokenizer.row(one)), BigInt);
    const encoded = await this.sessions.text_encoder.run({ input_ids: new Tensor("int64", ids, [texts.length, this.tokenizer.length]) });
    const sample = Float32Array.from(latents ?? noise(seed, size), (value) => value * start);
    if (sample.length !== size) throw new Error(`${sample.length} latents; this model takes ${size}`);
    for (const [at, step] of steps.entries()) {
      const seen = new Float32Array(texts.length * size);
      texts.forEach((_, row) => seen.set(sample.map((value) => value * step.scale), row * size));
      const given = {
        sample: new Tensor("float32", seen, [texts.length, channels, height, width]),
        timestep: new Tensor("float32", [step.timestep], []),
        encoder_hidden_states: encoded[text],
      };
      const found = (await this.sessions[name].run(given)).out_sample.data;
      for (let i = 0; i < size; i += 1) {
        const output = texts.length > 1 ? found[i] + guidance * (found[size + i] - found[i]) : found[i];
        sample[i] = step.sample * sample[i] + step.output * output;
      }
      if (!sample.every(Number.isFinite)) throw new Error(`step ${at + 1} of ${steps.length} gave values that are not finite`);
      say(at + 1, steps.length);
      await painted();
    }
    const scaled = new Tensor("float32", sample.map((value) => value / scaling), [1, channels, height, width]);
    const { data, dims } = (await this.sessions.vae_decoder.run({ latent_sample: scaled })).sample;
    return { pixels: coloured(data, dims[2] * dims[3]), height: dims[2], width: dims[3], latents: sample };
  }
}

/** Values in [-1, 1], plane by plane, as RGBA. */
function coloured(planes, size) {
  if (!planes.every(Number.isFinite)) throw new Error("the autoencoder gave values that are not finite");
  // It cuts off and rounds as numpy does.
  const found = new Uint8ClampedArray(4 * size).fill(255);
  for (let i = 0; i < size; i += 1) for (let c = 0; c < 3; c += 1) found[4 * i + c] = (planes[c * size + i] * 0.5 + 0.5) * 255;
  return found;
}
