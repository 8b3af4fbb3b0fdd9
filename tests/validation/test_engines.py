"""Engines without a GPU: targets, shapes, rows, conversions, and the runner on a stand-in for TensorRT and CUDA."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeuron.editor.errors import SaeuronError
from saeuron.validation import engines
from saeuron.validation.engines import Gpu, OutsideShapes, Target, check_shape, runs_on
from saeuron.validation.tensorrt_runner import from_bf16, in_rows, to_bf16


def test_targets_are_read_and_named():
    assert Target.parse("rtx:sm89, SM86") == Target("trt-rtx", ("sm86", "sm89")) and Target.parse("rtx:sm89,sm86").folder == "rtx-sm86-sm89"
    assert Target.parse("rtx").folder == "rtx" and str(Target.parse("rtx:sm120")) == "rtx:sm120" and Target.parse("local").backend == "trt"
    for text, message in (("gpu", "is not known"), ("rtx:", "names no architecture"), ("rtx:sm90", "'sm90' is not known"), ("local:sm86", "is not known"), ("rtx:sm75,sm86", "alone")):  # fmt: skip
        with pytest.raises(SaeuronError, match=message):
            Target.parse(text)


ENTRY = {"backend": "trt-rtx", "library": "tensorrt_rtx", "version": "1.7.1.116", "sms": ["sm86", "sm89"], "options": {}}


@pytest.mark.parametrize(
    ("entry", "sm", "version", "reason"),
    [
        (ENTRY, "sm86", "1.7.1.116", None),
        (ENTRY, "sm120", "1.7.1.116", "this GPU .* is sm120"),
        (ENTRY, "sm86", "1.8.0.1", "built with tensorrt_rtx 1.7.1.116, here is 1.8.0.1"),
        (ENTRY | {"sms": []}, "sm120", "1.7.1.116", None),
        (ENTRY | {"sms": []}, "sm75", "1.7.1.116", "sm80 and later"),
        (ENTRY | {"backend": "trt", "sms": ["sm90"]}, "sm86", "1.7.1.116", "built for sm90"),
        (ENTRY | {"backend": "trt", "sms": ["sm90"], "options": {"hardware_compatible": True}}, "sm86", "1.7.1.116", None),
        (ENTRY | {"options": {"version_compatible": True}}, "sm86", "1.9.0.1", None),
        (ENTRY | {"options": {"version_compatible": True}}, "sm86", "1.6.0.1", "built with"),
        (ENTRY | {"options": {"version_compatible": True}}, "sm86", "2.0.0", "built with"),
    ],
)
def test_what_runs_where(entry, sm, version, reason):
    import re

    found = runs_on(entry, Gpu("a GPU", sm), version)
    assert found is None if reason is None else found is not None and re.search(reason, found)


def test_no_gpu_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SaeuronError, match="no GPU can be used here"):
        engines.gpu()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 4))
def test_any_number_of_rows_goes_through_an_engine_that_takes_some(count, low, more):
    seen = []

    class Doubling:
        shapes = {"x": [[low, 3], [low, 3], [low + more, 3]], "t": [[], [], []]}

        def __call__(self, inputs):
            check_shape("x", inputs["x"].shape, self.shapes["x"])
            seen.append(len(inputs["x"]))
            return {"y": inputs["x"] * 2 + inputs["t"]}

    x = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    assert np.array_equal(in_rows(Doubling(), {"x": x}, {"t": np.float32(1)})["y"], x * 2 + 1)
    assert len(seen) == -(-count // (low + more))


def test_shapes_outside_are_refused():
    sizes = [[2, 4, 8, 8], [2, 4, 8, 8], [4, 4, 16, 8]]
    check_shape("x", (3, 4, 12, 8), sizes)
    for shape in ((1, 4, 8, 8), (5, 4, 8, 8), (2, 4, 17, 8), (2, 4, 8, 9), (2, 4, 8)):
        with pytest.raises(OutsideShapes, match="other --shapes"):
            check_shape("x", shape, sizes)


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_bf16_is_torchs(values):
    array = np.array(values, dtype=np.float32)
    ours, theirs = from_bf16(to_bf16(array)), torch.from_numpy(array).bfloat16().float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
