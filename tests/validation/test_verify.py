"""Every change to an artifact's files is found, by a check that runs no model; what an artifact says of itself is not believed."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import made_up
from tests.conftest import HOOKPOINT, made_once, make_sae, refused, run
from tests.export.test_artifact import settings
from tests.export.test_without_torch import bare

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import file_sha256
from saeuron.editor.common.typed import strict_json
from saeuron.editor.edit.ablated_kinds import AblatedUNet2DConditionModel
from saeuron.editor.edit.edit import Edit
from saeuron.editor.features.concepts import presets
from saeuron.editor.features.prompt_sets import prompts_of
from saeuron.validation.artifact import manifest
from saeuron.validation.artifact.concepts import NAME as CONCEPTS
from saeuron.validation.artifact.concepts import ConceptsFile
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.proof.validate import validate
from saeuron.validation.trust import tables
from saeuron.validation.trust.record import _check_concepts
from saeuron.validation.trust.verify import EDIT, GOLDEN, verify


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """A tiny artifact, checkpoint and ONNX, proven."""
    from saeuron.export.ship.stages import export_artifact

    made = made_once(
        tmp_path_factory, "verify", lambda path: export_artifact(settings(tiny, path, formats=("checkpoint", "onnx"), proof_prompts=("a",)))
    )
    assert made.proven, made.report["failures"]
    return made.path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def files_of(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def failures(root, **options):
    found = verify(root, **options)
    assert found["verified"] == (not found["failures"])
    assert all("\n" not in line for line in found["failures"])
    return found["failures"]


def change(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def rewrite(root, **changes):
    """Say in the manifest what is there now, as whoever tampers would."""
    made_up.rewrite(root, **changes)


def test_a_whole_artifact_verifies(whole):
    found = verify(whole)
    assert found["verified"] and found["failures"] == [] and found["not_checked"] == [] and found["signature"] == "none"
    assert found["files"] == len(files_of(whole)) - 1 and found["manifest_sha256"] == file_sha256(whole / manifest.NAME)


def test_one_flipped_bit_in_any_file(whole, copy):
    """Also in the manifest, in whatever field: it holds a hash of itself."""
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    flips = 0
    for name in files_of(whole):
        original = (whole / name).read_bytes()
        for _ in range(60 if name == manifest.NAME else 2):
            bit = draw.randrange(8 * len(original))
            changed = bytearray(original)
            changed[bit // 8] ^= 1 << bit % 8
            (copy / name).write_bytes(changed)
            lines = failures(copy)
            assert lines and any(name in line for line in lines), (seed, name, bit, lines)
            flips += 1
        (copy / name).write_bytes(original)
    assert flips > 100 and failures(copy) == []


def test_truncated_missing_renamed_and_extra_files(whole, copy):
    for name in files_of(whole):
        if name == manifest.NAME:
            continue
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])
        assert any(f"'{name}' is not the file" in line for line in failures(copy)), name
        (copy / name).rename(copy / f"{name}.old")
        lines = failures(copy)
        assert any(f"'{name}' is missing" in line for line in lines) and any(f"'{name}.old' is not on record" in line for line in lines)
        (copy / f"{name}.old").unlink()
        (copy / name).write_bytes(content)
    extra = copy / "unet" / "notes.txt"
    extra.write_text("hello")
    assert failures(copy) == ["'unet/notes.txt' is not on record in saeuron.json; a loader could take it for part of the model: remove it"]


def test_every_failure_has_its_own_line(copy):
    for name in ("README.md", "vae/config.json"):
        (copy / name).write_text("{}")
    (copy / EDIT).unlink()
    assert len(failures(copy)) == 3


def stock_names(root):
    """The first convolution under the names that stock loaders know."""
    path = root / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.bias"]
    tensors |= {f"conv_in.{part}": tensors.pop(f"edited_conv_in.{part}") for part in ("weight", "bias")}
    save_file(tensors, path, metadata={"format": "pt"})


def stock_config(root):
    change(
        root / "unet" / "config.json",
        lambda c: c.update(mid_block_type=c["ablation"]["stock"], _class_name="UNet2DConditionModel"),
    )


def no_auto_map(root):
    change(root / "unet" / "config.json", lambda c: c.pop("auto_map"))


@pytest.mark.parametrize(
    ("tamper", "said"),
    [(stock_names, "conv_in lies under stock names"), (stock_config, "'mid_block_type' is"), (no_auto_map, "'auto_map' is None")],
)
def test_measures_against_other_loaders_that_were_taken_out(copy, tamper, said):
    tamper(copy)
    rewrite(copy)
    assert any(said in line for line in failures(copy)), failures(copy)


def test_the_sentinel_is_the_class_s():
    from saeuron.editor.edit.ablated_network import SENTINEL
    from saeuron.validation.trust import shipped_class

    assert shipped_class.SENTINEL == SENTINEL


@pytest.mark.parametrize("name", ["decoder_weight", "encoder_bias", "surplus"])
def test_an_edit_switched_off_whose_hashes_were_all_made_to_fit(copy, name):
    """Tables as they were, so that only the digests of the SAE in the golden vectors tell."""
    path, config = copy / "unet" / "diffusion_pytorch_model.safetensors", json.loads((copy / "unet" / "config.json").read_text())
    tensors = load_file(path)
    key = next(k for k in tensors if k.startswith("ablations.") and k.endswith("decoder_weight" if name == "surplus" else name))
    if name == "surplus":
        tensors[key.replace("decoder_weight", "latent_thresholds")] = torch.full((3,), 3e38)
    else:
        tensors[key].fill_(-1e9 if name == "encoder_bias" else 0)
    save_file(tensors, path, metadata={"format": "pt"})
    config["ablation"]["sha256"] = tables.ablation_sha256(config["ablation"], tables.edit_tensors(copy / "unet"))
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    record = json.loads((copy / manifest.NAME).read_text())
    rewrite(copy, edit={**record["edit"], "tensors_sha256": config["ablation"]["sha256"]})
    found = failures(copy)
    assert found == [line for line in found if "weights of the edit" in line or "no SAE gave" in line] and found


def test_another_k_whose_hashes_were_made_to_fit(copy):
    config = json.loads((copy / "unet" / "config.json").read_text())
    for part in config["ablation"]["hookpoints"].values():
        part["k"] = 1
    config["ablation"]["sha256"] = tables.ablation_sha256(config["ablation"], tables.edit_tensors(copy / "unet"))
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    record = json.loads((copy / manifest.NAME).read_text())
    rewrite(copy, edit={**record["edit"], "tensors_sha256": config["ablation"]["sha256"]})
    assert any("'k' of" in line for line in failures(copy))


def weaken(root, name, edit):
    path = root / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if k.startswith("ablations.") and k.endswith(name))
    edit(tensors[key])
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["gains", "offsets", "thresholds", "encoder_weight", "decoder_weight", "encoder_bias"])
def test_a_weakened_edit_in_the_tensors(copy, name):
    """The manifest is made to fit: only the edit on record tells."""
    weaken(copy, name, lambda t: t.view(-1)[3].fill_(7))
    rewrite(copy)
    assert any(line.startswith("checkpoint: ") for line in failures(copy))


def test_a_removed_edit_tensor(copy):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.endswith("gains")}, path)
    rewrite(copy)
    assert any("'gains'" in line for line in failures(copy))


def test_weakened_tables_whose_hashes_were_made_to_fit(copy):
    """Whoever changes the tensors, their hash in the config and in the manifest still disagrees with the edit's own file."""
    weaken(copy, "gains", lambda t: t.fill_(1))
    held = tables.edit_tensors(copy / "unet")
    config = json.loads((copy / "unet" / "config.json").read_text())
    config["ablation"]["sha256"] = tables.ablation_sha256(config["ablation"], held)
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    record = json.loads((copy / manifest.NAME).read_text())
    rewrite(copy, edit={**record["edit"], "tensors_sha256": config["ablation"]["sha256"]})
    assert any("the table 'gains'" in line for line in failures(copy))


def test_a_weakened_edit_in_the_graph(copy):
    import onnx
    from onnx import numpy_helper

    path = copy / "unet" / "model.onnx"
    model = onnx.load(path)
    (part,) = Edit.load(copy / EDIT).hookpoints.values()
    gains = part.gains.numpy()
    for tensor in model.graph.initializer:
        if list(tensor.dims) == list(gains.shape) and np.array_equal(numpy_helper.to_array(tensor), gains):
            tensor.CopyFrom(numpy_helper.from_array(np.ones_like(gains), tensor.name))
    onnx.save(model, path)
    rewrite(copy)
    assert any("onnx: the table 'gains'" in line for line in failures(copy))


@pytest.mark.parametrize("kept", [True, False])
def test_a_graph_that_goes_around_its_edit(copy, kept):
    """Whatever reads the edited map reads the unedited one; the edit's nodes stay, with nobody who reads what they give."""
    import onnx

    path = copy / "unet" / "model.onnx"
    graph = (model := onnx.load(path)).graph
    (parts,) = json.loads((copy / manifest.NAME).read_text())["onnx"]["seams"].values()
    readers = {name: node for node in reversed(graph.node) for name in node.input}
    last = parts["fires"]
    while (node := readers[last]).op_type != "Add":
        last = node.output[0]
    (unedited,) = set(node.input) - {last}
    for other in graph.node:
        if other is not node:
            other.input[:] = [unedited if name == node.output[0] else name for name in other.input]
    if kept:
        # Read again, by a node that leads nowhere.
        graph.node.append(onnx.helper.make_node("Identity", [node.output[0]], ["nowhere"]))
    onnx.save(model, path)
    rewrite(copy)
    found = failures(copy)
    assert any("no output of the graph depends on the gate" in line for line in found) and any(
        "the table 'gains'" in line for line in found
    )


@pytest.mark.parametrize("form", ["tokens", "map"])
def test_a_graph_that_reads_its_edit_and_makes_nothing_of_it(copy, form):
    """`unedited + 0 · edited` depends on every table."""
    import onnx

    path = copy / "unet" / "model.onnx"
    graph = (model := onnx.load(path)).graph
    (parts,) = json.loads((copy / manifest.NAME).read_text())["onnx"]["seams"].values()
    unedited, edited = parts["input"], parts["output"]
    if form == "map":
        maker = {name: node for node in graph.node for name in node.output}
        while maker[unedited].op_type in ("Reshape", "Transpose"):
            unedited = maker[unedited].input[0]
        assert unedited != parts["input"]
        while nxt := [n for n in graph.node if edited in n.input and n.op_type in ("Reshape", "Transpose")]:
            edited = nxt[0].output[0]
    place = next(i for i, n in enumerate(graph.node) if edited in n.output) + 1
    for node in graph.node[place:]:
        node.input[:] = ["undone" if name == edited else name for name in node.input]
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "nought"))
    graph.node.insert(place, onnx.helper.make_node("Mul", [edited, "nought"], ["none"]))
    graph.node.insert(place + 1, onnx.helper.make_node("Add", [unedited, "none"], ["undone"]))
    onnx.save(model, path)
    rewrite(copy)
    assert [line for line in failures(copy) if "around its edit" in line] and len(failures(copy)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threshold", "jumprelu", "drop"])
def test_every_kind_of_edit_is_proven_and_verifies(tiny, tmp_path, kind):
    """Where the encoder's chosen rows alone are baked, a graph has no table of feature numbers."""
    from saeuron.export.ship.stages import export_artifact

    changes = {"jumprelu": {}, "drop": {"residual": "drop"}}.get(kind, {"gate": kind})
    if kind == "jumprelu":
        sae = make_sae(activation="jumprelu")
        save_file(
            {"W_enc": sae.W_enc.T.contiguous(), "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "threshold": sae.threshold},
            tmp_path / "sae_weights.safetensors",
        )
        config = {
            "architecture": "jumprelu", "d_in": sae.config.d_in, "d_sae": sae.config.num_latents, "dtype": "float32", "apply_b_dec_to_input": True,
            "normalize_activations": "none",
        }  # fmt: skip
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        changes["sae"] = (f"{HOOKPOINT}={tmp_path}",)
    made = export_artifact(settings(tiny, tmp_path / "out", formats=("checkpoint", "onnx"), proof_prompts=("a",), **changes))
    assert made.proven, made.report["failures"]
    assert failures(made.path) == []


def test_another_edit_file(copy):
    edit = Edit.load(copy / EDIT)
    for part in edit.hookpoints.values():
        part.gains[0, 0] -= 1
    edit.save(copy / EDIT)
    rewrite(copy)
    assert any("is not the edit on record" in line for line in failures(copy))


def test_other_concepts_in_the_manifest(copy):
    rewrite(copy, concepts=["nudity"])
    assert any("nudity" in line for line in failures(copy))


def test_a_concept_that_changes_nothing_has_not_shown_its_removal(whole):
    """Its features fire, as a mutant's of multiplier 1 do, and the edit beside them is sound."""
    edit, golden = Edit.load(whole / EDIT), Golden.load(whole / GOLDEN)
    assert not _check_concepts(edit, golden)
    lost = edit.concepts[0]
    for part in edit.hookpoints.values():
        for row, features in enumerate(part.chosen.get(lost, [])):
            own = torch.isin(part.features, torch.tensor(features))
            part.gains[row, own], part.offsets[row, own] = 1.0, 0.0
    assert any(f"'{lost}'" in line and "changed nothing" in line for line in _check_concepts(edit, golden))


def test_prompts_of_a_concept_that_is_not_removed(copy):
    other = prompts_of(presets()["Car"])
    (copy / CONCEPTS).write_text(strict_json(ConceptsFile("saeuron-concepts-1", {"Car": other})))
    rewrite(copy)
    assert any("prompts of 'Car'" in line for line in failures(copy))


def test_validate_too_refuses_a_manifest_that_does_not_fit_its_own_hash(copy):
    change(copy / "saeuron.json", lambda value: value.update(created="2020-01-01T00:00:00+00:00"))
    assert any("own hash" in line for line in failures(copy))
    with pytest.raises(SaeuronError, match="own hash"):
        validate(copy)


def test_without_golden_vectors(copy):
    (copy / GOLDEN).unlink()
    rewrite(copy)
    found = verify(copy)
    assert found["verified"] and [e["check"] for e in found["not_checked"]] == ["golden vectors"]


def test_git_is_said_not_to_be_checked(copy):
    (copy / ".git").mkdir()
    (copy / ".git" / "config").write_text("[core]\nfsmonitor = /bin/echo\n")
    found = verify(copy)
    assert found["verified"] and [e["check"] for e in found["not_checked"]] == [".git"]


@pytest.mark.parametrize("name", ["unet/./config.json", "unet//config.json", "./unet/config.json", "unet/config.json/"])
def test_another_name_of_the_same_file(copy, name):
    record = json.loads((copy / manifest.NAME).read_text())
    record["files"][name] = record["files"].pop("unet/config.json")
    (copy / manifest.NAME).write_bytes(manifest.encode(made_up.as_manifest(record)))
    assert any("no plain path" in line for line in failures(copy))


def test_a_signature_or_a_list_for_git_that_lies_elsewhere(copy, tmp_path):
    for name in (manifest.SIGNATURE, ".gitattributes", manifest.NAME):
        held = (copy / name).read_bytes() if (copy / name).exists() else b"{}"
        (tmp_path / "elsewhere").write_bytes(held)
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(tmp_path / "elsewhere")
        assert any(f"'{name}' is a link that leaves the folder" in line for line in failures(copy)), name
        (copy / name).unlink()
        (copy / name).write_bytes(held) if name == manifest.NAME else None


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "unet/../../outside.json", "unet\\..\\x"])
def test_paths_that_leave_the_folder(copy, name):
    (copy.parent / "outside.json").write_text("{}")
    record = json.loads((copy / manifest.NAME).read_text())
    content = (copy.parent / "outside.json").read_bytes()
    record["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (copy / manifest.NAME).write_bytes(manifest.encode(made_up.as_manifest(record)))
    assert any("outside the artifact" in line for line in failures(copy))


def test_links_that_leave_the_folder(copy, tmp_path):
    for name in ("README.md", "vae"):
        (copy / name).rename(tmp_path / name)
        (copy / name).symlink_to(tmp_path / name)
        assert any("outside the artifact" in line for line in failures(copy)), name
        (copy / name).unlink()
        (tmp_path / name).rename(copy / name)
    (copy / "vae" / "config.json").rename(copy / "vae" / "c")
    (copy / "vae" / "config.json").symlink_to("config.json")
    assert any("'vae/config.json'" in line for line in failures(copy))


def test_a_link_inside_a_downloads_cache_is_fine(whole, tmp_path):
    """huggingface_hub keeps a snapshot's files as links to `blobs`."""
    snapshot = tmp_path / "models--me--x" / "snapshots" / ("a" * 40)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for name in files_of(whole):
        blob = blobs / name.replace("/", "-")
        shutil.copyfile(whole / name, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    assert failures(snapshot) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', '{"format": "saeuron-artifact-1"}', "\0\xff"])
def test_a_damaged_manifest_is_a_failed_verification(copy, content):
    (copy / manifest.NAME).write_text(content)
    assert len(failures(copy)) == 1
    assert "not verified:" in run("verify", copy, code=1).stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hashes_equal_those_of_the_class_and_the_edit(whole, tmp_path, dtype):
    unet = AblatedUNet2DConditionModel.from_pretrained(whole / "unet", torch_dtype=dtype)
    unet.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["ablation"]
    assert tables.ablation_sha256(settings, tables.edit_tensors(tmp_path)) == settings["sha256"] == unet.edit_sha256()
    assert tables.read_edit(whole / EDIT).sha256() == Edit.load(whole / EDIT).sha256()


def test_the_command(whole, copy):
    assert run("verify", whole).stdout == f"{whole}: verified ({len(files_of(whole)) - 1} files and the manifest, not signed)\n"
    said = json.loads(run("verify", copy, "--json").stdout)
    assert said["verified"] and said["pinned"] and said["folder"] == str(copy)
    (copy / "README.md").write_text("other")
    found = run("verify", copy, code=1)
    assert "NOT VERIFIED" in found.stdout and "not verified: 'README.md' is not the file that was written" in found.stderr
    refused("is no artifact", "verify", copy / "unet")
    refused("is no folder, and no Hub id", "verify", copy / "nothing")
    refused("is no folder, and no Hub id", "verify", copy / "README.md")
    refused("could not be fetched from the Hub", "verify", "me/nothing@main")


def test_in_the_base_install(whole, copy):
    """numpy, safetensors and what the command line needs; the graph's tables are then left out, and said to be."""
    blocked = "torch,diffusers,transformers,onnx,onnx_ir,onnxruntime,scipy,accelerate,onnxscript,model_signing,OpenSSL"
    code, stdout, stderr = bare("verify", whole, "--json", blocked=blocked)
    assert code == 0, stderr
    assert [e["check"] for e in json.loads(stdout)["not_checked"]] == ["the edit's tables in the ONNX graph"]
    weaken(copy, "gains", lambda t: t.fill_(1))
    rewrite(copy)
    code, stdout, stderr = bare("verify", copy, blocked=blocked)
    assert code == 1 and "the table 'gains'" in stderr
    code, _, stderr = bare("verify", whole, "--public-key", "x.pem", blocked=blocked)
    assert code == 2 and "saeuron-export[sign]" in stderr and len(stderr.splitlines()) == 1 + stderr.count("verifying"), stderr


def test_imports_no_torch(whole):
    code = "import sys\nfrom saeuron.export import cli\ntry:\n    cli.main()\nfinally:\n    print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code, "verify", whole], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "set()"
