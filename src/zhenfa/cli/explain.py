"""``zhenfa explain``: one term of the field, in English and Chinese."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import asdict
from typing import Final

from zhenfa import cite
from zhenfa.cli.console import Output
from zhenfa.cli.terms import Term, find

BETTER: Final = {"higher": "higher", "lower": "lower"}


def explain_term(text: str, output: Output) -> None:
    """Print a term; with ``--cite`` the law that computes it, with its source. Raises :class:`UnknownNameError`."""
    term = find(text)
    if output.as_json:
        from zhenfa.cli import documents

        output.document(documents.Term(**asdict(term)))
        return
    aliases = f" ({', '.join(term.aliases)})" if term.aliases else ""
    output.data.text(f"{term.name}{aliases} · {term.chinese}", style="head")
    output.data.text(term.meaning)
    output.data.text(term.meaning_chinese)
    labels = (
        ("unit", term.unit), ("better", BETTER.get(term.polarity)), ("formula", term.formula), ("law", _law(term)),
        ("see", ", ".join(term.see)),
    )  # fmt: skip
    for label, words in labels:
        if words:
            output.data.text(words, first=f"{label + ':':<9}")
    if output.cite and term.law:
        _print_law(term.law, output)


def _law(term: Term) -> str | None:
    return f"zhenfa.laws.{term.law}" if term.law else None


def _print_law(law: str, output: Output) -> None:
    text = law_text(law)
    output.data.head("The law")
    for line in text.splitlines():
        output.data.line(f"  {line}" if line.strip() else "")
    keys = dict.fromkeys(re.findall(r"[a-z]+[0-9]{4}[a-z]?", text))
    output.sources(f"{key}: {cite.text(key)}" for key in keys if cite.text(key) != key)


def law_text(law: str) -> str:
    """Return the docstring of a law given as ``module.function``: what it counts, in which units, and whose it is."""
    module, _, function = law.partition(".")
    return inspect.getdoc(getattr(importlib.import_module(f"zhenfa.laws.{module}"), function)) or ""
