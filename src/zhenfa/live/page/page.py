"""One HTML file that tells a run: nothing is asked of any other place, and nothing in it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zhenfa.live.page import sections
from zhenfa.live.page.markup import Html, element, join
from zhenfa.live.page.style import STYLE
from zhenfa.spec.machine import Formation
from zhenfa.spec.result import Run

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content Security Policy: the styles of the page itself, and nothing else."""


def write_page(run: Run, formation: Formation, path: Path) -> Path:
    """Write the report of a run on a machine as one HTML file, and return its path. Raises :class:`OSError`."""
    path.write_text(page_of(run, formation), encoding="utf-8")
    return path


def page_of(run: Run, formation: Formation) -> Html:
    """Return the report of a run as a page of HTML."""
    main = (
        sections.head(run),
        sections.figures(run),
        sections.speeds(run),
        sections.curves(run),
        sections.walls(run),
        sections.laws(run),
        sections.timeline(run, formation),
        sections.incidents(run),
        sections.cards(run, formation),
        sections.fidelity(run),
        sections.ground(run),
    )
    about = (
        Html('<meta charset="utf-8">\n'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Html('<meta name="color-scheme" content="light dark">\n'),
        element("title", f"{run.plan.job}: report of a run" + (" (EMULATED)" if run.emulated else "")),
        Html(f"\n<style>{STYLE}</style>\n"),
    )
    body = element("body", element("main", join(main)))
    return Html(f'<!doctype html>\n<html lang="en">\n{element("head", *about)}\n{body}\n</html>\n')
