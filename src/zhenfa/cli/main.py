"""The ``zhenfa`` command. Heavy modules are imported inside commands, so that ``--help`` stays quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from zhenfa import __version__
from zhenfa.errors import ZhenfaError

F = TypeVar("F", bound=Callable[..., Any])

KINDS: Final = ("accelerators", "links", "systems", "machines", "models", "terms")


def output_options(command: F) -> F:
    """Add what every command takes: ``--json``, ``--cite``, ``--quiet``."""
    for option in (
        click.option("--quiet", is_flag=True, help="Say nothing on stderr but errors."),
        click.option("--cite", "cite_sources", is_flag=True, help="List the sources that the answer rests on."),
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    ):
        command = option(command)
    return command


def machine_options(command: F) -> F:
    """Add ``--on`` and ``--assume``."""
    for option in (
        click.option(
            "--assume",
            multiple=True,
            metavar="NAME=VALUE",
            help='Supply a value that a maker has not published, such as scalex-card.memory.capacity="64 GB".',
        ),
        click.option("--on", metavar="MACHINE", help="A catalog machine or a machine file, instead of the job's own."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="zhenfa %(version)s")
def cli() -> None:
    """Zhenfa 阵法: many cards, many makers, one machine.

    Plan and run large-model jobs over pools of unequal accelerators.

    \b
    First steps:
      zhenfa show machines
      zhenfa plan examples/deepseek-v3-train.yaml --on cloudmatrix384
      zhenfa run examples/mixed-pretrain.yaml
    """


@cli.command()
@click.argument("name", required=False, metavar="[KIND|NAME]")
@output_options
def show(name: str | None, as_json: bool, cite_sources: bool, quiet: bool) -> None:
    """Show what the catalog holds: a KIND (accelerators, links, systems, machines, models, terms) or one entry.

    Every number is shown with its unit, its source and how far it can be trusted.
    """
    from zhenfa.cli.show import show_entry

    show_entry(name, as_json=as_json, cite_sources=cite_sources)


@cli.command()
@click.argument("job", metavar="JOB")
@machine_options
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True, help="How many plans to list.")
@click.option("--why", type=click.IntRange(2, 100), metavar="N", help="Why plan N lost to the first.")
@click.option("--detail", is_flag=True, help="Every stage of the best plan: layers, seconds, memory by part.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the best plan to this file.")
@output_options
def plan(
    job: str, on: str | None, assume: tuple[str, ...], top: int, why: int | None, detail: bool, out: str | None,
    as_json: bool, cite_sources: bool, quiet: bool,
) -> None:  # fmt: skip
    """Find the quickest ways to lay a JOB file over a machine, and say why."""
    from zhenfa.cli.plan import plan_job

    plan_job(
        job, on=on, assume=assume, top=top, why=why, detail=detail, out=out, as_json=as_json,
        cite_sources=cite_sources, quiet=quiet,
    )  # fmt: skip


@cli.command()
@click.argument("job", metavar="JOB")
@machine_options
@click.option("--steps", type=click.IntRange(1, 1_000_000), help="Training steps, instead of the job's own.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Where cards' processes run.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for checkpoint, pictures and reports.")
@output_options
def run(
    job: str, on: str | None, assume: tuple[str, ...], steps: int | None, engine: str | None, out: str | None,
    as_json: bool, cite_sources: bool, quiet: bool,
) -> None:  # fmt: skip
    """Plan a JOB file, run it for real with PyTorch, and lay what was predicted beside what happened."""
    from zhenfa.cli.run import run_job

    run_job(
        job, on=on, assume=assume, steps=steps, engine=engine, out=out, as_json=as_json, cite_sources=cite_sources,
        quiet=quiet,
    )  # fmt: skip


@cli.command()
@output_options
def devices(as_json: bool, cite_sources: bool, quiet: bool) -> None:
    """List the cards of this machine that a run can use."""
    from zhenfa.cli.devices import list_devices

    list_devices(as_json=as_json)


@cli.command()
@click.argument("term", metavar="TERM", nargs=-1, required=True)
@output_options
def explain(term: tuple[str, ...], as_json: bool, cite_sources: bool, quiet: bool) -> None:
    """Explain a TERM of the field, in English and Chinese."""
    from zhenfa.cli.explain import explain_term

    explain_term(" ".join(term), as_json=as_json, cite_sources=cite_sources)


def entry() -> None:
    """Run the command line: errors in words on stderr, exit codes 0 ok, 1 failed, 2 usage, 3 nothing feasible."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run the command line on ``arguments`` and return the exit code."""
    try:
        result = cli.main(args=arguments, prog_name="zhenfa", standalone_mode=False)
    except ZhenfaError as problem:
        _complain(problem.message, problem.hint)
        return problem.exit_code
    except click.ClickException as problem:
        hint = getattr(problem, "possibilities", None)
        _complain(problem.format_message(), f"did you mean {' or '.join(hint)}?" if hint else _usage_hint(problem))
        return 2
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted.", None)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if os.environ.get("ZHENFA_DEBUG"):
            raise
        _complain(
            f"this is a fault in zhenfa, not in what you gave it: {type(problem).__name__}: {problem}",
            "set ZHENFA_DEBUG=1 for the traceback and report it.",
        )
        return 1
    return result if isinstance(result, int) else 0


def _usage_hint(problem: click.ClickException) -> str | None:
    context = getattr(problem, "ctx", None)
    return f"`{context.command_path} --help` shows how it is used." if context else None


def _complain(message: str, hint: str | None) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


if __name__ == "__main__":
    entry()
