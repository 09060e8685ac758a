"""One command at a time works in a folder; the others say who does, and a dead one stops nobody."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import platform
import re
import signal
import sys

import pytest

from shards.errors import AlignDistilError, CacheConflict
from shards.format.writer import write_json
from shards.locks import lock, mounts
from shards.locks.lock import LOCK_FILE, exclusive, exclusive_file, holds
from shards.locks.owner import Owner

FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def at_work(place, locked=exclusive):
    """Another process has the lock. Gives the process, which can be killed."""
    here, there = FORK.Pipe()

    def work():
        here.close()
        with locked(place):
            there.send("at work")
            there.poll(60)

    process = FORK.Process(target=work)
    process.start()
    there.close()
    assert here.recv() == "at work"
    try:
        yield process
    finally:
        here.close()
        process.join(60)


def refusal(place, locked=exclusive):
    with pytest.raises(AlignDistilError) as caught, locked(place):
        pass
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- who has it


@pytest.mark.parametrize("locked", [exclusive, exclusive_file])
def test_the_second_one_stops_at_once_and_says_who_is_at_work(tmp_path, locked):
    place = tmp_path / "a"
    with at_work(place, locked) as process:
        message = refusal(place, locked)
        assert re.fullmatch(
            rf"{place}: expected no other command at work here, found python -(?:m pytest|c) "
            rf"\(process {process.pid} on {platform.node()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d\)",
            message,
        )
    with locked(place):
        assert holds(place)
    assert not holds(place)
    assert list(tmp_path.iterdir()) == []  # neither the lock nor a folder that was made for it


def test_files_of_one_folder_and_the_folder_have_locks_of_their_own(tmp_path):
    with exclusive(tmp_path), exclusive_file(tmp_path / "a"), exclusive_file(tmp_path / "b"):
        assert len(list(tmp_path.iterdir())) == 3


def test_a_script_is_named_by_its_file(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["/home/me/fit.py", "--secret", "1"])
    assert Owner.this().command == "python fit.py"


# ---- dead owners


def test_a_killed_owner_stops_nobody_and_its_file_goes_with_the_next_one(tmp_path):
    with at_work(tmp_path) as process:
        process.kill()
        process.join(60)
        assert (tmp_path / LOCK_FILE).exists()
        with exclusive(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_suspended_owner_has_its_lock_until_it_goes_on(tmp_path):
    with at_work(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        assert f"process {process.pid} " in refusal(tmp_path)
        os.kill(process.pid, signal.SIGCONT)


def test_a_fork_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    ends, end = os.pipe()
    said, say = os.pipe()
    if (owner := os.fork()) == 0:
        with exclusive(tmp_path):
            if os.fork() == 0:  # such as a loader worker
                os.close(end)
                os.write(say, b"1")
                os.read(ends, 1)
                os._exit(0)
            os.read(ends, 1)
    os.read(said, 1)
    assert f"process {owner} " in refusal(tmp_path)
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    with exclusive(tmp_path):
        pass
    os.close(end)


def test_leaving_the_context_in_a_fork_ends_nothing(tmp_path):
    context = exclusive(tmp_path)
    context.__enter__()
    if (child := os.fork()) == 0:
        try:
            context.__exit__(None, None, None)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK_FILE).exists() and holds(tmp_path)
    context.__exit__(None, None, None)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lock_of_a_file_that_its_owner_has_removed_is_not_taken_for_one(tmp_path, monkeypatch):
    flock, file, found = fcntl.flock, tmp_path / LOCK_FILE, []

    def removed_meanwhile(descriptor, kind):
        monkeypatch.undo()
        file.unlink()
        file.write_text("another one's")
        found.append(os.fstat(descriptor).st_ino)
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with exclusive(tmp_path):
        assert file.stat().st_ino not in found
        assert "expected no other command" in refusal(tmp_path)


def test_who_waits_waits_for_a_while_only(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_TO_SIGN", 0.02)
    with at_work(tmp_path / "a", exclusive_file):
        assert "expected no other command" in refusal(
            tmp_path / "a", lambda place: exclusive_file(place, wait_seconds=0.05)
        )
    with exclusive_file(tmp_path / "a", wait_seconds=0.05):
        pass


# ---- what the file says


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"process": 1}', '{"process": 1e999}', "[" * 4000, "\0"])
def test_an_owner_that_says_nothing_is_waited_for_a_little(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lock, "SECONDS_TO_SIGN", 0.02)
    with exclusive(tmp_path):
        (tmp_path / LOCK_FILE).write_text(text)
        assert refusal(tmp_path).endswith("found one that does not say who it is")


def test_a_dead_owner_is_not_named_for_the_new_one_that_has_not_signed_yet(tmp_path, monkeypatch):
    with at_work(tmp_path) as process:
        process.kill()
        process.join(60)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0)
    descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    has_ended, asked = Owner.has_ended, []

    def signs(owner):
        asked.append(owner.process)
        if len(asked) == 2:
            Owner.this().write(descriptor)
        return has_ended.fget(owner)

    monkeypatch.setattr(Owner, "has_ended", property(signs))
    assert f"process {os.getpid()} " in refusal(tmp_path)
    assert asked[:2] == [process.pid, process.pid]
    os.close(descriptor)


def test_nothing_that_a_file_says_reaches_the_terminal_as_it_is(tmp_path):
    with exclusive(tmp_path):
        said = json.loads((tmp_path / LOCK_FILE).read_text())
        (tmp_path / LOCK_FILE).write_text(json.dumps(said | {"command": "\x1b[2J\n" + "x" * 1000}))
        assert f"found ?[2J?{'x' * 195} (process" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_another_kind_of_file_is_neither_followed_nor_removed(tmp_path, kind):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "mine") if kind == "link" else (tmp_path / LOCK_FILE).mkdir()
    assert refusal(tmp_path).endswith(f"{LOCK_FILE}: expected a lock file or nothing, found another kind of file")
    assert (tmp_path / "mine").read_text() == "mine"


def test_whoever_may_write_into_the_folder_may_take_the_lock_over(tmp_path):
    tmp_path.chmod(0o770)
    with exclusive(tmp_path):
        assert (tmp_path / LOCK_FILE).stat().st_mode & 0o777 == 0o660


# ---- file systems


def test_the_file_is_locked_as_nfs_needs_it(tmp_path, monkeypatch):
    flock = fcntl.flock

    def over_nfs(descriptor, kind):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "expected a file opened for writing")
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", over_nfs)
    with exclusive(tmp_path), exclusive_file(tmp_path / "a"):
        assert "expected no other command" in refusal(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_files_that_cannot_be_locked_are_refused_unless_the_user_sees_to_it(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    place = tmp_path / "runs" / "a"
    assert refusal(place) == (
        f"{place}: expected files that can be locked, got {os.strerror(number)}; give another folder, or see yourself "
        "that no other command works there and set ALIGNDISTIL_WITHOUT_LOCKS=1"
    )
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("ALIGNDISTIL_WITHOUT_LOCKS", "1")
    with exclusive(place):
        write_json(place, "a.json", {})
    said = f"warning: {place}: not locked ({os.strerror(number)}); see that no other command works there\n"
    assert capsys.readouterr().err == said
    assert [path.name for path in place.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("kind", "options", "refused"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none,addr=10.0.0.1", None),
        ("nfs", "rw,vers=3,nolock,proto=tcp", "nfs mounted with nolock"),
        ("nfs", "rw,vers=3,local_lock=all", "nfs mounted with local_lock=all"),
        ("nfs", "rw,vers=3,local_lock=posix", None),
        ("cifs", "rw,nobrl", "cifs mounted with nobrl"),
        ("lustre", "rw,localflock", "lustre mounted with localflock"),
        ("lustre", "rw,flock", None),
        ("ext4", "rw,nolock", None),
    ],
)
def test_locks_that_other_machines_do_not_see_are_refused(tmp_path, monkeypatch, kind, options, refused):
    device = tmp_path.stat().st_dev
    other = "7 1 0:1 / /proc rw - nfs proc rw,nolock\n"
    number = f"{os.major(device)}:{os.minor(device)}"
    table = tmp_path / "mountinfo"
    table.write_text(f"{other}36 35 {number} / /mnt rw,noatime shared:1 - {kind} server:/x {options}\n")
    monkeypatch.setattr(mounts, "MOUNTS", table)
    if refused is None:
        with exclusive(tmp_path / "new" / "folder"):
            pass
    else:
        assert f"expected locks that other machines see, got {refused}; give " in refusal(tmp_path / "new" / "folder")
        monkeypatch.setenv("ALIGNDISTIL_WITHOUT_LOCKS", "1")
        with exclusive(tmp_path / "new" / "folder"):
            assert (tmp_path / "new" / "folder" / LOCK_FILE).exists()  # on this machine it still helps
    assert not (tmp_path / "new").exists()


# ---- a lock that is lost


def test_who_has_lost_the_folder_puts_no_file_there(tmp_path):
    place = tmp_path / "a"
    with exclusive(place):
        write_json(place, "one.json", {})
        (place / LOCK_FILE).unlink()
        with pytest.raises(
            CacheConflict, match=r"^.*/a: expected the lock of this command, found it removed meanwhile$"
        ):
            write_json(place, "two.json", {})
        (place / "checkpoint-1").mkdir()
        found = r"found that of python -(m pytest|c) \(process"
        with at_work(place), pytest.raises(CacheConflict, match=found):  # the folder is made anew by another one
            write_json(place / "checkpoint-1", "two.json", {})
    assert not (place / "checkpoint-1" / "two.json").exists()


def test_a_lock_that_another_machine_took_over_is_lost(tmp_path):
    with exclusive(tmp_path):
        descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDWR)
        Owner.this().write(descriptor)  # the same file, another owner: as after an NFS lease has run out
        os.close(descriptor)
        with pytest.raises(CacheConflict, match="found that of"):
            write_json(tmp_path, "two.json", {})
