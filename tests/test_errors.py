from __future__ import annotations

import inspect
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_socket import SocketConnectBlockedError

from zhenfa import errors

TREE = {
    # name: (parent, exit code)
    "ZhenfaError": ("Exception", 1),
    "InputError": ("ZhenfaError", 2),
    "DocumentError": ("InputError", 2),
    "UnitError": ("InputError", 2),
    "UnknownNameError": ("InputError", 2),
    "MissingFactError": ("InputError", 2),
    "InfeasibleError": ("ZhenfaError", 3),
    "CapabilityError": ("ZhenfaError", 1),
    "RunError": ("ZhenfaError", 1),
    "InternalError": ("ZhenfaError", 1),
}


def test_the_tree_of_errors_and_their_exit_codes_is_a_promise() -> None:
    found = {
        name: (item.__mro__[1].__name__, item.exit_code)
        for name, item in vars(errors).items()
        if inspect.isclass(item) and issubclass(item, errors.ZhenfaError)
    }
    assert found == TREE


def test_the_public_functions_are_a_promise() -> None:
    found = {
        name for name, item in vars(errors).items() if inspect.isfunction(item) and item.__module__ == "zhenfa.errors"
    }
    assert found == {"near_misses", "printable", "quote"}


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__
    for name, (_, code) in TREE.items():
        line = next(
            line for line in errors.__doc__.splitlines() if f"─ {name}" in line or line.strip().startswith(name)
        )
        assert f"exit {code}" in line


def test_an_input_error_passes_through_validation_as_a_value_error() -> None:
    assert issubclass(errors.InputError, ValueError)


def test_text_of_an_error_is_message_and_hint() -> None:
    error = errors.RunError("card 3 stopped answering.", hint="see the log.")
    assert (error.message, error.hint) == ("card 3 stopped answering.", "see the log.")
    assert str(error) == "card 3 stopped answering.\nhint: see the log."
    assert str(errors.RunError("it failed.")) == "it failed."


@pytest.mark.parametrize(
    ("place", "start"),
    [
        ({}, "bad."),
        ({"source": "a.yaml"}, "a.yaml: bad."),
        ({"source": "a.yaml", "line": 3}, "a.yaml:3: bad."),
        ({"source": "a.yaml", "line": 3, "column": 7}, "a.yaml:3:7: bad."),
        ({"line": 3, "column": 7}, "3:7: bad."),
    ],
)
def test_a_document_error_begins_with_its_place(place: dict[str, object], start: str) -> None:
    error = errors.DocumentError("bad.", key="a.b", **place)  # type: ignore[arg-type]
    assert error.message == start
    assert error.key == "a.b"
    assert (error.source, error.line, error.column) == (place.get("source"), place.get("line"), place.get("column"))


@given(st.text())
def test_no_error_ever_shows_what_a_terminal_would_obey(words: str) -> None:
    plain = errors.ZhenfaError(words, hint=words)
    assert all(one.isprintable() or one in "\n\t" for one in plain.message + str(plain.hint))
    assert errors.DocumentError(words, source=words).message.isprintable()
    if words.isprintable():
        assert plain.message == plain.hint == words


def test_an_unknown_name_lists_the_near_misses_and_the_way_out() -> None:
    error = errors.UnknownNameError("machine", "cloudmatrx384", ["cloudmatrix384", "atlas-950", "nvl72"])
    assert error.message == "no machine is called 'cloudmatrx384'. Did you mean 'cloudmatrix384'?"
    assert error.hint == "`zhenfa show machines` lists all 3."
    assert error.near == ["cloudmatrix384"]


def test_an_unknown_name_without_near_misses_does_not_guess() -> None:
    error = errors.UnknownNameError("model", "zzz", ["llama-3-8b"], hint="write a path.")
    assert str(error) == "no model is called 'zzz'.\nhint: write a path."


def test_two_near_misses_are_joined_by_or() -> None:
    error = errors.UnknownNameError("model", "llama-3", ["llama-3-8b", "llama-3-70b", "qwen"])
    assert "Did you mean 'llama-3-8b' or 'llama-3-70b'?" in error.message


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("CAPACITY", ["capacity", "bandwidth"], ["capacity"]),
        ("capcity", ["capacity", "bandwidth"], ["capacity"]),
        ("384", ["cloudmatrix384", "nvl72"], ["cloudmatrix384"]),
        ("xy", ["xylophone"], []),
        ("", ["a"], []),
        ("a" * 100_000, ["a" * 99_999], []),
        ("阵型", ["阵法"], []),
    ],
)
def test_near_misses(name: str, known: list[str], near: list[str]) -> None:
    assert errors.near_misses(name, known) == near


@given(st.text(), st.lists(st.text(max_size=20), max_size=20), st.integers(0, 3))
def test_near_misses_are_known_distinct_and_few(name: str, known: list[str], limit: int) -> None:
    near = errors.near_misses(name, known, limit or 1)
    assert len(near) <= (limit or 1)
    assert len(set(near)) == len(near)
    assert set(near) <= set(known)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("64 gigs", "'64 gigs'"),
        ("a\x1b[31mb", "'a\\x1b[31mb'"),
        ("a\u202eb", "'a\\u202eb'"),
        ("x" * 81, f"'{'x' * 60}'… (81 characters)"),
        ("x" * 80, repr("x" * 80)),
        (10**4000, "a number of about 4,000 digits"),
        (384, "384"),
        (True, "True"),
        (None, "None"),
        (list(range(1000)), f"{repr(list(range(1000)))[:60]}…"),
    ],
)
def test_quote_is_short_and_harmless(value: object, shown: str) -> None:
    assert errors.quote(value) == shown


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.lists(st.text())))
def test_quote_never_fails_and_is_one_printable_line(value: object) -> None:
    shown = errors.quote(value)
    assert len(shown) < 700
    assert shown.isprintable()


def test_tests_see_no_colour_and_no_network() -> None:
    assert os.environ["NO_COLOR"] == "1"
    outside = socket.socket()
    with pytest.warns(UserWarning, match="192.0.2.1"), pytest.raises(SocketConnectBlockedError):
        outside.connect(("192.0.2.1", 80))
    outside.close()


def test_tests_reach_loopback_and_unix_sockets(tmp_path_factory: pytest.TempPathFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        assert server.accept()[0].recv(1) == b"x"
    one, other = socket.socketpair()
    one.sendall(b"y")
    assert other.recv(1) == b"y"
    one.close()
    other.close()
