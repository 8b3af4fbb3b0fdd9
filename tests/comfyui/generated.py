"""The node pack's copy of the edit's module, made from the editor's source: `python -m tests.comfyui.generated` writes it."""

from pathlib import Path

from saeuron.editor.edit.shipped import joined

ROOT = Path(__file__).parents[2]
COPY = ROOT / "comfyui" / "edit_module.py"
# Without the classes of diffusers' networks, so that it needs torch alone.
PARTS = ("feature_ablation.py", "ablated_network.py")


def module() -> bytes:
    """What the copy must hold."""
    said = b"# Made from editor/edit by `python -m tests.comfyui.generated`; change it there.\n"
    # As the last part does that is left out here: copies look for the classes there.
    end = b"\n\nsys.modules.setdefault(_MODULE_NAME, sys.modules[__name__])\n"
    return said + joined(*((ROOT / "editor" / "edit" / name).read_text(encoding="utf-8") for name in PARTS)) + end


if __name__ == "__main__":
    COPY.write_bytes(module())
