#!/usr/bin/env bash
# Makes pictures from an artifact, and proves it, where neither torch nor diffusers nor transformers is installed; then compares
# a picture with the one that diffusers makes from the same seed.
#
#   run_bare.sh BIN                 BIN: the bin folder of an environment in which saeuron-export[export,cpu] is installed
#   ARTIFACT=DIR run_bare.sh BIN    checks this artifact (checkpoint and ONNX) instead of a new one of the embedded demo
#
# The bare environment is .venv-bare in the repository root, base and extra `cpu` alone; it is made at the first call.
set -euo pipefail
bin=${1:?usage: run_bare.sh BIN}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bare=${BARE:-$root/.venv-bare}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -x "$bare/bin/saeuron" ]; then
  echo "making an environment with the base and extra 'cpu' alone (once) …"
  "$bin/python" -m venv --clear "$bare"
  "$bare/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root[cpu]"
fi
for package in torch diffusers transformers; do
  if "$bare/bin/python" -c "import $package" 2>/dev/null; then echo "$package is in the bare environment" >&2; exit 1; fi
done

artifact=${ARTIFACT:-$work/artifact}
if [ -z "${ARTIFACT:-}" ]; then
  "$bin/saeuron-export" --concepts Neon,House --intervention multiply --format checkpoint,onnx --output "$artifact"
fi
prompt="An image of Car in Sunset style."
"$bare/bin/saeuron" validate "$artifact" --backend onnx
"$bare/bin/saeuron" generate "$artifact" --prompt "$prompt" --seed 7 --output "$work/bare.png"
"$bin/python" -W ignore - "$artifact" "$work/bare.png" "$prompt" <<'PYTHON'
import sys

import numpy as np
import torch
from PIL import Image

import saeuron
from saeuron.validation.artifact import manifest
from saeuron.validation.proof.parity import psnr

artifact, file, prompt = sys.argv[1:]
sampling = manifest.read(artifact)["sampling"]
pipeline = saeuron.load(artifact)
pipeline.set_progress_bar_config(disable=True)
theirs = pipeline(
    prompt, num_inference_steps=sampling["steps"], guidance_scale=sampling["guidance"], generator=torch.Generator().manual_seed(7)
).images[0]
found = psnr(np.asarray(Image.open(file)), np.asarray(theirs))
print(f"picture of seed 7 against diffusers': PSNR {found:.1f} dB")
sys.exit(0 if found >= 50 else "the pictures differ")
PYTHON
echo "runs without torch, diffusers and transformers"
