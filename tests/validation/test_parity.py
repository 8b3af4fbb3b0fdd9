"""The proof must fail whenever it should: an unedited model, a weaker edit, a shifted table, a NaN."""

import copy

import numpy as np
import pytest
from msgspec.structs import replace
from tests.conftest import HOOKPOINT, edit_of, make_activations, make_sae

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.edit.bake import bake
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.forwards import compare_forwards
from saeuron.validation.proof.parity import (
    check_components,
    check_control,
    check_network,
    check_runs,
    check_seam,
    prove,
    psnr,
    run_forwards,
)
from saeuron.validation.proof.reference import make_golden

KEY = HOOKPOINT.replace(".", "-")


def setting(tiny, residual="keep", gate="exact", scope="full"):
    pipeline = load_pipeline(str(tiny["model"]))
    edit = edit_of(make_activations(), ("A", "count:20", -3.0), residual=residual)
    saes = {HOOKPOINT: make_sae()}
    golden = make_golden(pipeline, edit, saes, ["An image of House.", "An image of Car."], 3, 3.0, "fp32", gate, scope=scope)
    edited = copy.copy(pipeline)
    edited.unet = bake(pipeline.unet, edit, saes, gate)
    return pipeline, edited, golden


@pytest.fixture(scope="module")
def case(tiny):
    return setting(tiny)


def test_the_baked_model_passes(case):
    _, edited, golden = case
    report = prove(golden, [TorchRunner(edited)])
    assert report.passed, report.failures
    assert report.backends["checkpoint"].seam.golden_tokens.fired > 0
    assert {c.kind for c in golden.cases} == {"step", "between", "fractional"}
    assert {len(c.sample) for c in golden.cases} == {1, 2, 4} and len({c.sample.shape[-2:] for c in golden.cases}) == 2
    assert {r.guidance for r in golden.runs} == {1.0, 3.0}


@pytest.mark.parametrize("residual", ["upstream", "drop"])
def test_other_residuals_pass_and_are_judged_by_the_suppression_alone(tiny, residual):
    pipeline, edited, golden = setting(tiny, residual, scope="short")
    assert prove(golden, [TorchRunner(edited)]).passed
    # A model that treats the error alike but suppresses nothing must fail, though it is nowhere near the unedited one.
    assert not compare_forwards(golden, [c.neutral for c in golden.cases]).passed
    assert check_control(golden).residual_alone > 0.01


def test_threshold_gate_passes_and_its_difference_is_counted(tiny):
    _, edited, golden = setting(tiny, gate="threshold", scope="short")
    report = prove(golden, [TorchRunner(edited)])
    assert report.passed, report.failures
    assert report.against_topk["differ"] > 0


def test_the_unedited_model_fails_everywhere(case):
    pipeline, _, golden = case
    runner = TorchRunner(pipeline)
    forwards = compare_forwards(golden, run_forwards(golden, runner.denoise))
    assert not forwards.passed and forwards.worst == pytest.approx(1.0, abs=1e-3) and forwards.share == pytest.approx(0.0, abs=1e-3)
    assert len(check_runs(golden, runner.free_run).failures) == len(golden.runs)
    assert not prove(golden, []).passed, "no backend is no proof"
    assert check_control(golden).passed


def spoil_gains(a, golden):
    a.gains.sub_(1).mul_(0.97).add_(1)


def spoil_rows(a, golden):
    a.gains.copy_(a.gains.roll(1, 0))
    a.thresholds.copy_(a.thresholds.roll(1, 0))


def spoil_one_feature(a, golden):
    """One of several features is forgotten: the one that fired most in the golden forwards."""
    fired = sum(c.fires[HOOKPOINT].sum(axis=(0, 1)) for c in golden.cases)
    a.gains[:, int(fired.argmax())] = 1.0


def spoil_direction(a, golden):
    a.decoder_weight.copy_(a.decoder_weight.roll(1, 0))


@pytest.mark.parametrize("spoil", [spoil_gains, spoil_rows, spoil_one_feature, spoil_direction])
def test_a_slightly_wrong_edit_fails(case, spoil):
    _, edited, golden = case
    wrong = copy.copy(edited)
    wrong.unet = copy.deepcopy(edited.unet)
    spoil(wrong.unet.ablations[KEY], golden)
    found = check_seam(golden, TorchRunner(wrong))
    assert not found.passed and found.worst > 3 * found.bar


def test_an_unedited_unet_shows_no_seam_and_fails(case):
    pipeline, edited, golden = case
    report = prove(golden, [TorchRunner(pipeline)])
    assert not report.passed and any("it shows no edit" in line for line in report.failures)

    class Hidden(TorchRunner):
        shows_seam = False

        def observe(self, *case):
            return None

    hidden = check_network(golden, Hidden(edited))
    assert hidden.seam.passed is None and "hides" in hidden.seam.not_checked, "its seam is not said to pass"
    assert hidden.forwards.passed, "it is judged by its outputs"
    assert not check_network(golden, Hidden(pipeline)).forwards.passed


def test_non_finite_values_fail_with_the_component_named(case):
    _, _, golden = case
    found = compare_forwards(golden, [np.full_like(c.hook, np.nan) for c in golden.cases])
    assert not found.passed and "the network's output is not finite" in found.failures[0]

    class Broken:
        def component(self, name, inputs):
            return {k: np.full_like(v, np.inf) for k, v in golden.components[name].items()}

    failures = check_components(golden, Broken()).failures
    assert any(line.startswith("vae_decoder: 'sample' is not finite") for line in failures)


def test_components_that_compare_nothing_fail(case):
    _, edited, golden = case
    runner = TorchRunner(edited)

    class Without:
        def __init__(self, name):
            self.name = name

        def component(self, name, inputs):
            return None if name == self.name else runner.component(name, inputs)

    assert check_components(golden, Without("vae_encoder")).passed, "text-to-image needs none"
    for name in ("text_encoder", "vae_decoder"):
        assert f"{name}: this backend has none" in check_components(golden, Without(name)).failures
    for name, kept in (("text_encoder", "input_ids"), ("vae_decoder", "latent_sample"), ("vae_encoder", "sample")):
        empty = copy.copy(golden)
        empty.components = {**golden.components, name: {kept: golden.components[name][kept]}}
        assert any("hold no outputs" in line for line in check_components(empty, runner).failures)
        empty.components = {**golden.components, name: {}}
        assert not check_components(empty, runner).passed


def test_an_edit_that_never_fires_proves_nothing(tiny):
    pipeline = load_pipeline(str(tiny["model"]))
    edit = edit_of(make_activations(scale=1e4), ("A", "count:20", -3.0))
    golden = make_golden(pipeline, edit, {HOOKPOINT: make_sae()}, ["x"], 2, 3.0, "fp32", scope="short")
    edited = copy.copy(pipeline)
    edited.unet = bake(pipeline.unet, edit, {HOOKPOINT: make_sae()})
    report = prove(golden, [TorchRunner(edited)])
    assert not report.passed and any("never fired" in line for line in report.failures)


def test_golden_file_round_trip(case, tmp_path):
    _, _, golden = case
    golden.save(tmp_path / "golden.safetensors")
    again = Golden.load(tmp_path / "golden.safetensors")
    assert len(again.cases) == len(golden.cases) and again.notes == golden.notes
    for a, b in zip(golden.cases, again.cases, strict=True):
        assert np.array_equal(a.hook, b.hook) and np.array_equal(a.fires[HOOKPOINT], b.fires[HOOKPOINT]) and a.timestep == b.timestep
    for a, b in zip(golden.runs, again.runs, strict=True):
        assert np.array_equal(a.hook_pictures, b.hook_pictures) and a.drift == b.drift


def test_psnr_of_equal_pictures_is_infinite():
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    assert psnr(picture, picture) == float("inf") and psnr(picture, picture + 255) == pytest.approx(0.0)


def test_another_decoder_fails(case):
    """Latents alone would not show a wrong scaling factor."""
    _, edited, golden = case
    wrong = copy.copy(edited)
    wrong.vae = copy.deepcopy(edited.vae)
    wrong.vae.register_to_config(scaling_factor=5 * edited.vae.config.scaling_factor)
    assert any("another picture" in line for line in check_runs(golden, TorchRunner(wrong).free_run).failures)


def test_golden_vectors_of_another_shape_are_one_line(case, tmp_path):
    _, _, golden = case
    for change, message in (
        ({"precision": "int8"}, "'precision' is 'int8'"),
        ({"notes": {}}, "'notes.scope' is missing"),
    ):
        replace(golden, **change).save(tmp_path / "golden.safetensors")
        with pytest.raises(SaeuronError, match=message):
            Golden.load(tmp_path / "golden.safetensors")


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device"), RuntimeError("std::bad_alloc")])
def test_what_the_machine_can_not_check_is_no_verdict(case, error):
    _, edited, golden = case

    class Small(TorchRunner):
        def observe(self, *case):
            raise error

    with pytest.raises(SaeuronError, match="could not be checked on this machine"):
        prove(golden, [Small(edited)])


def test_golden_vectors_without_a_hookpoints_tokens_fail(case):
    _, edited, golden = case
    less = copy.copy(golden)
    less.cases = [*golden.cases[:-1], replace(golden.cases[-1], seams={})]
    assert any("lack tokens of a hookpoint" in line for line in prove(less, [TorchRunner(edited)]).failures)


def test_an_edit_that_shows_itself_and_can_not_be_run_alone_fails(case):
    _, edited, golden = case

    class Whole(TorchRunner):
        def edit(self, *tokens):
            return None

    found = check_network(golden, Whole(edited)).seam
    assert found.passed is False and "can't be run alone" in found.failures[0]
