"""Machine, job and plan documents: what goes wrong is said with place, key, value, near miss and way out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import Field

from plain_documents import documents, quantities
from zhenfa import cite, units
from zhenfa.errors import DocumentError, InputError, MissingFactError
from zhenfa.spec import fact
from zhenfa.spec.document import Document, Part
from zhenfa.spec.fact import Fact, read_fact
from zhenfa.spec.job import Job, Workload
from zhenfa.spec.machine import Accelerator, Machine, System
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.serving import ServingWorkload

MACHINE = """\
schema: zhenfa.machine/1
name: mixed
pools:
  - name: a
    system: cloudmatrix384
    count: 384
  - name: b
    accelerator:
      id: x1
      maker: acme
      name: X1
      peak: {bf16: 400 TFLOPS}
      memory: {capacity: 64 GB, bandwidth: 1.6 TB/s}
      achievable: {matmul: {bf16: 80 %}}
    count: 8
    tiers:
      - {name: node, size: 8, bandwidth: 392 GB/s, latency: 1.9 us}
network: {bandwidth: 400 Gb/s}
pue: 1.15
"""
JOB = """\
schema: zhenfa.job/1
name: j
model: llama-3-8b
machine: cloudmatrix384
workload:
  sequence_length: 4096
  global_batch: 1024
  tokens: 1e12
limits: {max_cards: 64}
assume: {a.b: 64 GB}
"""
PLAN = """\
schema: zhenfa.plan/1
job: j
model: m
machine: x
sequence_length: 4096
precision: bf16
pipelines:
  - micro_batches: 4
    stages:
      - {pool: a, first: 0, last: 4}
      - {pool: b, first: 4, last: 8}
"""
TEXTS: dict[type[Document], str] = {Machine: MACHINE, Job: JOB, Plan: PLAN}

A_NAME = "a name has letters, digits, '.', '_' and '-', at most 80, and begins with a letter or a digit."
BEGIN_ITEMS = "begin each item on a line of its own with '- ', or put them in [ ]."
DATA = "write '64 GB' or '16 GiB'."
CONFIDENCES = f"it is one of {', '.join(fact.TAG_OF)}."
CAPACITY = "pools.1.accelerator.memory.capacity"

# document, what is replaced, by what, message after the name of the file, hint (None: none; ...: not looked at)
FAULTS: list[tuple[type[Document], str, str, str, Any]] = [
    # keys
    (Machine, "capacity: 64", "capcity: 64", "13:16: 'pools.1.accelerator.memory.capcity' is not a key here. "
     "Did you mean 'capacity'?", "known here: bandwidth, capacity, type."),
    (Machine, "size: 8,", "sise: 8,", "17:22: 'pools.1.tiers.0.sise' is not a key here. Did you mean 'size'? "
     "(1 more problem in this document.)", ...),
    (Machine, "maker: acme", "makr: acme", "10:7: 'pools.1.accelerator.makr' is not a key here. Did you mean 'maker'? "
     "(1 more problem in this document.)", ...),
    (Machine, "pue: 1.15", "zzz: 1.15", "19:1: 'zzz' is not a key here.", ...),
    (Machine, "pue: 1.15", "5: 1.15", "19:1: '5' is not a key here.", ...),
    (Machine, "pue: 1.15", "pue: 1.15\n'': 5", "20:1: '' is not a key here.", ...),
    (Machine, "      maker: acme\n", "", "9:7: 'pools.1.accelerator.maker' is missing.", None),
    (Machine, "size: 8, ", "", "17:9: 'pools.1.tiers.0.size' is missing.", None),
    (Machine, "name: mixed\n", "", "1:1: 'name' is missing.", None),
    (Job, "model: llama-3-8b\n", "", "1:1: 'model' is missing.", None),
    (Job, "global_batch", "globl_batch", "7:3: 'workload.globl_batch' is not a key here. Did you mean 'global_batch'? "
     "(1 more problem in this document.)",
     "known here: global_batch, optimizer, precision, sequence_length, task, tokens."),
    (Job, "limits: {max_cards", "limits: {max_card", "9:10: 'limits.max_card' is not a key here. "
     "Did you mean 'max_cards'?", ...),
    (Plan, "first: 4", "frist: 4", "11:19: 'pipelines.0.stages.1.frist' is not a key here. Did you mean 'first'? "
     "(1 more problem in this document.)",
     "known here: context_parallel, data_parallel, expert_parallel, expert_tensor_parallel, first, last, "
     "offload_layers, pool, precision, recompute, recompute_layers, recompute_modules, tensor_parallel."),
    # counts
    (Machine, "size: 8", "size: -8", "17:28: pools.1.tiers.0.size is -8: it must be at least 1.", None),
    (Machine, "count: 8\n", "count: 0\n", "15:12: pools.1.count is 0: it must be at least 1.", None),
    (Machine, "count: 8\n", "count: 99999999\n",
     "15:12: pools.1.count is 99999999: it must be at most 10,000,000.", None),
    (Machine, "size: 8", "size: '8'", "17:28: pools.1.tiers.0.size is '8': a whole number is wanted.",
     "write 8 without quotes."),
    (Machine, "size: 8", "size: true", "17:28: pools.1.tiers.0.size is true: a whole number is wanted.", None),
    (Machine, "size: 8", "size: 8.0", "17:28: pools.1.tiers.0.size is 8.0: a whole number is wanted.", "write 8."),
    (Machine, "size: 8", "size: 8.5", "17:28: pools.1.tiers.0.size is 8.5: a whole number is wanted.", None),
    (Machine, "size: 8", "size: null", "17:28: pools.1.tiers.0.size is null: a whole number is wanted.", None),
    (Machine, "size: 8", "size: [8]", "17:28: pools.1.tiers.0.size is a list: a whole number is wanted.", None),
    (Job, "global_batch: 1024", "global_batch: 1e3", "7:17: workload.global_batch is 1000.0: a whole number is wanted.",
     "write 1000."),
    (Job, "global_batch: 1024", "global_batch: 1_000", "7:17: workload.global_batch is '1_000': "
     "a whole number is wanted.", "write 1000."),
    (Job, "global_batch: 1024", "global_batch: 1k", "7:17: workload.global_batch is '1k': a whole number is wanted.",
     "write 1000."),
    (Job, "global_batch: 1024", "global_batch: many", "7:17: workload.global_batch is 'many': "
     "a whole number is wanted.", None),
    (Job, "tokens: 1e12", "tokens: 1T", "8:11: workload.tokens is '1T': a number is wanted.", "write 1e+12."),
    (Job, "tokens: 1e12", "tokens: -1", "8:11: workload.tokens is -1: it must be more than 0.", None),
    (Job, "tokens: 1e12", "tokens: 1e19", "8:11: workload.tokens is 1e+19: it must be at most 1e+18.", None),
    (Job, "tokens: 1e12", "tokens: true", "8:11: workload.tokens is true: a number is wanted.", None),
    # text, names, choices, yes and no
    (Machine, "name: mixed", "name: a b", f"2:7: name is 'a b': {A_NAME}", None),
    (Machine, "name: mixed", "name: ''", f"2:7: name is '': {A_NAME}", None),
    (Machine, "name: mixed", "name: ../../etc", f"2:7: name is '../../etc': {A_NAME}", None),
    (Machine, "name: mixed", "name: 5", "2:7: name is 5: text is wanted.", "put it in quotes."),
    (Machine, "name: mixed", "name:", "2:1: name is null: text is wanted.", None),
    (Machine, "name: a\n", "name: [x]\n", "4:11: pools.0.name is a list: text is wanted.", None),
    (Machine, "size: 8,", "size: 8, topology: ful-mesh,", "17:41: pools.1.tiers.0.topology is 'ful-mesh'. "
     "Did you mean 'full-mesh'?", "it is one of switch, full-mesh, mesh, torus, clos, undisclosed."),
    (Job, "tokens: 1e12", "precision: bf61", "8:14: workload.precision is 'bf61'. Did you mean 'bf16'?",
     "it is one of fp64, fp32, tf32, bf16, fp16, fp8, fp6, fp4, int8, int4."),
    (Job, "tokens: 1e12", "precision: 16", "8:14: workload.precision is 16: text or a list is wanted.", ...),
    (Job, "tokens: 1e12", "precision: [fp8, bf61]", "8:20: workload.precision.1 is 'bf61'. Did you mean 'bf16'?", ...),
    (Job, "tokens: 1e12", "precision: []", "8:14: workload.precision is empty: it must have at least 1 item.", ...),
    (Job, "tokens: 1e12", "task: srve", "8:9: workload.task is 'srve'. Did you mean 'serve'?",
     "it is one of train, serve."),
    (Job, "tokens: 1e12", "task: serve", "6:3: 'workload.sequence_length' is not a key here. "
     "(3 more problems in this document.)", ...),
    (Plan, "precision: bf16", "precision: [x]", "6:12: precision is a list.", ...),
    (Machine, "{bandwidth: 400 Gb/s}", "{host_staged: no}", "18:24: network.host_staged is 'no': "
     "true or false is wanted.", "write false."),
    (Machine, "{bandwidth: 400 Gb/s}", "{host_staged: 1}", "18:24: network.host_staged is 1: "
     "true or false is wanted.", None),
    # shapes
    (Machine, "{bandwidth: 400 Gb/s}", "[]", "18:10: network is empty: a mapping is wanted.", None),
    (Machine, "{bandwidth: 400 Gb/s}", "fast", "18:10: network is 'fast': a mapping is wanted.", None),
    (Machine, "memory: {capacity: 64 GB, bandwidth: 1.6 TB/s}", "memory: 64 GB",
     "13:15: pools.1.accelerator.memory is '64 GB': a mapping is wanted.", None),
    (Machine, "peak: {bf16: 400 TFLOPS}", "peak: 400 TFLOPS", "12:13: pools.1.accelerator.peak is '400 TFLOPS': "
     "a mapping is wanted.", None),
    (Job, "workload:\n  sequence_length: 4096\n  global_batch: 1024\n  tokens: 1e12\n", "workload: train\n",
     "5:11: workload is 'train': a mapping is wanted.", None),
    # quantities
    (Machine, "64 GB", "64 gigs", f"13:26: {CAPACITY} is '64 gigs': 'gigs' is not a unit of data.",
     "did you mean 'GB'? data is written like '64 GB' or '16 GiB'."),
    (Machine, "64 GB", "64 GB/s", f"13:26: {CAPACITY} is '64 GB/s': 'GB/s' is not a unit of data.", ...),
    (Machine, "64 GB", "{value: 64, unit: gb}", f"13:44: {CAPACITY}.unit is 'gb': 'gb' is not a unit of data.",
     "did you mean 'Gb' or 'GB'? B is a byte, b a bit. data is written like '64 GB' or '16 GiB'."),
    (Machine, "64 GB", "{value: 64 gb}", f"13:34: {CAPACITY}.value is '64 gb': 'gb' is not a unit of data.", ...),
    (Machine, "64 GB", "{value: many, unit: GB}", f"13:34: {CAPACITY}.value is 'many': "
     "'many' is not a number with a unit.", DATA),
    (Machine, "64 GB", "{valu: 64, unit: GB}", f"13:27: {CAPACITY}.valu: 'valu' is not a key of a quantity. "
     "Did you mean 'value'?", "known: value, unit, source, confidence, note."),
    (Machine, "64 GB", "{value: 64, confidence: vendor}", f"13:50: {CAPACITY}.confidence is 'vendor': "
     "'vendor' is not a confidence. Did you mean 'vendor-datasheet'?", CONFIDENCES),
    (Machine, "64 GB", "{value: 64, source: 5}", f"13:46: {CAPACITY}.source is 5: text is wanted.",
     "put it in quotes."),
    (Machine, "64 GB", "{value: 64, unit: 5}", f"13:44: {CAPACITY}.unit is 5: text is wanted.", "put it in quotes."),
    (Machine, "64 GB", "{value: -64, unit: GB}", f"13:34: {CAPACITY}.value is -64: a quantity is zero or more.", None),
    (Machine, "64 GB", "{value: true}", f"13:34: {CAPACITY}.value is true: True is a yes or a no, "
     "not a quantity of data.", DATA),
    (Machine, "64 GB", "{value: 1e300, unit: YB}", f"13:34: {CAPACITY}.value is 1e+300: "
     "this is more than a number can hold.", None),
    (Machine, "64 GB", "[64]", f"13:26: {CAPACITY}: a quantity of data is text, or a mapping with value, unit, source "
     "and confidence.", DATA),
    (Machine, "64 GB", "-64 GB", f"13:26: {CAPACITY} is '-64 GB': a quantity is zero or more.", None),
    (Machine, "64 GB", "''", f"13:26: {CAPACITY} is '': an empty text is not a quantity of data.", DATA),
    (Machine, "64 GB", "yes", f"13:26: {CAPACITY} is 'yes': 'yes' is not a number with a unit.", DATA),
    (Machine, "pue: 1.15", "pue: high", "19:6: pue is 'high': 'high' is not a number with a unit.",
     "write '0.85' or '85 %'."),
    (Machine, "{bf16: 80 %}", "{bf61: 80 %}", "14:29: pools.1.accelerator.achievable.matmul.bf61 is not a key here. "
     "Did you mean 'bf16'?", ...),
    (Machine, "{bf16: 80 %}", "{bf16: 80 GB}", "14:35: pools.1.accelerator.achievable.matmul.bf16 is '80 GB': "
     "'GB' is not a unit of ratio.", ...),
    # unions: only the member that was meant is talked about
    (Machine, "system: cloudmatrix384", "accelerator: a b", f"5:18: pools.0.accelerator is 'a b': {A_NAME}", None),
    (Machine, "system: cloudmatrix384", "accelerator: 5",
     "5:18: pools.0.accelerator is 5: text or a mapping is wanted.", None),
    (Machine, "system: cloudmatrix384", "accelerator: [5]", "5:18: pools.0.accelerator is a list: "
     "text or a mapping is wanted.", None),
    (Machine, "system: cloudmatrix384", "accelerator: {}", "5:18: 'pools.0.accelerator.id' is missing. "
     "(2 more problems in this document.)", None),
    (Job, "machine: cloudmatrix384", "machine: {name: a, pools: [{name: b, cuont: 5}]}",
     "4:38: 'machine.pools.0.cuont' is not a key here. Did you mean 'count'?", ...),
    (Job, "machine: cloudmatrix384", "machine: {name: a, pools: [{name: b, count: -5}]}",
     "4:45: machine.pools.0.count is -5: it must be at least 1.", None),
    (Job, "machine: cloudmatrix384", "machine: {name: a, pools: [{name: b, accelerator: {id: a, maker: b, nam: c}}]}",
     "4:69: 'machine.pools.0.accelerator.nam' is not a key here. Did you mean 'name'? "
     "(1 more problem in this document.)", ...),
    (Job, "machine: cloudmatrix384", "machine: {name: a, pools: []}",
     "4:27: machine.pools is empty: it must have at least 1 item.", None),
    (Job, "machine: cloudmatrix384", "machine: 5", "4:10: machine is 5: text or a mapping is wanted.", None),
    (Job, "machine: cloudmatrix384", "machine: [a]", "4:10: machine is a list: text or a mapping is wanted.", None),
    (Job, "a.b: 64 GB", "a.b: [1]", "10:15: assume.a.b is a list: text or a number is wanted.", None),
    (Job, "a.b: 64 GB", "a.b: true", "10:15: assume.a.b is true: text or a number is wanted.", None),
    # schemas
    (Machine, "machine/1", "machin/1", "1:9: schema is 'zhenfa.machin/1': this reads 'zhenfa.machine/1'.",
     "a machine is wanted here."),
    (Machine, "machine/1", "job/1", "1:9: schema is 'zhenfa.job/1': this reads 'zhenfa.machine/1'.",
     "a machine is wanted here."),
    (Plan, "plan/1", "plan/2", "1:9: schema is 'zhenfa.plan/2': this reads 'zhenfa.plan/1'.", "a plan is wanted here."),
    (Job, "zhenfa.job/1", "[1]", "1:9: schema: this reads 'zhenfa.job/1'.", "a job is wanted here."),
    (Job, "machine: cloudmatrix384", "machine: {schema: zhenfa.job/1, name: a, pools: [{name: b}]}",
     "4:19: machine.schema is 'zhenfa.job/1': this reads 'zhenfa.machine/1'.", "a machine is wanted here."),
    # sense
    (Plan, "first: 4", "first: 5", "8:5: pipelines.0: stage 1 holds layers 5 to 8, but layer 4 is next.", None),
    (Plan, "first: 4, last: 8", "first: 4, last: 3",
     "8:5: pipelines.0: stage 1 holds layers 4 to 3, but layer 4 is next.", None),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "old", "new", "message", "hint"), FAULTS, ids=[case[3][:70] for case in FAULTS])
def test_a_fault_is_named_with_its_place(cls: type[Document], old: str, new: str, message: str, hint: Any) -> None:
    assert TEXTS[cls].count(old) >= 1
    text = TEXTS[cls].replace(old, new, 1)
    with pytest.raises(DocumentError) as caught:
        cls.from_text(text, source="f.yaml")
    assert caught.value.message == f"f.yaml:{message}"
    if hint is not ...:
        assert caught.value.hint == hint
    line, column = map(int, message.split(":")[:2])
    assert (caught.value.source, caught.value.line, caught.value.column) == ("f.yaml", line, column)
    assert caught.value.exit_code == 2


WHOLE = [
    ("", "f: the document is empty."),
    ("- a\n", "f:1:1: a machine is a mapping of keys, not a list."),
    ("5\n", "f:1:1: a machine is a mapping of keys, not a number."),
    ("null\n", "f:1:1: a machine is a mapping of keys, not nothing."),
    ("some text\n", "f:1:1: a machine is a mapping of keys, not text."),
    ("{}\n", "f:1:1: 'name' is missing. (1 more problem in this document.)"),
    ("name: x\npools: []\n", "f:2:8: pools is empty: it must have at least 1 item."),
    ("name: x\npools: {name: a}\n", f"f:2:8: pools is a mapping: a list is wanted.\nhint: {BEGIN_ITEMS}"),
    ("name: x\npools: a\n", f"f:2:8: pools is 'a': a list is wanted.\nhint: {BEGIN_ITEMS}"),
    ("name: x\npools: [a]\n", "f:2:9: pools.0 is 'a': a mapping is wanted."),
    ('{"name": "x",\n "pools": [{"nam": "a"}]}', "f:2:13: 'pools.0.nam' is not a key here. Did you mean 'name'? "
     "(1 more problem in this document.)\nhint: known here: accelerator, count, failures, hosts, learned, name, "
     "power_per_card, system, tiers."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WHOLE, ids=[case[0] or "empty" for case in WHOLE])
def test_a_document_of_the_wrong_shape_is_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        Machine.from_text(text, source="f")
    assert str(caught.value) == message


def test_plain_data_without_a_file_is_refused_without_a_place() -> None:
    with pytest.raises(DocumentError) as caught:
        Machine.from_data({"name": "x", "pools": [{"name": "a", "count": -1}]})
    assert caught.value.message == "<data>: pools.0.count is -1: it must be at least 1."
    assert caught.value.key == "pools.0.count"
    with pytest.raises(DocumentError, match="<data>: '5' is not a key here"):
        Machine.from_data({5: 1, "name": "x", "pools": [{"name": "a"}]})


def test_plain_data_may_not_hold_a_number_that_no_file_may() -> None:
    with pytest.raises(
        DocumentError, match=r"<data>: pools\.0\.count: a number of about 400 digits is longer than 100 digits"
    ):
        Machine.from_data({"name": "x", "pools": [{"name": "a", "count": -(10**400)}]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x\x1b[31m", "<data>: name: the character U+001B is not read."),
        ("\ud800", "<data>: name: the character U+D800 is not read."),
        ("x" * 70_000, "<data>: name: a text of 70,000 characters is longer than 65,536."),
    ],
)
def test_plain_data_may_not_hold_what_no_file_may(name: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        Machine.from_data({"name": name, "pools": [{"name": "a"}]})
    assert caught.value.message == message


def test_thousands_of_faults_make_one_message() -> None:
    data = {"name": "j", "model": "m", "workload": {}, "assume": {f"k{index}": [] for index in range(20_000)}}
    with pytest.raises(DocumentError) as caught:
        Job.from_data(data)
    assert "(many more problems in this document.)" in caught.value.message


def test_the_schema_line_may_be_left_out_or_stand_in_an_inner_document() -> None:
    assert Machine.from_text(MACHINE) == Machine.from_text(MACHINE.replace("schema: zhenfa.machine/1\n", ""))
    inner = "\n".join(f"  {line}" for line in MACHINE.splitlines())
    job = Job.from_text(JOB.replace("machine: cloudmatrix384", f"machine:\n{inner}"))
    assert job.machine == Machine.from_text(MACHINE)


def test_a_document_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MACHINE)
    assert Machine.from_file(tmp_path / "m.yaml") == Machine.from_text(MACHINE)
    (tmp_path / "bad.yaml").write_text(MACHINE.replace("name: mixed", "name: a b"))
    with pytest.raises(DocumentError) as caught:
        Machine.from_file(str(tmp_path / "bad.yaml"))
    assert caught.value.message.startswith(f"{tmp_path}/bad.yaml:2:7: name is 'a b'")


def test_text_round_its_blanks_is_the_same_text() -> None:
    assert Machine.from_text(MACHINE.replace("name: mixed", "name: ' mixed '")).name == "mixed"


def test_a_document_does_not_change_once_read() -> None:
    machine = Machine.from_text(MACHINE)
    with pytest.raises(ValueError, match="frozen"):
        machine.name = "other"  # type: ignore[misc]


class Round(Part):
    kind: Literal["round"] = "round"
    radius: float


class Square(Part):
    kind: Literal["square"] = "square"
    side: float
    corners: tuple[int, ...] = ()


class Drawing(Document):
    schema_name: ClassVar[str] = "zhenfa.drawing/1"

    shapes: tuple[Annotated[Round | Square, Field(discriminator="kind")], ...] = ()
    frame: Round | Square | tuple[Square, ...] | None = None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("shapes: [{kind: square, sied: 1}]", "f:1:25: 'shapes.0.sied' is not a key here. Did you mean 'side'? "
         "(1 more problem in this document.)", "known here: corners, kind, side."),
        ("shapes: [{kind: squar, side: 1}]", "f:1:17: shapes.0.kind is 'squar'. Did you mean 'square'?",
         "it is one of round, square."),
        ("shapes: [{side: 1}]", "f:1:10: 'shapes.0.kind' is missing.", "it says what kind of thing this is."),
        ("shapes: [{kind: round}]", "f:1:10: 'shapes.0.radius' is missing.", None),
        ("shapes: [{kind: round, radius: '5'}]", "f:1:32: shapes.0.radius is '5': a number is wanted.",
         "write 5 without quotes."),
        ("frame: {side: 1, corners: [1, x]}", "f:1:31: frame.corners.1 is 'x': a whole number is wanted.", None),
        ("frame: {radius: 1, sidez: 1}", "f:1:20: 'frame.sidez' is not a key here.", "known here: kind, radius."),
        ("frame: {kind: square, radius: 1}", "f:1:23: 'frame.radius' is not a key here. "
         "(1 more problem in this document.)", "known here: corners, kind, side."),
        ("frame: [{side: 1}, {sid: 1}]", "f:1:21: 'frame.1.sid' is not a key here. Did you mean 'side'? "
         "(1 more problem in this document.)", ...),
        ("frame: big", "f:1:8: frame is 'big': a mapping or a list is wanted.", None),
    ],
)  # fmt: skip
def test_of_several_shapes_the_one_that_was_meant_is_explained(text: str, message: str, hint: Any) -> None:
    with pytest.raises(DocumentError) as caught:
        Drawing.from_text(text, source="f")
    assert caught.value.message == message
    assert hint is ... or caught.value.hint == hint


# Round trips.


@pytest.mark.parametrize(("cls", "text"), TEXTS.items(), ids=[cls.__name__ for cls in TEXTS])
def test_a_document_survives_yaml_and_json(cls: type[Document], text: str) -> None:
    document = cls.from_text(text)
    assert cls.from_text(document.to_yaml()) == document
    assert cls.from_data(document.to_data()) == document
    assert cls.from_text(document.model_dump_json(exclude_defaults=True)) == document


def test_a_document_is_written_for_people() -> None:
    assert Job.from_text(JOB).to_yaml() == (
        "schema: zhenfa.job/1\n"
        "name: j\n"
        "model: llama-3-8b\n"
        "machine: cloudmatrix384\n"
        "workload: {sequence_length: 4096, global_batch: 1024, tokens: 1000000000000.0}\n"
        "limits: {max_cards: 64}\n"
        'assume: {a.b: "64 GB"}\n'
    )
    written = Machine.from_text(MACHINE).to_yaml()
    assert "capacity: {value: 64.0, unit: GB, source: this document, confidence: stated}\n" in written
    assert "bandwidth: {value: 400.0, unit: Gb/s, source: this document, confidence: stated}\n" in written


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(documents(Machine))
def test_every_machine_survives_a_round_trip(data: dict[str, Any]) -> None:
    machine = Machine.from_data(data)
    again = Machine.from_text(machine.to_yaml())
    assert again == machine
    assert again.to_yaml() == machine.to_yaml()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(documents(Job))
def test_every_job_survives_a_round_trip(data: dict[str, Any]) -> None:
    try:
        job = Job.from_data(data)
    except DocumentError as problem:
        words = ("how requests come", "no load", "names one twice")
        assume(not any(one in problem.message for one in words))
        if not (problem.key or "").startswith(("limits", "execution")):
            raise
        job = Job.from_data({**data, "limits": {}, "execution": {}})
    assert Job.from_text(job.to_yaml()) == job


STAGES = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from("abc"), st.integers(1, 64), st.sampled_from(["none", "full"])),
    min_size=1,
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan whose pipelines all end at the same layer."""
    pipelines = []
    cuts = [draw(STAGES) for _ in range(draw(st.integers(1, 3)))]
    end = max(sum(layers for layers, *_ in stages) for stages in cuts)
    for stages in cuts:
        here, parts = 0, []
        for index, (layers, pool, degree, recompute) in enumerate(stages):
            last = end if index == len(stages) - 1 else here + layers
            parts.append(Stage(pool=pool, first=here, last=last, tensor_parallel=degree, recompute=recompute))
            here = last
        counts = (draw(st.integers(1, 1000)) for _ in range(3))
        pipelines.append(
            Pipeline(**dict(zip(("count", "micro_batches", "micro_batch_size"), counts, strict=True)), stages=parts)
        )
    return Plan(
        job=draw(st.text("abc ", max_size=5)), model="m", machine="x", sequence_length=draw(st.integers(1, 10**6)),
        precision=draw(st.sampled_from(["bf16", "fp8"])), zero=draw(st.integers(0, 3)), pipelines=tuple(pipelines),
    )  # fmt: skip


@settings(max_examples=60)
@given(plans())
def test_every_plan_survives_a_round_trip(plan: Plan) -> None:
    assert Plan.from_text(plan.to_yaml()) == plan


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(documents(System), documents(Accelerator))
def test_parts_of_the_catalog_survive_plain_data(system: dict[str, Any], accelerator: dict[str, Any]) -> None:
    for part, data in ((System, system), (Accelerator, accelerator)):
        read = part.model_validate(data)
        assert part.model_validate(read.model_dump(mode="json")) == read


# Quantities.


@given(st.sampled_from(sorted(units.BASE)), st.data())
def test_a_fact_survives_its_own_writing_exactly(dimension: units.Dimension, data: st.DataObject) -> None:
    raw = data.draw(quantities(dimension))
    try:
        read = read_fact(raw, dimension)
    except InputError as problem:
        assert "more than a number can hold" in problem.message  # noqa: PT017
        return
    again = read_fact(read.model_dump(mode="json"), dimension)
    assert again == read
    assert again.value == read.value  # to the last bit


@given(st.floats(0, 1e250), st.sampled_from(sorted(units.BASE)), st.data())
def test_a_computed_fact_survives_its_own_writing_exactly(
    value: float, dimension: units.Dimension, data: st.DataObject
) -> None:
    unit = data.draw(st.sampled_from(sorted(units._TABLE[dimension])))
    computed = Fact(value=value, dimension=dimension, unit=unit)
    again = read_fact(computed.model_dump(), dimension)
    assert again == computed
    assert again.value == value
    copied = computed.model_copy(update={"unit": unit})
    assert read_fact(copied.model_dump(), dimension).value == value


def test_a_fact_keeps_the_unit_in_which_it_was_written() -> None:
    assert read_fact("64 GB", "data").model_dump()["value"] == 64.0
    assert read_fact({"value": 0.1, "unit": "TB"}, "data").model_dump()["value"] == 0.1
    assert read_fact({"value": "64 GB", "unit": "TB"}, "data").value == 64e9
    assert read_fact(64, "data").unit == "B"
    assert read_fact({"value": 64}, "data").unit == "B"


def test_a_fact_knows_where_it_comes_from() -> None:
    stated = read_fact("64 GB", "data")
    assert (stated.source, stated.confidence, stated.tag, stated.known) == ("this document", "stated", "assumed", True)
    sheet = read_fact({"value": 64, "unit": "GB", "source": "maker2024", "confidence": "vendor-datasheet"}, "data")
    assert (sheet.tag, sheet.show()) == ("datasheet", "64 GB")
    with cite.collect() as seen:
        assert sheet.require("x.memory.capacity") == 64e9
    assert list(seen) == ["maker2024"]


@pytest.mark.parametrize("raw", [None, {}, {"value": None}, {"value": None, "unit": "GB"}])
def test_what_nobody_has_published_stays_empty(raw: Any) -> None:
    empty = read_fact(raw, "data")
    assert (empty.value, empty.known, empty.confidence, empty.show()) == (None, False, "undisclosed", "undisclosed")
    with cite.collect() as seen, pytest.raises(MissingFactError) as caught:
        empty.require("x.memory.capacity")
    assert str(caught.value) == (
        "x.memory.capacity is undisclosed, and this plan needs it.\n"
        'hint: supply it with --assume x.memory.capacity="64 GB" (your value); the result is then tagged assumed.'
    )
    assert not seen


@pytest.mark.parametrize("dimension", sorted(units.BASE))
def test_the_way_out_of_a_missing_fact_is_a_value_that_is_read(dimension: units.Dimension) -> None:
    error = fact.missing("a.b", dimension, note="the maker gives no figure")
    assert error.message == "a.b is undisclosed (the maker gives no figure), and this plan needs it."
    assert error.hint is not None
    assert read_fact(error.hint.split('"')[1], dimension).known


def test_a_fact_of_one_dimension_is_not_taken_for_another() -> None:
    power = read_fact("600 W", "power")
    assert read_fact(power, "power") is power
    with pytest.raises(DocumentError, match="a quantity of power stands where data is wanted"):
        read_fact(power, "data")
    with pytest.raises(ValueError, match="not a unit of data"):
        Fact(value=1, dimension="data", unit="GB/s")


def test_the_weakest_input_tags_the_result() -> None:
    assert fact.weakest() == "derived"
    assert fact.weakest("measured", "datasheet") == "datasheet"
    assert fact.weakest("measured", "assumed", "fitted") == "assumed"
    assert set(fact.TAG_OF.values()) <= set(fact.WEAKNESS)


SERVING = """\
schema: zhenfa.job/1
name: chat
model: deepseek-v3
machine: hgx-h20
workload: {task: serve, input_length: 4096, output_length: 1024, ttft_target: 2 s, tpot_target: 50 ms}
"""


def test_a_job_that_serves_is_told_apart_and_its_targets_have_units() -> None:
    workload = Job.from_text(SERVING).workload
    assert isinstance(workload, ServingWorkload)
    assert (workload.ttft_target, workload.tpot_target) == (2.0, 0.05)
    assert workload.open_ended
    assert Job.from_text(SERVING.replace("task: serve, ", "")) == Job.from_text(SERVING)
    assert isinstance(Job.from_text(JOB.replace("  task: train\n", "")).workload, Workload)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("50 ms", "50 m", "workload.tpot_target is '50 m': 'm' is not a unit of time."),
        ("ttft_target: 2 s, tpot_target: 50 ms", "cached_prefix: 0.5", "it gives no load and no target"),
        ("ttft_target: 2 s", "concurrency: 4, request_rate: 1", "it gives concurrency and request_rate"),
        ("ttft_target", "ttft", "'workload.ttft' is not a key here. Did you mean 'ttft_target'?"),
        ("ttft_target: 2 s", "weights: [fp7]", "workload.weights.0 is 'fp7'. Did you mean 'fp8'?"),
    ],
)
def test_a_fault_in_a_serving_workload_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        Job.from_text(SERVING.replace(old, new))
    assert message in caught.value.message
