"""Readers and the student's loader read a cache larger than the memory they may have, and need no more at its end."""

import json
import sys
from pathlib import Path

import fresh
import pytest

from benchmarks.memory import make

BOUND_MIB = 32
"""Private memory that a process may add after a tenth of an epoch. The values of the cache below are larger."""
GROWTH_MIB = 16
"""Most resident anonymous memory that may be added between a tenth of an epoch and its end, by all processes."""
ROWS, SHARDS = 144, 36

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells resident memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("large") / "cache"
    make(found, ROWS, SHARDS)
    return found


def test_the_values_of_the_cache_are_larger_than_the_bound(folder):
    assert sum(path.stat().st_size for path in folder.glob("part-*")) > BOUND_MIB * 2**20


@pytest.mark.parametrize("reader", ["cache", "loader", "workers"])
def test_memory_does_not_grow_over_an_epoch(folder, tmp_path, reader):
    flags = ["--shards", folder, "--readers", reader, "--bound_mib", BOUND_MIB]
    done = fresh.run("benchmarks.memory", flags, Path.cwd(), tmp_path / "log")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    tenth, half, end = found["anonymous_mib"].values()
    assert max(half, end) <= tenth + GROWTH_MIB, found
