"""Prepares a local folder for `datasets`, so that it reads exactly the files in it.

`datasets` takes names as patterns (d[1] is d1), "::" as a chain of file systems, and ignores suffixes in capitals. The
first two make it read other files, the last makes it skip files, all without an error.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from precompute.data.files import suffixes_of
from shards.errors import DataError
from shards.files import about, read_regular

_PATTERN = re.compile(r"[*?\[\]]|::|://")
_CARD_HEAD = re.compile(r"---\r?\n(.*?)^---", re.DOTALL | re.MULTILINE)
MAX_CARD_BYTES = 2**26
_NOT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_JSON = (".jsonl", ".ndjson", ".json")


def plain_folder(folder: Path, scratch: Path) -> str:
    """A folder that `datasets` can take: this one, or links to its files under plain names. Raises DataError."""
    whole = folder.resolve()
    files = list(_files(whole))
    _require_one_kind(folder, files)
    names = {file: _plain(file.relative_to(whole)) for file in files}
    if not _PATTERN.search(str(whole)) and all(whole / name == file for file, name in names.items()):
        return str(whole)
    for file, name in names.items():
        link = scratch / "data" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.exists():
            raise DataError(f"{folder}: expected files that differ in more than *?[]: and capitals, got {file.name}")
        link.symlink_to(file)
    return str(scratch / "data")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")):  # `datasets` ignores these too
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _plain(name: Path) -> str:
    kind = suffixes_of(name.name)
    text = _PATTERN.sub("_", str(name))
    end = len(text) - len("".join(kind)) if kind else len(text)
    return text[:end] + text[end:].lower()


def _require_one_kind(folder: Path, files: list[Path]) -> None:
    """Refuse mixed kinds: `datasets` reads only files of the most common kind, unless a README.md names the files."""
    if _names_its_files(folder / "README.md"):
        return
    kinds = {found[0] for file in files if file.name not in _NOT_DATA and (found := suffixes_of(file.name))}
    if len({".json" if kind in _JSON else kind for kind in kinds}) > 1:
        got = ", ".join(sorted(kinds))
        raise DataError(f"{folder}: expected data files of one kind, got {got}; name the files, --data A.jsonl B.csv")


def _names_its_files(card: Path) -> bool:
    """Whether the head of a data set's card names its files; `datasets` then follows it."""
    with about(card):
        text = read_regular(card, MAX_CARD_BYTES).decode("utf-8", errors="replace") if card.is_file() else ""
    head = _CARD_HEAD.match(text)
    return head is not None and re.search(r"^(configs|data_files):", head[1], re.MULTILINE) is not None
