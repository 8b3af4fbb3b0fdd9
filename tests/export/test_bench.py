"""`saeuron bench`: what it times is what it says; nothing here looks at how long it took."""

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import HOOKPOINT, edit_of, make_activations, make_sae, make_unet, refused, run
from tests.validation.stand_in import StandInCuda, StandInTensorRT

from saeuron.editor.edit.bake import bake
from saeuron.export.bench import bench
from saeuron.export.bench import graphs as bench_graphs
from saeuron.export.bench.bench import HOOK, UNEDITED, BenchSettings, rounds
from saeuron.validation.artifact import engines
from saeuron.validation.artifact.engines import Gpu
from saeuron.validation.backends import tensorrt_runner
from saeuron.validation.backends.sessions import open_session, run_session

GATES = ("exact", "threshold")


@pytest.fixture(scope="module")
def parts():
    edit = edit_of(make_activations(), ("A", "count:20", -3.0))
    return make_unet(), edit, {HOOKPOINT: make_sae()}


def settings(*backends, **changes):
    return BenchSettings(GATES, backends, tokens=6, runs=2, forwards=2, **changes)


def test_torch_and_onnx(parts):
    found = bench(*parts, settings("torch", "onnx"))
    rows = {(r["backend"], r["variant"]): r for r in found["rows"]}
    assert set(rows) == {("torch", v) for v in (UNEDITED, HOOK, *GATES)} | {("onnx", v) for v in (UNEDITED, *GATES)}
    for (backend, variant), row in rows.items():
        unedited = rows[backend, UNEDITED]["forward_seconds"]
        if variant == UNEDITED:
            assert row["ratio"] is None and unedited > 0
        else:
            assert row["ratio"] == pytest.approx(row["edit_seconds"] / unedited)
    assert rows["torch", "threshold"]["added_bytes"] < rows["torch", "exact"]["added_bytes"]
    assert 0 < found["fired"] < 1 and set(found["hardware"]) == {"torch", "onnx"}


@pytest.mark.parametrize("gate", GATES)
@torch.no_grad()
def test_the_graph_of_the_edit_alone_is_the_edit(parts, gate, tmp_path):
    unet, edit, saes = parts
    edited = bake(unet, edit, saes, gate)
    maps = {HOOKPOINT: torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))}
    path, feed = bench_graphs.export_edit(edited.ablations, maps, torch.tensor(501.0), tmp_path / gate)
    (found,) = run_session(open_session(path), dict(feed)).values()
    wanted = next(iter(edited.ablations.values())).on_map(maps[HOOKPOINT], torch.tensor([501.0]))
    assert not torch.equal(wanted, maps[HOOKPOINT])
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
    monkeypatch.setattr(bench_graphs, "gpu", lambda: Gpu("a GPU", "sm86"))
    monkeypatch.setattr(engines, "gpu", lambda: Gpu("a GPU", "sm86"))
    monkeypatch.setattr(engines, "tensorrt_module", lambda backend: StandInTensorRT(cuda, graphs, "1"))
    monkeypatch.setattr(tensorrt_runner, "Cuda", lambda: stand_in)
    found = bench(*parts, settings("trt-rtx"))
    rows = {r["variant"]: r for r in found["rows"]}
    assert set(rows) == {UNEDITED, *GATES} and {j["sms"][0] for j in jobs} == {"sm86"}
    assert rows["exact"]["ratio"] > 0 and rows["threshold"]["ratio"] > 0
    copies = cuda.calls.count("cudaMemcpyAsync")
    assert cuda.calls.count("cudaStreamSynchronize") > copies, "what is timed copies nothing"
    assert not cuda.memory, "device memory is given back"
    assert found["hardware"] == {"trt-rtx": "a GPU"}


def test_who_begins_changes():
    order, found = [], {}
    for _ in range(3):
        rounds({name: lambda name=name: order.append(name) for name in "abc"}, found, lambda: order.append("|"))
    assert "".join(order).replace("|", "") == "abcbcacab"
    assert {len(times) for times in found.values()} == {3}


def test_the_command(tmp_path):
    file = tmp_path / "bench.json"
    run("bench", "--concepts", "Neon", "--gate", "threshold", "--backend", "torch", "--runs", 1, "--forwards", 1, "-o", file)
    assert json.loads(file.read_text())["rows"][-1]["variant"] == "threshold" and file.with_suffix(".svg").read_text().startswith("<svg")
    refused("exists", "bench", "-o", file)


def test_refusals():
    refused("no GPU can be used here", "bench", "--backend", "trt-rtx")
    refused("--provider cuda is for backend onnx", "bench", "--backend", "torch", "--provider", "cuda")
    refused("no bf16 MatMul", "bench", "--precision", "bf16")
    refused("did you mean torch", "bench", "--backend", "torhc")
    if not torch.cuda.is_available():
        refused("device 'cuda' can't be used", "bench", "--backend", "torch", "--device", "cuda")
