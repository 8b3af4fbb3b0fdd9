"""Fuzzes every reader of outside files: `python -m benchmarks.fuzz --inputs 100000 --seed 1`, from the repository's root.

Prints a line a reader; exit code 1 if anything but a result or an error of one line came out. `--only NAME --show N` prints one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.faults.fuzzing import run, shares
from tests.faults.readers import damaged, readers


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a part of a reader's name")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show", type=int, help="with --only: print this input instead of feeding any")
    options = parser.parse_args()
    known = [one for one in readers() if not options.only or options.only in one.name]
    if options.show is not None:
        show(known[0], options.seed, options.show)
        return
    began, all_found = time.perf_counter(), []
    for one, count in shares(known, options.inputs):
        found = run(one, count, options.seed)
        all_found.append(found)
        print(
            f"{found.reader:<34} {found.inputs:>7} inputs, {found.accepted:>6} accepted, {found.refused:>6} refused, {len(found.faults)} faults, {found.seconds:6.1f} s",
            file=sys.stderr if options.json else sys.stdout,
            flush=True,
        )
        for fault, entry in found.faults.items():
            print(
                f"    {entry['count']} x {fault} (first: {entry['number']}) {entry['text'][-300:]!r}",
                file=sys.stderr if options.json else sys.stdout,
                flush=True,
            )
    total, faults = sum(f.inputs for f in all_found), sum(len(f.faults) for f in all_found)
    if options.json:
        print(json.dumps([vars(f) for f in all_found], indent=1))
    else:
        print(f"{total} inputs, {len(all_found)} readers, {faults} faults, {time.perf_counter() - began:.0f} s, seed {options.seed}")
    sys.exit(1 if faults else 0)


def show(one, seed, number) -> None:  # noqa: ANN001
    """Print an input."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as place:
        one.prepare(Path(place))
        name, content = damaged(one, Path(place), seed, number)
    print(name)
    sys.stdout.buffer.write(content[:4000] + b"\n")


if __name__ == "__main__":
    main()
