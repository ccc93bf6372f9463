"""The reference of the command line, from the commands themselves: ``python -m zhenfa.cli.reference`` writes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from zhenfa.cli.main import EXIT_CODES, cli
from zhenfa.cli.schemas import PRINTED, file_name
from zhenfa.cli.words import MARKS
from zhenfa.spec.fact import TAG_OF, WEAKNESS

TAGS: Final = {
    "measured": "somebody ran it, or this run did",
    "datasheet": "the maker published it",
    "derived": "arithmetic on other values, shown in a note",
    "fitted": "a law whose coefficients were fitted to measurements",
    "claim": "a press, stage or second-hand figure, or one from memory",
    "assumed": "a stated assumption, yours or ours",
}

HEAD: Final = """\
# The command line

<!-- Written by `python -m zhenfa.cli.reference docs/reference/cli.md`; a test holds it to the commands. -->

Data goes to stdout; everything else (progress, hints, the next commands) goes to stderr. A failure is one `error:` line
and, where there is a way out, one `hint:` line.
"""

JSON: Final = """\
With `--json` a command prints one document on stdout and nothing else. Its `schema` names kind and version: keys may be
added, none is removed or changes its meaning without a new number. Figures of plans and runs are in base units (s, B,
J, tokens/s); facts of the catalog are in the unit of their source, each with its tag. A failure prints no document.
"""

TAIL: Final = """\
## Environment

| variable | effect |
|---|---|
| `NO_COLOR` | no colour and no other escape code in any text |
| `FORCE_COLOR` | colour where there is no terminal |
| `COLUMNS` | cells of a line; else the terminal's, else 120. Narrow screens leave columns out and say which |
| `ZHENFA_DEBUG` | the traceback of a fault in Zhenfa itself |

Colour carries nothing that the words do not. Bars are drawn with `#` and `.` where the encoding has no blocks.
"""


def text() -> str:
    """Return the page."""
    parts = [HEAD, *_exit_codes(), *(line for name in cli.commands for line in _command(name)), *_documents()]
    return "\n".join([*parts, *_tags(), TAIL])


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | meaning |\n|---|---|"
    yield from (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    yield ""


def _command(name: str) -> Iterator[str]:
    command = cli.commands[name]
    context = click.Context(command, info_name=name, parent=click.Context(cli, info_name="zhenfa"))
    yield f"## `zhenfa {name}`\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"```text\nzhenfa {name} {pieces}\n```\n"
    yield "| option | effect |\n|---|---|"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield f"| `{_signature(parameter, context)}` | {_effect(parameter)} |"
    yield ""


def _signature(option: click.Option, context: click.Context) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    if isinstance(option.type, click.Choice):
        return f"{names} {'|'.join(map(str, option.type.choices))}".replace("|", "\\|")
    plain = {"integer": "N", "path": "PATH"}
    return f"{names} {option.metavar or plain.get(option.type.name, option.make_metavar(context))}"


def _effect(option: click.Option) -> str:
    words = [option.help or ""]
    if isinstance(option.type, click.IntRange):
        words.append(f"{option.type.min:,} to {option.type.max:,}" + ("" if not option.show_default else ","))
    if option.show_default:
        words.append(f"{option.default} unless given.")
    elif len(words) > 1:
        words[-1] += "."
    return " ".join(words)


def _documents() -> Iterator[str]:
    yield "## JSON documents\n"
    yield JSON
    yield "| schema | what prints it | file |\n|---|---|---|"
    for printed in PRINTED:
        printer = inspect.cleandoc(printed.__doc__ or "").replace("``", "`").partition(":")[0].split(". ")[0]
        name = file_name(printed)
        yield f"| `{printed.schema_name}` | {printer.rstrip('.')} | [{name}](../schemas/{name}) |"
    yield ""


def _tags() -> Iterator[str]:
    yield "## Tags and marks\n"
    yield "Every number carries one tag. A result has the weakest tag of what it rests on.\n"
    yield "| tag | mark in lists | meaning | confidences in the catalog |\n|---|---|---|---|"
    for tag in sorted(WEAKNESS, key=WEAKNESS.__getitem__):
        confidences = ", ".join(name for name, known in TAG_OF.items() if known == tag and name != "undisclosed")
        yield f"| {tag} | {f'`{MARKS[tag]}`' if MARKS[tag] else 'none'} | {TAGS[tag]} | {confidences or '-'} |"
    yield "| - | `-` | undisclosed: nobody has published it | undisclosed |\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
