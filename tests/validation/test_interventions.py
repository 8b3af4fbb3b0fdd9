"""Artifacts of every intervention: right ones are proven, and every way of losing an edit, or of changing more, is caught."""

import json
import shutil
from copy import deepcopy as copy_of

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from tests.conftest import HOOKPOINT, made_once, refused, run

from saeuron.editor import demo
from saeuron.editor.denoisers.families import rebuilt
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.edit.edit import Edit
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.artifact import make_artifact
from saeuron.validation.artifact import manifest
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.backends.load import load
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.parity import check_seam
from saeuron.validation.proof.validate import GOLDEN, validate
from saeuron.validation.trust.agreement import check_said
from saeuron.validation.trust.record import check_record
from saeuron.validation.trust.verify import verify

pytestmark = pytest.mark.slow
KINDS = ("weights", "weights+multiply", "weights+project")
AT_BLOCKS = (
    "multiply",
    "multiply gain=token",
    "zero",
    "clamp",
    "replace",
    "replace replace_by=mean spread=1",
    "project",
    "project norm=kept",
    "weights+clamp",
    "weights+project",
    "weights+probe",
    "weights+probe norm=kept",
)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def made(factory, kind, precision="fp32"):
    becomes = ("Heart",) if {"weights", "project"} & {*kind.split("+")} else ()
    kind, *told = kind.split()
    how = {key: int(value) if value.isdigit() else value for key, value in (pair.split("=") for pair in told)}
    settings = {
        "concepts": ("Star",),
        "intervention": kind,
        **how,
        "proof": "short",
        "steps": 4,
        "precision": precision,
        "becomes": becomes,
    }
    return made_once(
        factory, "-".join([kind, *told, precision]), lambda output: make_artifact(resolve(Settings(output=output, **settings)))
    ).path


@pytest.fixture(scope="module", params=KINDS)
def right(request, tmp_path_factory):
    return made(tmp_path_factory, request.param)


@pytest.fixture
def copy(right, tmp_path):
    shutil.copytree(right, tmp_path / "copy")
    return tmp_path / "copy"


def record_of(root):
    return check_record(root, manifest.read(root), Golden.load(root / GOLDEN))


def failed(root):
    """Failures of a proof by behaviour and record, as if the manifest's hashes had been made anew."""
    proof = validate(root, check_files=False)
    assert not proof.passed
    return "\n".join(proof.failures)


def changed(root):
    """The weights on record, in the order of the file."""
    return list(manifest.read(root).edit.weights)


def spoiled(root, change):
    """Write other weights into checkpoint and graph; the originals' too are named as the checkpoint names them."""
    tensors = {k: v.copy() for k, v in load_file(root / WEIGHTS).items()}
    before = {name: tensors[name].copy() for name in changed(root)}
    original = {n: p.detach().numpy() for n, p in load_pipeline("demo").unet.named_parameters()}
    change(tensors, original)
    save_file(tensors, root / WEIGHTS, metadata={"format": "pt"})
    path = root / "unet" / "model.onnx"
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        held = numpy_helper.to_array(tensor)
        for name, value in before.items():
            turned = next((t for t in (value, value.T) if held.shape == t.shape and np.array_equal(held, t)), None)
            if turned is not None:
                new = tensors[name] if turned is value else tensors[name].T
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), tensor.name))
    onnx.save(graph, path)


def nothing(tensors, original):
    for name in list(tensors):
        if name in original and ".attn2.to_" in name and name.endswith(("k.weight", "v.weight")):
            tensors[name] = original[name]


def keys_alone(tensors, original):
    for name in list(tensors):
        if name.endswith(".attn2.to_v.weight"):
            tensors[name] = original[name]


def one_left(tensors, original):
    name = next(n for n in tensors if n.endswith(".attn2.to_k.weight"))
    tensors[name] = original[name]


def one_element(tensors, original):
    name = next(n for n in tensors if n.endswith(".attn2.to_v.weight"))
    tensors[name][0, 0] += 1e-4


def half_of_it(tensors, original):
    for name in list(tensors):
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
            tensors[name] = (tensors[name] + original[name]) / 2


@pytest.mark.parametrize("spoil", [nothing, keys_alone, one_left, one_element, half_of_it])
def test_weights_that_are_not_the_edits_fail(copy, spoil):
    spoiled(copy, spoil)
    found = failed(copy)
    assert "checkpoint: " in found and "weights of unet are not the original's" in found
    if spoil in (nothing, keys_alone, half_of_it):  # by behaviour, too, as an engine would have to show it
        for backend in ("checkpoint", "onnx"):
            assert f"{backend}: the network differs from the hook by" in found, found
    assert any("edited weights are not those on record" in line for line in verify(copy)["failures"]) or not verify(copy)["verified"]


def test_more_than_the_edit_is_caught(copy):
    def more(tensors, original):
        name = next(n for n in tensors if n.endswith(".attn1.to_k.weight"))
        tensors[name] = tensors[name] * np.float32(1.0001)

    spoiled(copy, more)
    assert any("attn1.to_k.weight" in line for line in record_of(copy))


def test_the_right_one_is_proven_and_says_what_changed(right):
    proof = validate(right)
    assert proof.passed, proof.failures
    record = manifest.read(right)
    unet = load_pipeline("demo").unet
    names = [n for n, _ in unet.named_parameters() if n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))]
    assert changed(right) == names and all(c.before != c.after for c in record.edit.weights.values())
    weights = [s for s in record.settings if s.intervention == "weights"]
    assert [(s.name, s.hookpoint, s.becomes) for s in weights] == [("Star", "", "Heart")]
    alone = not record.edit.hookpoints
    for backend in proof.backends.values():
        assert (backend.seam.passed is None) == alone == backend.seam.alone and (alone or backend.seam.golden_tokens.fired > 0)
    card = (right / "README.md").read_text()
    assert "its words become 'Heart'" in card and ("trust_remote_code" in card) != alone
    by_sae = any(s.intervention == "multiply" for s in record.settings)
    assert ("SAE's licence" in card) == ("chosen features and their tables" in card) == by_sae
    assert ("Residual: " in card) != alone == ("no edited tokens" in card)
    told = run("validate", right, "--model", "demo").stdout
    assert "proven" in told and "as far as" not in told
    page = right.with_name("page.html")
    run("report", right, "--output", page, "--overwrite")
    assert ("sparse autoencoder" in page.read_text()) == ("multiply" in "+".join(s.intervention for s in record.settings))
    assert verify(right)["verified"] and json.loads((right / "validation" / "report.json").read_text())["passed"]


def test_of_weights_alone_it_opens_with_nothing_of_ours(tmp_path_factory, tmp_path):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    root = made(tmp_path_factory, "weights")
    assert not list((root / "unet").glob("*.py"))
    pipeline = StableDiffusionPipeline.from_pretrained(root)
    assert type(pipeline.unet) is UNet2DConditionModel
    new = Edit.load(root / "edit" / "edit.safetensors").weights.changed(load_pipeline("demo").unet)
    assert all(torch.equal(pipeline.unet.get_parameter(n), v) for n, v in new.items())
    refused("already carries an edit", "export", "--concepts", "Neon", "--model", root, "-o", tmp_path / "again", "--dry-run")


def halved(module):
    module.gains.sub_(1).div_(2).add_(1)
    if not module.replace_by:
        module.offsets.div_(2)


def undone(module):
    module.gains.fill_(1)
    if not module.replace_by:
        module.offsets.zero_()


def other_rows(module):
    module.decoder_weight.copy_(module.decoder_weight.roll(1, 0))


def other_rule(module):
    module.replace_by = {"nearest": "mean", "mean": "nearest"}[module.replace_by]


def other_spread(module):
    module.spread += 1


def mirrored_places(module):
    module.seam_places.register_forward_hook(lambda m, args, output: output * -1)


def wider_than_high(module):
    module.seam_places.register_forward_hook(lambda m, args, output: output * torch.tensor([3.0, 1.0]))


def gain_by_mean(module):
    module.gain = "mean"


def norm_of_all(module):
    """The norm of every latent, not of the k largest alone."""
    kept = []
    module.register_forward_pre_hook(lambda m, args: kept.append(args[0]))

    def by_token(_, rows):
        z = torch.nn.functional.linear(kept[-1] - module.pre_bias, module.encoder_weight, module.encoder_bias).relu()
        return type(module).by_token(module, z.float(), rows)

    module.by_token = by_token


def norm_of_encoder_rows(module):
    module.by_token = lambda kept, rows: type(module).by_token(module, kept, module.encoder_weight[module.features].float())


def norms_of_other_rows(module):
    module.by_token = lambda kept, rows: type(module).by_token(module, kept, rows.roll(1, 0))


def norm_of_no_row(module):
    module.by_token = lambda kept, rows: type(module).by_token(module, kept, torch.ones(len(rows), 1))


def norm_of_what_comes_out(module):
    module.norm = "free"


def a_step_off(module):
    for name in module.TABLES:
        getattr(module, name).copy_(getattr(module, name).roll(1, 0))


def other_encoder(module):
    module.encoder_weight.copy_(-module.encoder_weight)


@pytest.mark.parametrize(
    ("kind", "precision"), [(kind, "fp16") for kind in AT_BLOCKS] + [(kind, "fp32") for kind in AT_BLOCKS if "=" in kind]
)
def test_what_acts_at_blocks_is_proven_and_a_wrong_one_is_caught_at_the_seam(kind, precision, tmp_path_factory):
    root = made(tmp_path_factory, kind, precision)
    proof = validate(root, backends=("checkpoint", "onnx"))
    assert proof.passed, proof.failures
    assert all(b.seam.golden_tokens.fired > 0 for b in proof.backends.values())
    golden, pipeline = Golden.load(root / GOLDEN), load(root)
    replaces = "replace" in kind
    own = (other_rule, other_spread, mirrored_places, wider_than_high) if replaces else (other_rows,)
    own += (gain_by_mean, norm_of_all, norm_of_encoder_rows) if "token" in kind else (norm_of_what_comes_out,) if "kept" in kind else ()
    for change in (halved, undone, a_step_off, other_encoder, *own):
        # The mean is the same from wherever places are counted; and no farther out of a picture's first rows.
        if change in (mirrored_places, wider_than_high) and "mean" in kind:
            continue
        wrong = copy_of(pipeline.unet)
        for module in wrong.ablations.values():
            change(module)
        found = check_seam(golden, TorchRunner(rebuilt(pipeline, unet=wrong)))
        assert not found.passed, (change.__name__, found)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("residual", ["keep", "upstream"])
def test_a_gain_by_token_goes_by_its_own_decoder_row(residual, precision, tiny, tmp_path_factory):
    """On an SAE whose rows differ in length: the demo's are all of length 1."""

    def artifact(output):
        shutil.copytree(tiny["sae"], sae := output.with_name("sae"))
        (file,) = sae.rglob("*.safetensors")
        held = load_file(file)
        held["W_dec"] *= np.linspace(0.5, 2.0, len(held["W_dec"]), dtype=np.float32)[:, None]
        save_file(held, file)
        settings = {
            "concepts": ("A",), "model": tiny["model"], "sae": str(sae), "activations": tiny["activations"], "hookpoint": HOOKPOINT, "select": "count:20",
            "multiplier": -0.5, "gain": "token", "steps": 3, "proof": "short", "precision": precision, "residual": residual,
        }  # fmt: skip
        return make_artifact(resolve(Settings(output=output, **settings)))

    root = made_once(tmp_path_factory, f"uneven-{residual}-{precision}", artifact).path
    proof = validate(root, backends=("checkpoint", "onnx"))
    assert proof.passed, proof.failures
    golden, pipeline = Golden.load(root / GOLDEN), load(root)
    for change in (gain_by_mean, norm_of_all, norms_of_other_rows, norm_of_no_row, norm_of_encoder_rows, halved, a_step_off):
        wrong = copy_of(pipeline.unet)
        for module in wrong.ablations.values():
            change(module)
        found = check_seam(golden, TorchRunner(rebuilt(pipeline, unet=wrong)))
        assert not found.passed, (change.__name__, found)


@pytest.mark.parametrize("kind", KINDS)
def test_in_sixteen_bits_it_is_proven_and_lost_weights_are_caught(kind, tmp_path_factory, tmp_path):
    root = made(tmp_path_factory, kind, "fp16")
    assert validate(root).passed
    shutil.copytree(root, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / WEIGHTS)
    original = load_pipeline("demo").unet.half().state_dict()
    for name in changed(root):
        tensors[name] = original[name].numpy()
    save_file(tensors, tmp_path / "copy" / WEIGHTS, metadata={"format": "pt"})
    found = failed(tmp_path / "copy")
    assert "checkpoint: the network differs from the hook" in found and "onnx: the network differs" not in found


def rewritten(root, change):
    content = json.loads((root / manifest.NAME).read_text())
    change(content["edit"]["weights"])
    (root / manifest.NAME).write_text(json.dumps(content))
    return manifest.read(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, "disagree on whether weights are edited"),
        (lambda held: held.popitem(), "doesn't name exactly"),
        (lambda held: held.__setitem__("conv_in.weight", {"before": "0", "after": "1"}), "another digest for 'conv_in.weight'"),
        (lambda held: next(iter(held.values())).update(after="0"), "another digest for"),
        (lambda held: next(iter(held.values())).update(before=next(iter(held.values()))["after"]), "whose value stayed"),
    ],
)
def test_a_record_that_says_otherwise_is_caught_without_torch(copy, change, message):
    record = rewritten(copy, change)
    assert any(message in line for line in check_said(copy, record, Golden.load(copy / GOLDEN))), message


def test_two_concepts_at_once_and_no_part_of_an_edit(tmp_path):
    out = tmp_path / "two"
    run(
        "export",
        "--concepts",
        "Star,Neon",
        "--intervention",
        "weights",
        "--becomes",
        "Star=Car",
        "--format",
        "checkpoint",
        "--proof",
        "short",
        "-o",
        out,
    )
    edit = Edit.load(out / "edit" / "edit.safetensors")
    assert edit.weights.becomes == {"Star": "Car", "Neon": "plain"} and "Star" not in edit.weights.preserved
    assert manifest.read(out).sampling.steps == demo.STEPS


def test_what_can_not_be_taken_apart_is_refused_before_anything_is_drawn(tmp_path_factory, tmp_path):
    root = made(tmp_path_factory, "weights")
    refused("solved for all of its concepts at once", "evaluate", root, "--model", "demo", "--sequential", "--output", tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_the_nearest_is_one_that_stays(tmp_path):
    """Umbrella alone becomes Cactus; where Cactus is removed too, something else."""
    said = {}
    for concepts in ("Umbrella", "Umbrella,Cactus"):
        for kind in ("weights", "project"):
            out = tmp_path / f"{concepts}-{kind}"
            run(
                "export", "--concepts", concepts, "--intervention", kind, "--format", "checkpoint", "--no-validate", "--steps", 2, "-o", out
            )
            said[concepts, kind] = {s.name: s.becomes for s in manifest.read(out).settings}
    assert said["Umbrella", "weights"] == said["Umbrella", "project"] == {"Umbrella": "Cactus"}
    both = said["Umbrella,Cactus", "weights"]
    assert both == said["Umbrella,Cactus", "project"] and not set(both.values()) & {"Umbrella", "Cactus"}


def test_what_can_not_be_meant(tmp_path):
    out = ("-o", tmp_path / "o", "--dry-run")
    for message, concepts, *options in (
        ("'wieghts'", "Star", "wieghts"),
        ("names a part twice", "Star", "weights+weights"),
        ("do different things to the same blocks", "Star", "zero+project"),
        ("there may be nothing left to replace", "Star", "weights+replace"),
        ("it can't become Car, which is removed too", "Star,Car", "weights", "Star=Car"),
        ("not all of its prompts say 'in Star style'", "Star", "weights", "plain"),
        ("doesn't name it, so 'a hat' can't stand", "nudity", "weights", "a hat"),
        ("--becomes is given twice for 'Star'", "Star", "weights", "Star=Car", "Star=Boat"),
        ("--becomes is for interventions weights and project", "Star", "multiply", "Car"),
    ):
        becomes = [part for text in options[1:] for part in ("--becomes", text)]
        refused(message, "export", "--concepts", concepts, "--intervention", options[0], *becomes, *out)
    refused(
        "multiplier above 1 (1.5) strengthens", "export", "--concepts", "Star", "--intervention", "project", "--multiplier", "1.5", *out
    )
    project = ("export", "--concepts", "Star", "--intervention", "project")
    for strength, why in (("1", "changes nothing"), ("0.9999999999", "changes nothing"), ("-1e30", "no strength that a model bears")):
        refused(why, *project, f"--multiplier={strength}", *out)
    refused("is not in this UNet", "export", "--concepts", "Star", "--intervention", "project", "--hookpoint", "up_blocks.9", *out)
    refused("it must be 0 to 64", "export", "--concepts", "Star", "--intervention", "replace", "--spread", 65, *out)
    refused("'nearst'", "export", "--concepts", "Star", "--intervention", "replace", "--replace-by", "nearst", *out)
    refused("needs residual 'keep'", "export", "--concepts", "Star", "--intervention", "replace", "--residual", "drop", *out)
    refused(
        "take --gate exact", "export", "--concepts", "Star", "--intervention", "multiply", "--gain", "token", "--gate", "threshold", *out
    )
    refused("'kep'", "export", "--concepts", "Star", "--intervention", "project", "--norm", "kep", *out)
    refused("'tokens'", "export", "--concepts", "Star", "--intervention", "multiply", "--gain", "tokens", *out)
    refused("--start is for", "export", "--concepts", "Star", "--intervention", "weights", "--start", 500, *out)
    refused("leaves no timestep", "export", "--concepts", "Star", "--intervention", "replace", "--start", 0, *out)
    refused("looks at timesteps", "export", "--concepts", "Star", "--start", 300, "--proof", "short", *out)
    (tmp_path / "s.toml").write_text(
        '[[concepts]]\nname = "Star"\nintervention = "replace"\n[[concepts]]\nname = "Umbrella"\nintervention = "replace"\nspread = 1\n'
    )
    refused("edited by nearest and by nearest, spread 1", "export", "--settings", tmp_path / "s.toml", *out)
    (tmp_path / "twice.toml").write_text('[[concepts]]\nname = "Star"\nmultiplier = -1\n[[concepts]]\nname = "Star"\nmultiplier = -30\n')
    refused("two [[concepts]] tables are named 'Star'", "export", "--settings", tmp_path / "twice.toml", *out)
    refused("project or probe and an SAE can't act", "export", "--settings", tmp_path / "s.toml", "--concepts", "Star,Car", *out)
    (tmp_path / "s.toml").write_text(
        '[[concepts]]\nname = "Star"\nintervention = "replace"\n[[concepts]]\nname = "Car"\nintervention = "multiply"\n'
    )
    refused("an SAE's gains and replace can't act", "export", "--settings", tmp_path / "s.toml", *out)
    refused("--edit and --intervention both say", "export", "--edit", tmp_path / "e", "--intervention", "weights", *out)
    assert not (tmp_path / "o").exists()


def test_a_config_that_replaces_otherwise_is_caught_without_torch(tmp_path_factory, tmp_path):
    root = shutil.copytree(made(tmp_path_factory, "replace replace_by=mean spread=1", "fp16"), tmp_path / "copy")
    config = json.loads((root / "unet" / "config.json").read_text())
    for change in ({"replace_by": "nearest"}, {"spread": 0}, {"replace_by": ""}, {"gain": "token"}, {"norm": "kept"}):
        hookpoints = {h: {**shape, **change} for h, shape in config["ablation"]["hookpoints"].items()}
        (root / "unet" / "config.json").write_text(json.dumps({**config, "ablation": {**config["ablation"], "hookpoints": hookpoints}}))
        assert any("disagree on how tokens are edited" in line for line in check_said(root, manifest.read(root), None)), change


def test_a_dry_run_collects_nothing_and_says_what_would_be(tmp_path):
    from saeuron.editor.features import cache

    options = ("export", "--concepts", "Star", "--intervention", "project", "--becomes", "a boat", "--dry-run", "-o", tmp_path / "o")
    said = run(*options).stdout
    assert "collect    activations of Star and a boat" in said and "saeuron_edit_" in said
    assert not list(cache.root().rglob("*.safetensors"))
    alone = run("export", "--concepts", "Star", "--intervention", "weights", "--dry-run", "-o", tmp_path / "o").stdout
    assert "collect " not in alone and "saeuron_edit_" not in alone


def test_tuned_settings_of_project_say_what_they_are_and_stay_tuned_only_as_they_are(tmp_path):
    """As tune writes them: the SAE and its activations stay the preset's, and other options make them untuned."""
    from saeuron.export.plan.concept_tables import settings_table, write_tables

    plan = resolve(Settings(("Star",), tmp_path / "o", intervention="project"))
    table = settings_table(plan, "Star", plan.wishes, "tuned", {"select": "count:4", "multiplier": -5.0, "intervention": "project"})
    assert (
        table["sae"] == "demo:saes"
        and table["mean_tokens"].startswith("demo:mean-")
        and table["activations"] == "demo:object-{hookpoint}.safetensors"
    )
    write_tables(tmp_path / "s.toml", [table], "x")

    def statuses(**changes):
        found = resolve(Settings((), tmp_path / "o", settings=tmp_path / "s.toml", **changes))
        return {w.status for w in (*found.wishes, *found.weights)}

    assert statuses() == {"tuned"}
    for change in ({"intervention": "weights+project"}, {"intervention": "multiply"}, {"becomes": ("House",)}, {"multiplier": -4.0}):
        assert statuses(**change) == {"untuned"}, change


def test_the_card_says_of_each_concept_what_was_done(tmp_path):
    (tmp_path / "s.toml").write_text(
        '[[concepts]]\nname = "Star"\nintervention = "weights"\n[[concepts]]\nname = "Neon"\nintervention = "project"\nmultiplier = -1.5\n'
    )
    run("export", "--settings", tmp_path / "s.toml", "--format", "checkpoint", "--no-validate", "--steps", 2, "-o", tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert "**Star**, by giving the words" in card and "; **Neon**, by taking the direction" in card
    assert "sparse" not in card and "SAE's licence" not in card


def test_what_would_be_without_effect_is_refused(tmp_path):
    out = ("export", "--concepts", "Star", "-o", tmp_path / "o")
    for options in (
        ("weights", "--multiplier", "-3"), ("weights", "--hookpoint", "up_blocks.1.attentions.0"), ("weights", "--gate", "threshold"),
        ("weights", "--residual", "drop"), ("weights", "--activations", tmp_path), ("project", "--sae", tmp_path), ("project", "--select", "count:3"),
        ("probe", "--sae", tmp_path), ("probe", "--becomes", "Car"),
        ("zero", "--multiplier", "-3"), ("replace", "--multiplier", "-3"), ("zero", "--replace-by", "mean"), ("project", "--spread", 1), ("zero", "--gain", "token"),
        ("project", "--gain", "token"), ("weights", "--norm", "kept"), ("multiply", "--norm", "kept"), ("weights", "--start", 500),
    ):  # fmt: skip
        refused(f"{options[1]} is for", *out, "--intervention", *options)
    weights = (*out, "--intervention", "weights", "--becomes")
    refused("nothing is said of 'Star'", *weights, "Star=")
    refused("can't become itself", *weights, "Star")
    refused("what concept 'Star' becomes: the prompt", *weights, "very " * 90)
    refused("is the same once it is about star", *weights, "star")
    assert not (tmp_path / "o").exists()


def test_what_a_preset_says_of_an_sae_is_nothing_to_the_others():
    for kind, residual in (("project", "keep"), ("probe", "keep"), ("weights", "keep"), ("weights+zero", "upstream")):
        assert resolve(Settings(concepts=("Cats",), model="demo", intervention=kind)).residual == residual


@pytest.mark.parametrize(
    "kind", ["multiply", "zero", "replace", "project", "probe", "weights", "weights+project", "weights+probe", "weights+clamp"]
)
def test_the_setting_that_there_is_takes_part_once_and_is_the_record_of_its_artifact(kind, tmp_path):
    from saeuron.export.plan.tuning import _before
    from saeuron.validation.tuning.candidates import grid

    plan = resolve(Settings(("Star",), tmp_path / "o", intervention=kind), apart=True)
    settings = [*(w.setting("Heart") for w in plan.weights), *(w.setting for w in plan.wishes)]
    before = _before("Star", plan)
    assert before.parts == {(s.intervention, s.hookpoint, s.select, s.multiplier, s.how, s.start) for s in settings}
    assert before in grid("Star", [before.hookpoints], [before.select or "count:1"], [before.multiplier], [kind])
