"""`saeuron bench`: what it times is what it says; nothing here looks at how long it took."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.conftest import HOOKPOINT, edit_of, make_activations, make_sae, make_unet, refused, run
from tests.validation.stand_in import StandInCuda, StandInTensorRT

from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.how import How
from saeuron.export.bench import graphs as bench_graphs
from saeuron.export.bench.bench import HOOK, UNEDITED, bench, timed
from saeuron.validation.artifact import engines
from saeuron.validation.artifact.engines import Gpu
from saeuron.validation.backends import tensorrt_runner
from saeuron.validation.backends.sessions import open_session, run_session

pytestmark = pytest.mark.slow

GATES = ("exact", "threshold")


@pytest.fixture(scope="module")
def parts():
    edit = edit_of(make_activations(), ("A", "count:20", -3.0))
    return make_unet(), edit, {HOOKPOINT: make_sae()}


def measure(parts, *backends):
    return bench(*parts, backends, (8, 8), text=6, rounds=2)


def test_torch_and_onnx(parts):
    found = measure(parts, "torch", "onnx")
    rows = {(r["backend"], r["variant"]): r for r in found["rows"]}
    assert set(rows) == {("torch", v) for v in (UNEDITED, HOOK, *GATES)} | {("onnx", v) for v in (UNEDITED, *GATES)}
    for (backend, variant), row in rows.items():
        assert row["seconds"] > 0 and row["ratio"] == pytest.approx(row["seconds"] / rows[backend, UNEDITED]["seconds"])
        assert (row["added_bytes"] > 0) == (variant in GATES)
    assert rows["torch", "threshold"]["added_bytes"] < rows["torch", "exact"]["added_bytes"]
    assert 0 < found["fired"] < 1 and set(found["hardware"]) == {"torch", "onnx"} and found["rounds"] == 2
    assert found["tokens"] == {HOOKPOINT: [2, 16, 32]}


def test_only_exact_where_the_residual_or_the_gain_needs_every_latent(parts):
    unet, edit, saes = parts
    by_token = {h: replace(part, how=How(gain="token")) for h, part in edit.hookpoints.items()}
    for other in (replace(edit, residual="upstream"), replace(edit, hookpoints=by_token)):
        found = measure((unet, other, saes), "torch")
        assert [r["variant"] for r in found["rows"]] == [UNEDITED, HOOK, "exact"]


@pytest.mark.parametrize("gate", GATES)
@torch.no_grad()
def test_the_graph_of_the_edit_alone_is_the_edit(parts, gate, tmp_path):
    unet, edit, saes = parts
    edited = bake(unet, edit, saes, gate)
    tokens = {HOOKPOINT: torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1))}
    path, feed = bench_graphs.export_edit(
        bench_graphs.Edits(edited.ablations, [None]), (torch.tensor(501.0), *tokens.values()), tmp_path / gate
    )
    (found,) = run_session(open_session(path), dict(feed)).values()
    wanted = next(iter(edited.ablations.values()))(tokens[HOOKPOINT], torch.tensor([501.0]))
    assert not torch.equal(wanted, tokens[HOOKPOINT])
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)


def test_engines_are_built_for_this_gpu_and_run_without_copies(parts, monkeypatch):
    """The builder is the real one; a stand-in runs what it built."""
    pytest.importorskip("tensorrt_rtx")
    cuda, graphs, jobs, build = StandInCuda(), {}, [], bench_graphs.run_worker

    def built(job):
        made = build(job)
        jobs.append(job)
        graphs[Path(job["engine"]).read_bytes()] = job["graph"]
        return made

    stand_in = tensorrt_runner.Cuda.__new__(tensorrt_runner.Cuda)
    stand_in._runtime = cuda
    monkeypatch.setattr(bench_graphs, "run_worker", built)
    monkeypatch.setattr(engines, "gpu", lambda: Gpu("a GPU", "sm86"))
    monkeypatch.setattr(engines, "tensorrt_module", lambda backend: StandInTensorRT(cuda, graphs, "1"))
    monkeypatch.setattr(bench_graphs, "Cuda", lambda: stand_in)
    found = measure(parts, "trt-rtx")
    rows = {r["variant"]: r for r in found["rows"]}
    assert set(rows) == {UNEDITED, *GATES} and {j["sms"][0] for j in jobs} == {"sm86"}
    assert rows["exact"]["ratio"] > 0 and rows["threshold"]["ratio"] > 0
    copies = cuda.calls.count("cudaMemcpyAsync")
    assert cuda.calls.count("cudaStreamSynchronize") > copies, "what is timed copies nothing"
    assert not cuda.memory, "device memory is given back"
    assert found["hardware"] == {"trt-rtx": "a GPU"}


def test_who_begins_changes():
    order = []
    found = timed({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    assert "".join(order) == "abcabc" + "abcbcacab", "twice to warm, then in turns"
    assert {len(times) for times in found.values()} == {3}


def test_the_command():
    found = json.loads(run("bench", "--backend", "torch", "--rounds", 1, "--json").stdout)
    assert found["model"] == "demo" and [r["variant"] for r in found["rows"]] == [UNEDITED, HOOK, *GATES]
    shown = run("bench", "--concepts", "Neon", "--backend", "torch", "--rounds", 1).stdout
    assert "of the UNet" in shown and all(variant in shown for variant in (UNEDITED, HOOK, *GATES))


def test_refusals():
    refused("no GPU can be used here", "bench", "--backend", "trt-rtx")
    refused("--provider cuda is for backend onnx", "bench", "--backend", "torch", "--provider", "cuda")
    refused("no bf16 MatMul", "bench", "--precision", "bf16")
    refused("did you mean torch", "bench", "--backend", "torhc")
    refused("--backend is empty", "bench", "--backend", "")
    refused("the list ',' is empty", "bench", "--backend", ",")
    refused("--precision 'fp8' is not known", "bench", "--precision", "fp8")
    refused("--rounds is 0", "bench", "--rounds", "0")
    refused("--height is 9", "bench", "--height", "9")
    refused("no concept named", "bench", "--concepts", "")
    if not torch.cuda.is_available():
        refused("device 'cuda' can't be used", "bench", "--backend", "torch", "--device", "cuda")
