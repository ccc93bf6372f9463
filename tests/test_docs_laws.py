"""One page for each law, as its docstring stands."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
LAWS = ROOT / "docs" / "laws"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


DOCS = tool("make_docs")
PAGES = DOCS.law_pages()


def test_the_pages_are_those_of_the_laws_as_they_stand() -> None:
    written = {path.relative_to(LAWS).as_posix(): path.read_text(encoding="utf-8") for path in LAWS.rglob("*.md")}
    assert written.keys() == PAGES.keys(), "run: python tools/make_docs.py"
    stale = [name for name, text in PAGES.items() if written[name] != text]
    assert not stale, "run: python tools/make_docs.py"


@pytest.mark.parametrize("module", DOCS.modules(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_law_has_every_part(module: ModuleType) -> None:
    for name in DOCS.public(module):
        law = DOCS.read_law(module, name)
        parts = (law.summary, law.arguments, law.returns, law.code, law.source)
        assert all(parts), f"{module.__name__}.{name}: {parts}"
        assert "\n" in law.example, f"{module.__name__}.{name} works out no number"


def test_a_page_says_what_the_docstring_says() -> None:
    page = PAGES["compute/matmul_flops.md"]
    for words in ("in FLOP", "2.0 * rows * inputs * outputs", "48.0", "Counts a multiplication", "NVIDIA. Matrix"):
        assert words in page
    assert "cite.use" not in page
    assert "``" not in page.replace("```", "")
