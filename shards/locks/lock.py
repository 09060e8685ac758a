"""Keeps all other commands out of a folder, or away from a file, while one works there.

The lock is an advisory lock (flock) of a small file in the folder, which says who has it. The file is opened for
writing: over NFS a lock is a byte-range lock, which a file opened for reading, or a folder, does not take. The kernel
ends a lock with its process, so the file that a killed command leaves stops nobody: the next one takes it over.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.errors import CacheConflict, OptionError
from shards.files import about, make_folder
from shards.locks.mounts import local_locks
from shards.locks.owner import Owner
from shards.say import warn

LOCK_FILE = "_aligndistil-lock"
"""In a folder. With an underscore, because transformers leaves such names out when it uploads a folder."""
WITHOUT_LOCKS = "ALIGNDISTIL_WITHOUT_LOCKS"
"""Environment variable: 1 lets commands work where files cannot be locked."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
REMEDY = f"give another folder, or see yourself that no other command works there and set {WITHOUT_LOCKS}=1"

SECONDS_TO_SIGN = 1.0
"""How long to wait for a new owner to write who it is. It does so at once, unless it is suspended."""
POLL_SECONDS = 0.01
MOST_TRIES = 100
"""To make a folder that others remove again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A lock of this process. place: what is locked, a folder or a file; name: what messages call it."""

    place: Path
    name: str
    file: Path
    descriptor: int
    owner: Owner

    def require(self) -> None:
        """Raise CacheConflict if the lock was lost: its file was removed, or says another owner."""
        try:
            found = _read(self.file)
        except OSError as exc:
            raise CacheConflict(f"{self.name}: expected the lock of this command, found it removed meanwhile") from exc
        if found != self.owner:
            raise CacheConflict(f"{self.name}: expected the lock of this command, found that of {found or 'another'}")

    def forget(self) -> None:
        os.close(self.descriptor)

    def release(self) -> None:
        with contextlib.suppress(OSError):  # a file that stays stops nobody
            if _names(self.file, self.descriptor):
                self.file.unlink()  # while the lock lasts, so that whoever gets it next sees that the file is gone
        os.close(self.descriptor)


_HELD: list[_Held] = []
"""The locks of this process."""


def _forget() -> None:
    """In a fork, such as a loader worker: it must not keep a lock after its parent's end, nor end it before."""
    for held in _HELD:
        held.forget()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep all other commands out of a folder while this one works there.

    A folder that is not there is made, and removed at the end if it is still empty. What was read before may have
    changed: read it again. Raises CacheConflict, naming the owner, if another command is at work there; OptionError if
    files there cannot be locked.
    """
    with _locked(folder, folder / LOCK_FILE, str(folder), wait_seconds=0):
        yield


@contextlib.contextmanager
def exclusive_file(file: Path, *, name: str | None = None, wait_seconds: float = 0) -> Iterator[None]:
    """The same for one file, which need not be there; several files of a folder may be locked by several commands.

    name: what messages call the file. wait_seconds: the longest wait for another command; for short work only.
    """
    with _locked(file, lock_file_of(file), name or str(file), wait_seconds=wait_seconds):
        yield


def clear_left(place: Path) -> None:
    """Remove the lock file of a folder or file whose command was killed, where nothing is locked any more.

    Nothing if there is none, if a command has the lock, or if it cannot be removed.
    """
    file = place / LOCK_FILE if place.is_dir() else lock_file_of(place)
    if file.exists():
        with contextlib.suppress(CacheConflict, OptionError, OSError), _locked(place, file, str(place), wait_seconds=0):
            pass


def lock_file_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.aligndistil-lock")


def holds(place: Path) -> bool:
    """Whether this process has the lock of a folder or file."""
    return any(held.place == place.absolute() for held in _HELD)


def require_held(path: Path) -> None:
    """Raise CacheConflict if this process had a lock over a path and has lost it. Asked before a file gets its name.

    It is lost if the folder was removed, or if this machine was cut off and another one took the lock over.
    """
    path = path.absolute()
    for held in tuple(_HELD):
        if held.place == path or held.place in path.parents:
            held.require()


@contextlib.contextmanager
def _locked(place: Path, file: Path, name: str, *, wait_seconds: float) -> Iterator[None]:
    if not _allowed() and (local := local_locks(file.parent)):
        raise OptionError(f"{name}: expected locks that other machines see, got {local}; {REMEDY}")
    owner, process = Owner.this(), os.getpid()
    made = [path for path in (file.parent, *file.parent.parents) if not path.exists()]
    held = None
    try:
        with about(file):
            descriptor = _acquired(file, name, owner, wait_seconds=wait_seconds)
        if descriptor is not None:
            held = _Held(place=place.absolute(), name=name, file=file.absolute(), descriptor=descriptor, owner=owner)
            _HELD.append(held)
        yield
    finally:
        if os.getpid() == process:  # not in a fork
            if held is not None:
                _HELD.remove(held)
                held.release()
            with contextlib.suppress(OSError):  # what is not empty stays
                for path in made:
                    path.rmdir()


def _acquired(file: Path, name: str, owner: Owner, *, wait_seconds: float) -> int | None:
    """The open lock file, locked and written; None if it cannot be locked and the user sees to that."""
    give_up = time.monotonic() + wait_seconds
    while True:
        descriptor = _opened(file)
        with contextlib.ExitStack() as unless_ours:
            unless_ours.callback(os.close, descriptor)
            match _lock(descriptor, file, name):
                case "none":
                    return None
                case "other":
                    _refuse(Owner.read(descriptor), name, give_up)
                case "ours" if _names(file, descriptor):
                    unless_ours.callback(file.unlink, missing_ok=True)  # of a full disk
                    _share(file, descriptor)
                    owner.write(descriptor)
                    unless_ours.pop_all()
                    return descriptor
                case _:  # the file was removed by its owner: there may be another one
                    continue
        time.sleep(POLL_SECONDS)


def _opened(file: Path) -> int:
    """The lock file, opened for writing; it and its folder are made, which others may remove meanwhile."""
    for tries in range(MOST_TRIES):
        try:
            make_folder(file.parent)
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except (FileNotFoundError, FileExistsError):  # the second from mkdir: the folder was there just now
            if tries == MOST_TRIES - 1 or file.parent.is_file():
                raise
        except OSError as exc:
            if exc.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise CacheConflict(f"{file}: expected a lock file or nothing, found another kind of file") from exc
    raise AssertionError


def _lock(descriptor: int, file: Path, name: str) -> Literal["ours", "other", "gone", "none"]:
    """ours, other: whose the lock is. gone: the file was removed on its server. none: there are no locks, as allowed.

    Raises OptionError where files cannot be locked.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "other"
    except OSError as exc:
        if exc.errno == errno.ESTALE:
            return "gone"
        if exc.errno not in NO_LOCKS:
            raise
        file.unlink(missing_ok=True)  # it says nothing
        if not _allowed():
            raise OptionError(f"{name}: expected files that can be locked, got {exc.strerror}; {REMEDY}") from exc
        warn(f"{name}: not locked ({exc.strerror}); see that no other command works there")
        return "none"
    return "ours"


def _allowed() -> bool:
    return os.environ.get(WITHOUT_LOCKS) == "1"


def _refuse(owner: Owner | None, name: str, give_up: float) -> None:
    """Raise CacheConflict, unless it is to be tried again: to wait as asked, or for a new owner to say who it is."""
    late = time.monotonic() - give_up
    signs = owner is None or owner.has_ended
    if late < 0 or (signs and late < SECONDS_TO_SIGN):
        return
    raise CacheConflict(
        f"{name}: expected no other command at work here, found {owner or 'one that does not say who it is'}"
    )


def _names(file: Path, descriptor: int) -> bool:
    """Whether a path names an open file. It is opened again: NFS may remember an older answer for a path."""
    try:
        now = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ESTALE, errno.ELOOP):
            raise
        return False
    try:
        return os.path.sameopenfile(now, descriptor)
    finally:
        os.close(now)


def _read(file: Path) -> Owner | None:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return Owner.read(descriptor)
    finally:
        os.close(descriptor)


def _share(file: Path, descriptor: int) -> None:
    """Whoever may write into the folder may take the lock over, whatever the umask."""
    mode = stat.S_IMODE(file.parent.stat().st_mode) & 0o666
    with contextlib.suppress(PermissionError):  # the file is another user's
        os.fchmod(descriptor, mode | 0o600)
