"""Write the tables of makers in ``docs/guide/makers.md`` from their classes: ``python tools/makers_page.py``."""

from __future__ import annotations

import re
from pathlib import Path

from zhenfa.live.makers import CAPABILITIES, Maker, makers

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "makers.md"
BEGIN, END = "<!-- from the classes: begin -->", "<!-- from the classes: end -->"


def facts() -> list[str]:
    """What each maker is to torch, a row each."""
    rows = [
        "| maker | id | torch device | module | collective library | cards are shown by | tool | tried on silicon |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in makers().values():
        library = one.collective_library or ""
        named = f"{library}, `{one.collective}`" if one.collective else ""
        cells = (
            one.name, f"`{one.id}`", code(one.torch_device), code(one.module), named, code(one.visible_devices),
            code(one.smi[0] if one.smi else None), one.tried or "nobody here has",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def code(text: str | None) -> str:
    return "" if text is None else f"`{text}`"


def table() -> list[str]:
    """Every capability of every maker: yes, or the number of the sentence that says why not."""
    sentences: dict[str, int] = {}
    rows = [f"| maker | {' | '.join(CAPABILITIES)} |", "|---" * (len(CAPABILITIES) + 1) + "|"]
    rows += [f"| {one.name} | {' | '.join(answers(one, sentences))} |" for one in makers().values()]
    return [*rows, "", *(f"{number}. {text}" for text, number in sentences.items())]


def answers(one: Maker, sentences: dict[str, int]) -> list[str]:
    return [
        "yes" if each.able else f"no ({sentences.setdefault(each.sentence, len(sentences) + 1)})"
        for each in one.capabilities()
    ]


def timeouts() -> list[str]:
    rows = ["| variable | makers | what waits | in force if unset | source |", "|---|---|---|---|---|"]
    found: dict[str, tuple[list[str], str]] = {}
    for one in makers().values():
        for each in one.timeouts_in_force({}):
            seconds = "not published" if each.seconds is None else f"{each.seconds:g} s"
            row = f"{each.what} | {seconds} | {each.source} |"
            found.setdefault(each.variable, ([], row))[0].append(one.name)
    return rows + [f"| `{name}` | {', '.join(names)} | {row}" for name, (names, row) in found.items()]


def means() -> list[str]:
    return [f"* **{name}**: {text}." for name, text in CAPABILITIES.items()]


def made() -> str:
    parts = [
        ["## Makers that come with Zhenfa", ""], facts(), ["", "## What each can do", ""], means(), [""], table(),
        ["", "## Time-outs of collective libraries", ""], timeouts(),
    ]  # fmt: skip
    return "\n".join(line for part in parts for line in part)


def page(text: str) -> str:
    """Return the page with the tables as the classes have them."""
    return re.sub(
        f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{made()}\n{END}", text, flags=re.DOTALL
    )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
