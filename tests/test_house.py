"""The rules of the house: sizes, words, docstrings, layers, light imports, a safe code base, and whole packages."""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "zhenfa"
OURS = ("src", "tests", "tools", "benchmarks", "docs", "examples")
TEXT = {".py", ".md", ".yaml", ".yml", ".json", ".jsonl", ".toml", ".txt", ".cfg", ".ini", ".sh", ".rst", ".csv"}


def files(*suffixes: str, under: tuple[str, ...] = OURS) -> list[Path]:
    found = [path for folder in under for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    return [path for path in found if path.suffix in suffixes and "__pycache__" not in path.parts]


MODULES = files(".py", under=("src",))
PYTHON = files(".py")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


# Size.


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_no_file_is_longer_than_600_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def test_most_files_are_short() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES if path.name != "__init__.py"]
    assert statistics.median(lengths) <= 200


# Words.

FORBIDDEN = {
    # written apart, so that this file does not hold them
    "a path of a workplace": re.compile("/wo" + "rk/|/tmp/bas" + "h_jobs"),
    "a folder of a workplace": re.compile(r"\.lib" + "rary|shar" + "ed/(?:design|facts|traces|hooks)"),
    "work left undone": re.compile(r"\b(?:TO" + "DO|FIX" + r"ME|XX" + r"X)\b"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_mentions(what: str) -> None:
    top = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT | {""} and path.name != ".git"]
    hits = [
        f"{name(path)}:{number}"
        for path in (*files(*TEXT), *top)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert not hits, f"{what}: {hits[:20]}"


# Docstrings.


def public(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Yield public functions and classes, and the public methods of the latter."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for item in module.body:
        if isinstance(item, kinds) and not item.name.startswith("_"):
            yield item
            if isinstance(item, ast.ClassDef):
                yield from (part for part in item.body if isinstance(part, kinds) and not part.name.startswith("_"))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_everything_public_has_a_docstring(path: Path) -> None:
    module = tree(path)
    bare = [item.name for item in public(module) if ast.get_docstring(item) is None]
    assert ast.get_docstring(module), "the module has none"
    assert not bare


# Layers.


def test_the_contract_of_layers_names_every_room() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {room.strip().removeprefix("zhenfa.") for layer in layers for room in re.split(r"[:|]", layer)}
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms - {"__init__", "__main__"} <= named
    order = [layer.split(" ")[0].removeprefix("zhenfa.") for layer in layers]
    assert order.index("cli") < order.index("plan") < order.index("estimate") < order.index("spec")
    assert order[-3:] == ["cite", "units", "errors"]


def test_imports_go_down_only() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    result = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


# Light imports.

HEAVY = ("numpy", "torch", "pydantic", "ray", "matplotlib", "rich", "transformers", "ruamel", "perfetto", "asyncio")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("zhenfa", set()),
        ("zhenfa.errors", set()),
        ("zhenfa.units", set()),
        ("zhenfa.cite", set()),
        ("zhenfa.cli", set()),
        ("zhenfa.cli.main", set()),
        ("zhenfa.cli.terms", {"ruamel"}),
        ("zhenfa.spec.yaml", {"ruamel"}),
        ("zhenfa.spec.machine", {"pydantic", "ruamel"}),
        ("zhenfa.spec.job", {"pydantic", "ruamel"}),
        ("zhenfa.laws.compute", {"numpy", "asyncio"}),
        ("zhenfa.laws.communication", {"numpy", "asyncio"}),
    ],
)
def test_an_import_brings_nothing_heavy_that_it_does_not_need(module: str, allowed: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({set(HEAVY)!r} & {{item.partition('.')[0] for item in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= allowed


# Safe by default.

UNSAFE_MODULES = {"marshal", "shelve", "dill", "cloudpickle"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load"}


def unsafe(module: ast.Module) -> Iterator[str]:
    """Yield what runs code that a file, a peer or a user may have written."""
    for item in ast.walk(module):
        if isinstance(item, ast.Import):
            yield from (f"import {part.name}" for part in item.names if part.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(item, ast.ImportFrom) and (item.module or "").split(".")[0] in {*UNSAFE_MODULES, "pickle"}:
            yield f"from {item.module} import"
        elif isinstance(item, ast.Call):
            called = ast.unparse(item.func)
            words = {word.arg: ast.unparse(word.value) for word in item.keywords}
            if called in UNSAFE_CALLS or words.get("shell") == "True":
                yield called
            if called == "torch.load" and words.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
        elif isinstance(item, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, item.bases):
            methods = {part.name for part in item.body if isinstance(part, ast.FunctionDef)}
            yield from [] if "find_class" in methods else [f"{item.name} reads any pickle"]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_from_outside_is_run(path: Path) -> None:
    assert not list(unsafe(tree(path)))


@pytest.mark.parametrize(
    "code",
    [
        "import dill",
        "from pickle import loads",
        "pickle.loads(x)",
        "class Any(pickle.Unpickler): pass",
        "eval(x)",
        "os.system('x')",
        "subprocess.run(x, shell=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "yaml.load(x)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_is_left_unwritten(path: Path) -> None:
    assert not list(unwritten(tree(path)))


def unwritten(module: ast.Module) -> Iterator[str]:
    """Yield functions that do nothing, other than declarations, and whatever says that it is not there yet."""
    for item in ast.walk(module):
        if isinstance(item, ast.Raise) and item.exc is not None and "NotImplemented" in ast.unparse(item.exc):
            yield ast.unparse(item)
    for owner in ast.walk(module):
        bases = {ast.unparse(base).split(".")[-1].split("[")[0] for base in getattr(owner, "bases", [])}
        body = getattr(owner, "body", [])
        for item in body if isinstance(body, list) else []:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and "Protocol" not in bases:
                says = ast.get_docstring(item) is not None and (bases or item.decorator_list)  # an override, a command
                declares = {"abstractmethod", "overload"} & {ast.unparse(mark) for mark in item.decorator_list}
                if not does_something(item) and not says and not declares:
                    yield item.name


def does_something(item: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    empty = (ast.Pass, ast.Constant)
    return not all(isinstance(part.value if isinstance(part, ast.Expr) else part, empty) for part in item.body)


@pytest.mark.parametrize(
    "code",
    [
        "raise NotImplementedError",
        "def f(): pass",
        "def f(): ...",
        'def f():\n    """Say it."""',
        "class A:\n def f(s): ...",
    ],
)
def test_the_search_for_unwritten_code_finds_it(code: str) -> None:
    assert list(unwritten(ast.parse(code)))


# The package.


def test_every_file_of_the_package_is_in_the_wheel(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    build = (
        "import sys; from hatchling.builders.wheel import WheelBuilder;"
        "print(*WheelBuilder(sys.argv[1]).build(directory=sys.argv[2]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", build, str(ROOT), str(tmp_path)], capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(result.stdout.strip()) as wheel:
        packed = set(wheel.namelist())
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= packed
    assert {path for path in packed if path.startswith("zhenfa/")} == wanted
    assert {"zhenfa/py.typed", "zhenfa/cli/terms.yaml"} <= packed
    assert any(path.startswith("zhenfa/catalog/data/") for path in packed)
    assert any(path.endswith("LICENSE") for path in packed)
