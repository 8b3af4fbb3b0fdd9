"""`saeuron try`: what can't be is one line, before gradio is imported; the page in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import made_up
import pytest
from browser import CHROMIUM, Browser
from diffusers import PNDMScheduler
from tests.conftest import refused
from tests.export.test_without_torch import BLOCKED
from tests.validation.test_page import CONTRAST, OVERFLOW
from tests.validation.test_schedulers import with_scheduler

from saeuron.editor.edit.edit_header import read_edit_header
from saeuron.validation.artifact import installed, manifest
from saeuron.validation.artifact.installed import missing

NO_GRADIO = bool(missing(("gradio",)))


@pytest.fixture
def no_gradio(monkeypatch):
    """Importing it fails the test; it counts as installed."""
    there = installed.missing
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(installed, "missing", lambda names=installed.TORCH: [] if names == ("gradio",) else there(names))


def test_refusals(no_gradio, demo_artifact, tmp_path):
    root = demo_artifact.path
    refused("is no artifact: there is no such folder", "try", tmp_path / "nowhere")
    refused("backend 'tensorflow' is not known; it is one of checkpoint, onnx, trt, trt-rtx", "try", root, "--backend", "tensorflow")
    refused("holds no 'trt'", "try", root, "--backend", "trt")
    refused("--provider cpu is for backend onnx, not for checkpoint", "try", root, "--backend", "checkpoint", "--provider", "cpu")
    refused("contradict each other", "try", root, "--provider", "cpu", "--device", "cuda")
    refused("device 'tpu' is not known", "try", root, "--device", "tpu")
    refused("scheduler 'heun' is not known", "try", root, "--backend", "onnx", "--scheduler", "heun")
    refused("--port is 65536; it must be 0 to 65535", "try", root, "--port", "65536")
    refused("--attack", "try", root, "--attack", tmp_path / "nowhere")
    refused("target 'rtx' is not known in this artifact", "try", root, "--backend", "checkpoint", "--target", "rtx")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(f"--port {port} can't be taken on 127.0.0.1: Address already in use; give another, or 0", "try", root, "--port", port)
    changed = tmp_path / "changed"
    shutil.copytree(root, changed)
    with (changed / "unet" / "model.onnx").open("ab") as file:
        file.write(b"x")
    refused("is not the file that was written", "try", changed, "--port", "0")
    lean = tmp_path / "pndm"
    with_scheduler(root, lean, PNDMScheduler(skip_prk_steps=True))
    refused("PNDM", "try", lean, "--backend", "onnx")


def test_without_the_extra(demo_artifact, monkeypatch):
    there = installed.missing
    monkeypatch.setattr(installed, "missing", lambda names=installed.TORCH: ["gradio"] if names == ("gradio",) else there(names))
    refused("gradio is not installed; pip install 'saeuron-export[ui]'", "try", demo_artifact.path)


_WATCHED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
blocked = [name for name in sys.argv.pop(1).split(",") if name]
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
log = open(sys.argv.pop(1), "a", buffering=1)
def hook(event, arguments):
    if event == "socket.connect":
        log.write(f"connect {arguments[1]}\\n")
    elif event == "socket.getaddrinfo":
        log.write(f"name {arguments[0]}\\n")
    elif event == "socket.bind":
        log.write(f"bind {arguments[1]}\\n")
sys.addaudithook(hook)
from saeuron.export.start import main
main()
"""
"""A command that tells a file of every connection, and every name that is looked up; some packages are as if they weren't installed."""


class Served:
    """`saeuron try` in a process of its own, as a user starts it, in an environment that tells gradio to open itself to others."""

    def __init__(self, folder: Path, *arguments: object, blocked: str = "") -> None:
        self.log, self.folder = folder / "connections.txt", folder
        self.log.touch()
        for name in ("tmp", "here", "home"):
            (folder / name).mkdir()
        environment = {
            **{n: v for n, v in os.environ.items() if n not in ("CI", "ORT_DISABLE_TELEMETRY")}, "HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), "GRADIO_SERVER_NAME": "0.0.0.0",
            "GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "HTTP_PROXY": "http://192.0.2.1:9", "http_proxy": "http://192.0.2.1:9",
        }  # fmt: skip
        command = [sys.executable, "-c", _WATCHED, blocked, str(self.log), "try", *map(str, arguments), "--port", "0"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder / "here", env=environment,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stderr is not None
        self.said = self._process.stdout.readline()
        self.address = self.said.partition(" ")[0]
        assert self.address.startswith("http://127.0.0.1:"), self._process.stderr.read()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def end(self) -> str:
        """Ctrl-C; what stderr said."""
        self._process.send_signal(signal.SIGINT)
        out, said = self._process.communicate(timeout=60)
        assert self._process.returncode == 0 and out == "", said
        return said

    def check_alone(self) -> None:
        """Nothing left this machine, nothing was opened to others, nothing lies around afterwards."""
        lines = self.log.read_text().splitlines()
        # A library tries whether the machine knows IPv6.
        assert lines and [line for line in lines if "127.0.0.1" not in line and line != "bind ('::1', 0)"] == []
        # ONNX Runtime's reports, which no hook of Python sees, begin with files there.
        assert [
            path
            for name in ("here", "tmp", "home")
            for path in (self.folder / name).rglob("*")
            if "Microsoft" in str(path) or name != "home"
        ] == []


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return answer.status, answer.headers.get("Content-Security-Policy", "")
    except urllib.error.HTTPError as error:
        return error.code, ""


def attack(path: Path, root: Path) -> Path:
    """An attack whose report nobody should trust: its prompts would be markup, templates and scripts."""
    record = manifest.read(root)
    prompt = f"House ${{alert(1)}} {{{{value}}}} {made_up.HOSTILE}"
    each = {"prompts": [prompt], "each": [{"prompt": prompt, "seed": 17, "shows_concept": True}], "budget": {"pictures": 1}}
    rows = [
        made_up.attack_row("unedited", 1, 1, **each), made_up.attack_row("edited", 1, 1, **each),
        made_up.attack_row("embedding", 1, 1, found={"vectors": [[0.5]]}, **each),
    ]  # fmt: skip
    settings = {"steps": 4, "guidance": 2.5, "report_seeds": [17], "search_seeds": [1]}
    return made_up.attack(
        path, root, settings=settings, concepts={name: {"domain": "style", "rows": rows, "pictures": []} for name in record.concepts}
    )


PICTURES = "document.querySelectorAll('#try-unedited img, #try-edited img, #try-map img').length"
SAID = "document.querySelector('#try-said')?.textContent ?? ''"
PALE = CONTRAST.replace('document.querySelectorAll("', 'document.querySelectorAll("#nothing, ')
FIELD = "document.querySelector({!r}).value"


def put(browser: Browser, selector: str, value: str) -> None:
    """As if it was typed."""
    browser.ask(f"document.querySelector({selector!r}).focus(), document.querySelector({selector!r}).select()")
    browser.send("Input.insertText", text=value)


@pytest.mark.slow
@pytest.mark.skipif(NO_GRADIO, reason="no gradio here")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_in_a_browser(demo_artifact, tmp_path):
    root = demo_artifact.path
    with Served(tmp_path, root, "--attack", attack(tmp_path / "attack.json", root)) as served, Browser() as browser:
        for width, dark in ((390, False), (1280, False), (390, True)):
            browser.open(served.address, width, dark=dark)
            assert browser.becomes("!!document.querySelector('#try-draw')", True, 30)
            text = browser.ask("document.body.innerText")
            for said in ("There is no safety checker", f"served on {served.address[7:-1]}, to this machine only", "Without House, Neon"):
                assert said in text, said
            assert browser.ask(OVERFLOW)[0] <= 0 and browser.ask(PICTURES) == 0
            browser.click("#try-draw")
            assert browser.becomes(PICTURES, 3, 60), browser.messages
            beyond, inner = browser.ask(OVERFLOW)
            assert beyond <= 0 and inner == width
            assert (
                browser.ask(
                    PALE.replace(
                        "h1,h2,h3,p,", ".try-head h1,.try-head p,.try-section h2,.try-section p,.try-notice p,.try-note,.try-said,"
                    )
                )
                == {}
            )
            # Both pictures fit: beside each other where there is room, else below one another.
            boxes = browser.ask(
                "['#try-unedited', '#try-edited'].map((n) => { const r = document.querySelector(n + ' img').getBoundingClientRect(); return [r.left, r.top, r.right]; })"
            )
            assert (boxes[0][1] == boxes[1][1]) == (width == 1280) and all(left >= 0 and right <= width for left, _, right in boxes)
        # The map follows step and concept.
        assert browser.ask(SAID).startswith("Step ") and "features fired at" in browser.ask(SAID)
        number = "#try-step input[type=number]"
        put(browser, number, "2")
        browser.press("Tab")
        assert browser.becomes(f"({SAID}).startsWith('Step 2 of 20, noise level ')", True)
        browser.click("#try-concept label:nth-of-type(2) input")
        assert browser.becomes(f"({SAID}).includes('features of House fired at')", True), browser.ask(SAID)
        # What was found is a text, and fills the fields.
        browser.ask("[...document.querySelectorAll('button')].find((b) => b.innerText.startsWith('House · plain prompt')).id = 'try-found'")
        browser.click("#try-found")
        prompt = f"House ${{alert(1)}} {{{{value}}}} {made_up.HOSTILE}"
        assert browser.becomes(FIELD.format("#try-prompt textarea"), prompt)
        assert browser.ask(FIELD.format("#try-seed input")) == "17"
        browser.click("#try-draw")
        assert browser.becomes(f"({SAID}).includes(' of 4, noise level') && {PICTURES} === 3", True, 60)
        assert prompt in browser.ask("document.body.innerText") and "guidance 2.5" in browser.ask("document.body.innerText")
        # A mistake is a line on the page.
        put(browser, "#try-prompt textarea", " ")
        browser.click("#try-draw")
        assert browser.becomes("document.body.innerText.includes('the prompt is empty; write what to draw')", True)
        assert browser.messages == [] and {r.partition(":")[0] for r in browser.requests} <= {"http", "data"}
        assert {r for r in browser.requests if not r.startswith("data:")} == {r for r in browser.requests if r.startswith(served.address)}
        # Nobody else gets at it: not by a name that leads here, nor files of the machine.
        status, policy = get(served.address)
        assert status == 200 and policy.startswith("default-src 'self' ") and "http" not in policy
        assert (
            get(served.address, Host="evil.example")[0] == 403 and get(f"{served.address}gradio_api/file={root / 'saeuron.json'}")[0] == 403
        )
        said = served.end()
        assert "Traceback" not in said and said.endswith("ended\n")
        served.check_alone()


@pytest.mark.slow
@pytest.mark.skipif(NO_GRADIO, reason="no gradio here")
def test_from_graphs_alone(demo_artifact, tmp_path):
    """Without torch, diffusers and transformers: edited pictures and heat maps, and why there are no others."""
    from gradio_client import Client

    root = demo_artifact.path
    with Served(tmp_path, root, blocked=BLOCKED) as served:
        client = Client(served.address, verbose=False, download_files=False)
        page = json.dumps(client.config["components"])
        assert "Not drawn: it needs torch, diffusers, transformers" in page and "Drawn by ONNX Runtime".lower() in page.lower()
        assert "No attack report is here" in page and read_edit_header(root / "edit" / "edit.safetensors").provenance.prompts[0] in page
        pictures, concept, step, shown, note = client.predict("An image of House in Neon style.", "", 3, 4, 3.0, "Neon", api_name="/draw")
        assert (
            pictures.count("<img") == 1 and "needs torch" in pictures and "of 4, noise level" in shown and "features of Neon fired" in shown
        )
        assert "seed 3, 4 steps, guidance 3" in note and concept["interactive"] and step["maximum"] == 4
        with pytest.raises(Exception, match="seed is -1; it must be 0 to 4294967295"):
            client.predict("A house", "", -1, 5, 3.0, "Neon", api_name="/draw")
        client.close()
        time.sleep(0.5)
        assert "Traceback" not in served.end()
        served.check_alone()
