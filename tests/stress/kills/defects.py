"""Defects planted on purpose, which the campaign must find."""

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

Plant = Callable[[], contextlib.AbstractContextManager[object]]


def no_fsync() -> contextlib.AbstractContextManager[object]:
    from shards.format import writer

    plain = writer.flush
    return mock.patch.object(writer, "flush", lambda path: plain(path) if path.is_dir() else None)


def in_place() -> contextlib.AbstractContextManager[object]:
    from shards.format import writer

    return mock.patch.object(writer, "write_bytes", lambda folder, file, content: (folder / file).write_bytes(content))


def signed_unflushed() -> contextlib.AbstractContextManager[object]:
    from student.runs import checkpoints

    return mock.patch.object(checkpoints, "flush_files", lambda paths: None)


def signed_at_its_begin() -> contextlib.AbstractContextManager[object]:
    from student.runs import checkpoints

    plain = checkpoints.begin

    def begin(folder: Any, identity: Any) -> None:
        plain(folder, identity)
        checkpoints.sign(folder, identity, weights_only=False)

    return mock.patch.object(checkpoints, "begin", begin)


def early_manifest() -> contextlib.AbstractContextManager[object]:
    from shards.copy.copying import Copy

    plain = Copy._each

    def each(copy: Any, *rest: Any) -> None:
        copy.destination.publisher.publish("manifest.json", copy.source.folder / "manifest.json")
        plain(copy, *rest)

    return mock.patch.object(Copy, "_each", each)


def nothing_cleared() -> contextlib.AbstractContextManager[object]:
    return mock.patch("precompute.build.steps.remove_temporary_files", lambda *given: None)


def all_shards_again() -> contextlib.AbstractContextManager[object]:
    from precompute.build.steps import Build, Left

    return mock.patch.object(Build, "left", lambda build, plan: Left(range(len(plan.shards)), []))


def begun_anew() -> contextlib.AbstractContextManager[object]:
    return mock.patch("student.train.__main__.checkpoint_to_resume", lambda wanted, out: (None, ""))


DEFECTS: dict[str, Plant] = {
    "no file is flushed before it gets its name": no_fsync,
    "files are written in place": in_place,
    "a checkpoint is signed before its files are flushed": signed_unflushed,
    "a checkpoint is signed when it is begun": signed_at_its_begin,
    "a copy's manifest comes before its shards": early_manifest,
    "what a killed build left stays": nothing_cleared,
    "a build makes finished shards again": all_shards_again,
    "a training begins anew": begun_anew,
}
