"""The rules of the house that a machine can check, each with an example that breaks it."""

import ast
import dataclasses
import fnmatch
import inspect
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import rtd_hf


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rtd_hf"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A module imports from lower layers only; within a layer none knows another.
LAYERS = (
    {"registry", "texts", "tokens", "packing", "distributed", "options", "images", "contexts", "weights", "files"}
    | {"parsing", "live_memory", "pages"},
    {"similarity", "kernels", "prompts", "tagging", "feature_files", "language_models", "data_files", "noise"},
    {"models", "projections", "losses", "metrics", "triplets"},
    {
        "shapes",
        "anchors",
        "training_rows",
        "features",
        "composition",
        "adapters",
        "sharding",
        "interruptions",
        "stopping",
    },
    {"retrieval", "data_collator", "benchmarks", "training_args", "hf_metrics", "objectives", "faults"}
    | {"fake_steps"},
    {"evaluator", "submissions", "hub", "preparation", "watching"},
    {"trainer", "projection_trainer", "preservation", "metric_spaces", "layouts", "search"},
    {"alignment", "estimates", "step_probe", "diagnostics"},
)
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}
# Imported where they are used; beside each, the modules that cannot exist without it.
HEAVY = {"datasets": set(), "evaluate": {"hf_metrics"}, "matplotlib": set(), "peft": set(), "PIL": {"shapes"}}
TOP_LEVEL = {
    *("rtd_hf", "examples", "tests", "model_cards", "setup.cfg", "setup.py", "README.md"),
    *("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt"),
}
MACHINE_PATHS = ("/work/", "/tmp/venv", "/opt/wheels", "/root/")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


# ------------------------------------------------------------------------------------------------------- the checkers
def part_of(path: Path) -> str:
    """`rtd_hf/models/clip.py` -> `models`; the package's own `__init__` -> ``."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported_parts(tree: ast.AST, path: Path) -> set[str]:
    """The parts of the package that a file imports, anywhere in it."""
    package = ["rtd_hf", *path.relative_to(PACKAGE).parts[:-1]]
    parts = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "rtd_hf" and len(pieces) > 1 and pieces[1] in LAYER_OF:
                parts.add(pieces[1])
    return parts


def layer_faults(tree: ast.AST, path: Path) -> list[str]:
    own = part_of(path)
    if own and own not in LAYER_OF:
        return [f"{own} has no layer"]
    height = LAYER_OF.get(own, len(LAYERS))
    wrong = sorted(part for part in imported_parts(tree, path) - {own} if LAYER_OF[part] >= height)
    return [f"{own} (layer {height}) imports {part} (layer {LAYER_OF[part]})" for part in wrong]


def top_imports(node: ast.AST) -> set[str]:
    """Top names of what is imported when the module is imported; `if TYPE_CHECKING` is not."""
    names = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names |= {alias.name.split(".")[0] for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            names |= {child.module.split(".")[0]} if not child.level and child.module else set()
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            names |= top_imports(ast.Module(child.orelse, []))
        else:
            names |= top_imports(child)
    return names


def heavy_faults(tree: ast.AST, path: Path) -> list[str]:
    return sorted(name for name in top_imports(tree) & HEAVY.keys() if part_of(path) not in HEAVY[name])


def forbidden_faults(tree: ast.AST) -> list[str]:
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            faults.append(f"line {node.lineno}: assert")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            faults.append(f"line {node.lineno}: print")
        elif isinstance(node, ast.ExceptHandler):
            if node.type is None:
                faults.append(f"line {node.lineno}: bare except")
            if all(isinstance(inner, ast.Pass) for inner in node.body):
                faults.append(f"line {node.lineno}: swallowed exception")
    return faults


def size_faults(source: str) -> list[str]:
    lines = len(source.splitlines())
    faults = [f"{lines} lines"] if lines >= MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            # Documentation is no reason to split a function.
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            length = node.end_lineno - node.lineno + 1 - docstring
            if length >= MAX_FUNCTION_LINES:
                faults.append(f"{node.name}: {length} lines")
    return faults


def undocumented(name: str, value) -> bool:
    if inspect.isclass(value):
        text = vars(value).get("__doc__") or ""
        return not text.strip() or text.startswith(f"{name}(")  # the second is what `dataclass` makes up
    return not (inspect.getdoc(value) or "").strip()


def ignored(name: str) -> bool:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return any(fnmatch.fnmatch(name, line.rstrip("/")) for line in lines if not line.startswith("#"))


def text_files() -> list[Path]:
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name != ".git" and not ignored(name)]
        found += [Path(folder, name) for name in files if name != ".git" and not ignored(name)]
    return [
        path for path in found if path.suffix not in {".safetensors", ".png", ".jpg", ".gz"} and path != Path(__file__)
    ]


# ------------------------------------------------------------------------------------------------------ over the house
def by_name(paths):
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


@pytest.mark.parametrize("path", **by_name(FILES))
def test_file_keeps_the_rules(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert layer_faults(tree, path) == []
    assert heavy_faults(tree, path) == []
    assert forbidden_faults(tree) == []
    assert size_faults(source) == []


def test_top_level_of_the_repository():
    found = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".") and not ignored(entry.name)}
    assert found == TOP_LEVEL


def test_no_file_names_a_machine():
    files = text_files()
    assert {ROOT / "setup.cfg", ROOT / ".ci" / "run", *FILES, *(ROOT / "examples").glob("*.py")} <= set(files)
    named = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in files
        for word in MACHINE_PATHS
        if word in path.read_text(encoding="utf-8")
    }
    assert named == set()


@pytest.mark.parametrize("name", sorted(set(rtd_hf.__all__) - {"__version__"}))
def test_public_name_is_there_and_documented(name):
    value = getattr(rtd_hf, name)
    assert not undocumented(name, value)
    assert name in dir(rtd_hf)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute `RTDTrainr`"):
        _ = rtd_hf.RTDTrainr


def test_every_own_option_has_a_help_text():
    ours = [cls for cls in rtd_hf.RTDTrainingArguments.__mro__ if cls.__module__.startswith("rtd_hf")]
    own = {name for cls in ours for name in vars(cls).get("__annotations__", ())}
    fields = [field for field in dataclasses.fields(rtd_hf.RTDTrainingArguments) if field.name in own]
    assert "temperature" in own and len(fields) == len(own)
    assert [field.name for field in fields if not field.metadata.get("help")] == []


def test_import_is_light():
    code = "import rtd_hf, sys; dir(rtd_hf); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "rtd_hf" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "datasets", "huggingface_hub"}


def test_readme_holds_the_two_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("main", "test"):
        found = re.search(rf"^<!-- {name}-command -->\n+```\w*\n(.+?)\n```", readme, flags=re.MULTILINE | re.DOTALL)
        assert found and len(found[1].splitlines()) == 1


def test_other_hosts_cannot_be_reached():
    with socket.socket() as opened, pytest.raises(RuntimeError, match="no network"):
        opened.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match="no network"):
        socket.create_connection(("huggingface.co", 443), timeout=1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname(), timeout=5).close()


# --------------------------------------------------------------------------------------------- the checkers can object
@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("losses.py", "from .trainer import RTDTrainer", "losses (layer 2) imports trainer (layer 6)"),
        ("losses.py", "def f():\n    import rtd_hf.hub", "losses (layer 2) imports hub (layer 5)"),
        ("models/clip.py", "from ..projections import base", "models (layer 2) imports projections (layer 2)"),
        ("models/clip.py", "from .. import evaluator", "models (layer 2) imports evaluator (layer 5)"),
        ("stray.py", "", "stray has no layer"),
        ("__init__.py", "from .hub import push", None),
        ("models/clip.py", "from .base import BACKBONES\nfrom ..registry import Registry\nimport torch", None),
        ("hub.py", "from . import __version__", None),
    ],
)
def test_layer_checker(file, source, fault):
    assert layer_faults(ast.parse(source), PACKAGE / file) == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("file", "source", "faults"),
    [
        ("trainer.py", "import peft.tuners", ["peft"]),
        ("trainer.py", "try:\n    from datasets import Dataset\nexcept ImportError:\n    raise", ["datasets"]),
        ("trainer.py", "class A:\n    import matplotlib.pyplot", ["matplotlib"]),
        ("trainer.py", "def f():\n    import peft", []),
        ("trainer.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import datasets", []),
        ("hf_metrics.py", "import evaluate", []),
        ("shapes/pictures.py", "from PIL import Image", []),
        ("benchmarks/base.py", "from PIL import Image", ["PIL"]),
    ],
)
def test_heavy_import_checker(file, source, faults):
    assert heavy_faults(ast.parse(source), PACKAGE / file) == faults


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("assert x", "line 1: assert"),
        ("print(1)", "line 1: print"),
        ("try:\n    f()\nexcept:\n    raise", "line 3: bare except"),
        ("try:\n    f()\nexcept ValueError:\n    pass", "line 3: swallowed exception"),
        ("try:\n    f()\nexcept ValueError as error:\n    raise TypeError() from error", None),
    ],
)
def test_forbidden_checker(source, fault):
    assert forbidden_faults(ast.parse(source)) == ([fault] if fault else [])


def test_size_checker():
    body = "\n".join(["    x = 1"] * 59)
    assert size_faults(f"def f():\n{body}") == ["f: 60 lines"]
    assert size_faults(f'def f():\n    """Says\n\n    much."""\n{body[10:]}') == []
    assert size_faults("x = 1\n" * 400) == ["400 lines"]
    assert size_faults("x = 1\n" * 399) == []


def test_documentation_checker():
    class Bare: ...

    @dataclasses.dataclass
    class Filled:
        x: int

    class Documented(Bare):
        """Says what it is."""

    def function(): ...

    named = {"Bare": Bare, "Filled": Filled, "Documented": Documented, "function": function}
    assert [name for name, value in named.items() if undocumented(name, value)] == ["Bare", "Filled", "function"]
