"""What runs on a device: `generate` and `validate` where torch, diffusers and transformers can't be imported."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tests.conftest import refused, run
from tests.made_up import rewrite
from tests.validation.test_lean import SD, change
from tests.validation.test_schedulers import with_scheduler

from saeuron.validation.artifact import manifest
from saeuron.validation.backends.lean import LeanPipeline
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.proof.results import NotChecked
from saeuron.validation.proof.validate import validate

PROMPT = "An image of Car in Sunset style."
# In a process of its own: what was asked for is told, and the named packages raise as if they were not installed.
_BARE = """
import sys
blocked = sys.argv.pop(1).split(",")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
if sys.argv[1:] == ["import"]:
    import saeuron.validation.backends.lean
else:
    from saeuron.export.cli import main
    main()
"""
BLOCKED = "torch,diffusers,transformers,scipy,accelerate,onnxscript"


def bare(*arguments, blocked=BLOCKED):
    """Exit code, stdout, stderr of a command."""
    found = subprocess.run([sys.executable, "-c", _BARE, blocked, *map(str, arguments)], capture_output=True, text=True, check=False)
    return found.returncode, found.stdout, found.stderr


@pytest.fixture(scope="module")
def root(demo_artifact):
    return demo_artifact.path


def test_importing_needs_three_packages():
    code = (
        "import sys; import saeuron.validation.backends.lean; "
        "print(sorted({'torch', 'diffusers', 'transformers', 'scipy', 'onnx', 'onnxruntime', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert bare("import") == (0, "", "")


@pytest.mark.slow
def test_generate_imports_no_torch(root, tmp_path):
    code = "import sys\nfrom saeuron.export import cli\ntry:\n    cli.main()\nfinally:\n    print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    for arguments in (
        ["--help"],
        ["generate", "--help"],
        ["generate", str(root), "--prompt", PROMPT, "--steps", "2", "-o", str(tmp_path / "a.png")],
        ["validate", "--help"],
    ):
        found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == "set()", arguments


def test_generate_without_torch(root, tmp_path):
    file = tmp_path / "deep" / "car.png"
    code, stdout, stderr = bare("generate", root, "--prompt", PROMPT, "--seed", 5, "--steps", 4, "--json", "-o", file)
    assert code == 0, stderr
    said = json.loads(stdout)
    assert said["pictures"] == [{"file": str(file), "prompt": PROMPT, "seed": 5}] and said["scheduler"] == "ddim" and said["steps"] == 4
    record = manifest.read(root)
    assert said["guidance"] == record.sampling.guidance and said["edit_sha256"] == record.edit.sha256
    with Image.open(file) as picture:
        assert picture.size == (32, 32) and picture.text["prompt"] == PROMPT and picture.text["seed"] == "5"
        assert picture.text["saeuron:edit_sha256"] == record.edit.sha256
        expected = LeanPipeline(root, OnnxRunner(root))([PROMPT], [5], 4, said["guidance"])[0]
        assert np.array_equal(np.asarray(picture), expected)
    assert [p.name for p in file.parent.iterdir()] == ["car.png"] and [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert "checking files" in stderr and "picture 1 of 1: step 4 of 4" in stderr


@pytest.mark.slow
def test_validate_without_torch(root, tmp_path):
    code, stdout, stderr = bare("validate", root, "--backend", "onnx", "--json")
    assert code == 0, stderr
    proof = json.loads(stdout)
    assert proof["passed"] and list(proof["backends"]) == ["onnx"]
    parts = proof["backends"]["onnx"]
    assert parts["runs"]["loop"] == "lean" and parts["runs"]["rows"] and all(r["conclusive"] for r in parts["runs"]["rows"])
    assert parts["seam"]["passed"] and parts["seam"]["golden_tokens"]["fired"] > 0 and parts["forwards"]["worst"] < 1e-3
    assert [e["check"] for e in proof["not_checked"]] == ["record", "surroundings"] and proof["record"] is None
    assert all("torch, diffusers, transformers" in e["reason"] for e in proof["not_checked"])
    assert "warning: not checked: record (needs torch, diffusers, transformers)" in stderr

    code, stdout, stderr = bare("validate", root)
    assert code == 0 and "proven, as far as it could be checked here" in stdout, stderr
    words = " ".join(stdout.replace("│", " ").split())
    assert "not checked" in words and "surroundings" in words and "loop of validation/backends/lean" in words
    assert "warning: not checked: checkpoint (needs torch" in stderr


@pytest.mark.parametrize(
    ("arguments", "blocked", "message"),
    [
        (["--backend", "checkpoint"], BLOCKED, "backend 'checkpoint' of "),
        (["--model", "demo"], BLOCKED, "is not installed; pip install 'saeuron-export[export]'"),
        ([], BLOCKED + ",onnx", "onnx is not installed, so the graph's inner tensors can't be read"),
        ([], BLOCKED + ",onnxruntime", "ONNX Runtime is not installed"),
    ],
)
def test_what_validate_lacks_is_one_line(root, arguments, blocked, message):
    code, stdout, stderr = bare("validate", root, *arguments, blocked=blocked)
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert code == 2 and stdout == "" and len(lines) == 1 and message in lines[0] and "Traceback" not in stderr, stderr


@pytest.mark.slow
def test_an_altered_scheduler_is_not_proven_without_torch(root, tmp_path, monkeypatch):
    """Free runs fail by the lean loop as they do by diffusers' own."""
    folder = shutil.copytree(root, tmp_path / "copy")
    change(folder / "scheduler" / "scheduler_config.json", timestep_spacing="leading")
    monkeypatch.setattr("saeuron.validation.proof.validate.missing", lambda: ["torch"])
    proof = validate(folder, ["onnx"], check_files=False)
    assert not proof.passed and all("free run" in line for line in proof.failures) and proof.failures
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    proof = validate(folder, ["onnx"], check_files=False)
    assert not proof.passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("saeuron.json", {"concepts": ["Sunset"]}, "the manifest says concepts"),
        ("saeuron.json", {"precision": "fp16"}, "the golden vectors are fp32"),
        ("saeuron.json", {"gate": "threshold"}, "disagree on gate"),
        ("saeuron.json", {"residual": "drop"}, "disagree on residual"),
        ("saeuron.json", {"settings": []}, "the manifest's settings"),
    ],
)
def test_a_manifest_that_says_otherwise_than_the_edit_is_not_proven_without_torch(root, tmp_path, monkeypatch, file, entries, message):
    folder = shutil.copytree(root, tmp_path / "copy")
    change(folder / file, **entries)
    monkeypatch.setattr("saeuron.validation.proof.validate.missing", lambda: ["torch"])
    proof = validate(folder, ["onnx"], check_files=False)
    assert not proof.passed and any(message in line for line in proof.failures), proof.failures


@pytest.mark.slow
def test_free_runs_of_another_scheduler_are_not_checked(root, tmp_path, monkeypatch):
    from diffusers import PNDMScheduler

    folder = with_scheduler(root, tmp_path / "copy", PNDMScheduler(**SD, skip_prk_steps=True))
    monkeypatch.setattr("saeuron.validation.proof.validate.missing", lambda: ["torch"])
    proof = validate(folder, ["onnx"], check_files=False)
    runs = proof.backends["onnx"].runs
    assert runs.passed is None and "PNDMScheduler, which only diffusers runs" in runs.not_checked and not runs.rows
    assert NotChecked(backend="onnx", check="runs", reason=runs.not_checked) in proof.not_checked
    assert proof.passed and proof.backends["onnx"].passed
    from saeuron.validation.proof import report

    assert "not checked" in [str(c) for c in report.table(proof).columns[2]._cells][3]


def test_with_torch_nothing_is_left_out(demo_artifact):
    assert demo_artifact.report.not_checked == []
    assert {parts.runs.loop for parts in demo_artifact.report.backends.values()} == {"diffusers"}


# --- the command


def test_several_pictures(root, tmp_path):
    command = ["generate", root, "--prompt", PROMPT, "--prompt", "An image of House.", "--count", 2, "--steps", 2, "--seed", 3]
    run(*command, "--batch-size", 3, "-o", tmp_path / "out.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"out-{i}.png" for i in range(4)]
    texts = [Image.open(tmp_path / f"out-{i}.png").text for i in range(4)]
    assert [t["seed"] for t in texts] == ["3", "4", "5", "6"] and [t["prompt"] for t in texts] == [PROMPT] * 2 + ["An image of House."] * 2
    run(*command, "-o", tmp_path / "folder")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [f"{i}.png" for i in range(4)]
    for i in range(4):
        a, b = (np.asarray(Image.open(f)).astype(int) for f in (tmp_path / f"out-{i}.png", tmp_path / "folder" / f"{i}.png"))
        assert np.abs(a - b).max() <= 1, "batches change nothing"
    refused("exists; choose another --output", *command, "-o", tmp_path / "folder")
    run(*command, "--overwrite", "-o", tmp_path / "folder")


def test_latents_from_a_file(root, tmp_path):
    noise = LeanPipeline(root, OnnxRunner(root)).initial_latents([9, 10])
    np.save(tmp_path / "a.npy", noise)
    save_file({"latents": noise.astype(np.float32), "other": noise}, tmp_path / "a.safetensors")
    command = ["generate", root, "--prompt", PROMPT, "--steps", 2]
    run(*command, "--latents", tmp_path / "a.npy", "-o", tmp_path / "x.png")
    run(*command, "--latents", tmp_path / "a.safetensors", "-o", tmp_path / "y.png")
    run(*command, "--seed", 9, "--count", 2, "-o", tmp_path / "z.png")
    pictures = {name: [np.asarray(Image.open(tmp_path / f"{name}-{i}.png")) for i in range(2)] for name in "xyz"}
    assert all(np.array_equal(pictures["x"][i], pictures[n][i]) for n in "yz" for i in range(2))
    assert "seed" not in Image.open(tmp_path / "x-0.png").text


def picture(path, width=48, height=32, level=None):
    """A file of noise, or of one grey level."""
    found = (
        np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
        if level is None
        else np.full((height, width), level, np.uint8)
    )
    Image.fromarray(found).save(path)
    return path


def test_pictures_from_a_picture_without_torch(root, tmp_path):
    """The command, with a file that lies on its side, gives what the pipeline gives; a mask of both colours keeps one half."""
    file, half = picture(tmp_path / "in.png"), tmp_path / "mask.png"
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 24, 1).repeat(32, 0)).save(half)
    turned, tag = tmp_path / "turned.png", Image.Exif()
    tag[0x0112] = 6
    Image.open(file).transpose(Image.Transpose.ROTATE_90).save(turned, exif=tag)
    command = ["generate", root, "--prompt", PROMPT, "--steps", 5, "--seed", 7, "--count", 2]
    code, stdout, stderr = bare(*command, "--image", turned, "--strength", 0.5, "--json", "-o", tmp_path / "a.png")
    assert code == 0, stderr
    said = json.loads(stdout)
    assert (said["image"], said["strength"], said["height"], said["width"]) == ("turned.png", 0.5, 32, 48) and "mask" in said
    assert "picture 1 of 2: step 2 of 2" in stderr
    run(*command, "--image", file, "--mask", half, "-o", tmp_path / "b.png")
    lean, pixels = LeanPipeline(root, OnnxRunner(root)), np.asarray(Image.open(file)).transpose(2, 0, 1) / np.float32(127.5) - 1
    whole, part = (
        lean.decode(lean.denoise([PROMPT], noise, 5, said["guidance"], begin=begin))[0]
        for noise, begin in (lean.begin(lean.look(pixels), [8], s, m) for s, m in ((0.5, None), (1.0, np.asarray(Image.open(half)) > 0)))
    )
    for name, wanted in (("a-1", whole), ("b-1", part)):
        with Image.open(tmp_path / f"{name}.png") as made:
            assert np.abs(np.asarray(made).astype(int) - wanted).max() <= 1 and made.text["saeuron:strength"] in ("0.5", "1.0")
    assert np.abs(part.astype(int) - whole).max() > 10


def test_options_change_the_picture(root, tmp_path):
    command = ["generate", root, "--prompt", PROMPT, "--steps", 3]
    found = {}
    for name, options in {
        "plain": [], "negative": ["--negative", "Sunset"], "euler": ["--scheduler", "euler"], "guidance": ["--guidance", 1], "wide": ["--width", 48],
    }.items():  # fmt: skip
        run(*command, *options, "-o", tmp_path / f"{name}.png")
        found[name] = np.asarray(Image.open(tmp_path / f"{name}.png"))
    assert found["wide"].shape == (32, 48, 3)
    assert all(not np.array_equal(found["plain"], found[name]) for name in ("negative", "euler", "guidance"))


def test_what_is_warned_of(root, tmp_path):
    result = run("generate", root, "--prompt", "word " * 40, "--negative", "x", "--guidance", 1, "--steps", 1, "-o", tmp_path / "a.png")
    assert "tokens of 'word word" in result.stderr and "--negative does nothing with this model at guidance 1" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no prompt"),
        (["--prompt", PROMPT, "--count", 0], "--count is 0"),
        (["--prompt", PROMPT, "--count", 10**9], "--count is 1000000000"),
        (["--prompt", PROMPT, "--batch-size", 0], "--batch-size is 0"),
        (["--prompt", PROMPT, "--steps", 0], "--steps is 0"),
        (["--prompt", PROMPT, "--guidance", "nan"], "a finite number"),
        (["--prompt", PROMPT, "--height", 12], "multiple of 8"),
        (["--prompt", PROMPT, "--height", 40], "multiples of 16"),
        (["--prompt", PROMPT, "--width", 2**20], "8 to 8192"),
        (["--prompt", PROMPT, "--seed", -1], "--seed is -1"),
        (["--prompt", PROMPT, "--seed", 2**32 - 1, "--count", 2], "the last of 2 pictures"),
        (["--prompt", PROMPT, "--scheduler", "heun"], "it is ddim or euler"),
        (["--prompt", PROMPT, "--backend", "checkpoint"], "needs torch and diffusers"),
        (["--prompt", PROMPT, "--backend", "tpu"], "not known"),
        (["--prompt", PROMPT, "--device", "tpu"], "it is cpu or cuda"),
        (["--prompt", PROMPT, "--latents", "nowhere.npy"], "is no file"),
        (["--prompt", PROMPT, "--latents", "LATENTS", "--seed", 1], "--seed or --latents, not both"),
        (["--prompt", PROMPT, "--latents", "LATENTS", "--count", 3], "for 1 pictures, --prompt and --count ask for 3"),
        (["--prompt", PROMPT, "--latents", "WHOLE"], "must be floats"),
        (["--prompt", PROMPT, "--latents", "SHAPE"], "this model takes"),
        (["--prompt", PROMPT, "--latents", "PICKLE"], "no array that can be read"),
        (["--prompt", PROMPT, "--output", "a.jpg"], "pictures are PNG"),
        (["--prompt", PROMPT, "--image", "nowhere.png"], "--image 'nowhere.png' is no file"),
        (["--prompt", PROMPT, "--image", "PICKLE"], "is no picture that can be read"),
        (["--prompt", PROMPT, "--image", "CUT"], "is no picture that can be read"),
        (["--prompt", PROMPT, "--image", "ODD"], "height 40: this model's pictures have sides that are multiples of 16"),
        (["--prompt", PROMPT, "--image", "HUGE"], "at most 8192 a side"),
        (["--prompt", PROMPT, "--image", "PICTURE", "--height", 64], "has height 32"),
        (["--prompt", PROMPT, "--image", "PICTURE", "--mask", "ODD"], "is 48x40 pixels, --image"),
        (["--prompt", PROMPT, "--image", "PICTURE", "--mask", "BLACK"], "is nowhere white"),
        (["--prompt", PROMPT, "--image", "PICTURE", "--latents", "LATENTS"], "--image or --latents, not both"),
        (["--prompt", PROMPT, "--image", "PICTURE", "--strength", 0], "--strength is 0"),
        (["--prompt", PROMPT, "--image", "PICTURE", "--strength", 1.5], "--strength is 1.5"),
        (["--prompt", PROMPT, "--image", "PICTURE", "--strength", 0.2, "--steps", 4], "strength 0.2 leaves none of 4 steps"),
        (["--prompt", PROMPT, "--mask", "PICTURE"], "give --image FILE, too"),
        (["--prompt", PROMPT, "--strength", 0.5], "give --image FILE, too"),
    ],
)
def test_bad_input_is_one_line(root, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(OnnxRunner, "session", lambda *_: pytest.fail("a model was opened"))
    files = {name: tmp_path / f"{name}.npy" for name in ("LATENTS", "WHOLE", "SHAPE", "PICKLE")}
    np.save(files["LATENTS"], np.zeros((1, 8, 8, 8), np.float32))
    np.save(files["WHOLE"], np.zeros((1, 8, 8, 8), np.int64))
    np.save(files["SHAPE"], np.zeros((1, 4, 8, 8), np.float32))
    np.save(files["PICKLE"], np.array([{}], dtype=object), allow_pickle=True)
    for name, size in {"PICTURE": (48, 32), "ODD": (48, 40), "HUGE": (8200, 16)}.items():
        files[name] = picture(tmp_path / f"{name}.png", *size)
    files["BLACK"], files["CUT"] = picture(tmp_path / "BLACK.png", level=127), tmp_path / "CUT.png"
    files["CUT"].write_bytes(files["PICTURE"].read_bytes()[:-60])
    before = sorted(os.listdir(tmp_path))
    output = [] if "--output" in options else ["--output", tmp_path / "out.png"]
    refused(message, "generate", root, *(files.get(o, o) for o in options), *output)
    assert sorted(os.listdir(tmp_path)) == before


def test_only_a_unets_graphs_begin_from_a_picture(root, tmp_path, monkeypatch):
    from saeuron.editor.denoisers.unet import UNet
    from saeuron.validation.backends import choose

    command = ["generate", root, "--prompt", PROMPT, "--image", picture(tmp_path / "in.png"), "-o", tmp_path / "out.png"]
    with monkeypatch.context() as patch:
        patch.setattr(UNet, "begins", False)
        refused("a UNet of this kind (StableDiffusionPipeline) can't begin from a picture", *command)
    monkeypatch.setattr(choose, "choose_networks", lambda *_: choose.Way("trt", "sm90"))
    refused("which engines (trt) lack; give --backend onnx", *command)


def test_a_changed_file_is_refused(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "copy")
    with (folder / "unet" / "model.onnx").open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"x")
    refused("is not the file that was written", "generate", folder, "--prompt", PROMPT, "-o", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_nothing_is_left_of_a_run_that_fails(root, tmp_path, monkeypatch):
    calls = []
    decode = LeanPipeline.decode

    def fail(self, latents):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return decode(self, latents)

    monkeypatch.setattr(LeanPipeline, "decode", fail)
    leftover = tmp_path / ".saeuron-generate.partial"  # of a run that was killed
    leftover.mkdir()
    refused("not enough memory", "generate", root, "--prompt", PROMPT, "--steps", 1, "--count", 2, "-o", tmp_path / "new" / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_scheduler_that_only_diffusers_has(root, tmp_path):
    from diffusers import PNDMScheduler

    folder = with_scheduler(root, tmp_path / "copy", PNDMScheduler(**SD, skip_prk_steps=True, prediction_type="v_prediction"))
    rewrite(folder)
    command = ["generate", folder, "--prompt", PROMPT, "--steps", 2, "-o", tmp_path / "a.png"]
    refused("--scheduler ddim or --scheduler euler", *command)
    for kind in ("ddim", "euler"):
        run(*command, "--overwrite", "--scheduler", kind)
        assert Image.open(tmp_path / "a.png").text["saeuron:scheduler"] == kind
