"""The wheel holds everything, the floors import only downwards, and the base install works without torch."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("editor", "validation", "export")


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
    assert sum(p.stat().st_size for p in (ROOT / "editor" / "demo").rglob("*") if p.is_file()) <= 25 * 10**6
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
    tree = ast.parse((ROOT / "editor" / "ablated_unet.py").read_text())
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
from saeuron.validation import manifest, golden, runners, parity, validate, lean
from typer.testing import CliRunner
for arguments in (["--help"], ["export", "--help"], ["generate", "--help"], ["concepts"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0, arguments
result = CliRunner().invoke(app, ["export", "--concepts", "Neon", "--output", "/tmp/never-written"])
assert result.exit_code == 2 and "saeuron-export[export]" in result.stderr, result.stderr
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_the_architecture_lists_every_module_once():
    text = (ROOT / "docs" / "architecture.md").read_text()
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `") and "/" in line.split("|")[1]]
    listed = []
    for cell in cells:
        first, *more = re.findall("`([^`]+)`", cell)
        listed += [first, *(name if "/" in name else f"{first.rpartition('/')[0]}/{name}" for name in more)]
    modules = {p.relative_to(ROOT).as_posix() for floor in FLOORS for p in (ROOT / floor).rglob("*.py") if p.name != "__init__.py"}
    folders = tuple(name for name in listed if name.endswith("/"))
    sections = {f"validation/page/{name}" for name in re.findall(r"`(\w+\.py)`", text)}
    assert not [name for name in listed if listed.count(name) > 1]
    assert not [name for name in listed if name.endswith(".py") and name not in modules]
    assert not [m for m in modules if m not in listed and not m.startswith(folders) and m not in sections]
