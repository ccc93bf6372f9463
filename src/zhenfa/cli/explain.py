"""``zhenfa explain``."""

from __future__ import annotations

from dataclasses import asdict

from zhenfa.cli import console
from zhenfa.cli.terms import find


def explain_term(text: str, *, as_json: bool, cite_sources: bool) -> None:
    """Print one term of the field."""
    term = find(text)
    if as_json:
        console.print_json({"schema": "zhenfa.term/1", **asdict(term)})
        return
    out = console.data()
    aliases = f" ({', '.join(term.aliases)})" if term.aliases else ""
    out.print(f"{term.name}{aliases} · {term.chinese}", markup=False, style="bold")
    out.print(term.meaning, markup=False)
    out.print(term.meaning_chinese, markup=False)
    for label, value in (("unit", term.unit), ("better", term.polarity), ("formula", term.formula), ("law", term.law)):
        if value:
            out.print(f"{label + ':':<9}{value}", markup=False)
    if term.see:
        out.print(f"{'see:':<9}{', '.join(term.see)}", markup=False)
