"""The planner from Python: public names, what a call takes, what it returns and raises."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import zhenfa
from cli_runner import SMALL, caller
from zhenfa.spec import yaml

NAMES = [
    "Answer", "CapabilityError", "DocumentError", "InfeasibleError", "InputError", "InternalError", "Job", "Machine",
    "MissingFactError", "Model", "Plan", "RunError", "ServingAnswer", "UnitError", "UnknownNameError", "ZhenfaError",
    "__version__", "plan",
]  # fmt: skip
PLAN_NAMES = [
    "Answer",
    "Ranked",
    "Request",
    "answer_with",
    "estimate_plan",
    "find_plans",
    "make_request",
    "read_request",
]
MACHINE = Path(__file__).parent.parent / "examples/our-cluster.yaml"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("python") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answer(job: Path) -> zhenfa.Answer:
    return zhenfa.plan(job)


def layouts(found: zhenfa.Answer) -> list[tuple[str, float]]:
    return [(one.layout, one.cost.step) for one in found.plans]


def test_the_public_names_are_these() -> None:
    assert sorted(zhenfa.__all__) == NAMES
    assert set(NAMES) <= set(dir(zhenfa))
    assert all(getattr(zhenfa, name) is not None for name in NAMES)
    assert sorted(importlib.import_module("zhenfa.plan").__all__) == PLAN_NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'planner'"):
        zhenfa.planner  # type: ignore[attr-defined]  # noqa: B018


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import zhenfa; print(*sorted(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    ours = [name for name in shown.stdout.split() if name.startswith("zhenfa")]
    assert ours == ["zhenfa"]
    assert not {"typing", "numpy", "pydantic"} & set(shown.stdout.split())


def test_the_package_is_the_call(job: Path, answer: zhenfa.Answer) -> None:
    from zhenfa.plan import find_plans, read_request

    assert layouts(find_plans(read_request(str(job)))) == layouts(answer)
    assert zhenfa.plan.find_plans is find_plans


def test_jobs_and_machines_come_in_every_form(job: Path, answer: zhenfa.Answer) -> None:
    data = yaml.read(SMALL, "small")[0]
    for form in (str(job), data, zhenfa.Job.from_data(data)):
        assert layouts(zhenfa.plan(form, top=5)) == layouts(answer)
    elsewhere = layouts(zhenfa.plan(job, str(MACHINE), top=2))
    machine = yaml.read(MACHINE.read_text(encoding="utf-8"), "machine")[0]
    for other in (MACHINE, machine, zhenfa.Machine.from_data(machine)):
        assert layouts(zhenfa.plan(job, other, top=2)) == elsewhere
    assert layouts(zhenfa.plan(job, "hgx-h800", top=1)) != layouts(answer)[:1]


def test_the_answer_has_the_best_first(answer: zhenfa.Answer) -> None:
    assert answer.best is answer.plans[0]
    assert [one.rank for one in answer.plans] == [1, 2, 3, 4, 5]
    assert repr(answer.best) == f"<plan 1: {answer.best.layout}, {repr(answer.best).split(', ')[-1]}"
    assert repr(answer.plans[1]).endswith(f", {answer.plans[1].lost_by}>")
    assert "best" not in vars(answer)


def test_a_second_answer_rests_on_the_same_sources(job: Path, answer: zhenfa.Answer) -> None:
    assert [one.estimate.sources for one in zhenfa.plan(job).plans] == [one.estimate.sources for one in answer.plans]


def test_it_explains_itself(answer: zhenfa.Answer, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(answer.plans[1].plan.to_yaml(), encoding="utf-8")
    for plan in (2, answer.plans[1].plan, path, str(path)):
        assert answer.why(plan).step == answer.plans[1].cost.step
    assert answer.detail().step == pytest.approx(answer.best.cost.step)
    assert answer.detail(2).step == pytest.approx(answer.plans[1].cost.step)
    assert answer.sensitivity(searched=0).rows
    for rank in (0, 6):
        with pytest.raises(zhenfa.InputError, match=f"there is no plan {rank}: there are 5"):
            answer.why(rank)


def test_its_json_is_what_the_command_prints(
    job: Path, answer: zhenfa.Answer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = json.loads(caller(capsys, monkeypatch)("plan", job, "--json").out)
    own = json.loads(answer.to_json())
    assert {**own, "seconds": 0} == {**shown, "seconds": 0}
    published = Path(__file__).parent.parent / "docs/schemas/zhenfa.plans.1.json"
    jsonschema.validate(own, json.loads(published.read_text(encoding="utf-8")))
    assert json.loads(answer.to_json(indent=None)) == own


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data


def test_it_shows_itself_as_text_and_as_a_table(answer: zhenfa.Answer) -> None:
    first, head, *lines = repr(answer).splitlines()
    assert first.startswith("small on hgx-h100 (8 cards): 5 of ")
    assert head.split() == ["#", "layout", "batches", "cards", "step", "tokens/s", "MFU", "memory", "behind", "by"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    cells = _Cells()
    cells.feed(answer._repr_html_())
    assert not cells.open
    assert [row[0] for row in cells.rows] == ["#", "1", "2", "3", "4", "5"]
    assert [row[1] for row in cells.rows[1:]] == [one.layout for one in answer.plans]
    assert {len(row) for row in cells.rows} == {len(cells.rows[0])}


def test_a_job_that_serves_answers_alike() -> None:
    found = zhenfa.plan(MACHINE.parent / "qwen3-235b-serve.yaml", top=2)
    assert isinstance(found, zhenfa.ServingAnswer)
    assert repr(found).splitlines()[1].split()[:4] == ["#", "layout", "cards", "requests/s"]
    cells = _Cells()
    cells.feed(found._repr_html_())
    assert [row[0] for row in cells.rows] == ["#", *(str(one.rank) for one in found.plans)]
    assert json.loads(found.to_json())["task"] == "serve"
    assert found.best is found.plans[0]


def test_text_in_the_table_is_escaped() -> None:
    data = {**yaml.read(MACHINE.read_text(encoding="utf-8"), "machine")[0]}
    found = zhenfa.plan(yaml.read(SMALL, "small")[0], data, top=1)
    hostile = found.request.formation
    object.__setattr__(hostile, "name", "<script>")
    assert "<script>" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("no-such.yaml",), zhenfa.DocumentError, "there is no file 'no-such.yaml'"),
        (({"name": "x"},), zhenfa.DocumentError, "model"),
        ((3,), zhenfa.InputError, "a job is a path, a mapping or a zhenfa.Job, not int"),
        (("small", 3), zhenfa.InputError, "a machine is a path, a mapping or a zhenfa.Machine, not int"),
        (("small", "hgx-h10"), zhenfa.UnknownNameError, "hgx-h100"),
        (("small", "scalex640"), zhenfa.MissingFactError, "undisclosed"),
        (("huge",), zhenfa.InfeasibleError, "no layout of deepseek-v3 fits hgx-h100"),
    ],
)
def test_errors_are_those_of_the_tree(
    job: Path, arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    huge = {**yaml.read(SMALL, "small")[0], "model": "deepseek-v3"}
    named = {"small": job, "huge": huge}
    first, *rest = arguments
    with pytest.raises(error, match=words) as caught:
        zhenfa.plan(named[first] if isinstance(first, str) and first in named else first, *rest)
    assert isinstance(caught.value, zhenfa.ZhenfaError)


@pytest.mark.parametrize("top", [0, -1, True, 2.5])
def test_top_is_a_whole_number(job: Path, top: Any) -> None:
    with pytest.raises(zhenfa.InputError, match="whole number"):
        zhenfa.plan(job, top=top)


# The notebook.

NOTEBOOK = MACHINE.parent / "planning.ipynb"


def test_the_notebook_runs_from_top_to_bottom() -> None:
    tool = NOTEBOOK.parent.parent / "tools/run_notebook.py"
    spec = importlib.util.spec_from_file_location("run_notebook", tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    again = module.run(NOTEBOOK)["cells"]
    assert len(kept) == len(again)
    for before, now in zip(kept, again, strict=True):
        if before["cell_type"] == "code":
            assert before["execution_count"] == now["execution_count"]
            assert [one["output_type"] for one in before["outputs"]] == [one["output_type"] for one in now["outputs"]]
    shown = [one for cell in kept for one in cell.get("outputs", [])]
    assert sum("text/html" in one.get("data", {}) for one in shown) >= 3
    assert not [one for one in shown if one["output_type"] == "error"]
