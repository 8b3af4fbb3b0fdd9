"""`saeuron page`: what it writes, what it refuses, and that its page draws in Chromium what the runner without torch draws."""

import json
import os
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from msgspec.structs import replace as changed
from tests import made_up
from tests.clients.draw_in_chromium import ALARM, SAID, compare, drawn, lean_drawn, opened, served
from tests.conftest import refused, run
from tests.validation.test_page import CONTRAST, OVERFLOW

from saeuron.editor.common.errors import SaeuronError
from saeuron.validation.artifact import manifest
from saeuron.validation.backends.choose import open_networks
from saeuron.validation.backends.lean import LeanPipeline
from saeuron.validation.web import build
from saeuron.validation.web.build import RUNTIME, VERSION, Beside, make_plan, write
from saeuron.validation.web.settings import PageSettings

pytestmark = pytest.mark.slow
ORT = Path(os.environ.get("ORT_WEB", Path(__file__).parents[2] / ".venv-node" / "node_modules" / "onnxruntime-web" / "dist"))
FILES = {"index.html", "page.css", "page.js", "model.js", "noise.js", "text.js", "page.json"}


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written(demo_artifact, tmp_path):
    root, page = demo_artifact.path, tmp_path / "page"
    run("page", root, "--beside", root, "--steps", 7, "--guidance", 1, "-o", page)
    networks = {f"networks/{name}/model.onnx" for name in ("unet", "text_encoder", "vae_decoder", "beside")}
    assert names(page) == FILES | networks
    content = json.loads((page / "page.json").read_text())
    assert len(content["steps"]) == 7 and content["guidance"] == 1 and content["sides"] == [8, 8, 8]
    for name in ("unet", "text_encoder", "vae_decoder"):
        assert (page / "networks" / name / "model.onnx").read_bytes() == (root / name / "model.onnx").read_bytes()
    html = unescape((page / "index.html").read_text())
    cdn = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
    assert {each["url"] for each in content["runtime"].values()} == {cdn + name for name, _ in RUNTIME.values()}
    assert "connect-src 'self' https://cdn.jsdelivr.net;" in html and "Negative prompt" not in html
    assert "Removed: House, Neon. Proven equal to the dynamic hook." in html and f"{root.name} (removed: House, Neon)" in html
    # A page can be made anew, any other folder is left alone.
    refused("exists; choose another --output", "page", root, "-o", page)
    run("page", root, "-o", page, "--overwrite")
    assert "networks/beside/model.onnx" not in names(page)
    (page / "page.json").unlink()
    refused("is no page (page.json is missing)", "page", root, "-o", page, "--overwrite")


def test_text_of_the_artifact_is_text(demo_artifact, tmp_path):
    record = manifest.read(demo_artifact.path)
    hostile = changed(record, concepts=[made_up.HOSTILE], model=changed(record.model, source=made_up.HOSTILE), validation=changed(record.validation, passed=False))  # fmt: skip
    plan = make_plan(demo_artifact.path, hostile, PageSettings())
    (tmp_path / "page").mkdir()
    write(plan, tmp_path / "page", Beside(demo_artifact.path / "unet", f'"{made_up.HOSTILE}'))
    html = (tmp_path / "page" / "index.html").read_text()
    assert made_up.HOSTILE not in html and html.count("<script") == 1 and "It FAILED its proof." in html
    unvalidated = replace(plan, record=changed(record, validation=None))
    shutil.rmtree(tmp_path / "page")
    (tmp_path / "page").mkdir()
    write(unvalidated, tmp_path / "page")
    assert "Not validated." in (tmp_path / "page" / "index.html").read_text()


def test_weights_beside_a_graph_come_along(demo_artifact, tmp_path):
    plan = make_plan(demo_artifact.path, manifest.read(demo_artifact.path), PageSettings())
    other = Path(shutil.copytree(demo_artifact.path / "unet", tmp_path / "unet"))
    (other / "model.onnx_data").write_bytes(b"weights")
    (tmp_path / "page").mkdir()
    write(plan, tmp_path / "page", Beside(other, "other"))
    (data,) = json.loads((tmp_path / "page" / "page.json").read_text())["networks"]["beside"]["data"]
    assert data["name"] == "model.onnx_data" and (tmp_path / "page" / data["url"]).read_bytes() == b"weights"


def test_what_a_page_cannot_draw_is_refused(demo_artifact, xl_artifact, tmp_path):
    root, record, page = demo_artifact.path, manifest.read(demo_artifact.path), tmp_path / "page"

    def plan(message, **changes):
        with pytest.raises(SaeuronError, match=message):
            make_plan(root, changed(record, **changes), PageSettings())

    plan("is in fp16; a page takes networks in fp32 alone", precision="fp16")
    plan("holds no 'onnx'", formats=["checkpoint"])
    plan("a page draws up to 2048", sampling=changed(record.sampling, height=4096, width=4096))
    plan(r"take 3\.\d GiB; a browser's ONNX Runtime takes 2 GiB", files={**record.files, "unet/model.onnx": changed(record.files["unet/model.onnx"], bytes=3 << 30)})  # fmt: skip
    refused("is a StableDiffusionXLPipeline; a page draws with Stable Diffusion 1 and 2 alone", "page", xl_artifact.path, "-o", page)
    refused("no output folder", "page", root)
    refused("scheduler 'pndm' is not known", "page", root, "-o", page, "--scheduler", "pndm")
    refused("lies inside the artifact", "page", root, "-o", root / "page")
    (tmp_path / "ort").mkdir()
    (tmp_path / "ort" / RUNTIME["script"][0]).write_text("another version")
    refused(f"of onnxruntime-web {VERSION}; give the folder dist of that npm package", "page", root, "-o", page, "--ort", tmp_path / "ort")
    # Another UNet of another form, or an artifact of another model.
    (tmp_path / "other" / "unet").mkdir(parents=True)
    shutil.copy(root / "vae_decoder" / "model.onnx", tmp_path / "other" / "unet")
    refused("takes or gives other tensors than", "page", root, "-o", page, "--beside", tmp_path / "other")
    refused("was made from another model than", "page", root, "-o", page, "--beside", xl_artifact.path)
    damaged = shutil.copytree(root, tmp_path / "damaged")
    with (damaged / "unet" / "model.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    refused("is not the file that was written: size or SHA-256 differ", "page", damaged, "-o", page)
    refused("is not the file that was written: size or SHA-256 differ", "page", root, "-o", page, "--beside", damaged)
    assert not page.exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.skipif(not ORT.is_dir(), reason="no onnxruntime-web here: `make test-clients` installs it, or ORT_WEB names its folder dist")
def test_in_a_browser(demo_artifact, tmp_path, monkeypatch):
    root, page = demo_artifact.path, tmp_path / "page"
    run("page", root, "--beside", "demo", "--ort", ORT, "-o", page)
    record, pipeline = manifest.read(root), LeanPipeline(root, open_networks(root, manifest.read(root)))
    with served(page) as address, Browser() as browser:
        opened(browser, address)
        sampling = record.sampling
        for prompt, negative, seed in (("An image of Star.", None, 42), ("An image of House in Neon style.", "Star", 7)):
            noise = pipeline.initial_latents([seed], sampling.height, sampling.width)
            wanted = lean_drawn(pipeline, prompt, noise, sampling.steps, sampling.guidance, negative)
            wish = {"prompt": prompt, **({} if negative is None else {"negative": negative})}
            for given in ({"latents": noise.ravel().tolist()}, {"seed": seed}):
                decibels, distance = compare(drawn(browser, "unet", {**wish, **given}), wanted)
                print(f"{prompt} from {next(iter(given))}: {decibels:.1f} dB, latents {distance:.1e} apart")
        # What must not be taken for the same: the unedited UNet.
        with pytest.raises(AssertionError, match="dB, latents"):
            compare(drawn(browser, "beside", {**wish, "seed": seed}), wanted)
        # By hand, without a mouse; in both widths and colour schemes.
        for width, dark in ((390, True), (1280, False)):
            opened(browser, address, width=width, dark=dark)
            beyond, inner = browser.ask(OVERFLOW)
            assert inner == width and beyond <= 0 and browser.ask(CONTRAST) == {}
        browser.press("Tab", "Tab", "Tab", "Tab")
        assert browser.ask("document.activeElement.id") == "draw"
        browser.press("Enter")
        assert browser.becomes(SAID, "Drawn.", 60), browser.ask(ALARM)
        blank = "[...document.querySelectorAll('canvas')].map((c) => [c.getAttribute('aria-label'), c.getContext('2d').getImageData(0, 0, 32, 32).data.some((v) => v && v < 255)])"
        assert browser.ask(blank) == [[f"{name}: {browser.ask('form.prompt.value')}", True] for name in ("Edited", "Unedited")]
        assert browser.messages == [] and all(r.startswith((address, "blob:", "data:")) for r in browser.requests)
        # A file of another page, and a page of another artifact, are not drawn with.
        (page / "networks" / "unet" / "model.onnx").write_bytes((page / "networks" / "beside" / "model.onnx").read_bytes())
        with pytest.raises(
            AssertionError, match="networks/unet/model.onnx can't be loaded, or is not the file that this page was made with"
        ):
            opened(browser, address)
        (page / "page.json").write_text((page / "page.json").read_text() + " ")
        with pytest.raises(AssertionError, match=r"page\.json can't be loaded, or is not the file"):
            opened(browser, address)
        assert browser.ask("document.getElementById('draw').disabled")

    # From another host, as from the CDN, without guidance; and a step that is a hundredth off.
    cdn = tmp_path / "npm" / f"onnxruntime-web@{VERSION}"
    cdn.mkdir(parents=True)
    (cdn / "dist").symlink_to(ORT)
    with served(tmp_path) as elsewhere, Browser() as browser:
        monkeypatch.setattr(build, "CDN", elsewhere)
        plan = make_plan(root, record, PageSettings(steps=5, guidance=1.0))
        prompt, noise = "An image of Star.", pipeline.initial_latents([3], sampling.height, sampling.width)
        wanted = lean_drawn(pipeline, prompt, noise, 5, 1.0)
        for name, change in (("right", 1.0), ("wrong", 1.01)):
            plan.numbers["steps"][2]["output"] *= change
            (tmp_path / name).mkdir()
            write(plan, tmp_path / name)
            with served(tmp_path / name) as address:
                opened(browser, address)
                found = drawn(browser, "unet", {"prompt": prompt, "seed": 3})
            if name == "right":
                compare(found, wanted)
                assert {r for r in browser.requests if r.startswith(elsewhere)} == {f"{elsewhere}/npm/{cdn.name}/dist/{file}" for file, _ in RUNTIME.values()}  # fmt: skip
            else:
                with pytest.raises(AssertionError, match="dB, latents"):
                    compare(found, wanted)
