"""What is refused of --quantize before anything is made, and what is said of a removal that was judged."""

from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from tests.conftest import refused

from saeuron.editor.common.errors import SaeuronError
from saeuron.export.formats import tensorrt
from saeuron.export.formats.tensorrt import check_scheme
from saeuron.export.plan.dry_run import describe
from saeuron.export.plan.settings import Settings
from saeuron.validation.artifact.engines import Target
from saeuron.validation.artifact.quantised import Count, Quantisation, Removal
from saeuron.validation.page.open_points import _unattacked


def test_an_attack_on_the_hook_is_said_to_be_on_another_model_than_the_quantised_graph():
    attack = SimpleNamespace(same_export=True, rows=[], content=SimpleNamespace(through="hook", judge=SimpleNamespace(name="j", sha256="")))
    for quantised, said in ((True, True), (None, False)):
        record = SimpleNamespace(formats=["onnx"], quantised=quantised, concepts=[])
        lines = [line for line in _unattacked(record, attack, []) if "went through the hook" in line]
        assert len(lines) == 1 and ("which the quantised graph does not equal" in lines[0]) is said


def test_what_a_target_cant_compute_in_is_refused_before_the_build():
    for target in ("rtx", "rtx:sm86", "rtx:sm86,sm89"):
        with pytest.raises(SaeuronError, match="fp8 needs sm89 or later"):
            check_scheme([Target.parse(target)], "fp8")
    check_scheme([Target.parse("rtx:sm89,sm120"), Target.parse("local")], "fp8")
    check_scheme([Target.parse("rtx")], "w8")
    with pytest.raises(SaeuronError, match="w8 needs sm80"):
        check_scheme([Target.parse("rtx:sm75")], "w8")


def test_a_removal_that_was_lost_or_cant_be_told_is_a_fault():
    def removal(after, unedited=24):
        return Removal(judge="demo", concept="Heart", unedited=Count(unedited, 24), before=Count(24, 24), after=Count(after, 24))

    assert not removal(24).fault and not removal(23).fault
    assert "gone from 22 of 24" in removal(22).fault
    assert "inconclusive" in removal(24, unedited=20).fault
    fewer, none = replace(removal(24), after=Count(23, 23)), replace(removal(24), after=Count(0, 0))
    assert "can't be compared" in fewer.fault and "can't be compared" in none.fault

    def quantised(*judged):
        return Quantisation(scheme="w8", graph={}, layers={}, removal=list(judged))

    assert not quantised(removal(24)).faults(["Heart"]) and "judged again" in quantised(removal(24)).verdict
    assert not quantised().faults(["Heart"]) and "removal not judged" in quantised().verdict
    assert "'Stripes': not judged" in quantised(removal(24)).faults(["Heart", "Stripes"])[0]
    assert "the edit doesn't remove it" in quantised(removal(24), replace(removal(24), concept="Nothing")).faults(["Heart"])[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quantize", "w9"], "w9"),
        (["--quantize", "w8"], "leave checkpoint out"),
        (["--quantize", "w8", "--format", "onnx", "--precision", "bf16"], "no bf16"),
        (["--quantize", "w8", "--format", "onnx", "--proof", "seam"], "--proof seam makes none"),
        (["--quantize", "w8", "--format", "onnx", "--calibration-prompts", "p.txt"], "--calibration-prompts is for"),
        (["--quantize", "fp8", "--format", "onnx", "--calibration-prompts", "nowhere.txt"], "nowhere.txt"),
        (["--quantize", "w8", "--format", "onnx", "--intervention", "weights"], "in the weights alone"),
        (["--no-evaluate"], "--no-evaluate is for --quantize"),
        (["--quantize", "fp8", "--format", "trt", "--target", "rtx:sm86"], "fp8 needs sm89"),
    ],
)  # fmt: skip
def test_what_cant_be_quantised_is_refused_at_once(tmp_path, options, said):
    refused(said, "export", "--concepts", "Neon", "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_judge_that_sees_none_of_it_is_refused_before_anything_is_made():
    from saeuron.export.plan.removal import check_removal
    from saeuron.export.plan.resolve import resolve

    plan = resolve(Settings("Neon", "out", format="onnx", quantize="w8"))
    check_removal(plan)
    object.__setattr__(plan.settings, "concepts", ("Nobody",))
    for refuse in (check_removal, describe):
        with pytest.raises(SaeuronError, match="--no-evaluate"):
            refuse(plan)


def test_the_dry_run_refuses_a_gpu_that_cant_compute_in_the_scheme(monkeypatch):
    """This GPU and its library are stand-ins, since what is asked of them is only what they are."""
    monkeypatch.setattr(tensorrt, "gpu", lambda: SimpleNamespace(sm="sm86"))
    monkeypatch.setattr(tensorrt, "tensorrt_module", lambda backend: None)
    wanted = Settings("Neon", "nowhere", format="trt", target=("local",), quantize="fp8", evaluate=False)
    with pytest.raises(SaeuronError, match="fp8 needs sm89"):
        describe(wanted)
