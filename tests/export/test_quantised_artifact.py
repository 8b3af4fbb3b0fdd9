"""The main job with --quantize: what an artifact holds and says of it, and what is found when it is changed."""

import json

import numpy as np
import onnx
import pytest
from tests.conftest import refused, run
from tests.export.test_artifact import settings
from tests.transformer_pipelines import make
from tests.transformer_pipelines import settings as of_transformers

from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact import contents, manifest
from saeuron.validation.artifact.manifest import encode
from saeuron.validation.artifact.quantised import Count, Removal
from saeuron.validation.proof.fresh import fresh_golden
from saeuron.validation.proof.validate import validate
from saeuron.validation.trust import quantisation
from saeuron.validation.trust.quantisation import codes_of
from saeuron.validation.trust.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The embedded demo, proven; its removal wasn't judged, which takes minutes."""
    wanted = Settings(
        "Neon,House",
        tmp_path_factory.mktemp("w8") / "out",
        intervention="multiply",
        format="onnx",
        quantize="w8",
        evaluate=False,
        proof="short",
    )
    return export_artifact(wanted)


def rewritten(root, change):
    """The manifest, changed and consistent with itself."""
    record = manifest.read(root)
    change(record)
    (root / manifest.NAME).write_bytes(encode(record))


def test_it_is_proven_and_never_called_equal(made):
    assert made.proven, made.report.failures
    record = made.manifest
    assert record.quantised.scheme == "w8" and record.quantised.calibration is None and 0 < record.quantised.drift < 0.5
    assert (
        set(record.quantised.graph) == {"unet/model.onnx"}
        and record.quantised.graph["unet/model.onnx"] != record.files["unet/model.onnx"].sha256
    )
    card = " ".join((made.path / "README.md").read_text().split())
    assert "edit intact in a w8 graph, removal not judged" in card and "**not judged**" in card
    assert "Equality with" not in card and "not the hook's; its edit is" in card
    assert verify(made.path)["verified"], verify(made.path)["failures"]
    report = json.loads((made.path / "validation" / "report.json").read_text())
    assert report["scheme"] == "w8" and report["removal"] is None
    assert "on record: edit intact in a w8 graph" in run("verify", made.path).stdout
    said = run("validate", made.path).stdout
    assert "edit intact in a w8 graph, removal not judged" in said and "equal" not in said


def test_a_manifest_that_says_otherwise_is_found(made):
    kept = (made.path / manifest.NAME).read_bytes()

    def nothing(record):
        record.quantised = None

    def less(record):
        record.quantised.layers.popitem()

    def another(record):
        layer = next(iter(record.quantised.layers.values()))
        layer.digest = f"{layer.digest.partition(':')[0]}:{0:016x}"

    try:

        def other_codes(record):
            next(iter(record.quantised.layers.values())).codes = 64 * "0"

        for change, said, by_verify in (
            (other_codes, "other codes or scales than those on record", True),
            (nothing, "the manifest says nothing of it", True),
            (less, "not on record as such", True),
            (another, "from another weight than the original's", False),
        ):
            rewritten(made.path, change)
            assert any(said in line for line in validate(made.path).failures), said
            assert verify(made.path)["verified"] is not by_verify, said
            (made.path / manifest.NAME).write_bytes(kept)

        def judged(*counts):
            found = [Removal(judge="j", concept=c, unedited=Count(9, 9), before=Count(9, 9), after=after) for c, after in counts]
            rewritten(made.path, lambda record: setattr(record.quantised, "removal", found))

        kept_both = [("House", Count(9, 9)), ("Neon", Count(9, 9))]
        judged(*kept_both)
        assert verify(made.path)["verified"], verify(made.path)["failures"]
        for counts, said in (
            ([("House", Count(5, 9)), kept_both[1]], "gone from 5 of 9"), ([("House", Count(0, 0)), kept_both[1]], "can't be compared"),
            (kept_both[:1], "'Neon': not judged"), ([*kept_both, ("Nobody", Count(9, 9))], "the edit doesn't remove it"),
        ):  # fmt: skip
            judged(*counts)
            assert any(said in line for line in verify(made.path)["failures"]), said
        proof = validate(made.path)
        assert not proof.passed and any(said in line for line in proof.failures)
        judged()
        assert verify(made.path)["quantised"] == "edit intact in a w8 graph, removal not judged" and validate(made.path).removal is None
    finally:
        (made.path / manifest.NAME).write_bytes(kept)
    contents.check(made.path, manifest.read(made.path))


def test_its_codes_are_held_to_the_original_model(made):
    """Codes that were put there with their digests on record show only beside the original's weights."""
    graph = made.path / "unet" / "model.onnx"
    kept, said = graph.read_bytes(), (made.path / manifest.NAME).read_bytes()
    record = manifest.read(made.path)
    fresh_golden(made.path, "demo")
    model = onnx.load(graph)
    step = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    codes = next(w for w in model.graph.initializer if w.name == step.input[0])
    codes.raw_data = (np.frombuffer(codes.raw_data, np.int8) // 2).tobytes()
    onnx.save(model, graph)
    try:
        for found in codes_of(graph):
            record.quantised.layers[found.node].codes = found.sha256
        (made.path / manifest.NAME).write_bytes(encode(record))
        assert not quantisation.check(graph, record)
        refused("further than half a step from the original's", "validate", made.path, "--model", "demo")
    finally:
        graph.write_bytes(kept)
        (made.path / manifest.NAME).write_bytes(said)


def test_inputs_are_calibrated_by_the_prompts_of_a_file(tiny, tmp_path):
    (tmp_path / "p.txt").write_text("An image of House.\nAn image of Car.\n")
    found = export_artifact(
        settings(tiny, tmp_path / "out", formats=("onnx",), quantize="int8", calibration_prompts=tmp_path / "p.txt", validate=False)
    )
    known = found.manifest.quantised
    assert known.calibration.prompts == 2 and known.calibration.forwards == 2 and known.drift is None and known.removal is None
    assert verify(found.path)["verified"] and verify(found.path)["quantised"] == "int8 graph, not proven"


def test_engines_of_an_unproven_one_are_of_the_graph_in_8_bits(tiny, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    found = export_artifact(settings(tiny, tmp_path / "out", formats=("trt",), target=("rtx:sm89",), quantize="w8", validate=False))
    record = found.manifest
    assert verify(found.path)["verified"], verify(found.path)["failures"]
    built = next(iter(record.engines.values())).components["unet"].onnx
    assert built == {name: file.sha256 for name, file in record.files.items() if name.startswith("unet/model.onnx")}


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_transformers_are_quantised_too(kind, tmp_path):
    found = export_artifact(
        of_transformers(make(kind, tmp_path), tmp_path / "out", formats=("onnx",), quantize="w8", evaluate=False, proof="short")
    )
    names = {layer.weight for layer in found.manifest.quantised.layers.values()}
    assert any("to_q" in name or "to_qkv" in name for name in names) and not any("norm_out" in n or "x_embedder" in n for n in names)
    assert found.report.backends["onnx"].seam.passed and found.report.record.passed, found.report.failures
