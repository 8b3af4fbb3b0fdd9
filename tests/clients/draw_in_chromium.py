"""Draws an artifact's page in headless Chromium and compares with the runner without torch. Usage: draw_in_chromium.py ARTIFACT ORT

ORT is the folder dist of the npm package onnxruntime-web.
"""

import functools
import http.server
import json
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import CHROMIUM, Browser

from saeuron.validation.artifact import manifest
from saeuron.validation.backends.choose import open_networks
from saeuron.validation.backends.lean import LeanPipeline
from saeuron.validation.proof.parity import psnr

LEAST, MOST = 50.0, 1e-4
"""dB of a picture; distance of latents, as a share of the largest"""
SAID, ALARM = (f"document.getElementById('{name}').textContent" for name in ("said", "alarm"))


class _Files(http.server.SimpleHTTPRequestHandler):
    """Plain files, as any host serves them; to pages of other hosts, too, as a CDN does."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    """A folder's address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def opened(browser, address, **look):
    """Opens the page, and waits until it can draw; what it says instead is the error."""
    browser.open(f"{address}/index.html", **look)
    assert browser.becomes(f"{SAID} === 'Ready.' || {ALARM} !== ''", True, 60), browser.ask(SAID)
    if said := browser.ask(ALARM):
        raise AssertionError(said)


def drawn(browser, name, wish):
    """Final latents `[C, h, w]` and picture `[H, W, 3]` of one of the page's networks."""
    made = "[[...d.latents], [...d.pixels], saeuron.settings.sides, [d.height, d.width, 4]]"
    latents, pixels, sides, shape = browser.ask(f"saeuron.draw({json.dumps(name)}, {json.dumps(wish)}).then((d) => {made})")
    return np.array(latents).reshape(sides), np.array(pixels, np.uint8).reshape(shape)[..., :3]


def compare(found, wanted):
    """dB and distance, of what `drawn` gave from what the lean runner gives; raises unless they are the same."""
    (latents, picture), (own, other) = found, wanted
    decibels, distance = psnr(picture, other), float(np.abs(latents - own).max() / np.abs(own).max())
    assert decibels >= LEAST and distance <= MOST, f"picture {decibels:.1f} dB, latents {distance:.1e} apart"
    return decibels, distance


def lean_drawn(pipeline, prompt, noise, steps, guidance, negative=None):
    latents = pipeline.denoise([prompt], noise, steps, guidance, None if negative is None else [negative])
    return latents[0], pipeline.decode(latents)[0]


def main(artifact, ort):
    record, failed = manifest.read(artifact), False
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page"
        subprocess.run([sys.executable, "-m", "saeuron", "page", artifact, "--ort", ort, "-o", page], check=True)
        pipeline = LeanPipeline(artifact, open_networks(artifact, record))
        sampling = record.sampling
        with served(page) as address, Browser() as browser:
            opened(browser, address)
            for prompt, seed in (("An image of House.", 42), (f"An image of {record.concepts[0]}.", 7)):
                noise = pipeline.initial_latents([seed], sampling.height, sampling.width)
                wanted = lean_drawn(pipeline, prompt, noise, sampling.steps, sampling.guidance)
                for wish in ({"latents": noise.ravel().tolist()}, {"seed": seed}):
                    try:
                        decibels, distance = compare(drawn(browser, "unet", {"prompt": prompt, **wish}), wanted)
                        print(f"ok   chromium: '{prompt}' from {next(iter(wish))}: {decibels:.1f} dB, latents {distance:.1e} apart")
                    except AssertionError as error:
                        print(f"FAIL chromium: '{prompt}' from {next(iter(wish))}: {error}")
                        failed = True
    return int(failed)


if __name__ == "__main__":
    if CHROMIUM is None:
        print("left out: no chromium here, so the page was not drawn")
        sys.exit(0)
    sys.exit(main(*sys.argv[1:]))
