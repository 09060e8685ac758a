"""Defects planted in the locks, which the campaign must find."""

import contextlib
import os
from unittest import mock

from shards.errors import CacheConflict
from shards.locks import lock
from shards.locks.owner import Owner


def no_lock() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(lock.fcntl, "flock", lambda *_: None)


def any_file() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(lock, "_names", lambda *_: True)


def let_go_first() -> contextlib.AbstractContextManager[object]:
    def release(held) -> None:
        os.close(held.descriptor)
        with contextlib.suppress(OSError):
            held.file.unlink()

    return mock.patch.object(lock._Held, "release", release)


def forks_keep_it() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(lock._Held, "forget", lambda held: None)


def written_all_the_same() -> contextlib.AbstractContextManager[object]:
    """Who has lost the folder goes on."""
    return mock.patch.object(lock._Held, "require", lambda held: None)


def a_file_is_a_lock() -> contextlib.AbstractContextManager[object]:
    """A lock file that a dead owner left stops everybody."""
    opened = lock._opened

    def exclusively(file):
        if file.exists():
            raise CacheConflict(f"{file}: expected none")
        return opened(file)

    return mock.patch.object(lock, "_opened", exclusively)


def nameless() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(Owner, "write", lambda owner, descriptor: None)


DEFECTS = {
    "no lock is taken": no_lock,
    "nobody asks whether the file is still the locked one": any_file,
    "the lock is let go before its file is removed": let_go_first,
    "forks keep the lock": forks_keep_it,
    "who has lost the folder goes on": written_all_the_same,
    "the file of a dead owner stops the next one": a_file_is_a_lock,
    "an owner does not say who it is": nameless,
}
