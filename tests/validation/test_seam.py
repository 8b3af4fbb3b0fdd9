"""The seam: what is rounding passes, what is not fails, in every precision and backend."""

import copy

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from tests.random_edits import MUTANTS, PROMPTS, edit_in_float64, make, spoil_graph, spoiled

from saeuron.editor.common.names import PRECISIONS, dtype_of
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.hook import TokenEdit
from saeuron.export.formats import onnx
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.artifact.seam import BARS, FEATURE, Seam, Tally, digest, rounded, rows_of, ulp
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.parity import check_network, check_seam, prove
from saeuron.validation.proof.reference import make_golden
from saeuron.validation.proof.seam_reference import expected, on_tokens, rounding, sample

pytestmark = pytest.mark.slow

SEED = 0  # two hookpoints, `upstream`, unit norm: every active latent counts, and many tie in 16 bits


def seam(**changes):
    """Four tokens of three channels; the last two are left alone."""
    h = np.arange(12, dtype=np.float32).reshape(4, 3)
    fires = np.array([[True, False], [False, True], [False, False], [False, False]])
    made = {"input": h, "output": h + fires.any(1, keepdims=True) * np.float32(0.5), "neutral": h, "fires": fires}
    made |= {"coefficients": fires * np.float32(0.5), "rows": np.ones((2, 3), np.float32)}
    return Seam(**{**made, "near": np.zeros_like(fires), "slack": np.zeros(4, np.float32), "room": np.zeros(4, np.float32), **changes})


def verdict(wanted, output=None, fires=None, precision="fp32"):
    tally = Tally(precision)
    tally.add("step", "h", wanted, wanted.output if output is None else output, wanted.fires if fires is None else fires)
    return tally.result()


def test_what_equals_the_hook_passes_and_is_counted():
    found = verdict(seam())
    assert (
        found.passed
        and found.worst == 0
        and found.share == pytest.approx(1)
        and (found.fired, found.decisions, found.features_fired) == (2, 8, 2)
    )


def test_a_token_that_differs_is_named():
    wanted = seam()
    for at, by in ((0, 0.01), (3, 0.001)):  # changed otherwise; changed at all
        output = wanted.output.copy()
        output[at] += by
        found = verdict(wanted, output)
        assert not found.passed and found.worst > 3 * BARS["fp32"] and "step, h" in found.failures[0]
    assert not verdict(wanted, np.full_like(wanted.output, np.nan)).passed
    assert "kept" in " ".join(verdict(wanted, wanted.input + 0.5 * (wanted.output - wanted.input)).failures)
    assert not verdict(seam(fires=np.zeros((4, 2), bool))).passed, "nothing fired, nothing proven"


def test_rounding_of_what_is_stored_is_no_difference():
    """In 16 bits an output is off by half a unit in the last place, which is much beside a small change."""
    generator = np.random.default_rng(3)
    h = rounded(generator.normal(size=(50, 40)) * 10, "fp16").astype(np.float32)
    hook = h + generator.normal(size=h.shape).astype(np.float32) * 0.02
    fires = np.ones((50, 1), bool)
    wanted = seam(input=h, output=hook, neutral=h, fires=fires, near=np.zeros_like(fires), slack=np.zeros(50, np.float32), room=np.zeros(50, np.float32), coefficients=np.zeros((50, 1), np.float32), rows=np.zeros((1, 40), np.float32))  # fmt: skip
    stored = hook.astype(np.float16).astype(np.float32)
    assert np.linalg.norm(stored - hook) / np.linalg.norm(hook - h) > 3 * BARS["fp16"], "by itself it would fail"
    assert verdict(wanted, stored, precision="fp16").passed
    assert not verdict(wanted, (h + 1.03 * (hook - h)).astype(np.float16).astype(np.float32), precision="fp16").passed


def test_close_decisions_may_turn_but_not_all_of_them():
    wanted = seam(near=np.array([[True, False], [False, False], [False, False], [False, False]]))
    turned = wanted.fires.copy()
    turned[0, 0] = False
    output = wanted.output.copy()
    output[0] = wanted.input[0]
    found = verdict(wanted, output, turned)
    assert found.passed and (found.close, found.turned, found.wrong) == (1, 1, 0)
    assert not verdict(seam(), output, turned).passed and verdict(seam(), output, turned).wrong == 1
    many = replace(wanted, near=np.ones_like(wanted.fires)).each(lambda v: np.repeat(v, 25, axis=0))
    found = verdict(many, fires=~many.fires)
    assert found.wrong == 0 and "more than rounding" in found.failures[-1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_feature_that_hardly_shows_beside_the_others_is_missed_when_it_is_lost(precision):
    """Its part is below a token's bar; as its own part it is all lost, where rounding is small beside it."""
    generator = np.random.default_rng(SEED)
    rows = generator.normal(size=(6, 64)).astype(np.float32)
    fires = generator.random((40, 6)) < 0.6
    coefficients = (fires * generator.uniform(1, 3, fires.shape) * [1, 1, 1, 1, 1, 0.5 * BARS[precision]]).astype(np.float32)
    h = rounded(generator.normal(size=(40, 64)), precision).astype(np.float32)
    hook = h + coefficients @ rows
    wanted = seam(input=h, output=hook, neutral=h, fires=fires, near=np.zeros_like(fires), slack=np.zeros(40, np.float32), room=np.zeros(40, np.float32), coefficients=coefficients, rows=rows)  # fmt: skip
    stored = rounded(hook, precision).astype(np.float32)
    found = verdict(wanted, stored, precision=precision)
    assert found.passed and found.features_measured == 6 and found.furthest < FEATURE / 3
    found = verdict(wanted, rounded(hook - coefficients[:, 5:] @ rows[5:], precision).astype(np.float32), precision=precision)
    assert found.worst < found.bar and found.furthest > 2.5 * FEATURE and "feature 5 at h: its own part" in found.failures[0]
    # Where rounding is as large as the part it can't be told, and nothing is said.
    far = replace(wanted, input=h + 4096, output=hook + 4096, neutral=h + 4096)
    assert verdict(far, rounded(hook + 4096, precision).astype(np.float32), precision=precision).features_measured < 6


@pytest.mark.parametrize("name", ["slack", "room"])
def test_ties_and_rounded_latents_have_room_and_no_more(name):
    wanted = seam(**{name: np.array([0.3, 0, 0, 0], np.float32)})
    for at, by, passed in ((0, 0.1, True), (0, 0.4, False), (1, 0.1, False)):
        output = wanted.output.copy()
        output[at, 0] += by
        found = verdict(wanted, output)
        assert (found.worst <= found.bar) == passed and found.tied == (name == "slack")
    # What is amiss within a token's room still counts in the edit's share and in its feature's own part.
    found = verdict(seam(room=np.full(4, 9, np.float32)), wanted.input)
    assert found.worst == 0 and found.share == 0 and len(found.failures) == 3
    # Where most tokens are held to that alone, nothing was proven; half of them is the most there may be.
    for count, passed in ((1, True), (2, False)):
        given = seam(room=np.array([9] * count + [0] * (4 - count), np.float32))
        assert verdict(given).passed == passed and verdict(given).rounding == count


def read_at_ten_bits(tables, fired):
    """TF32's mantissa, as a GPU multiplies float32 with where it is allowed to."""
    bits = tables["encoder_weight"].view(np.uint32)
    tables["encoder_weight"] = ((bits + 0x1000) & 0xFFFFE000).view(np.float32)


def bias_a_little_off(tables, fired):
    tables["encoder_bias"] += 1e-3 * np.abs(tables["encoder_bias"]).max()


@pytest.mark.parametrize("seed", [0, 4])
def test_a_small_difference_of_large_numbers_has_the_room_of_its_rounding(seed):
    """Two pipelines whose directions were called broken in fp32; reading them worse than float32 does is found."""
    wanted = make(seed, "directions")
    print(wanted.said)
    golden = make_golden(
        wanted.pipeline, wanted.edit, wanted.saes, PROMPTS[:2], wanted.steps, wanted.guidance, "fp32", wanted.gate, scope="short"
    )
    edited = copy.copy(wanted.pipeline)
    edited.unet = bake(wanted.pipeline.unet, wanted.edit, wanted.saes, wanted.gate)
    runner, hook = TorchRunner(edited), TokenEdit(wanted.edit, wanted.saes, torch.float32, "cpu", wanted.gate)
    found = check_network(golden, runner, on_tokens(hook))
    assert found.seam.passed, found.seam.failures
    assert any(s.room.any() for c in golden.cases for s in c.seams.values())
    point = list(wanted.edit.hookpoints)[-1]
    fired = sum(c.seams[point].fires.sum(0) for c in golden.cases)
    for change in (read_at_ten_bits, bias_a_little_off, *MUTANTS.values()):
        with spoiled(edited.unet, point, change, fired):
            result = check_seam(golden, runner)
        assert not result.passed, (change.__name__, result)


@pytest.mark.parametrize(("precision", "numpy_type"), [("fp32", np.float32), ("fp16", np.float16)])
def test_ulp_and_rounded_are_numpys(precision, numpy_type):
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-4, 4).repeat(25)
    exact = values.astype(numpy_type)
    assert np.array_equal(ulp(exact, precision), np.abs(np.spacing(np.abs(exact))).astype(np.float64))
    assert np.array_equal(rounded(values, precision), exact.astype(np.float64))


def test_bfloat16_is_torchs():
    values = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 100
    assert np.array_equal(rounded(values.numpy(), "bf16"), values.bfloat16().double().numpy())


def test_a_digest_is_of_the_set():
    generator = np.random.default_rng(0)
    members = np.stack([generator.choice(500, 8, replace=False) for _ in range(60)])
    mask = np.zeros((60, 500), bool)
    np.put_along_axis(mask, members, True, axis=1)
    assert np.array_equal(digest(members), digest(members[:, ::-1])) and np.array_equal(digest(members), digest(mask))
    other = members.copy()
    other[:, 0] = (other[:, 0] + 1) % 500
    assert (digest(other) != digest(members)).all()


# -- a real model ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def case(request, tmp_path_factory):
    """Golden vectors, runners of every backend, the hook on tokens; where a mutant shows."""
    precision = request.param
    wanted = make(SEED)
    print("seed", SEED, wanted.said)
    wanted.pipeline.to(dtype_of(precision))
    golden = make_golden(
        wanted.pipeline, wanted.edit, wanted.saes, PROMPTS[:2], wanted.steps, wanted.guidance, precision, wanted.gate, scope="short"
    )
    edited = copy.copy(wanted.pipeline)
    edited.unet = bake(wanted.pipeline.unet, wanted.edit, wanted.saes, wanted.gate)
    runners, seams = [TorchRunner(edited)], {}
    root = tmp_path_factory.mktemp(precision)
    if precision != "bf16":  # ONNX Runtime has no bf16 products on a CPU
        seams = onnx.write(onnx.denoiser_component(edited.unet, 24), root)
        edited.save_config(root)
        runners.append(OnnxRunner(root, seams=seams))
    fired = {h: sum(c.seams[h].fires[c.seams[h].slack == 0].sum(0) for c in golden.cases) for h in wanted.edit.hookpoints}
    hook = TokenEdit(wanted.edit, wanted.saes, dtype_of(precision), "cpu", wanted.gate)
    return wanted, golden, runners, hook, fired, root, seams


def test_sound_backends_pass(case):
    wanted, golden, runners, hook, *_ = case
    for runner in runners:
        found = check_network(golden, runner, on_tokens(hook))
        assert found.seam.passed and found.forwards.passed, (
            runner.name,
            found.seam.failures,
            found.forwards.failures,
        )
        assert found.seam.own_tokens.tokens > found.seam.golden_tokens.tokens > 0


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_miss_the_seam_by_a_factor_of_three(case, name):
    wanted, golden, runners, _, fired, root, seams = case
    point = list(fired)[-1]
    found = {}
    with spoiled(runners[0].pipeline.unet, point, MUTANTS[name], fired[point]):
        found["checkpoint"] = check_seam(golden, runners[0])
    if seams and name != "rows of other features":
        spoil_graph(root / "unet" / "model.onnx", root / "spoiled" / "unet" / "model.onnx", point, MUTANTS[name], fired[point])
        found["onnx"] = check_seam(golden, OnnxRunner(root / "spoiled", seams=seams))
    for backend, result in found.items():
        assert not result.passed, backend
        assert result.wrong or result.worst > 3 * result.bar or abs(result.share - 1) > 0.06, (backend, result)


def test_the_unedited_graph_and_anothers_edit_fail(case, tmp_path):
    wanted, golden, runners, *_, seams = case
    plain = copy.copy(wanted.pipeline)
    report = prove(golden, [TorchRunner(plain)])
    assert any("it shows no edit" in line for line in report.failures)
    assert not check_network(golden, Blind(plain)).forwards.passed
    # The second hookpoint's edit lost as a whole, and another concept's in its place.
    other = copy.copy(wanted.pipeline)
    edit = copy.deepcopy(wanted.edit)
    for part in edit.hookpoints.values():
        part.features = (part.latents - 1 - part.features).flip(0)
    other.unet = bake(wanted.pipeline.unet, edit, wanted.saes, wanted.gate)
    assert not check_seam(golden, TorchRunner(other)).passed
    only = copy.deepcopy(wanted.edit)
    only.hookpoints.pop(list(only.hookpoints)[-1])
    other.unet = bake(wanted.pipeline.unet, only, wanted.saes, wanted.gate)
    assert any("it shows no edit at" in line for line in prove(golden, [TorchRunner(other)]).failures)
    assert not check_network(golden, Blind(other)).forwards.passed, "outputs alone show that a hookpoint is missing"


class Blind(TorchRunner):
    """Hides its inner tensors, as an engine does."""

    shows_seam = False

    def observe(self, *case):
        return None


def test_golden_tokens_survive_the_file(case, tmp_path):
    _, golden, *_ = case
    golden.save(tmp_path / "golden.safetensors")
    again = Golden.load(tmp_path / "golden.safetensors")
    for a, b in zip(golden.cases, again.cases, strict=True):
        assert a.hook_drift == b.hook_drift and a.members.keys() == b.members.keys()
        for h, one in a.seams.items():
            assert all(
                np.array_equal(v, getattr(b.seams[h], k)) and v.dtype == getattr(b.seams[h], k).dtype
                for k in one.__struct_fields__
                if (v := getattr(one, k)) is not None
            )


def test_the_reference_is_the_formula(case):
    """`expected` beside an independent float64 computation, where no decision is close."""
    wanted, golden, runners, hook, *_ = case
    precision = golden.precision
    for c in golden.cases[:3]:
        for h, shown in runners[0].observe(c.inputs).seams.items():
            before = None if shown.before is None else torch.from_numpy(shown.before).to(hook.dtype)
            whole = expected(hook, h, torch.tensor([c.timestep]), torch.from_numpy(shown.input).to(hook.dtype), before)
            rows = None if shown.before is None else rows_of(shown.before)
            exact, neutral, fires, _ = edit_in_float64(wanted, h, c.timestep, rows_of(shown.input), rows, hook.dtype)
            clear = ~rows_of(whole.near).any(1) & (whole.slack.reshape(-1) == 0)
            assert clear.any() and np.array_equal(rows_of(whole.fires)[clear], fires[clear])
            room = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}[precision]
            for mine, right in ((whole.output, exact), (whole.neutral, neutral)):
                assert np.linalg.norm(rows_of(mine)[clear] - right[clear]) <= room * np.linalg.norm(
                    right[clear] - rows_of(shown.input)[clear]
                )


def test_rounding_covers_another_order_of_summation(case):
    """Latents in float64, from the same rounded weights and inputs, lie within the room."""
    wanted, golden, _, hook, *_ = case
    c = golden.cases[0]
    for h, tokens in c.seams.items():
        sae = hook.saes[h]
        x = torch.from_numpy(tokens.input if tokens.before is None else tokens.input - tokens.before)[None].to(hook.dtype)
        taken, mine = sae.encoded(x), sae.latents(x)
        exact = torch.relu(taken.double() @ sae.W_enc.double().T + sae.b_enc.double())
        assert ((mine.double() - exact).abs() <= rounding(sae, taken, mine, slice(None)).double()).all()


def test_a_sample_shows_every_feature_that_fires(case):
    wanted, golden, runners, hook, *_ = case
    c = golden.cases[0]
    for h, shown in runners[0].observe(c.inputs).seams.items():
        before = None if shown.before is None else torch.from_numpy(shown.before).to(hook.dtype)
        whole = expected(hook, h, torch.tensor([c.timestep]), torch.from_numpy(shown.input).to(hook.dtype), before)
        some = sample(whole, 256)
        assert np.array_equal(some.fires.any(0), rows_of(whole.fires).any(0))
        assert len(sample(whole, 10).input) == 10
