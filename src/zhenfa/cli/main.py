"""The ``zhenfa`` command. Heavy modules are imported inside commands, so that ``--help`` stays quick."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from zhenfa import __version__
from zhenfa.errors import UnknownNameError, ZhenfaError, near_misses, quote

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES: Final = {
    0: "ok",
    1: "failed",
    2: "usage or bad input",
    3: "nothing feasible: no plan fits",
    130: "interrupted",
}


FEW_COLLECTIONS: Final = 200_000
"""Objects made between two looks for cycles: a search makes many that live on, and looking costs a fifth more."""


class Interrupted(Exception):  # noqa: N818
    """The user pressed Ctrl-C, or the process was told to end."""


class ReaderGone(Exception):  # noqa: N818
    """Whoever read stdout has closed it, such as ``head``."""


class Commands(click.Group):
    """The commands; a name that is not one of them is answered with the near miss."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command named by the first argument. Raises :class:`UnknownNameError`."""
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            raise UnknownNameError("command", name, self.list_commands(ctx), hint="`zhenfa --help` lists the commands.")
        return super().resolve_command(ctx, args)

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """Read the arguments; ``--help`` writes here."""
        with _renamed():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _renamed():
            return super().invoke(ctx)


@contextmanager
def _renamed() -> Iterator[None]:
    """Let an interrupt and a closed pipe go up under names that click does not handle in its own way."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    except BrokenPipeError:
        raise ReaderGone from None


class Whole(click.IntRange):
    """A whole number between two bounds."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or fail in words that name the bounds."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{quote(value)} is not a whole number.", param, ctx)
        if not (self.min or 0) <= number <= (self.max or number):
            self.fail(f"{quote(number)} is not between {self.min:,} and {self.max:,}.", param, ctx)
        return number


class RankOrFile(Whole):
    """The rank of a plan, or the path of a plan file."""

    name = "plan"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the rank as a number, or the path as it is."""
        path = isinstance(value, str) and ("/" in value or value.endswith((".yaml", ".yml", ".json")))
        return value if path else super().convert(value, param, ctx)


def output_options(command: F) -> F:
    """Add what every command takes: ``--json``, ``--cite``, ``--quiet``."""
    for option in (
        click.option("--quiet", is_flag=True, help="Say nothing on stderr but errors."),
        click.option("--cite", "cite_sources", is_flag=True, help="List the sources that the answer rests on."),
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else."),
    ):
        command = option(command)
    return command


assume_option = click.option(
    "--assume",
    multiple=True,
    metavar="NAME=VALUE",
    help="Supply a value that a maker has not published, such as "
    'scalex-card.memory.capacity="64 GB". May be given several times.',
)


set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value for a key of the job file, such as workload.global_batch=512. May be given several times.",
)


def machine_options(command: F) -> F:
    """Add ``--on``, ``--set`` and ``--assume``."""
    for option in (
        assume_option,
        set_option,
        click.option("--on", metavar="MACHINE", help="A catalog machine or a machine file, instead of the job's own."),
    ):
        command = option(command)
    return command


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="zhenfa %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Zhenfa 阵法: many cards, many makers, one machine.

    Plan and run large-model jobs over pools of unequal accelerators.

    \b
    First steps:
      zhenfa show machines
      zhenfa plan examples/deepseek-v3-train.yaml --on cloudmatrix384
      zhenfa run examples/mixed-pretrain.yaml

    Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 nothing feasible.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@cli.command()
@click.argument("name", required=False, metavar="[KIND|NAME]")
@output_options
def show(name: str | None, as_json: bool, cite_sources: bool, quiet: bool) -> None:
    """Show what the catalog holds: a KIND or one entry.

    KIND is machines, systems, accelerators, links, models or terms; NAME is any entry of these, or the path of a
    machine or model file. Every number is shown with its unit, its source and how far it can be trusted.
    """
    from zhenfa.cli.show import show_entry

    show_entry(name, _output(as_json, cite_sources, quiet))


@cli.command(short_help="Find the best ways to lay a job over a machine, and say why.")
@click.argument("job", metavar="JOB")
@machine_options
@click.option(
    "--for",
    "objective",
    type=click.Choice(["step", "throughput", "time", "cost", "energy", "cards"]),
    help="What to choose the plan for, instead of the job's own objective: the shortest step on paper, the most "
    "throughput that failures leave, the shortest run, the least cost or energy of a token, or the fewest cards.",
)
@click.option(
    "--limit",
    multiple=True,
    metavar="NAME=VALUE",
    help='Bound the search, on top of the job\'s limits: power="20 MW", deadline="30 d", supply.nvidia-h20-sxm=512, '
    'makers=huawei,cambricon, least_share.huawei="30 %". May be given several times.',
)
@click.option("--top", type=Whole(1, 100), default=5, show_default=True, help="How many plans to list.")
@click.option(
    "--why",
    type=RankOrFile(2, 100),
    metavar="PLAN",
    help="Why a plan lost to the first: its rank, or the file of a plan of your own.",
)
@click.option("--detail", is_flag=True, help="Every figure with its tag, every stage of the best plan.")
@click.option("--sensitivity", is_flag=True, help="Which input moves the answer most, and what to ask a maker for.")
@click.option("--out", type=click.Path(), help="Write the best plan to this file.")
@output_options
def plan(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Find the best ways to lay a JOB file over a machine, the quickest unless --for says otherwise, and say why."""
    from zhenfa.cli.plan import plan_job
    from zhenfa.cli.wanted import PlanWanted

    plan_job(PlanWanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="Lay the best plans of several machines for one job side by side.")
@click.argument("job", metavar="JOB")
@click.option("--on", multiple=True, metavar="MACHINES", help="Catalog machines or machine files, with commas between "
              "them. May be given several times.")  # fmt: skip
@set_option
@assume_option
@click.option(
    "--by",
    type=click.Choice(["throughput", "card", "power", "cost"]),
    help="Rank by tokens/s (the default), tokens/s per card (where a load is given) or per kW, or tokens per CNY.",
)
@click.option(
    "--cards", type=Whole(1, 10_000_000), help="Plan on so many cards of each machine, joined as its own are."
)
@click.option("--jobs", type=Whole(1, 1024), help="Processes that plan at once; by default as many as help.")
@click.option("--picture", type=click.Path(), help="Draw the contest to this PNG file.")
@click.option("--detail", is_flag=True, help="Also what each estimate rests on.")
@output_options
def compare(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Plan a JOB file on several machines and lay their best plans side by side.

    Throughput, per card, per kW and per CNY, step time, MFU, ETTR and the four walls of each; which machines cannot be
    told apart, and on which there is no plan, and why.
    """
    from zhenfa.cli.compare import compare_machines
    from zhenfa.cli.wanted import CompareWanted

    compare_machines(CompareWanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="How many cards of another kind replace those of a machine for one job.")
@click.argument("job", metavar="JOB")
@click.option("--from", "machine", metavar="MACHINE", required=True, help="A catalog machine or a machine file.")
@click.option("--to", metavar="CARD", required=True, help="An accelerator, or a system or machine made of it.")
@click.option("--cards", type=Whole(1, 10_000_000), help="Replace so many cards of MACHINE instead of all it has.")
@click.option("--shape", metavar="SYSTEM", help="The system that carries CARD, where several do.")
@click.option("--step", type=Whole(1, 1_000_000), help="Count in steps of so many cards instead of whole nodes.")
@set_option
@assume_option
@click.option("--detail", is_flag=True, help="Also every count that was planned, and what both estimates rest on.")
@output_options
def swap(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Say how many cards of another kind replace those of a machine for a JOB file, at equal throughput.

    The job is planned on the machine that is there; then the least number of the other cards is searched for whose best
    plan makes as many tokens/s at the same batch, sequence length and precision. With the band of that count, power,
    price, and the wall that makes the difference.
    """
    from zhenfa.cli.swap import swap_cards
    from zhenfa.cli.wanted import SwapWanted

    swap_cards(SwapWanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="Write a plan as files of the system that will run it.")
@click.argument("plan", metavar="PLAN")
@click.option(
    "--to",
    required=True,
    metavar="TARGET",
    help="megatron, mindspeed or torchtitan (training), vllm or sglang (serving), ray, slurm or k8s (where it runs).",
)
@click.option("--job", metavar="JOB", help="The job of the plan: run length, and model and machine files of one's own.")
@click.option("--out", type=click.Path(), metavar="FOLDER", help="Write the files here instead of to stdout.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option(
    "--nearest", is_flag=True, help="Where the target cannot express the plan, write the nearest that it can."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME[.POOL]=VALUE",
    help="What only your cluster knows, such as cards-per-node=8 or image.POOL=REGISTRY/IMAGE. Several times.",
)
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="As in `zhenfa plan`.")
@output_options
def emit(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Write a PLAN (from `zhenfa plan JOB --out PLAN`) as files of the system that will run it.

    What the target cannot express is refused with the reason and the nearest plan that it can.
    """
    from zhenfa.cli.emit import Wanted, emit_plan

    emit_plan(Wanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="Write a run's weights as a Hugging Face directory.")
@click.argument("run", metavar="RUN", type=click.Path())
@click.option("--to", required=True, type=click.Path(), metavar="FOLDER", help="The directory to write; a new one.")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of the weights."
)
@output_options
def export(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Write the newest checkpoint of a RUN's folder (or the checkpoint RUN is) as a Hugging Face directory.

    A Llama, a Mixtral or a Qwen2-MoE, as transformers and serving engines read it: config.json and safetensors. A
    tokenizer is not part of it.
    """
    from zhenfa.cli.export import Wanted, export_run

    export_run(Wanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="Plan a job, run it with PyTorch, compare with the plan.")
@click.argument("job", metavar="JOB")
@machine_options
@click.option("--steps", type=Whole(1, 1_000_000), help="Training steps, instead of the job's own.")
@click.option("--engine", type=click.Choice(["local", "ray", "slurm"]), help="Where the cards' processes run.")
@click.option("--calibrate", is_flag=True, help="Measure the machine first, and plan on what was measured.")
@click.option("--calibrate-within", metavar="TIME", help="The same, for about so long: 30 s if not given.")
@click.option("--calibrate-anew", is_flag=True, help="The same, though it was measured within a day.")
@click.option("--plan", metavar="PLAN", help="Run this plan, such as one of `zhenfa plan --out`, not the best.")
@click.option("--code", metavar="FILE", help="Let this Python file run, which the job names as its model.")
@click.option("--resume", metavar="FOLDER", help="Go on from the newest whole checkpoint of a run's folder.")
@click.option("--out", type=click.Path(), help="Folder for checkpoint, pictures and reports.")
@output_options
def run(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Plan a JOB file, run it for real with PyTorch, and lay what was predicted beside what happened.

    When a card fails the run goes on: execution.recover and the keys after it say how. SIGTERM ends it after the step
    under way, with a checkpoint to --resume from. The run's folder keeps the machine with what the run has taught.
    """
    from zhenfa.cli.run import Wanted, run_job

    run_job(Wanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="Run the laws on measured rows and say how far off they are.")
@click.option(
    "--rows",
    multiple=True,
    metavar="FILE",
    help="Measured rows (JSON lines, YAML, CSV, gzip or not; Parquet "
    "tables of operators) instead of those that ship with Zhenfa. May be given several times.",
)
@click.option(
    "--kind",
    multiple=True,
    type=click.Choice(["train", "serve", "op", "fabric", "reliability", "energy"]),
    help="Rows of this kind only. May be given several times.",
)
@click.option("--plot", type=click.Path(), help="Draw measured against predicted to this PNG file.")
@click.option("--detail", is_flag=True, help="Every row and every group.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a group is less accurate than is aimed at.")
@output_options
def validate(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Run the laws on measured rows; print per group how far off they are.

    Each row is one published or own measurement, in one of the forms of docs/guide/validating.md. A row that the laws
    cannot predict is skipped, and it is said why.
    """
    from zhenfa.cli.validate import validate_rows
    from zhenfa.cli.wanted import ValidateWanted

    validate_rows(ValidateWanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="Time the device that is present; write it down as a machine to plan on.")
@click.option("--device", metavar="DEVICE", help="Such as cpu, cuda or cuda:1; by default a card if there is one.")
@click.option("--cards", type=Whole(1, 256), help="Cards of the machine, all timed at once: 1 if not given.")
@click.option("--out", type=click.Path(), help="The machine file to write, instead of one named by the device.")
@click.option("--quick", is_flag=True, help="A few sizes in a few seconds, less exact.")
@click.option("--check", is_flag=True, help="Run whole models and lay what was predicted beside what was measured.")
@click.option("--keep", type=click.Path(), help="Append what --check measured to this file of measured rows.")
@click.option("--force", is_flag=True, help="Replace the machine file if it is there.")
@output_options
def calibrate(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Time the device that is present and write it down as a machine that can be planned on.

    Short micro-benchmarks of matmul, attention, memory, launch, optimizer and messages between cards decide the
    coefficients that the laws of every estimate take. On a processor each card is a process with its share of the
    cores.
    """
    from zhenfa.cli.calibrate import Wanted, calibrate_device

    calibrate_device(Wanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command()
@click.option(
    "--from",
    "recorded",
    metavar="FILE",
    help="List the cards that this file tells of instead: a document of --json, or what a maker's tool printed.",
)
@click.option("--as-machine", metavar="FILE", help="Write the cards down as a machine file, unknown values empty.")
@click.option("--force", is_flag=True, help="Replace the machine file if it is there.")
@output_options
def devices(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """List the cards of this host, with load, heat, power and health as far as anybody tells.

    Asked are the makers' own tools, NVML, gpustack-runtime where it is installed, torch, and the PCI bus.
    """
    from zhenfa.cli.devices import Wanted, list_devices

    list_devices(Wanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command(short_help="Say what a run needs and whether it is here; try a job's own messages.")
@click.argument("job", metavar="[JOB]", required=False)
@machine_options
@click.option("--makers", is_flag=True, help="Every maker's plug-in instead: what it cannot do, and why.")
@output_options
def doctor(as_json: bool, cite_sources: bool, quiet: bool, **wanted: Any) -> None:
    """Say what a run needs and whether it is here; exit with 1 if a run would fail.

    With a JOB file: plan it, start the cards of the best plan, and time the plan's own messages and sums between them
    beside what the machine's links say. Nothing is trained.
    """
    from zhenfa.cli.doctor import Wanted, examine

    examine(Wanted(**wanted), _output(as_json, cite_sources, quiet))


@cli.command()
@click.argument("term", metavar="TERM", nargs=-1, required=True)
@output_options
def explain(term: tuple[str, ...], as_json: bool, cite_sources: bool, quiet: bool) -> None:
    """Explain a TERM of the field, in English and Chinese."""
    from zhenfa.cli.explain import explain_term

    explain_term(" ".join(term), _output(as_json, cite_sources, quiet))


def _output(as_json: bool, cite_sources: bool, quiet: bool) -> Any:
    from zhenfa.cli.console import Output

    return Output(as_json=as_json, cite=cite_sources, quiet=quiet)


def entry() -> None:
    """Run the command line: errors in words on stderr, and an exit code of :data:`EXIT_CODES`."""
    if not os.environ.get("ZHENFA_DEBUG"):
        warnings.simplefilter("ignore")
    gc.set_threshold(FEW_COLLECTIONS)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # to look for some reads the list of every package
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run the command line on ``arguments`` and return the exit code."""
    _open_streams()
    try:
        result = cli.main(args=arguments, prog_name="zhenfa", standalone_mode=False)
        sys.stdout.flush()
    except ZhenfaError as problem:
        return _complain(problem.message, problem.hint, problem.exit_code)
    except click.ClickException as problem:
        return _complain(*_usage(problem, arguments), 2)
    except (Interrupted, KeyboardInterrupt, click.Abort):
        return _complain("interrupted.", None, 130)
    except (ReaderGone, BrokenPipeError):
        _drop_output()
        return 0
    except OSError as problem:
        _drop_output()
        return _complain(f"{problem.strerror or problem}.", None, 1)
    except Exception as problem:
        if os.environ.get("ZHENFA_DEBUG"):
            raise
        return _complain(
            f"this is a fault in zhenfa, not in what you gave it: {type(problem).__name__}: {problem}",
            "set ZHENFA_DEBUG=1 for the traceback and report it.",
            1,
        )
    return result if isinstance(result, int) else 0


def _open_streams() -> None:
    """Give a closed stream somewhere to write to, and let one that cannot write Chinese write question marks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """Let what is still held for stdout go nowhere, so that the interpreter ends in silence."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _usage(problem: click.ClickException, arguments: list[str]) -> tuple[str, str | None]:
    """Return what was wrong with the arguments, and the way out."""
    context = getattr(problem, "ctx", None)
    named = f"zhenfa {arguments[0]}" if arguments and arguments[0] in cli.commands else "zhenfa"
    command = context.command_path if context else named
    way_out = f"`{command} --help` shows how it is used."
    if isinstance(problem, click.NoSuchOption):
        name = problem.option_name
        owner = next((own for own, one in cli.commands.items() if any(name in part.opts for part in one.params)), None)
        if command == "zhenfa" and owner:
            return f"{name} belongs to a command and comes after it.", f"such as `zhenfa {owner} {name}`."
        known = [opt for part in context.command.get_params(context) for opt in part.opts] if context else []
        near = near_misses(name, known)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        return f"`{command}` has no option {name}.{guess}", way_out
    words = problem.format_message().strip()
    return f"{words[:1].lower()}{words[1:].rstrip('.')}.", way_out


def _complain(message: str, hint: str | None, code: int) -> int:
    from zhenfa.cli.console import STYLES, coloured

    colour = coloured(sys.stderr)
    for label, text in (("error", message), ("hint", hint)):
        if text:
            shown = click.style(label, **STYLES[label]) if colour else label
            click.echo(f"{shown}: {text}", err=True, color=colour)
    return code


if __name__ == "__main__":
    entry()
