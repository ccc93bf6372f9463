"""The conformance suite of a maker's plug-in."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, get_args

import pytest

from zhenfa.live.makers import CAPABILITIES, Maker, makers
from zhenfa.live.makers.capability import UNTRIED
from zhenfa.live.makers.probe import built_for
from zhenfa.live.makers.record import DeviceRecord, Health, merge
from zhenfa.live.makers.recorded import record_of
from zhenfa.live.makers.registry import known_by
from zhenfa.live.makers.tools import read
from zhenfa.spec.machine import Precision

CARD_S: Final = 170.0
"""Seconds that the work on the card may take: it imports torch and starts the maker's driver."""
TOLERANCE: Final = {"loss": 1e-4, "weights": 1e-3}
"""How far one training step in fp32 may lie from the processor's: share of the loss, of the largest weight's change."""


@cache
def work_on_card(maker: type[Maker]) -> dict[str, Any]:
    """Return what a card of the maker did in a process of its own (see :mod:`zhenfa.testing.card`)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "zhenfa.testing.card", maker.__module__, maker.__qualname__],
        capture_output=True, text=True, timeout=CARD_S, check=False, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return {"failed": f"the card's process ended with code {done.returncode}: {last[0]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class MakerSuite:
    """Derive from it, set ``maker`` to the plug-in's class, and pytest runs the tests.

    ``outputs`` are files of what the maker's tool prints, each of which tells of at least one card.
    """

    maker: ClassVar[type[Maker]]
    outputs: ClassVar[Sequence[Path]] = ()

    @pytest.fixture
    def mine(self) -> Maker:
        """The plug-in."""
        return self.maker()

    @pytest.fixture
    def card(self, mine: Maker) -> dict[str, Any]:
        """What a card did, where there is one."""
        if not mine.able("torch"):
            pytest.skip(mine.missing["torch"])
        if not mine.installed:
            pytest.skip(f"{mine.module} is not installed")
        if not built_for(mine):
            pytest.skip(f"this torch is not built for {mine.torch_device}")
        done = work_on_card(self.maker)
        if "absent" in done:
            pytest.skip(done["absent"])
        assert "failed" not in done, done["failed"]
        return done

    # What it says it is.

    def test_it_has_an_id_and_a_name(self, mine: Maker) -> None:
        """The id is a word in small letters, as it stands in documents and on the command line."""
        assert re.fullmatch(r"[a-z][a-z0-9-]{1,30}", mine.id)
        assert mine.name.strip() == mine.name
        assert mine.name.isprintable()

    def test_it_is_found_by_its_entry_point(self, mine: Maker) -> None:
        """The installed package names the class in the group ``zhenfa.makers``, and no other claims its id."""
        assert type(makers().get(mine.id)) is self.maker

    def test_it_says_where_its_facts_come_from(self, mine: Maker) -> None:
        """Each source is a phrase: a document with its version, a file of a project, an issue."""
        assert mine.sources
        assert all(len(source.split()) > 2 for source in mine.sources)

    def test_it_says_on_which_silicon_it_has_run(self, mine: Maker) -> None:
        """A plug-in that nobody has run bears the mark that says so."""
        assert mine.mark == (mine.tried or UNTRIED)

    def test_device_names_lead_to_it(self, mine: Maker) -> None:
        """Its words are in small letters, and none is a part of another maker's."""
        for word in mine.words:
            assert word == word.casefold()
            found = known_by(word)
            assert found is not None
            assert found.id == mine.id

    def test_its_vendor_ids_are_on_the_bus(self, mine: Maker) -> None:
        """PCI vendor ids are written as the kernel writes them, and are no other maker's."""
        assert all(re.fullmatch(r"0x[0-9a-f]{4}", vendor) for vendor in mine.pci_vendors)
        others = {vendor for one in makers().values() if one.id != mine.id for vendor in one.pci_vendors}
        assert not others & set(mine.pci_vendors)

    # What it can do.

    def test_every_capability_is_answered(self, mine: Maker) -> None:
        """Yes, or no with a sentence; and what is said to be there is there."""
        assert [one.name for one in mine.capabilities()] == list(CAPABILITIES)
        assert set(mine.missing) <= set(CAPABILITIES)
        for one in mine.capabilities():
            assert one.able == (not one.sentence)
            assert one.able or (one.sentence.endswith(".") and len(one.sentence.split()) > 3), one
        there = {
            "torch": mine.torch_device is not None,
            "isolation": mine.visible_devices is not None,
            "collectives": mine.collective is not None and mine.collective_library is not None,
            "bf16": "bf16" in mine.precisions,
            "discovery": bool(mine.smi or mine.pci_vendors) or type(mine).look is not Maker.look,
            "timeouts": bool(mine.timeouts),
        }
        said = {name: mine.able(name) for name in there}
        assert {name for name, yes in said.items() if yes} <= {name for name, yes in there.items() if yes}
        assert not mine.able("training") or mine.able("torch")

    def test_precisions_are_known(self, mine: Maker) -> None:
        """Number formats are named as documents name them; fp32 is always there."""
        assert "fp32" in mine.precisions
        assert mine.precisions <= set(get_args(Precision))

    # What a card's process is given.

    def test_a_process_is_shown_its_card_alone(self, mine: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Variables are text; torch does not load other makers' modules; the card is named by the right variable."""
        if mine.visible_devices is not None:
            monkeypatch.delenv(mine.visible_devices, raising=False)
        first, third = mine.environment(0), mine.environment(2)
        assert all(isinstance(text, str) for pair in (first | third).items() for text in pair)
        assert first["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"
        differ = {name for name in first if first[name] != third[name]}
        assert differ == (set() if mine.visible_devices is None else {mine.visible_devices})
        if mine.visible_devices is not None:
            assert (first[mine.visible_devices], third[mine.visible_devices]) == ("0", "2")

    def test_timeouts_are_effective(self, mine: Maker) -> None:
        """A variable that is set decides; one that holds no number does not, and says so; unset, the default does."""
        for timeout in mine.timeouts:
            unset, given, wrong = (
                timeout.in_force(environment)
                for environment in ({}, {timeout.variable: "300"}, {timeout.variable: "soon"})
            )
            assert (unset.told_by, given.told_by, wrong.told_by) == ("default", "variable", "default")
            assert given.seconds is not None
            assert given.seconds > 0
            assert not math.isnan(given.seconds)
            assert "soon" in wrong.problem
            assert wrong.seconds == unset.seconds
            assert timeout.what
            assert timeout.source

    # What it tells of cards.

    def test_records_of_this_host_are_plain_data(self, mine: Maker) -> None:
        """Whatever cards there are, their records go through JSON and back, and name the plug-in."""
        found = mine.look()
        assert merge(found) == found
        self._check(mine, found)

    def test_recorded_outputs_are_read(self, mine: Maker) -> None:
        """Each of ``outputs`` tells of cards; an output of something else tells of none."""
        for path in self.outputs:
            found = read(mine, path.read_text(encoding="utf-8"))
            assert found, path
            self._check(mine, found)
        for other in ("", "command not found\n", "{}", "a, b\n1, 2\n"):
            assert mine.read_smi(other) == []

    def _check(self, mine: Maker, found: Sequence[DeviceRecord]) -> None:
        for record in found:
            assert record.provider == mine.id
            assert record_of(json.loads(json.dumps(record.to_data()))) == record
            assert record.name.isprintable()
            assert record.health is None or record.health in get_args(Health)
            assert set(record.told_by) <= set(record.to_data())
            for value in (record.memory_bytes, record.power_w, record.utilisation):
                assert value is None or value >= 0

    # On a card.

    def test_the_card_opens(self, mine: Maker, card: dict[str, Any]) -> None:
        """Torch computes on it, through the device type that the plug-in names."""
        assert card["device"].partition(":")[0] == mine.torch_device
        assert card["sum"] == 6.0

    def test_tensors_come_to_the_host(self, card: dict[str, Any]) -> None:
        """They lie in host memory, contiguous, with the card's values."""
        assert card["host"] == [[1.0, 2.0], [3.0, 4.0]]
        assert card["host_device"] == "cpu"
        assert card["host_contiguous"]

    def test_memory_is_told(self, mine: Maker, card: dict[str, Any]) -> None:
        """What the process uses is not negative, and no more than there is, where that is known."""
        used, capacity = card["memory"]
        assert used >= 0
        if mine.able("memory"):
            assert capacity == 0 or used <= capacity

    def test_a_training_step_equals_the_processors(self, card: dict[str, Any]) -> None:
        """Loss and weights of one AdamW step of a small model in fp32 are those of the processor."""
        assert math.isclose(card["loss"], card["loss_on_processor"], rel_tol=TOLERANCE["loss"])
        assert card["weights_apart"] <= TOLERANCE["weights"]

    def test_abstract_methods_are_written(self, mine: Maker) -> None:
        """The class is whole."""
        assert not inspect.isabstract(type(mine))
