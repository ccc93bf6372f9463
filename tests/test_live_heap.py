"""What a process keeps of the memory that it has let go, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

THREADS = """
import ctypes, sys, tempfile, threading
from zhenfa.live import linux
{first}
library = ctypes.CDLL(None)
library.malloc.restype = library.fopen.restype = ctypes.c_void_p
gate = threading.Barrier(6)

def work():
    gate.wait()
    library.malloc(ctypes.c_size_t(5000))
    gate.wait()

threads = [threading.Thread(target=work) for _ in range(6)]
for one in threads: one.start()
for one in threads: one.join()
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(library.fopen(file.name.encode(), b"w"))
    library.malloc_info(0, stream)
    library.fclose(stream)
    print(file.read().decode().count("<heap nr="))
"""
HOLES = """
import ctypes, os
from zhenfa.live import linux
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

blocks = []
for _ in range(1000):
    blocks.append(ctypes.c_void_p(library.malloc(ctypes.c_size_t(100_000))))
    ctypes.memset(blocks[-1], 1, 100_000)
kept = library.malloc(ctypes.c_size_t(5000))
full = resident()
for block in blocks: library.free(block)
freed = resident()
linux.give_back_memory()
print(full - freed, freed - resident())
"""


def _printed(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(("first", "heaps"), [("linux.one_heap()", 1), ("", 7)])
def test_threads_share_one_heap(first: str, heaps: int) -> None:
    assert int(_printed(THREADS.format(first=first))) == heaps


def test_memory_below_what_is_kept_goes_back_to_the_system() -> None:
    """glibc itself gives back the end of the heap alone: one block kept there holds 100 MB."""
    by_itself, asked = map(float, _printed(HOLES).split())
    assert by_itself < 5.0
    assert asked > 90.0
