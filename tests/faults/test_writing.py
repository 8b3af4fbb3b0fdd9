"""Full disks, folders that can't be written, processes that are killed or want the same place: whole or not at all, and one line."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
from tests.conftest import HOOKPOINT, make_activations, make_sae, refused, run

from saeuron.editor.common import writing
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.writing import alone, exchange, scratch, whole_file, whole_folder

fork = multiprocessing.get_context("fork")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with whole_file(path) as made:
        made.write_text("one")
        assert not path.exists() and made.suffix == ".txt"
    with pytest.raises(ZeroDivisionError), whole_file(path) as made:
        made.write_text("two")
        raise ZeroDivisionError
    assert path.read_text() == "one" and names(path.parent) == ["x.txt"]


def test_a_long_name_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 120 + ".txt")
    with whole_file(path) as made:
        made.write_text("x")
    assert names(tmp_path) == [path.name]
    with pytest.raises(SaeuronError, match="can't be written: File name too long"), whole_file(tmp_path / ("x" * 300)) as made:
        made.write_text("x")


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_takes_anothers_place(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(writing, "exchange", lambda *_: False)
    path = tmp_path / "out"
    for content in ("one", "two"):
        with whole_folder(path) as made:
            (made / content).touch()
    assert names(path) == ["two"]
    with whole_folder(path):
        pass
    assert names(tmp_path) == [], "one that stays empty only removes what was there"


def test_exchange_says_whether_it_could(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system can't")
    assert (tmp_path / "a").read_text() == "b" and (tmp_path / "b").is_dir()
    assert not exchange(tmp_path / "a", tmp_path / "nothing")


def _hold(parent, ready, go):
    with scratch(parent, "x") as folder:
        (folder / "half").touch()
        ready.set()
        go.wait()


def held(tmp_path):
    ready, go = fork.Event(), fork.Event()
    other = fork.Process(target=_hold, args=(tmp_path, ready, go))
    other.start()
    assert ready.wait(30)
    return other, go


def test_two_processes_get_places_of_their_own_and_a_killed_ones_is_removed(tmp_path):
    first, _ = held(tmp_path)
    with scratch(tmp_path, "x") as mine:
        assert names(mine) == [] and len(names(tmp_path)) == 2
        with pytest.raises(SaeuronError, match="busy"), scratch(tmp_path, "x", "busy"):
            pass
        assert first.is_alive() and sum(1 for _ in tmp_path.rglob("half")) == 1, "a living process's work is left alone"
    second, go = held(tmp_path)
    assert len(names(tmp_path)) == 2
    second.kill()
    second.join()
    assert len(names(tmp_path)) == 2, "a killed process leaves its folder"
    first.kill()
    first.join()
    with scratch(tmp_path, "x", "busy"):
        assert len(names(tmp_path)) == 1, "both were removed"
    assert names(tmp_path) == [] and not go.is_set()


def test_a_kill_between_two_renames_loses_no_folder(tmp_path, monkeypatch):
    """Where two folders can't change places at once, the old one is away for a moment."""
    path = tmp_path / "out"
    with whole_folder(path) as made:
        (made / "old").touch()
    monkeypatch.setattr(writing, "exchange", lambda *_: False)

    def replace():
        rename, calls = os.rename, []

        def killed(old, new):
            calls.append(new)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(old, new)

        writing.os.rename = killed
        with whole_folder(path) as made:
            (made / "new").touch()

    other = fork.Process(target=replace)
    other.start()
    other.join()
    assert other.exitcode == -signal.SIGKILL and not path.exists()
    writing.put_back(path)
    assert names(path) == ["old"] and names(tmp_path) == ["out"]


def test_without_locks_nobodys_folder_is_touched(tmp_path, monkeypatch):
    def none(folder, wait=False):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(writing, "_lock", none)
    (tmp_path / ".x.partial").mkdir()
    (tmp_path / ".x.partial" / "a").touch()
    with whole_file(tmp_path / "x") as made:
        made.write_text("x")
    assert names(tmp_path) == [".x.partial", "x"] and names(tmp_path / ".x.partial") == ["a"]
    with alone(tmp_path / "w", "busy"):
        assert (tmp_path / "w").is_dir()


def test_alone_refuses_or_waits(tmp_path):
    with alone(tmp_path / "w", "busy"), pytest.raises(SaeuronError, match="busy"), alone(tmp_path / "w", "busy"):
        pass
    assert names(tmp_path) == []

    def work(number):
        with alone(tmp_path / "w"):
            there = tmp_path / "w" / "x"
            assert not there.exists()
            there.touch()
            time.sleep(0.05)
            there.unlink()
        (tmp_path / str(number)).touch()

    all_of_them = [fork.Process(target=work, args=(i,)) for i in range(4)]
    for one in all_of_them:
        one.start()
    for one in all_of_them:
        one.join()
    assert [one.exitcode for one in all_of_them] == [0] * 4 and names(tmp_path) == ["0", "1", "2", "3"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 192 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def job(tiny, output):
    return ["export", "--concepts", "A", "--model", tiny["model"], "--sae", tiny["sae"], "--activations", tiny["activations"], "--hookpoint", HOOKPOINT,
            "--select", "count:20", "--multiplier", "-3", "--steps", "2", "--proof", "short", "--output", output]  # fmt: skip


@pytest.mark.slow
def test_a_full_disk(tiny, small_disk, monkeypatch):
    refused("GiB free", *job(tiny, small_disk / "out"))
    # As if the room had gone while it was being written.
    monkeypatch.setattr("saeuron.export.ship.artifact.check_space", lambda *_: None)
    for kinds in ("checkpoint", "onnx"):
        refused("can't be written: ", *job(tiny, small_disk / "out"), "--format", kinds)
        assert names(small_disk) == []
    for write in (
        lambda path: make_sae(latents=4096).save(path),
        lambda path: make_activations(latents=4096).save(path.with_suffix(".safetensors")),
        lambda path: path.write_bytes(bytes(1 << 20)),
    ):
        with pytest.raises(SaeuronError, match="can't be written: .*(No space left|disk is full)"), whole_folder(small_disk / "x") as made:
            write(made / "y")
        assert names(small_disk) == []


def test_a_full_disk_while_collecting(tiny, small_disk, tmp_path):
    (tmp_path / "p.toml").write_text('[prompts]\nA = ["a", "b"]\nB = ["c"]\n')
    (small_disk / "filler").write_bytes(bytes(180 << 10))
    refused("No space left", "collect", "--prompts", tmp_path / "p.toml", "--model", tiny["model"], "--sae", tiny["sae"], "--hookpoint", HOOKPOINT,
            "--steps", 3, "--guidance", 3, "--output", small_disk / "a.safetensors")  # fmt: skip
    assert [n for n in names(small_disk) if not n.startswith(".")] == ["filler"]


def test_a_temporary_folder_that_is_full_or_missing_is_named(small_disk, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(SaeuronError, match=f"temporary folder '{small_disk}' is full"), writing.temporary() as folder:
        (folder / "x").write_bytes(bytes(16 << 20))
    with pytest.raises(SaeuronError, match="is full"), writing.temporary() as folder:
        with contextlib.suppress(OSError):
            (folder / "x").write_bytes(bytes(16 << 20))
        raise RuntimeError("a library that says nothing of the disk")
    for error in (SaeuronError("x"), ZeroDivisionError("x")):
        with pytest.raises(type(error), match="x"), writing.temporary():
            raise error
    assert names(small_disk) == []
    monkeypatch.setattr("tempfile.tempdir", str(small_disk / "gone"))
    with pytest.raises(SaeuronError, match="set TMPDIR"), writing.temporary():
        pass


def test_a_read_only_disk(tiny, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    refused("no permission to write into", *job(tiny, small_disk / "out"))
    with pytest.raises(SaeuronError, match="can't be written: Read-only file system"), whole_file(small_disk / "x"):
        pass


@pytest.mark.slow
def test_two_exports_into_one_folder(tiny, tmp_path):
    other, go = fork.Process(target=_hold, args=(tmp_path, ready := fork.Event(), fork.Event())), None
    monkey = tmp_path / "x"
    other.start()
    assert ready.wait(30) and go is None
    refused("another process is making", *job(tiny, monkey), "--format", "checkpoint", "--no-validate")
    other.kill()
    other.join()
    run(*job(tiny, monkey), "--format", "checkpoint", "--no-validate")
    assert names(tmp_path) == ["x"]


def test_a_cache_that_two_processes_share(tiny, tmp_path):
    """Both want activations that aren't there: one collects, the other waits and takes them."""
    from saeuron.editor.denoisers.pipelines import load_pipeline
    from saeuron.editor.denoisers.sampling_settings import Sampling
    from saeuron.editor.features.collecting import ensure

    pipeline = load_pipeline(str(tiny["model"]))
    prompts = {"A": ("a", "b"), "B": ("c",)}

    def work():
        import torch

        torch.set_num_threads(1)
        heard = []
        os.environ["SAEURON_CACHE"] = str(tmp_path)
        ensure(lambda: heard.append(1) or pipeline, "m", {HOOKPOINT: make_sae()}, prompts, Sampling(3, 3.0, 1, 1), "d")
        (tmp_path / f"done-{os.getpid()}-{len(heard)}").touch()

    import torch

    torch.set_num_threads(1)
    both = [fork.Process(target=work) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert sorted(p.name.rpartition("-")[2] for p in tmp_path.glob("done-*")) == ["0", "1"]
    assert len(list((tmp_path / "activations").glob("*.safetensors"))) == 1 and names(tmp_path / "collecting") == []
