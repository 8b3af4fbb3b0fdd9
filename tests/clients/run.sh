#!/usr/bin/env bash
# Opens an artifact in other people's tools (ONNX Runtime, diffusers, optimum) and compares what they make with the hook.
#
#   run.sh BIN                 BIN: the bin folder of an environment in which saeuron-export[export,cpu] is installed
#   ARTIFACT=DIR run.sh BIN    checks this artifact (checkpoint and ONNX) instead of a new one of the embedded demo
#
# optimum needs an environment of its own, .venv-optimum in the repository root; it is made at the first call. Its older
# transformers and diffusers open the checkpoint, too.
set -euo pipefail
bin=${1:?usage: run.sh BIN}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(cd "$here/../.." && pwd)/.venv-optimum
requirements=$here/requirements-optimum.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! cmp -s "$requirements" "$venv/installed.txt"; then
  echo "making an environment for optimum (once) …"
  "$bin/python" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$venv/installed.txt"
fi

# An empty cache and no Hub: a client finds everything in the folder, or fails.
export HF_HOME=$work/huggingface HF_HUB_OFFLINE=1
export PYTHONWARNINGS=ignore DIFFUSERS_VERBOSITY=error TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1

artifact=${ARTIFACT:-$work/artifact}
if [ -z "${ARTIFACT:-}" ]; then
  "$bin/saeuron-export" --concepts Neon,House --format checkpoint,onnx --output "$artifact"
fi

failed=0
"$bin/python" "$here/open_in_onnxruntime.py" "$artifact" || failed=1
"$bin/python" "$here/open_in_diffusers.py" "$artifact" || failed=1
"$venv/bin/python" "$here/open_in_diffusers.py" "$artifact" || failed=1
"$bin/python" "$here/loaders.py" "$artifact" || failed=1
"$venv/bin/python" "$here/loaders.py" "$artifact" --quick || failed=1
if "$bin/python" "$here/euler_reference.py" "$artifact" "$work/euler.npz"; then
  "$venv/bin/python" "$here/open_in_optimum.py" "$artifact" "$work/euler.npz" || failed=1
else
  failed=1
fi
if [ "$failed" = 0 ]; then echo "every client runs the edit"; else echo "a client FAILED" >&2; fi
exit "$failed"
