"""ComfyUI's own server on loopback, asked over HTTP as its page does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

PACK = Path(__file__).parents[2] / "comfyui"
BOOT, RUN = 240, 240
"""seconds"""


class Server:
    """A server with the node pack and some artifacts in a folder of its own; a context manager.

    Args:
        checkout: of ComfyUI.
        python: with what it needs.
        folder: for models, nodes and what it writes.
        artifacts: name → folder.
    """

    def __init__(self, checkout: Path, python: str, folder: Path, artifacts: dict[str, Path]) -> None:
        self.folder = folder
        shutil.copytree(PACK, folder / "custom_nodes" / "saeuron", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("input", "output", "temp", "user"):
            (folder / name).mkdir()
        for name, path in artifacts.items():
            shutil.copytree(path, folder / "models" / "diffusers" / name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "server.log"
        self._command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(folder), "--disable-auto-launch",
                         "--disable-api-nodes", "--database-url", f"sqlite:///{folder}/user/comfyui.db"]  # fmt: skip
        self._checkout = checkout

    def __enter__(self) -> Server:
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # the pack must do without ours
        with self.log.open("w") as log:
            self._process = subprocess.Popen(self._command, cwd=self._checkout, stdout=log, stderr=subprocess.STDOUT, env=own)
        end = time.monotonic() + BOOT
        while True:
            try:
                self.ask("/system_stats")
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.__exit__()
                    raise AssertionError(f"ComfyUI's server didn't start:\n{self.log.read_text()[-3000:]}") from None
                time.sleep(0.5)

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def ask(self, path: str, content: Any = None) -> Any:
        """GET, or POST of JSON."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Queue a graph and wait for what its history says."""
        number = self.ask("/prompt", {"prompt": graph})["prompt_id"]
        end = time.monotonic() + RUN
        while time.monotonic() < end:
            if number in (history := self.ask(f"/history/{number}")):
                return history[number]
            time.sleep(0.3)
        raise AssertionError(f"the graph didn't end:\n{self.log.read_text()[-3000:]}")

    def error(self, graph: dict[str, Any]) -> str:
        """Run a graph that must fail: what it says."""
        status = self.run(graph)["status"]
        assert status["status_str"] == "error", status
        return next(said["exception_message"] for kind, said in status["messages"] if kind == "execution_error")


def drawing(artifact: str = "edited", steps: int = 6, seed: int = 7) -> dict[str, Any]:
    """A whole graph: load, verify, two prompts, KSampler, pictures, and what fired."""
    return {
        "load": {"class_type": "SaeuronLoadEditedCheckpoint", "inputs": {"artifact": artifact, "weight_dtype": "as proven"}},
        "verify": {"class_type": "SaeuronVerify", "inputs": {"model": ["load", 0]}},
        "wanted": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a house at night"}},
        "unwanted": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "blurry"}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "sample": {"class_type": "KSampler", "inputs": {
            "model": ["verify", 0], "positive": ["wanted", 0], "negative": ["unwanted", 0], "latent_image": ["empty", 0], "seed": seed, "steps": steps, "cfg": 5.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        }},
        "latents": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "latents"}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "picture"}},
        "fired": {"class_type": "SaeuronWhatFired", "inputs": {"model": ["load", 0], "images": ["decode", 0]}},
        "save maps": {"class_type": "SaveImage", "inputs": {"images": ["fired", 0], "filename_prefix": "fired"}},
    }  # fmt: skip
