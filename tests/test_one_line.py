"""Errors of other libraries and of the operating system become one line with the reason."""

import errno
import os

import pyarrow as pa
import pytest

from shards.cli.command import run_command
from shards.errors import first_line


def raised(message, cause=None):
    try:
        raise ValueError(message) from cause
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one line", "one line"),
        ("", "ValueError"),
        ("A sentence.\nAnother one.", "A sentence."),
        ("a sentence that goes on\nin the next line.\nNot this.", "a sentence that goes on in the next line."),
        ("errors in loading:\n\tsize mismatch for a", "errors in loading: size mismatch for a"),
        ("errors in loading:\n\n\tsize mismatch for a\n\nno more", "errors in loading: size mismatch for a"),
        ("a paragraph\n\nanother", "a paragraph"),
        ("\n".join("abcdefgh"), "a b c d"),
    ],
)  # fmt: skip
def test_a_message_is_cut_behind_its_first_sentence(message, line):
    assert first_line(raised(message)) == line


def test_the_last_cause_is_named():
    cause = raised("could not read", raised("column b is not in a.jsonl\nbut in b.jsonl"))
    line = "An error occurred: column b is not in a.jsonl but in b.jsonl"
    assert first_line(raised("An error occurred.", cause)) == line


def test_a_cause_that_the_message_names_is_not_said_twice():
    assert first_line(raised("it failed: no such column", raised("no such column"))) == "it failed: no such column"


def test_an_error_on_the_way_that_is_not_the_cause_is_not_named():
    try:
        try:
            raise KeyError("on the way")
        except KeyError:
            raise ValueError("the reason")  # noqa: B904 - this is what the test is about
    except ValueError as error:
        assert first_line(error) == "the reason"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO])
def test_what_the_system_refuses_is_one_line_and_exit_code_2(number, capsys):
    def main():
        raise OSError(number, os.strerror(number), "out/part-00003.arrow")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    line = f"error: out/part-00003.arrow: expected to be able to read and write, got {os.strerror(number)}\n"
    assert capsys.readouterr().err == line


def test_a_full_disk_under_pyarrow_is_one_line(capsys):
    def main():
        with pa.OSFile("/dev/full", "wb") as file:
            file.write(b"x")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a file: expected to be able to read and write, got ")
    assert "No space left" in error and error.count("\n") == 1


def test_a_file_that_the_code_itself_lost_is_a_traceback():
    def main():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "lost")

    with pytest.raises(FileNotFoundError):
        run_command(main)
