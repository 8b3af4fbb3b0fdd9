"""Networks whose weights stay in their files: equal to the same in memory, with nothing in memory between forwards; bad files are seen."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.transformer_pipelines import make_flux, make_sd3

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers import streamed
from saeuron.editor.denoisers.components import open_network
from saeuron.editor.denoisers.families import denoiser_of, family_in
from saeuron.editor.denoisers.sampling import tokens_up_to


@pytest.fixture(scope="module", params=["sd3", "flux"])
def folder(request, tmp_path_factory):
    return (make_sd3 if request.param == "sd3" else make_flux)(tmp_path_factory.mktemp(request.param))


def opened(folder, name="transformer", dtype=torch.float32, streams=True):
    return open_network(folder / name, family_in(folder).class_of(name), dtype, streams=streams)


@pytest.fixture
def small(monkeypatch):
    """Bounds that a tiny network is above."""
    monkeypatch.setattr(streamed, "LARGE", 0)
    monkeypatch.setattr(streamed, "SMALL", 64)


def inputs_of(network, dtype=torch.float32):
    torch.manual_seed(1)
    denoiser = denoiser_of(network)
    shapes = denoiser.shapes(network.config, 2, (8, 8), 9)
    made = {n: torch.rand(s, dtype=torch.float32 if n in denoiser.float32 else dtype) for n, s in shapes.items()}
    return made | {n: torch.from_numpy(v) for n, v in denoiser.at_level(437.0, 2).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gives_what_the_same_in_memory_gives(folder, small, dtype):
    whole, parts = opened(folder, dtype=dtype, streams=False), opened(folder, dtype=dtype)
    held = streamed.streamed(parts)
    assert held is not None and streamed.streamed(whole) is None
    denoiser, inputs = denoiser_of(whole), inputs_of(whole, dtype)
    with torch.no_grad():
        expected = denoiser.call(whole, inputs)
        assert torch.allclose(denoiser.call(parts, inputs), expected, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-5)
        wide = {n: v.float() for n, v in inputs.items()}
        twin = streamed.widened(parts)
        assert torch.allclose(denoiser.call(twin, wide), denoiser.call(streamed.widened(whole), wide), rtol=1e-5, atol=1e-5)
    named = dict(streamed.weights_of(parts, parts.state_dict().items()))
    assert named.keys() == whole.state_dict().keys() and all(torch.equal(named[n], v) for n, v in whole.state_dict().items())
    for network in (parts, twin):  # nothing stays: one number stands for each tensor
        assert all(network.state_dict()[n].untyped_storage().nbytes() <= 8 for n in held.stored)
        assert all(network.state_dict()[n].isnan().all() for n in held.stored)


def test_a_small_network_lies_in_memory(folder):
    assert streamed.streamed(opened(folder)) is None


def test_weights_are_dropped_where_a_forward_fails(folder, small):
    network = opened(folder)
    inputs = inputs_of(network)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][..., :-1]
    with pytest.raises(RuntimeError):
        denoiser_of(network).call(network, inputs)
    assert all(network.state_dict()[n].isnan().all() for n in streamed.streamed(network).stored)


def test_tied_weights_stay_one(folder, small):
    text = {"SD3": "text_encoder_3", "Fl": "text_encoder_2"}["SD3" if "SD3" in family_in(folder).denoiser.cls else "Fl"]
    network = opened(folder, text)
    ids = torch.randint(0, 5, (1, 4))
    with torch.no_grad():
        assert torch.allclose(network(ids)[0], opened(folder, text, streams=False)(ids)[0], atol=1e-6)
    assert network.shared.weight is network.encoder.embed_tokens.weight


def test_a_forward_may_end_behind_a_block(folder, small):
    network, whole = opened(folder), opened(folder, streams=False)
    inputs, seen = inputs_of(whole), []
    block, denoiser = whole.transformer_blocks[0], denoiser_of(whole)
    handle = block.register_forward_hook(lambda m, a, out: seen.append(denoiser.tokens("transformer_blocks.0", out)))
    with torch.no_grad():
        denoiser.call(whole, inputs)
        handle.remove()
        ran = []
        network.transformer_blocks[1].register_forward_hook(lambda *a: ran.append(1))
        found = tokens_up_to(network, ["transformer_blocks.0"], inputs)
    assert not ran and torch.allclose(found, seen[0].flatten(1), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [("nan", "not finite in float32"), ("cut", "truncated"), ("lacking", "lack"), ("surplus", "no place"), ("shape", "other shapes")],
)
def test_bad_files_are_refused(folder, small, tmp_path, change, said):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "model")
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = "transformer_blocks.0.attn.to_q.weight"
    if change == "cut":
        network = opened(copy)
        file.write_bytes(file.read_bytes()[:-400_000])
    else:
        if change == "nan":
            tensors[name][0, 0] = float("nan")
        elif change == "lacking":
            del tensors[name]
        elif change == "surplus":
            tensors["more.weight"] = tensors[name].clone()
        else:
            tensors[name] = tensors[name][:-1].clone()
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SaeuronError, match=said):
        if change != "cut":
            network = opened(copy)
        with torch.no_grad():
            denoiser_of(network).call(network, inputs_of(network))
