"""Defects planted to show that the campaign finds them: checks that are left out, one at a time."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch

from precompute.data import files
from shards.cli import loads
from shards.format import batches
from shards.format.encoding import layout
from shards.format.plan import Plan


@contextlib.contextmanager
def names_not_checked() -> Iterator[None]:
    """A manifest may name any file as a shard."""
    faults = Plan.faults

    def without_names(self: Plan) -> Iterator[str]:
        return (fault for fault in faults(self) if not fault.startswith("shards: expected part-"))

    with mock.patch.object(Plan, "faults", without_names):
        yield


@contextlib.contextmanager
def claims_not_checked() -> Iterator[None]:
    """Arrow allocates what a file claims."""
    with (
        mock.patch.object(layout.Form, "check", lambda *_: None),
        mock.patch("precompute.data.files.require_possible", lambda *_, **__: None),
        mock.patch("shards.format.index.require_possible", lambda *_, **__: None),
    ):
        yield


def without(function: Any, part: str) -> Any:
    """The function with a part of its source left out."""
    source = inspect.getsource(function)
    assert part in source, part
    made: dict[str, Any] = {}
    exec(source.replace(part, "pass"), function.__globals__, made)
    return made[function.__name__]


@contextlib.contextmanager
def not_validated() -> Iterator[None]:
    """Arrow's offsets are used as they come."""
    loose = without(batches.load_batch, "found.batch.validate(full=True)")
    rows = without(files._table_rows, "batch.validate(full=True)")
    with mock.patch.object(batches, "load_batch", loose), mock.patch.object(files, "_table_rows", rows):
        yield


@contextlib.contextmanager
def unpickled() -> Iterator[None]:
    """Checkpoints are read with whatever code is in them."""
    load = torch.load

    def loose(*args: Any, **kwargs: Any) -> Any:
        os.environ.pop(loads.FORCED, None)
        return load(*args, **kwargs | {"weights_only": False})

    with mock.patch.object(torch, "load", loose):
        yield


@contextlib.contextmanager
def messages_as_they_come() -> Iterator[None]:
    """Errors show what a file made them say."""
    with mock.patch("shards.errors.plain", lambda text: text):
        yield


DEFECTS: Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "names of shards not checked": names_not_checked,
    "no limit before allocation": claims_not_checked,
    "validate(full=True) left out": not_validated,
    "weights_only off": unpickled,
    "messages as they come": messages_as_they_come,
}
