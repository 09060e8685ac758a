"""Unwritable places and full disks: one line, before the work or in the middle of it."""

import errno
import os
from types import SimpleNamespace

import pytest
from conftest import build_options

from precompute.build.build import build
from precompute.rollout.__main__ import rollout
from precompute.rollout.options import RolloutOptions
from precompute.tokens import token_store
from precompute.tokens.token_store import TokenStore
from shards.cli import space
from shards.errors import OptionError


def a_file(folder):
    (folder / "file").write_text("mine")
    return folder / "file"


PLACES = {
    "proc": lambda folder: "/proc/foo",
    "file": a_file,
    "below a file": lambda folder: a_file(folder) / "deeper" / "still",
    "sys": lambda folder: "/sys/foo",
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    make, trio_folders, pairs_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("precompute.build.inputs.load_corpus", None)  # not even tokenised
    with pytest.raises(OptionError, match=r"^out: expected a folder to write into, got /") as caught:
        build(build_options(trio_folders, pairs_file, make(tmp_path), top_k=4))
    assert "\n" not in str(caught.value)


def test_a_rollout_into_such_a_place_is_refused_too(trio_folders, pairs_file):
    options = RolloutOptions(model=str(trio_folders["reference"]), data=str(pairs_file), out="/proc/foo/samples.jsonl")
    with pytest.raises(OptionError, match=r"^out: expected a folder to write into, got /proc, "):
        rollout(options)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match=r"one without write permission"):
        space.require_writable(tmp_path / "cache")


def test_a_read_only_disk_is_refused(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(space.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OptionError, match=r"got .*, Read-only file system"):
        space.require_writable(tmp_path)


def test_asking_leaves_nothing_behind(tmp_path):
    space.require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("free", "says"), [(100, None), (99, "warning"), (50, "warning"), (49, "refused")])
def test_room_is_asked_for_before_the_work(free, says, tmp_path, monkeypatch):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=free << 20))
    if says == "refused":
        with pytest.raises(OptionError, match=r"^out: expected room for some 100\.0 MiB in .*, got 49\.0 MiB free$"):
            space.require_space(tmp_path / "cache", 100 << 20)
    else:
        assert bool(space.require_space(tmp_path / "cache", 100 << 20)) == (says == "warning")


def test_a_build_that_the_disk_has_no_room_for_is_refused_and_goes_on_later(
    trio_folders, pairs_file, tmp_path, monkeypatch
):
    options = build_options(trio_folders, pairs_file, tmp_path / "cache", top_k=4)
    with monkeypatch.context() as full:
        full.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OptionError, match=r"^out: expected room for some .* MiB in "):
            build(options)
    assert not list((tmp_path / "cache").glob("part-*"))
    build(options)
    assert list((tmp_path / "cache").glob("part-*"))


def test_a_full_folder_for_temporary_files_is_one_line(trio_folders, pairs_file, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_store.os, "write", full)
    with pytest.raises(
        OptionError, match=r"^TMPDIR: expected room for the tokenised data in .*No space left on device"
    ):
        build(build_options(trio_folders, pairs_file, tmp_path / "cache", top_k=4))
    assert not (tmp_path / "cache").exists()


def test_no_folder_for_temporary_files_is_one_line(monkeypatch):
    def none(**kwargs):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(token_store.tempfile, "TemporaryFile", none)
    with pytest.raises(OptionError, match=r"^TMPDIR: expected room for the tokenised data in .*No usable temporary"):
        TokenStore()
