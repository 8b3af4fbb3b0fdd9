import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.editor.dense_step import dense_step

from saeuron.editor.sae import sae_step
from saeuron.editor.sae.formats.config import SaeConfig
from saeuron.editor.sae.initialise import geometric_median, initialise
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.editor.sae.sae_step import Codes, DeadLatents, SaeStep, constrain_gradient, normalise_decoder, step_loss


def problem(N=50, d=12, n=96, k=4, unit_norm=False, seed=0, dtype=torch.float64):
    """An SAE off its initialisation, and tokens of uneven sizes; in float64 near latents can't swap ranks by rounding."""
    generator = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(SaeConfig(d, n, k, unit_norm)).to(dtype)
    for parameter in sae.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    normalise_decoder(sae)
    sae.W_enc.data.mul_(d**-0.5).add_(sae.W_dec.data)
    tokens = torch.randn(N, d, generator=generator) * (0.5 + 3 * torch.rand(N, 1, generator=generator)) + 1
    return sae, tokens.to(dtype)


def some(n, count, seed=0):
    """`count` of n latents, as a mask."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)) < count


def compare(sae, tokens, rtol=1e-9, atol=1e-11, **settings):
    """The fast step equals the dense one in its loss, codes and every gradient."""
    chunk = settings.pop("chunk", 1024)
    sae.zero_grad()
    fast = step_loss(sae, tokens, chunk=chunk, **settings)
    fast.loss.backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    loss, fvu, aux, z = dense_step(sae, tokens, **settings)
    loss.backward()
    for ours, theirs in ((fast.loss, loss), (fast.fvu, fvu), (fast.aux, aux)):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    assert torch.equal(fast.fired, (z > 0).any(0))
    assert fast.active.item() == pytest.approx((z > 0).sum().item() / len(tokens))
    for name, p in sae.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    return fast


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("dead", [None, 0, 1, 5, 40, 96])
@pytest.mark.parametrize("batch_topk", [False, True])
def test_loss_and_gradients_equal_the_dense_step(batch_topk, dead, unit_norm):
    sae, tokens = problem(unit_norm=unit_norm)
    fast = compare(sae, tokens, batch_topk=batch_topk, dead=None if dead is None else some(96, dead))
    assert fast.active.item() == pytest.approx(4)
    assert (fast.aux.item() > 0) == bool(dead)


@pytest.mark.parametrize("batch_topk", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 51])
def test_chunks_change_nothing(batch_topk, chunk, monkeypatch):
    monkeypatch.setattr(sae_step, "_ROWS", 3)  # the bar rises within a chunk
    monkeypatch.setattr(sae_step, "_BLOCK", 7)  # the dead are treated in several blocks
    sae, tokens = problem()
    compare(sae, tokens, batch_topk=batch_topk, dead=some(96, 40), chunk=chunk)


def test_the_bar_never_drops_an_entry_of_the_best(monkeypatch):
    """Tokens in rising and falling order of size: the best all come last, or first."""
    monkeypatch.setattr(sae_step, "_ROWS", 2)
    sae, tokens = problem(N=64)
    size = torch.linspace(0.01, 10, 64, dtype=tokens.dtype)[:, None]
    for order in (size, size.flip(0)):
        compare(sae, tokens * order, chunk=5)


@pytest.mark.parametrize("batch_topk", [False, True])
def test_zeros_do_not_count(batch_topk):
    sae, tokens = problem()
    sae.b_enc.data.fill_(-7.0)
    fast = compare(sae, tokens, batch_topk=batch_topk, dead=some(96, 20))
    assert 0 < fast.active.item() < 4
    sae.b_enc.data.fill_(-1e6)
    fast = compare(sae, tokens, batch_topk=batch_topk, dead=some(96, 20))
    assert fast.active.item() == 0
    assert not fast.fired.any()


def test_equal_latents_at_the_edge_go_to_the_first_tokens():
    sae, tokens = problem(N=6, d=4, n=8, k=1)
    tokens = tokens[:1].expand(6, 4) + torch.tensor([0, 0, 0, 0, 0, 1e-3])[:, None]
    values, place = (
        torch.tensor([3.0, 2.0, 2.0, 5.0, 2.0, 0.0, -1.0]),
        torch.arange(7),
    )
    assert sae_step._keep_largest(values, 4).tolist() == [True, True, True, True, False, False, False]
    assert place[sae_step._keep_largest(values, 9)].tolist() == [0, 1, 2, 3, 4]
    first, second = (step_loss(sae, tokens, chunk=c) for c in (2, 6))
    assert torch.equal(first.fired, second.fired)
    assert first.active.item() == 1


def test_float32_equals_the_dense_step_closely():
    sae, tokens = problem(N=300, d=64, n=1024, k=8, dtype=torch.float32)
    compare(sae, tokens, rtol=1e-4, atol=2e-6, dead=some(1024, 100), chunk=128)


@given(
    N=st.integers(2, 20), d=st.integers(2, 10), n=st.integers(1, 40), k=st.integers(1, 6), dead=st.integers(0, 40), chunk=st.integers(1, 25),
    batch_topk=st.booleans(), unit_norm=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_any_shape(N, d, n, k, dead, chunk, batch_topk, unit_norm, seed):
    sae, tokens = problem(N, d, n, min(k, n), unit_norm, seed)
    compare(sae, tokens, rtol=1e-7, atol=1e-9, batch_topk=batch_topk, dead=some(n, min(dead, n), seed), chunk=chunk)


def test_gradients_scale_and_accumulate_as_autograd_has_it():
    sae, tokens = problem()
    step_loss(sae, tokens).loss.backward()
    once = [p.grad.clone() for p in sae.parameters()]
    step = SaeStep(sae)
    (step(tokens).loss * 3).backward()
    for p, g in zip(sae.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 4 * g)


def test_frozen_parameters_get_no_gradient():
    sae, tokens = problem()
    sae.b_dec.requires_grad_(False)
    step_loss(sae, tokens, dead=some(96, 10)).loss.backward()
    assert sae.b_dec.grad is None
    assert sae.W_enc.grad is not None


def test_nothing_but_the_loss_carries_a_gradient():
    sae, tokens = problem()
    result = step_loss(sae, tokens, dead=some(96, 10))
    assert result.loss.requires_grad
    assert not any(x.requires_grad for x in result[1:])
    with torch.no_grad():
        assert step_loss(sae, tokens, dead=some(96, 10)).loss == result.loss


@pytest.mark.parametrize("batch_topk", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_only_chooses(dtype, batch_topk):
    sae, tokens = problem(N=200, d=64, n=512, k=8, dtype=torch.float32)
    full = step_loss(sae, tokens, batch_topk=batch_topk, dead=some(512, 50))
    with torch.autocast("cpu", dtype=dtype):
        half = step_loss(sae, tokens, batch_topk=batch_topk, dead=some(512, 50), chunk=64)
        half.loss.backward()
    assert half.loss.dtype == torch.float32
    assert half.fvu.item() == pytest.approx(full.fvu.item(), abs=2e-3)
    assert half.aux.item() == pytest.approx(full.aux.item(), abs=1e-2)
    assert half.active.item() == pytest.approx(8, abs=0.01)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sae.parameters())


def test_half_precision_tokens_are_widened():
    sae, tokens = problem(dtype=torch.float32)
    assert step_loss(sae, tokens.half()).loss == step_loss(sae, tokens.half().float()).loss


@pytest.mark.parametrize("unit_norm", [False, True])
def test_training_lowers_the_loss_and_keeps_the_decoder_unit(unit_norm):
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(32, 16, generator=generator)
    tokens = (torch.rand(4096, 32, generator=generator) * (torch.rand(4096, 32, generator=generator) < 0.1)) @ directions + 2
    sae = SparseAutoencoder(SaeConfig(16, 64, 4, unit_norm))
    initialise(sae, tokens, generator)
    silence = DeadLatents(64, after=2048)
    optimizer = torch.optim.Adam(sae.parameters(), lr=5e-3, fused=True)
    losses = []
    for _ in range(120):
        batch = tokens[torch.randint(4096, (256,), generator=generator)]
        result = step_loss(sae, batch, dead=silence.dead)
        optimizer.zero_grad()
        result.loss.backward()
        constrain_gradient(sae)
        along = (sae.W_dec.grad * sae.W_dec).sum(1)
        assert along.abs().max() < 1e-5 * sae.W_dec.grad.norm(dim=1).max()
        optimizer.step()
        normalise_decoder(sae)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
        silence.update(result.fired, len(batch))
        losses.append(result.fvu.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_dead_latents_are_those_silent_for_long():
    silence = DeadLatents(3, after=10)
    silence.update(torch.tensor([True, False, False]), 6)
    silence.update(torch.tensor([True, True, False]), 4)
    assert silence.silent.tolist() == [0, 0, 10]
    assert not silence.dead.any()
    silence.update(torch.tensor([False, False, False]), 1)
    assert silence.dead.tolist() == [False, False, True]
    again = DeadLatents(3, after=10)
    again.load_state_dict(pickle.loads(pickle.dumps(silence.state_dict())))
    assert torch.equal(again.silent, silence.silent)


def test_geometric_median_is_the_least_sum_of_distances():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(200, 5, generator=generator, dtype=torch.float64) + 1000
    tokens[:20] += 500  # a median hardly minds outliers
    found = geometric_median(tokens, rounds=1000, tolerance=1e-12)

    def cost(point):
        return (tokens - point).norm(dim=1).sum()

    for _ in range(50):
        assert cost(found) <= cost(found + 1e-3 * torch.randn(5, generator=generator, dtype=torch.float64))
    assert (found - 1000).norm() < 1
    assert torch.allclose(geometric_median(tokens.float()).double(), found, atol=1e-2)


def test_geometric_median_of_equal_and_collinear_tokens():
    assert torch.equal(geometric_median(torch.full((7, 3), 2.0)), torch.full((3,), 2.0))
    line = torch.tensor([[0.0], [1.0], [100.0]])
    assert geometric_median(line, rounds=10_000, tolerance=0).item() == pytest.approx(1, abs=1e-2)


def test_initialise_is_the_seeds_alone():
    _, tokens = problem()
    first, second = (SparseAutoencoder(SaeConfig(12, 96, 4)) for _ in range(2))
    for sae in (first, second):
        initialise(sae, tokens, torch.Generator().manual_seed(3))
    assert first.sha256() == second.sha256()
    assert torch.equal(first.W_enc, first.W_dec)
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(96))
    torch.testing.assert_close(first.b_dec, geometric_median(tokens).float())


def test_codes_know_their_rows():
    codes = Codes(torch.ones(4), torch.tensor([3, 1, 2, 0]), torch.tensor([0, 1, 1, 4]))
    assert codes.rows.tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize(
    ("tokens", "settings", "match"),
    [
        (torch.zeros(3, 11), {}, r"expected tokens \[N ≥ 2, 12\]"),
        (torch.zeros(1, 12), {}, r"got \[1, 12\]"),
        (torch.zeros(2, 3, 12), {}, r"got \[2, 3, 12\]"),
        (torch.zeros(3, 12), {"k": 0}, "k = 0"),
        (torch.zeros(3, 12), {"k": 97}, "k = 97"),
        (torch.zeros(3, 12), {"chunk": 0}, "chunk = 0"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, settings, match):
    with pytest.raises(ValueError, match=match):
        step_loss(problem()[0], tokens, **settings)


def test_deepcopy_of_the_module_trains_apart():
    sae, tokens = problem()
    step = SaeStep(sae, batch_topk=False, chunk=8)
    twin = copy.deepcopy(step)
    twin(tokens, some(96, 5)).loss.backward()
    assert sae.W_dec.grad is None
    assert twin.sae.W_dec.grad is not None
