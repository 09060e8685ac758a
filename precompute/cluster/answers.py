"""Answers of a worker. An error about the user's input travels back as a value, so that it stays one line."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from shards import errors
from shards.cli.command import REFUSED_BY_THE_SYSTEM
from shards.errors import AlignDistilError, OptionError, first_line

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An AlignDistilError of a worker: the name of its kind, and its line."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: AlignDistilError) -> "Refusal":
        return cls(kind=type(error).__name__, message=str(error))

    def error(self, where: str = "") -> AlignDistilError:
        """The error. where: the worker, if its machine matters."""
        kind: Any = getattr(errors, self.kind, OptionError)
        found: AlignDistilError = kind(f"{where}: {self.message}" if where else self.message)
        return found


def answer(work: Callable[[], Result]) -> Result | Refusal:
    """The result of `work`, or what it refuses, a full or read-only disk included."""
    try:
        return work()
    except AlignDistilError as exc:
        return Refusal.of(exc)
    except OSError as exc:
        if exc.errno not in REFUSED_BY_THE_SYSTEM:
            raise
        name = errno.errorcode.get(exc.errno or 0, "error")
        where = exc.filename or "a file"
        message = f"{where}: expected to be able to read and write, got {exc.strerror or first_line(exc)} ({name})"
        return Refusal(kind="OptionError", message=message)
