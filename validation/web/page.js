import { fetched, Model } from "./model.js";

const [form, button, said, alarm] = ["form", "draw", "said", "alarm"].map((id) => document.getElementById(id));
const tell = (text) => (said.textContent = text);

function fail(error) {
  alarm.textContent = error.message;
  alarm.hidden = false;
  tell("");
}

function show(name, { pixels, height, width }, prompt) {
  const canvas = document.getElementById(name);
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  canvas.setAttribute("aria-label", `${canvas.dataset.name}: ${prompt}`);
}

async function start() {
  const settings = await fetched({ url: "page.json", integrity: document.body.dataset.integrity });
  const model = await Model.open(JSON.parse(new TextDecoder().decode(settings)), tell);
  window.saeuron = model;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    alarm.hidden = true;
    try {
      const { prompt, negative, seed } = Object.fromEntries(new FormData(form));
      for (const name of model.drawing) {
        const { name: called } = document.getElementById(name).dataset;
        const drawn = await model.draw(name, { prompt, negative, seed: Number(seed) }, (done, all) => tell(`${called}: step ${done} of ${all}`));
        show(name, drawn, prompt);
      }
      const lost = model.tokenizer.truncated(prompt);
      tell(lost ? `Drawn. The last ${lost} tokens of the prompt are beyond what the text encoder reads.` : "Drawn.");
    } catch (error) {
      fail(error);
    }
    button.disabled = false;
  });
  button.disabled = false;
  tell("Ready.");
}

start().catch(fail);
