"""Errors of other libraries and of the operating system become one line with the reason."""

import errno
import os

import pyarrow as pa
import pytest

from shards.cli.command import run_command
from shards.cli.outside import naming_saves
from shards.errors import ModelError, OptionError, first_line
from shards.files import erase, file_sha256, matching, remove_temporary_files
from shards.format.writer import write_text
from shards.modelfiles.folder import require_weights, weights_sha256
from shards.modelfiles.whole import file_sizes
from student.log.files import checkpoints_of


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


def ending(error, capsys):
    """What a command prints on the standard error that ends with exit code 2 because of an error."""

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_file_whose_folder_was_removed_is_one_line(capsys):
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "out/part-00003.arrow")
    assert ending(error, capsys).startswith(
        "error: out/part-00003.arrow: expected to be able to read and write, got No"
    )


def test_an_error_that_names_no_file_and_no_cause_is_a_traceback():
    def main():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with pytest.raises(FileNotFoundError):
        run_command(main)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't start new thread"), pa.ArrowMemoryError("realloc")]
)
def test_a_full_memory_is_one_line(error, capsys):
    found = ending(error, capsys)
    assert found.startswith("error: memory: expected enough of it for this command, got ") and found.count("\n") == 1


def test_a_full_memory_while_a_model_is_read_is_not_an_error_of_the_model(capsys):
    def read():
        raise ModelError("ref: expected a model, got can't start new thread") from RuntimeError(
            "can't start new thread"
        )

    with pytest.raises(SystemExit) as caught:
        run_command(read)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: memory: expected enough of it for this command, got can't start")


def test_a_folder_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "config.json").touch()

    def refuse(*given, **kept):
        raise PermissionError(errno.EACCES, "Permission denied", "config.json")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError) as caught:
        erase(tmp_path / "checkpoint-1")
    assert caught.value.filename == str(tmp_path / "checkpoint-1")


def test_both_files_of_a_rename_are_named(capsys):
    error = OSError(errno.EIO, "Input/output error", "out/.a", None, "out/a")
    assert ending(error, capsys).startswith("error: out/.a -> out/a: expected to be able to read and write, got Input")


@pytest.mark.parametrize("fails", ["write", "fsync", "read"])
def test_what_names_no_file_itself_names_the_file_that_was_at_work(fails, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        match fails:
            case "write":
                patch.setattr(type(tmp_path), "write_bytes", failing)
                write_text(tmp_path, "a.json", "{}")
            case "fsync":
                patch.setattr("shards.files.os.fsync", failing)
                write_text(tmp_path, "a.json", "{}")
            case _:
                (tmp_path / "a.json").write_text("{}")
                file_sha256(tmp_path / "a.json", failing)
    assert caught.value.errno == errno.EIO and "a.json" in caught.value.filename
    assert [path.name for path in tmp_path.iterdir()] == ([] if fails != "read" else ["a.json"])


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    def failing(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    assert matching(tmp_path, "*") == matching(tmp_path / "none", "*") == []
    monkeypatch.setattr(type(tmp_path), "iterdir", failing)
    for ask in (
        lambda: weights_sha256(tmp_path, "model"),
        lambda: require_weights("m", tmp_path, "model"),
        lambda: file_sizes(tmp_path, without="x"),
        lambda: checkpoints_of(tmp_path),
        lambda: remove_temporary_files(tmp_path),
    ):
        with pytest.raises(PermissionError):
            ask()


def test_tokenizers_and_torch_that_cannot_write_are_one_line():
    for error in (Exception("No space left on device (os error 28)"), RuntimeError("basic_ios::clear: iostream error")):
        with pytest.raises(OptionError, match=r"^out: expected to be able to write there, got "), naming_saves("out"):
            raise error
    with pytest.raises(RuntimeError, match="a bug"), naming_saves("out"):
        raise RuntimeError("a bug")
