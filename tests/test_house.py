"""The layout of the packages (docs/architecture.md): imports go down and never round, files stay short, folders say what they are for."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("editor", "validation", "export")
"""from the lowest up: each may import itself and those before it"""
LONGEST = 400


def modules(root):
    """Dotted name → file; a package's name is its folder's."""
    files = [f for floor in FLOORS for f in (root / floor).rglob("*.py")]
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(name, file, known):
    """Modules of ours that a file imports, at its top, in a function or for its types."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            target = ".".join([*base, *(node.module or "").removeprefix("saeuron").strip(".").split(".")]).strip(".")
            wanted = [f"{target}.{alias.name}".strip(".") for alias in node.names]
            found |= {w if w in known else target for w in wanted}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("saeuron.") for alias in node.names}
    return (found & known.keys()) - {name}


def room(name, known):
    """The folder of a module, at most two deep: what lies in a folder of a folder belongs to it."""
    parts = name.split(".") if known[name].name == "__init__.py" else name.split(".")[:-1]
    return ".".join(parts[:2])


def faults(root):
    known = modules(root)
    graph = {name: imports(name, file, known) for name, file in known.items()}
    found = []
    rooms = {}
    for name, targets in graph.items():
        for target in targets:
            if FLOORS.index(target.split(".")[0]) > FLOORS.index(name.split(".")[0]):
                found.append(f"{name} imports {target}, which lies above it")
            if room(name, known) != room(target, known):
                rooms.setdefault(room(name, known), set()).add(room(target, known))
    for graph_of, what in ((graph, "modules"), (rooms, "folders")):
        try:
            TopologicalSorter(graph_of).prepare()
        except CycleError as error:
            found.append(f"a circle of {what}: {' → '.join(error.args[1])}")
    for name, file in known.items():
        text = file.read_text()
        if text.count("\n") > LONGEST:
            found.append(f"{name} has {text.count(chr(10))} lines, {LONGEST} are allowed")
        if file.name == "__init__.py" and not (ast.get_docstring(ast.parse(text)) or "").strip():
            found.append(f"{name} doesn't say what it is for")
    return found


def test_the_house_is_in_order():
    assert not faults(ROOT)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"editor/a/x.py": "def f():\n    from .y import g", "editor/a/y.py": "from .x import f"}, "circle of modules"),
        ({"editor/a/x.py": "from ..b.y import g", "editor/a/z.py": "", "editor/b/y.py": "", "editor/b/w.py": "from ..a import z"}, "circle of folders"),
        ({"editor/a/x.py": "from ...validation.b import y", "validation/b/y.py": ""}, "lies above it"),
        ({"validation/b/y.py": "from saeuron.export.c.z import f", "export/c/z.py": ""}, "lies above it"),
        ({"editor/a/x.py": "\n" * 401}, "401 lines"),
    ],
)  # fmt: skip
def test_what_is_out_of_order_is_found(tmp_path, files, said):
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").write_text('"""A room."""\n')
        file.write_text(text)
    (found,) = faults(tmp_path)
    assert said in found


def test_every_folder_is_in_the_wheel():
    """A package that isn't listed works in an editable installation and is missing from the wheel."""
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {f.parent.relative_to(ROOT).as_posix().replace("/", ".") for floor in FLOORS for f in (ROOT / floor).rglob("__init__.py")}
    assert listed == {"saeuron", *(f"saeuron.{name}" for name in folders)}
