"""A picture for people: the original model above, the artifact below, same prompts and seeds.

`python -m saeuron.validation.page.before_after ARTIFACT --model demo -o before-after.png`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...editor.common.errors import SaeuronError
from ...editor.denoisers.pipelines import load_pipeline
from ...editor.denoisers.sampling import generate
from ...editor.edit.gains import BY_HAND
from ..artifact import manifest
from ..artifact.golden import Golden
from ..backends.load import load
from .sheets import picture_rows


def before_after(artifact: Path, model: str, prompts: Sequence[str] = (), seed: int = 7, size: int = 128, columns: int = 12) -> Image.Image:
    """Draw the comparison.

    Args:
        artifact: its folder; must hold a checkpoint.
        model: the original model.
        prompts: default: those of the artifact's proof.
        seed: the first picture's; each next takes the next one.
        size: pixels a picture is shown at.
        columns: most pictures shown.
    """
    record = manifest.read(artifact)
    texts = (list(prompts) or Golden.load(artifact / "edit" / "golden.safetensors").notes.prompts)[:columns]
    seeds = [seed + i for i in range(len(texts))]
    sampling = record.sampling
    rows: list[list[Any]] = []
    for pipeline in (load_pipeline(model, variant=record.model.variant), load(artifact)):
        rows.append(list(generate(pipeline, texts, seeds, sampling.steps, sampling.guidance, sampling.height, sampling.width)))
    steered = all(w.status == BY_HAND for w in record.settings)
    titles = "original", ("steered: " if steered else "without ") + ", ".join(record.concepts)
    return picture_rows(list(zip(titles, rows, strict=True)), size, texts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model", required=True, help="the original model")
    parser.add_argument("--prompt", action="append", default=[], help="repeatable; default: the proof's prompts")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        before_after(options.artifact, options.model, options.prompt, options.seed).save(options.output)
    except SaeuronError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
