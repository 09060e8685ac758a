"""Opens a data source (a file, a URL of one, a folder or a hub name) and gives its rows one by one, with their places.

Local folders are read by `datasets` without its cache, because the cache does not notice a changed file with the same
modification time, which `cp -p` and `rsync -t` produce. Only hub data is cached.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from precompute.data.files import file_rows, numbered, require_supported, suffixes_of
from precompute.data.folders import plain_folder
from precompute.data.text_files import Extent, Row, WhereRow
from shards.errors import DataError, OptionError
from shards.places.room import Room
from shards.places.url import is_url, parse_url
from shards.places.whole_file import fetch_file

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_READABLE = "data that datasets can read"
MANY = 10


def read_rows(
    data: str,
    split: str = "train",
    config: str | None = None,
    room: Room | None = None,
    extent: Extent | None = None,
) -> Iterator[WhereRow]:
    """The rows of `data` in order, each as (where, row), read on demand.

    `data` is a file (`file_rows` says which kinds), the URL of one, which is copied whole into `room`, a folder
    (written by `save_to_disk`, or with a data set's files as on the hub) or a hub name. `where` is "prefs.jsonl line
    17" or "NAME row 16". `split` and `config` name a split and a configuration of a folder or of a hub data set; a file
    has only the split "train". extent: told how far a file or a data set is read.

    Raises DataError if nothing can be opened, split or configuration are unknown, or a row is not an object.
    """
    path, extent = Path(data), extent or Extent()
    if is_url(data):
        _require_file(data, split, config)
        yield from _url_rows(data, room or Room.of(), extent)
    elif path.is_dir():
        yield from _folder_rows(path, split, config, extent)
    elif suffixes_of(data) or path.exists() or not _HUB_NAME.fullmatch(data):
        if not path.is_file():
            raise DataError(f"{path}: expected a data file, a folder or a hub name, found nothing there")
        _require_file(data, split, config)
        yield from file_rows(path, extent)
    else:
        yield from numbered(data, lambda: _open_dataset(data, data, split, config), _READABLE, extent)


def _require_file(data: str, split: str, config: str | None) -> None:
    if split != "train":
        raise DataError(f"{data}: expected split train, the only one of a file, got {split}")
    _require_no_config(data, config, "a file")


def _url_rows(url: str, room: Room, extent: Extent) -> Iterator[WhereRow]:
    """The rows of a file in a store; its copy stays until all are read."""
    require_supported(url, parse_url(url).name)
    mirror = fetch_file(url, room)
    copy = mirror.folder / parse_url(url).name
    try:
        yield from file_rows(copy, extent)
    except DataError as exc:
        raise DataError(str(exc).replace(str(copy), url)) from exc


def _folder_rows(path: Path, split: str, config: str | None, extent: Extent) -> Iterator[WhereRow]:
    with tempfile.TemporaryDirectory(prefix="aligndistil-data-", ignore_cleanup_errors=True) as scratch:
        place = plain_folder(path, Path(scratch))
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            _require_no_config(path, config, "a saved data set")
            yield from numbered(path.name, lambda: _load_saved(path, place, split), _READABLE, extent)
        else:
            cache = str(Path(scratch) / "cache")
            yield from numbered(
                path.name, lambda: _open_dataset(str(path), place, split, config, cache), _READABLE, extent
            )


def _open_dataset(name: str, place: str, split: str, config: str | None, cache_dir: str | None = None) -> Iterable[Row]:
    import datasets

    try:
        return datasets.load_dataset(place, name=config, split=split, cache_dir=cache_dir)
    except ValueError as exc:
        if "Config name is missing" in str(exc) or "BuilderConfig" in str(exc):
            names = datasets.get_dataset_config_names(place)
            raise DataError(f"{name}: expected --data_config, one of {_some(names)}, got {config or 'none'}") from exc
        raise
    except datasets.exceptions.DatasetGenerationError as exc:
        if isinstance(exc.__cause__, datasets.table.CastError):
            asked, got = exc.__cause__.requested_column_names, exc.__cause__.table_column_names
            found = f"{_some(asked)} in one and {_some(got)} in another"
            raise DataError(f"{name}: expected the same columns in all files, got {found}") from exc
        raise


def _some(names: list[str]) -> str:
    """All names, or the first ten and their number."""
    return ", ".join(names[:MANY]) + (f", ... ({len(names)} in all)" if len(names) > MANY else "")


def _require_no_config(path: Path | str, config: str | None, what: str) -> None:
    if config is not None:
        raise OptionError(f"data_config: expected none for {path}, {what}, got {config}")


def _load_saved(path: Path, place: str, split: str) -> Iterable[Row]:
    import datasets

    saved = datasets.load_from_disk(place)
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{path}: expected split {split}, found {', '.join(saved)}")
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise DataError(f"{path}: expected split {split}, found one data set without splits")
    return saved
