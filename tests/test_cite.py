from __future__ import annotations

import threading

import pytest

from zhenfa import cite


@pytest.fixture(autouse=True)
def _own_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cite, "_KNOWN", {})


def test_a_declared_source_has_a_line_and_another_is_its_own() -> None:
    assert cite.declare("daly2006", "Daly 2006, doi:10.1016/j.future.2004.11.016") == "daly2006"
    assert cite.text("daly2006") == "Daly 2006, doi:10.1016/j.future.2004.11.016"
    assert cite.text("this document") == "this document"


def test_used_sources_are_gathered_once_in_order_of_first_use() -> None:
    with cite.collect() as seen:
        cite.use("b", "a")
        cite.use("b")
        cite.use("c")
    assert list(seen) == ["b", "a", "c"]


def test_nothing_is_gathered_outside_a_block() -> None:
    with cite.collect() as seen:
        pass
    cite.use("late")
    assert list(seen) == []


def test_an_outer_block_gathers_what_an_inner_one_does() -> None:
    with cite.collect() as outer:
        cite.use("a")
        with cite.collect() as inner:
            cite.use("b")
        cite.use("c")
    assert list(inner) == ["b"]
    assert list(outer) == ["a", "b", "c"]


def test_a_block_closes_when_something_fails_in_it() -> None:
    def fail() -> None:
        with cite.collect():
            cite.use("inner")
            raise KeyError

    with cite.collect() as outer:
        with pytest.raises(KeyError):
            fail()
        cite.use("after")
    assert list(outer) == ["inner", "after"]


def test_threads_do_not_mix_their_sources() -> None:
    with cite.collect() as seen:
        worker = threading.Thread(target=cite.use, args=("theirs",))
        worker.start()
        worker.join()
        cite.use("ours")
    assert list(seen) == ["ours"]
