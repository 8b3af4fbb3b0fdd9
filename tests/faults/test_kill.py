"""A few kills at random moments; `benchmarks/kill.py` makes as many as one likes, of every stage."""

import random
import time

import pytest
import torch
from benchmarks import kill


def from_the_clock():
    seed = time.time_ns()
    print(f"seed {seed}")  # pytest shows it with a failure
    return random.Random(seed)


@pytest.fixture
def stages():
    return {one.name: one for one in kill.stages(None)}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_engines_are_put_in_place_at_once(stages, one_thread):
    # A run takes a tenth of a second, so on a busy machine many end before they are killed: these aren't kills, and as many are made as come.
    found = kill.kill(stages["build"], 25, from_the_clock())
    assert found["kills"] >= 5 and found["there"] == found["kills"], "the artifact always verifies, with old engines or new ones"


@pytest.mark.slow
def test_killed_collecting_goes_on_to_the_same_result(stages, one_thread):
    assert kill.kill(stages["collect"], 2, from_the_clock())["kills"] >= 1


def test_a_stage_that_leaves_half_a_file_is_found(tmp_path):
    """A check that can't fail is none."""

    def slow(folder):
        with (folder / "x").open("wb", buffering=0) as file:
            for _ in range(100):
                file.write(b"x")
                time.sleep(0.002)

    def check(folder):
        held = (folder / "x").read_bytes() if (folder / "x").exists() else None
        if held is not None and len(held) != 100:
            raise AssertionError("half a file")
        return held

    with pytest.raises(AssertionError, match="half a file"):
        kill.kill(kill.Stage("slow", slow, check), 5, random.Random(0))
