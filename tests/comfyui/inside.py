"""Runs checks inside a real ComfyUI, with its own Python: `python inside.py CHECKOUT JOB.json RESULT.json`. Has nothing of saeuron but the node pack."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

CHECKOUT, JOB, RESULT = map(Path, sys.argv[1:4])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(CHECKOUT))
for absent in ("diffusers", "saeuron"):  # what a user of ComfyUI needn't have
    sys.modules[absent] = None  # type: ignore[assignment]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
logging.disable(logging.WARNING)

PACK = Path(__file__).parents[2] / "comfyui"
spec = importlib.util.spec_from_file_location("saeuron_nodes", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
assert spec and spec.loader
sys.modules["saeuron_nodes"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["saeuron_nodes"])

import torch  # noqa: E402
from inside_checks import CHECKS  # noqa: E402

job = json.loads(JOB.read_text())
found: dict[str, Any] = {}
for name, arguments in job.items():
    try:
        with torch.inference_mode():
            found[name] = {
                "found": CHECKS[name.partition(":")[0]](
                    **{key: Path(v) if isinstance(v, str) and "/" in v else v for key, v in arguments.items()}
                )
            }
    except Exception as error:
        found[name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    print(name, str(found[name])[:300], file=sys.stderr, flush=True)
RESULT.write_text(json.dumps(found))
