"""The wheel holds everything, the floors import only downwards, and the base install works without torch."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("editor", "validation", "export")


@pytest.mark.slow
def test_every_module_is_in_the_wheel_and_imports(tmp_path):
    # Built from a copy: setuptools leaves a build folder behind, whose stale files the next wheel would take in.
    source = tmp_path / "source"
    for name in (*FLOORS, "src"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    modules = [f"saeuron/{p.relative_to(ROOT).as_posix()}" for floor in FLOORS for p in (ROOT / floor).rglob("*.py")]
    missing = [m for m in modules if m not in names]
    assert not missing
    data = [
        f"saeuron/{p.relative_to(ROOT).as_posix()}"
        for folder in ("editor", "validation")
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and p.suffix in (".toml", ".safetensors", ".json", ".txt", ".j2", ".css", ".js")
    ]
    assert not [d for d in data if d not in names]
    # The second model, with at most 12 MB of its own: tests/export/test_demo_dit.py.
    demo = [p for p in (ROOT / "editor" / "demo").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in demo if "dit" not in p.relative_to(ROOT).parts) <= 28 * 10**6
    code = (
        "import importlib,sys;"
        + ";".join(f"importlib.import_module({m[:-3].replace('/', '.').removesuffix('.__init__')!r})" for m in modules)
        + ";import saeuron;print(saeuron.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys;sys.path.insert(0,{str(tmp_path / 'site')!r});{code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(tmp_path) in found.stdout


def test_imports_only_go_down():
    for height, floor in enumerate(FLOORS):
        above = FLOORS[height + 1 :]
        for path in (ROOT / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    target = (
                        (node.module or "").split(".")[0]
                        if node.level >= 2
                        else ((node.module or "").split(".")[1:2] or [""])[0]
                        if (node.module or "").startswith("saeuron")
                        else ""
                    )
                    assert target not in above, f"{path.relative_to(ROOT)} imports {node.module}"


def test_the_travelling_file_needs_only_torch_and_diffusers():
    from saeuron.editor.edit.shipped import PARTS, SHIPPED, joined

    assert joined(*((ROOT / "editor" / "edit" / name).read_text() for name in PARTS)) == SHIPPED
    tree = ast.parse(SHIPPED)
    roots = {
        (n.module if isinstance(n, ast.ImportFrom) else a.name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }
    assert roots - set(sys.stdlib_module_names) == {"torch", "diffusers"}
    assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree))


def test_the_base_imports_without_torch():
    """`saeuron --help`, `concepts`, and reading a manifest need neither torch nor diffusers."""
    code = """
import sys
for name in ("torch", "diffusers", "transformers", "onnx", "onnxruntime"): sys.modules[name] = None
import saeuron
from saeuron.export.cli import app
from saeuron.validation.artifact import golden, manifest
from saeuron.validation.backends import choose, lean
from saeuron.validation.proof import parity, validate
from typer.testing import CliRunner
for arguments in (["--help"], ["export", "--help"], ["generate", "--help"], ["concepts"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0, arguments
result = CliRunner().invoke(app, ["export", "--concepts", "Neon", "--output", "/tmp/never-written"])
assert result.exit_code == 2 and "saeuron-export[export]" in result.stderr, result.stderr
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_the_architecture_lists_every_folder_once():
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| `((?:editor|validation|export)/[^`]*/)` \|", text, re.MULTILINE)
    folders = {f"{p.parent.relative_to(ROOT).as_posix()}/" for floor in FLOORS for p in (ROOT / floor).glob("*/**/__init__.py")}
    assert sorted(listed) == sorted(folders)


def test_what_the_docs_name_is_there():
    """Paths in backticks, links, and what Python blocks import of ours."""
    missing = []
    files = [p for p in ROOT.rglob("*") if p.suffix == ".py" and not {".venv", "build"} & set(p.parts)]
    names = {p.name for p in files}
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for name in re.findall(r"`((?:editor|validation|export|tests|benchmarks|docs)/[\w./-]+|[\w-]+\.py)`", text):
            at_home = (ROOT / name).exists() or ("/" not in name and name in names)
            missing += [] if at_home or name.startswith("validation/report") else [f"{page.name}: {name}"]
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            missing += [] if (page.parent / link).exists() else [f"{page.name}: {link}"]
        for module in re.findall(r"^from saeuron\.([\w.]+) import", text, re.MULTILINE):
            place = ROOT / module.replace(".", "/")
            missing += [] if place.with_suffix(".py").exists() or (place / "__init__.py").exists() else [f"{page.name}: saeuron.{module}"]
    assert not missing
