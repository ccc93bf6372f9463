"""Every built-in maker passes the conformance suite, and so does a plug-in that a stranger installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zhenfa.live.makers import makers
from zhenfa.testing import MakerSuite

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "smi"
OUTPUTS = {
    "ascend": ("npu-smi.txt", "npu-smi-two-dies.txt"), "nvidia": ("nvidia-smi.csv",), "hygon": ("hy-smi.txt",),
    "cambricon": ("cnmon.txt",), "metax": ("mx-smi.txt",), "mthreads": ("mthreads-gmi.txt",),
    "iluvatar": ("ixsmi.txt",), "kunlunxin": ("xpu-smi-kunlunxin.txt",), "enflame": ("efsmi.txt",),
    "gaudi": ("hl-smi.csv",), "amd": ("rocm-smi.json",), "intel": ("xpu-smi-intel.json",), "thead": ("ppu-smi.csv",),
}  # fmt: skip

pytestmark = pytest.mark.live

for _id, _one in makers().items():
    _words = {"maker": type(_one), "outputs": tuple(DATA / name for name in OUTPUTS.get(_id, ()))}
    globals()[f"Test{_id.capitalize()}"] = type(f"Test{_id.capitalize()}", (MakerSuite,), _words)


def test_every_tool_that_is_read_has_a_recorded_output() -> None:
    assert {name for name, one in makers().items() if one.smi} == set(OUTPUTS)


# A stranger's plug-in.


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the worked example is installed, in a folder of its own."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("installed")
    source = ROOT / "examples" / "maker-plugin"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder, source], check=True, capture_output=True, cwd=folder)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
    }


def test_a_strangers_cards_are_listed(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "zhenfa.cli.main", "devices", "--json"]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, check=True)
    found = [one for one in json.loads(done.stdout)["devices"] if one["provider"] == "paper"]
    assert [(one["name"], one["memory_bytes"], one["power_w"]) for one in found] == [
        ("PaperCard-A4", 2**33, 5.0),
        ("PaperCard-A4", 2**33, 6.0),
    ]
    assert done.stderr == "" or "warning" not in done.stderr


def test_a_strangers_plug_in_passes_the_suite(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(ROOT)]
    done = subprocess.run(
        [*command, ROOT / "examples" / "maker-plugin" / "test_paper.py"], env=installed, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_a_broken_strangers_plug_in_is_named(installed: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "broken_cards-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-cards\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[zhenfa.makers]\nbroken = broken_cards:Cards\n")
    (tmp_path / "broken_cards.py").write_text("raise RuntimeError('its driver is not there')\n")
    environment = installed | {"PYTHONPATH": os.pathsep.join([str(tmp_path), installed["PYTHONPATH"]])}
    command = [sys.executable, "-m", "zhenfa.cli.main", "devices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    warning = "warning: the maker plug-in broken (broken-cards) is left out: RuntimeError: its driver is not there."
    assert warning in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "PaperCard-A4" in done.stdout
