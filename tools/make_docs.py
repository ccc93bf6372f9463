"""Write the pages that come from the code: one for each law, and the page of validation.

``python tools/make_docs.py`` writes the laws (a second); ``python tools/make_docs.py --validation`` also runs
``zhenfa validate`` over the packaged rows and writes its table and pictures (minutes).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from zhenfa import catalog, cite, laws

ROOT = Path(__file__).parent.parent
LAWS = ROOT / "docs" / "laws"
MARK = "<!-- Written by `python tools/make_docs.py` from the docstring; a test holds it to the code. -->"
LABELS = ("Arguments:", "Returns:", "Source:")
CLAIMS = ("Counts", "Omits", "Agrees")


@dataclass(frozen=True)
class Law:
    """A law's docstring in its parts."""

    name: str
    signature: str
    summary: str
    arguments: str
    returns: str
    remarks: str
    example: str
    source: str
    code: str

    @property
    def formulas(self) -> list[str]:
        """Return the formulas that the docstring writes out, those of what is returned first."""
        text = f"{self.returns} {self.remarks}"
        quoted = [" ".join(part.split()) for part in re.findall(r"``(.+?)``", text, flags=re.DOTALL)]
        return [part for part in dict.fromkeys(quoted) if re.search(r"[-+*/(^=]", part) and not part.endswith("(")]


def modules() -> Iterator[ModuleType]:
    """Yield the modules of laws."""
    for item in pkgutil.iter_modules(laws.__path__):
        if item.name != "arrays":
            yield importlib.import_module(f"zhenfa.laws.{item.name}")


def public(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the laws of a module, in the order of the file."""
    found = {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_") and _is_law(function)
    }
    return dict(sorted(found.items(), key=lambda item: inspect.getsourcelines(item[1])[1]))


def _is_law(function: Callable[..., Any]) -> bool:
    return "\nArguments:" in (inspect.getdoc(function) or "")


def read_law(module: ModuleType, name: str) -> Law:
    """Return a law in its parts."""
    function = getattr(module, name)
    text = inspect.getdoc(function) or ""
    summary, _, rest = text.partition("\n\nArguments:")
    arguments, _, rest = rest.partition("\nReturns:")
    body, _, rest = rest.partition("\n\n>>> ")
    example, _, source = rest.partition("\n\nSource:")
    returns, remarks = _split(body)
    return Law(
        name=name, signature=_signature(function), summary=_flat(summary), arguments=_flat(arguments),
        returns=returns, remarks=remarks, example=f">>> {example.strip()}", source=_flat(source), code=_code(function),
    )  # fmt: skip


def _split(body: str) -> tuple[str, str]:
    """Split what follows "Returns:" into what is returned and what it counts, omits and agrees with."""
    found = re.search(r"(?:(?<=\n)|(?<=\. ))(?:Counts|Omits|Agrees)\b", body)
    cut = found.start() if found else len(body)
    return _flat(body[:cut]), _flat(body[cut:])


def _flat(text: str) -> str:
    return " ".join(text.split())


def _signature(function: Callable[..., Any]) -> str:
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        default = parameter.default
        shown = "" if default is parameter.empty else f"={default:.6g}" if type(default) is float else f"={default!r}"
        parameters.append(parameter.name + shown)
    call = f"{function.__name__}({', '.join(parameters)})"
    if len(call) <= 100:
        return call
    listed = textwrap.fill(", ".join(parameters), 96, initial_indent="    ", subsequent_indent="    ")
    return f"{function.__name__}(\n{listed}\n)"


def _code(function: Callable[..., Any]) -> str:
    """Return the statements of a law without its docstring and its citations, and the helpers that they call."""
    body = inspect.getsource(function).split('"""', 2)[2]
    lines = [line for line in textwrap.dedent(body.strip("\n")).splitlines() if not line.startswith("cite.use(")]
    parts = ["\n".join(lines).strip()]
    module, seen = inspect.getmodule(function), {function.__name__}
    for part in parts:
        for name in re.findall(r"\b(_[a-z]\w*)\(", part):
            helper = getattr(module, name, None)
            if inspect.isfunction(helper) and name not in seen and helper.__module__ == function.__module__:
                seen.add(name)
                parts.append(inspect.getsource(helper).strip())
    return "\n\n".join(parts)


def law_page(module: ModuleType, law: Law) -> str:
    """Return the page of one law."""
    family = module.__name__.rpartition(".")[2]
    parts = [
        f"# {family}: {law.name.replace('_', ' ')}", MARK, _words(law.summary.removeprefix("Return ")),
        f"```python\nzhenfa.laws.{family}.{law.signature}\n```", "## Symbols",
        "\n".join(f"- {_words(clause)}" for clause in _clauses(law.arguments)), _family(module),
        "## What it returns", _words(law.returns), "## Formula",
        "\n".join(f"    {formula}" for formula in law.formulas), "In code:" if law.formulas else "",
        f"```python\n{law.code}\n```", "## Worked number", f"```python\n{law.example}\n```",
    ]  # fmt: skip
    if law.remarks:
        parts += ["## What it counts", "\n".join(f"- {_words(claim)}" for claim in _claims(law.remarks))]
    parts += ["## Source", _plain(law.source), *_bibliography(law.source)]
    parts.append(f"[All laws](../README.md) · `src/zhenfa/laws/{family}.py`")
    return "\n\n".join(part for part in parts if part) + "\n"


def _family(module: ModuleType) -> str:
    """Return what the module says of its symbols beyond its first line."""
    rest = (inspect.getdoc(module) or "").partition("\n\n")[2]
    paragraphs = (_words(_flat(part)) for part in re.split(r"\n\n|\n(?=\* )", rest))
    quoted = "\n\n".join(f"> {part}" for part in paragraphs if part)
    return quoted.replace("\n\n> * ", "\n> * ").replace("\n> * ", "\n>\n> * ", 1)


def _plain(text: str, folder: str = "") -> str:
    """Return docstring text as Markdown."""
    text = re.sub(r":func:`([a-z]\w*)`", rf"[`\1`]({folder}\1.md)", text)
    return re.sub(r":(?:func|class|data|mod|meth):`~?\.?([^`]+)`", r"`\1`", text).replace("``", "`")


def _words(text: str, folder: str = "") -> str:
    """Return docstring text as a Markdown sentence."""
    return _plain(text[:1].upper() + text[1:], folder)


def _clauses(text: str) -> list[str]:
    """Split the arguments where a semicolon stands outside brackets."""
    clauses, depth, held = [], 0, ""
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == ";" and depth == 0:
            clauses.append(held.strip())
            held = ""
        else:
            held += character
    return [clause.rstrip(".") for clause in (*clauses, held.strip()) if clause]


def _claims(text: str) -> list[str]:
    """Split the remarks into what is counted, what is omitted, what it agrees with, and the rest."""
    pieces = re.split(r"(?<=[.;]) (?=(?:[Cc]ounts|[Oo]mits|[Aa]grees)\b)", text)
    return [piece.strip().rstrip(";") for piece in pieces if piece.strip()]


def _bibliography(text: str) -> Iterator[str]:
    keys = dict.fromkeys(re.findall(r"[a-z][a-z0-9-]*[a-z0-9]", text))
    lines = [f"- `{key}`: {_known()[key]}" for key in keys if key in _known()]
    if lines:
        yield "\n".join(lines)


@cache
def _known() -> dict[str, str]:
    """Return the sources that laws or the catalog declare, each as the catalog writes it where both do."""
    own = {value for module in modules() for value in vars(module).values() if isinstance(value, str)}
    return {key: cite.text(key) for key in own if cite.text(key) != key} | dict(catalog.sources())


def law_pages() -> dict[str, str]:
    """Return every page of ``docs/laws`` by its path below it."""
    pages: dict[str, str] = {}
    index = [
        "# The laws",
        MARK,
        "One physical quantity for each law, on floats or NumPy arrays alike. Each page: the symbols in words, the "
        "formula, a worked number, what it counts, omits and agrees with, and its source. How far the laws are from "
        "measurement: `zhenfa validate`.",
    ]
    for module in modules():
        family = module.__name__.rpartition(".")[2]
        found = [read_law(module, name) for name in public(module)]
        head = _flat((inspect.getdoc(module) or "").split("\n\n")[0])
        rows = []
        for law in found:
            pages[f"{family}/{law.name}.md"] = law_page(module, law)
            gives = _words(law.summary.removeprefix("Return "), f"{family}/")
            rows.append(f"| [{law.name}]({family}/{law.name}.md) | {gives} |")
        index += [f"## {family}", _words(head, f"{family}/"), "| law | gives |\n|---|---|\n" + "\n".join(rows)]
    pages["README.md"] = "\n\n".join(index) + "\n"
    return pages


def write_laws(folder: Path = LAWS) -> None:
    """Write the pages of the laws; a page whose law is gone goes too."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in law_pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--validation", action="store_true", help="also validate, and write docs/validation.md")
    arguments = parser.parse_args()
    write_laws()
    if arguments.validation:
        import make_validation_page

        make_validation_page.write()


if __name__ == "__main__":
    main()
