"""A small cache, its files, and what every reader of a file gives: the same values as before, or one clear line."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fake_cache import flat, make_cache, write_cache

from shards import ShardCache
from shards.errors import CacheDamaged, CacheMissing
from shards.format.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    read_tokenizer,
)
from shards.format.schema import Pair, Values
from shards.verify import folder_rules
from shards.verify.__main__ import verify

TOKENIZER = '{\n  "version": "1.0",\n  "model": {"type": "WordLevel", "vocab": {"the": 0, "\\u00e9": 1}}\n}\n'
REFUSED = "refused"
"""What a reader gives that raises, in one line that names the file."""


@dataclass(slots=True)
class Ground:
    """A cache in `folder`. content: of its files; values: what a sound cache gives, by file that it is read from."""

    folder: Path
    cache: ShardCache
    content: dict[str, bytes] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, values: Values, seed: int = 0) -> "Ground":
        rows = 2 if values == "compact" else 1  # of a shard: two shards with one row each, or one with two
        shape = {
            "pairs": 1,
            "response_tokens": 4,
            "vocabulary_size": 12,
            "rows_per_shard": rows,
            "rows_per_batch": rows,
        }
        fake = make_cache(folder, values=values, served=[Pair("dpo", "reverse")], seed=seed, **shape)
        write_cache(folder, fake.plan, fake.vocabulary, fake.responses, TOKENIZER)
        ground = cls(folder, ShardCache(folder))
        ground.content = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        ground.values = {file: ground.read(file) for file in ground.content}
        return ground

    @contextlib.contextmanager
    def with_file(self, file: str, content: bytes | None) -> Iterator[None]:
        """Another content of a file, or none, as long as the context lasts."""
        path = self.folder / file
        if content is None:
            path.unlink()
        else:
            overwrite(path, content)
        try:
            yield
        finally:
            if file in self.content:
                overwrite(path, self.content[file])
            else:
                path.unlink()

    def read(self, file: str) -> Any:
        """All that a student, or a person, reads out of a file of the cache."""
        if file.startswith("part-"):
            self.cache.batches._files.clear()  # opened again, as by a new process
            shard = self.cache.plan.shards[int(file[5:10])]
            return [flat(row) for row in self.cache.read(range(shard.first_row, shard.first_row + shard.rows))]
        if file in (MANIFEST_FILE, PLAN_FILE):
            cache = ShardCache(self.folder)
            return [cache.manifest.to_json(), *(flat(row) for row in cache.read(range(len(cache))))]
        self.cache.__dict__.pop("index", None)
        self.cache.__dict__.pop("vocabulary", None)
        self.cache.__dict__.pop("provenance", None)
        match file:
            case "index.arrow":
                return [vars_of(self.cache.index)]
            case "vocabulary.json":
                return [dict(self.cache.vocabulary)]
            case "provenance.json":
                return [dict(self.cache.provenance)]
            case _:
                return [{"text": read_tokenizer(self.folder, self.cache.plan)}]

    def seen_by_readers(self, file: str) -> str:
        """ "" if the values of a file are the same, REFUSED if it is refused in one line, else what is wrong."""
        try:
            found = self.read(file)
        except (CacheDamaged, CacheMissing) as error:
            clear = "\n" not in str(error) and (file in str(error) or file == "")
            return REFUSED if clear else f"expected one line that names {file}, got {error}"
        except Exception as error:
            return f"expected CacheDamaged, got {error!r}"
        return "" if same(found, self.values[file]) else f"expected the values of {file}, got others"

    def faults_of(self, file: str) -> list[str]:
        """What `shards.verify` says about one file by what it is, without reading the others."""
        manifest = self.cache.manifest
        rules: dict[str, Callable[[], Any]] = {
            MANIFEST_FILE: lambda: verify(self.folder),
            PLAN_FILE: lambda: folder_rules.plan_file(manifest, self.folder),
            VOCABULARY_FILE: lambda: folder_rules.vocabulary(manifest, self.folder),
            TOKENIZER_FILE: lambda: folder_rules.tokenizer(manifest, self.folder),
            PROVENANCE_FILE: lambda: folder_rules.provenance(self.folder),
            INDEX_FILE: lambda: folder_rules.index(manifest, self.folder),
        }
        found = rules.get(file) or (lambda: folder_rules.shard_file(manifest, int(file[5:10]), self.folder))
        return [str(fault) for fault in found()]

    def all_faults(self) -> list[str]:
        return [str(fault) for fault in verify(self.folder)]


def overwrite(path: Path, content: bytes) -> None:
    """In place: some file systems write a file that was emptied first to the disk at once."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.write(content)
        file.truncate()


def vars_of(index: Any) -> dict[str, Any]:
    return {name: getattr(index, name) for name in index.__slots__}


def same(found: Any, expected: Any) -> bool:
    """Equal to the bit: -0.0 is not 0.0, and a dtype counts."""
    if isinstance(expected, np.ndarray):
        alike = isinstance(found, np.ndarray) and (found.dtype, found.shape) == (expected.dtype, expected.shape)
        return alike and found.tobytes() == expected.tobytes()
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected
