"""Files and paths: what is read, and what is refused without hanging, filling memory or leaving the folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.errors import DocumentError, InputError
from zhenfa.spec.document import read_file, safe_join


def refusal(path: Path | str) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        read_file(path)
    return caught.value


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: 1\n")
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    (tmp_path / "empty.yaml").touch()
    assert read_file(tmp_path / "a.yaml") == b"a: 1\n"
    assert read_file(str(tmp_path / "link.yaml")) == b"a: 1\n"
    assert read_file(tmp_path / "empty.yaml") == b""


def test_a_missing_file_names_the_near_miss(tmp_path: Path) -> None:
    (tmp_path / "machine.yaml").touch()
    problem = refusal(tmp_path / "machin.yaml")
    assert problem.message == f"there is no file '{tmp_path}/machin.yaml'."
    assert problem.hint == f"did you mean '{tmp_path}/machine.yaml'?"


def test_a_bare_name_is_told_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("machine.yaml")).hint == f"it is looked for in '{tmp_path}'."


def test_a_missing_folder_is_no_file_either(tmp_path: Path) -> None:
    problem = refusal(tmp_path / "nowhere" / "machine.yaml")
    assert problem.message == f"there is no file '{tmp_path}/nowhere/machine.yaml'."
    assert problem.hint == f"there is no folder '{tmp_path}/nowhere' either."


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    problem = refusal(tmp_path)
    assert str(problem) == f"'{tmp_path}' is a folder.\nhint: name a regular file."


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert refusal(tmp_path / "a" / "b").message == f"'{tmp_path}/a/b' cannot be read: not a directory."


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert refusal(tmp_path / "pipe.yaml").message == f"'{tmp_path}/pipe.yaml' is a pipe."


@pytest.mark.timeout(10)
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty", "/dev/full"])
def test_a_device_is_refused(device: str) -> None:
    if not Path(device).exists():
        pytest.skip(f"there is no {device} here")
    assert refusal(device).message == f"'{device}' is a device."


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.sock")
        assert refusal("s.sock").message == "'s.sock' is a socket."


def test_a_huge_sparse_file_is_refused_and_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(2**40)
    assert refusal(tmp_path / "huge.yaml").message == f"{tmp_path}/huge.yaml: the file is larger than 8,388,608 bytes."


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert refusal(tmp_path / "a").message == f"'{tmp_path}/a' cannot be read: too many levels of symbolic links."


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\x00b", "'a\\x00b' cannot be read: embedded null byte."),
        ("x" * 2000, f"'{'x' * 60}'… (2,000 characters) cannot be read: file name too long."),
        ("\x1b[31m", "there is no file '\\x1b[31m'."),
    ],
)
def test_a_strange_path_is_refused_in_harmless_words(path: str, message: str) -> None:
    assert refusal(path).message == message


@pytest.fixture
def nobody() -> Iterator[None]:
    """Run as a user for whom permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    (tmp_path / "locked.yaml").write_text("a: 1\n")
    (tmp_path / "locked.yaml").chmod(0)
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    return tmp_path


def test_an_unreadable_file_is_refused(locked: Path, nobody: None) -> None:
    assert refusal(locked / "locked.yaml").message == f"'{locked}/locked.yaml' cannot be read: permission denied."
    assert refusal(locked / "shut" / "a").message == f"'{locked}/shut/a' cannot be read: permission denied."


@pytest.mark.parametrize(
    "inner", ["a.yaml", "sub/a.yaml", "sub/../a.yaml", "./a.yaml", "inside", "not-there.yaml", "."]
)
def test_a_path_below_the_root_is_joined(tmp_path: Path, inner: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "inside").symlink_to(tmp_path / "sub")
    assert safe_join(tmp_path, inner).is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("..", "'..' leaves {root!r}."),
        ("../other.yaml", "'../other.yaml' leaves {root!r}."),
        ("sub/../../other.yaml", "'sub/../../other.yaml' leaves {root!r}."),
        ("link/passwd", "'link/passwd' leaves {root!r}."),
        ("file-link", "'file-link' leaves {root!r}."),
        ("/etc/passwd", "'/etc/passwd' must be a relative path."),
        ("//etc/passwd", "'//etc/passwd' must be a relative path."),
        ("a\x00b", "'a\\x00b' must be a relative path."),
    ],
)
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, inner: str, message: str) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "link").symlink_to("/etc")
    (root / "file-link").symlink_to("../other.yaml")
    with pytest.raises(InputError) as caught:
        safe_join(root, inner)
    assert caught.value.message == message.format(root=str(root))
    assert caught.value.hint


def test_a_sibling_that_shares_the_beginning_of_the_name_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root-too").mkdir()
    with pytest.raises(InputError, match="leaves"):
        safe_join(tmp_path / "root", "../root-too/a")


def test_a_root_that_is_a_link_may_be_joined(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real")
    assert safe_join(tmp_path / "root", "a.yaml") == (tmp_path / "real" / "a.yaml").resolve()


def test_links_in_a_circle_do_not_join(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    try:
        joined = safe_join(tmp_path, "a/c")
    except InputError as problem:
        assert "cannot be followed" in problem.message  # noqa: PT017
    else:  # later Pythons leave the circle as it is
        assert joined.is_relative_to(tmp_path.resolve())


@given(
    st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "link", "~", "", "up"]), max_size=8).map("/".join)
)
def test_no_path_leaves_the_root(inner: str) -> None:
    root = Path(__file__).parent
    try:
        joined = safe_join(root, inner)
    except InputError:
        return
    assert os.path.commonpath([joined.resolve(), root.resolve()]) == str(root.resolve())
