#!/usr/bin/env bash
# Opens an artifact in other people's tools (ONNX Runtime from Python and from JavaScript, diffusers, optimum, polygraphy, TensorRT for
# RTX's builder) and compares what they make with the hook; and lets eval-unlearn measure it.
#
#   run.sh BIN                 BIN: the bin folder of an environment in which saeuron-export[export,cpu] is installed
#   ARTIFACT=DIR run.sh BIN    checks this artifact (checkpoint and ONNX) instead of a new one of the embedded demo
#
# optimum needs an environment of its own, .venv-optimum in the repository root; it is made at the first call. Its older
# transformers and diffusers open the checkpoint, too. Polygraphy and TensorRT for RTX share .venv-nvidia, JavaScript's packages lie in
# .venv-node, eval-unlearn and this package in .venv-eval-unlearn. Without node and npm, JavaScript is a failure: NODE=skip leaves it out, and says so.
set -euo pipefail
bin=${1:?usage: run.sh BIN}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
optimum=$root/.venv-optimum/bin/python nvidia=$root/.venv-nvidia/bin/python node=$root/.venv-node
eval_unlearn=$root/.venv-eval-unlearn/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

environment() { # name: an environment from requirements-NAME.txt, made anew when these change
  local requirements=$here/requirements-$1.txt venv=$root/.venv-$1
  if cmp -s "$requirements" "$venv/installed.txt"; then return; fi
  echo "making an environment for $1 (once) …"
  "$bin/python" -m venv --clear "$venv"
  (cd "$root" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements")
  cp "$requirements" "$venv/installed.txt"
}
environment optimum
environment nvidia
environment eval-unlearn
if [ "${NODE:-}" != skip ] && ! cmp -s "$here/node/package.json" "$node/installed.json"; then
  if ! command -v npm >/dev/null; then echo "node and npm are needed for the client in JavaScript; NODE=skip leaves it out" >&2; exit 2; fi
  echo "making an environment for JavaScript (once) …"
  rm -rf "$node" && mkdir "$node" && cp "$here/node/package.json" "$node"
  # Scripts of packages are left alone: this one's would fetch libraries for CUDA, the CPU's are in the package.
  (cd "$node" && npm install --ignore-scripts --no-package-lock --no-audit --no-fund --silent)
  cp "$node/package.json" "$node/installed.json"
fi

# An empty cache and no Hub: a client finds everything in the folder, or fails.
export HF_HOME=$work/huggingface HF_HUB_OFFLINE=1
export PYTHONWARNINGS=ignore DIFFUSERS_VERBOSITY=error TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1

artifact=${ARTIFACT:-$work/artifact}
if [ -z "${ARTIFACT:-}" ]; then
  "$bin/saeuron-export" --concepts Neon,House --intervention multiply --format checkpoint,onnx --output "$artifact"
fi

failed=0
"$bin/python" "$here/open_in_onnxruntime.py" "$artifact" || failed=1
if [ "${NODE:-}" = skip ]; then
  echo "left out: JavaScript"
else
  # Packages are looked up from where the file lies.
  cp "$here/node/open_in_onnxruntime.mjs" "$node" && node "$node/open_in_onnxruntime.mjs" "$artifact" || failed=1
  "$bin/python" "$here/draw_in_chromium.py" "$artifact" "$node/node_modules/onnxruntime-web/dist" || failed=1
fi
"$nvidia" "$here/open_in_polygraphy.py" "$artifact" || failed=1
"$nvidia" "$here/open_in_tensorrt_rtx.py" "$artifact" || failed=1
"$bin/python" "$here/open_in_diffusers.py" "$artifact" || failed=1
"$optimum" "$here/open_in_diffusers.py" "$artifact" || failed=1
"$bin/python" "$here/loaders.py" "$artifact" || failed=1
"$optimum" "$here/loaders.py" "$artifact" --quick || failed=1
if "$bin/python" "$here/euler_reference.py" "$artifact" "$work/euler.npz"; then
  "$optimum" "$here/open_in_optimum.py" "$artifact" "$work/euler.npz" || failed=1
else
  failed=1
fi
if [ -z "${ARTIFACT:-}" ]; then # the embedded SD3 as well, where networks are transformers and there is a third text encoder
  "$bin/saeuron-export" --model demo:dit --concepts Neon --format checkpoint,onnx --output "$work/transformer"
  for python in "$bin/python" "$optimum"; do "$python" "$here/open_in_diffusers.py" "$work/transformer" || failed=1; done
  "$optimum" "$here/open_in_optimum.py" "$work/transformer" || failed=1
fi
"$eval_unlearn" "$here/run_eval_unlearn.py" "$artifact" || failed=1
if [ "$failed" = 0 ]; then echo "every client runs the edit"; else echo "a client FAILED" >&2; fi
exit "$failed"
