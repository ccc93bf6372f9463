"""Names: any id, any alias, any case; a near miss for the rest. Nothing is read before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa import catalog
from zhenfa.catalog import entries, files
from zhenfa.errors import DocumentError, UnknownNameError
from zhenfa.spec.machine import Machine

SHELVES = (entries.ACCELERATORS, entries.SYSTEMS, entries.LINKS)


@given(st.data())
def test_every_name_resolves_in_any_case(data: st.DataObject) -> None:
    shelf = data.draw(st.sampled_from(SHELVES))
    name = data.draw(st.sampled_from(shelf.names))
    flips = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    spelt = "".join(letter.upper() if flip else letter for letter, flip in zip(name, flips, strict=True))
    entry = shelf.get(f" {spelt} ")
    assert name in (entry.id, *entry.aliases)


def test_short_names() -> None:
    assert catalog.accelerator("H100").id == "nvidia-h100-sxm"
    assert catalog.accelerator("scalex-card").id == "sugon-scalex-card"
    assert catalog.system("CloudMatrix384").accelerator == "ascend-910c"
    assert catalog.link("roce-400g").bandwidth.value == 50e9
    assert catalog.machine("SCALEX640").name == "scalex640"


@pytest.mark.parametrize(
    ("find", "wrong", "near", "kind"),
    [
        (catalog.accelerator, "910d", "910c", "accelerator"),
        (catalog.accelerator, "nvidia-h100", "nvidia-h100-sxm", "accelerator"),
        (catalog.system, "scalex-640", "scalex640", "system"),
        (catalog.link, "nvlink-5", "nvlink5", "link"),
        (catalog.machine, "mixed_demo", "mixed-demo", "machine"),
        (catalog.load_machine, "cloudmatrix-384", "cloudmatrix384", "machine"),
    ],
)
def test_an_unknown_name_gets_near_misses(find, wrong: str, near: str, kind: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnknownNameError) as caught:
        find(wrong)
    assert near in caught.value.near
    assert caught.value.message.startswith(f"no {kind} is called {wrong!r}. Did you mean ")
    assert "zhenfa show" in str(caught.value.hint)


def test_one_system_is_a_machine() -> None:
    machine = catalog.machine("nvidia-hgx-h100-8")
    assert machine.name == "nvidia-hgx-h100-8"
    assert catalog.resolve(machine).cards == 8
    assert catalog.machine("helios").name == "amd-helios"


def test_load_machine_takes_a_name_a_path_or_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = catalog.machine("hgx-h20")
    assert catalog.load_machine(machine) is machine
    assert catalog.load_machine("hgx-h20") == machine
    text = "schema: zhenfa.machine/1\nname: own\npools: [{name: a, system: hgx-h20}]\n"
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "bare").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for wanted in (path, str(path), "own.yaml", "./bare", "bare"):
        assert catalog.load_machine(wanted).name == "own"
    with pytest.raises(DocumentError, match=r"there is no file 'owm\.yaml'"):
        catalog.load_machine("owm.yaml")
    with pytest.raises(DocumentError, match="folder"):
        catalog.load_machine(tmp_path)


def test_models_are_found_by_name() -> None:
    for name in catalog.models():
        assert catalog.model_path(name.upper()).is_file()
    with pytest.raises(UnknownNameError, match="no model is called 'no such model'"):
        catalog.model_path("no such model")


def test_entries_do_not_change_and_are_checked_once() -> None:
    first = catalog.accelerator("h100")
    assert catalog.accelerator("nvidia-h100-sxm") is first
    with pytest.raises(ValueError, match="frozen"):
        first.name = "another"  # type: ignore[misc]
    assert not hasattr(catalog.accelerators(), "clear")
    assert not hasattr(catalog.accelerators(), "__setitem__")
    assert len(catalog.accelerators()) > 50
    assert catalog.accelerators()["nvidia-h100-sxm"] is first
    assert catalog.accelerators().get("h100") is None, "by id only"


def test_importing_the_catalog_reads_no_file() -> None:
    script = (
        "import pathlib, builtins\n"
        "import zhenfa.spec.machine\n"
        "def refuse(*a, **k): raise SystemExit('a file was read on import')\n"
        "pathlib.Path.read_bytes = pathlib.Path.read_text = pathlib.Path.glob = refuse\n"
        "import zhenfa.catalog\n"
        "assert 'torch' not in __import__('sys').modules\n"
        "print('quiet')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "quiet", done.stderr


def test_resolving_cold_is_quick() -> None:
    """The largest mix in a fresh process: 0.6 s is the target, 20 ms what the compiled form takes."""
    script = (
        "import time, zhenfa.catalog as c\n"
        "start = time.perf_counter()\n"
        "c.resolve(c.machine('mixed-demo'))\n"
        "print(time.perf_counter() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.6


def test_packaged_machines_are_machines() -> None:
    assert all(isinstance(item, Machine) for item in catalog.machines().values())
    assert all(name == item.name for name, item in catalog.machines().items())


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
        ("nvidia/Qwen3-32B-NVFP4", "qwen3-32b"),
        ("Meta-Llama-3.1-405B-Instruct", "llama3-405b"),
        ("Kimi-K2-Thinking", "kimi-k2"),
        ("DeepSeek-R1/V3", "deepseek-v3"),
        ("GPT-OSS-120B", "gpt-oss-120b"),
        ("Mistral-7B-v0.3", "mistral-7b"),
        ("a model that nobody has", None),
        ("", None),
    ],
)
def test_models_are_found_however_they_are_written(written: str, known: str | None) -> None:
    found = catalog.find_model(written)
    assert (found.name if found else None) == known


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("NVIDIA A100-40GB SXM", "nvidia-a100-sxm-40g"),
        ("A100 SXM 80GB", "nvidia-a100-sxm-80g"),
        ("NVIDIA B200 (DGX-B200)", "nvidia-b200-sxm"),
        ("NVIDIA GB200 NVL72", "nvidia-gb200"),
        ("NVIDIA GH200-96GB (Alps Clariden)", "nvidia-gh200-96g"),
        ("Ascend 910B3 (A2)", "ascend-910b3"),
        ("rtx_4090", "nvidia-rtx-4090"),
        ("Hopper", None),
        ("", None),
    ],
)
def test_accelerators_are_found_however_they_are_written(written: str, known: str | None) -> None:
    found = catalog.find_accelerator(written)
    assert (found.id if found else None) == known


def test_every_other_name_of_a_model_leads_to_a_model() -> None:
    names = files.read(files.ROOT / "model_names.yaml")["names"]
    assert set(names) <= set(catalog.models())
    for own, aliases in names.items():
        for alias in aliases:
            found = catalog.find_model(f"somebody/{alias}")
            assert found is not None
            assert found.name == own
