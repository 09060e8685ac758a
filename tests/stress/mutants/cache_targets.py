"""The files of a cache as targets: manifest, plan, index, vocabulary, tokenizer and shards of both codecs."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fake_cache import make_cache
from tiny import make_tokenizer

from shards import ShardCache
from shards.errors import MAX_CHARACTERS
from shards.files import sums_of
from shards.format.batches import BatchReader
from shards.format.encoding.seal import SEAL_KEYS, sealed
from shards.format.index import INDEX_FILE, read_index
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE, TOKENIZER_FILE, VOCABULARY_FILE, read_plan, read_tokenizer
from shards.format.plan import shard_file
from shards.format.scores import Response
from shards.format.writer import json_bytes
from shards.modelfiles.vocabulary import require_same_vocabulary
from shards.remote import begun
from shards.token_texts import TokenTexts, _tokenizer
from shards.verify.__main__ import verify


def targets(ground: Path) -> Iterator[dict[str, Any]]:
    for values in ("compact", "float32"):
        yield from _of_cache(ground, values)
    folder = ground / "compact"
    plan = ShardCache(folder).plan
    tokenizer = make_tokenizer().backend_tokenizer.to_str().encode()
    texts = ground / "texts"
    texts.mkdir()
    vocabulary = (folder / VOCABULARY_FILE).read_bytes()
    yield {
        "name": "vocabulary",
        "file": texts / VOCABULARY_FILE,
        "seeds": (vocabulary,),
        "work": partial(_vocabulary, texts, ShardCache(folder)),
        "is_json": True,
        "weight": 2,
    }
    yield {
        "name": "tokenizer",
        "file": texts / TOKENIZER_FILE,
        "seeds": (tokenizer,),
        "work": partial(_texts, texts, plan),
        "is_json": True,
        "weight": 3,
    }


def _of_cache(ground: Path, values: Any) -> Iterator[dict[str, Any]]:
    folder = ground / values
    make_cache(folder, values=values, pairs=3, rows_per_batch=2, rows_per_shard=4)
    cache = ShardCache(folder)
    copy = shutil.copytree(folder, ground / f"{values}-copy")
    common = {"is_json": True, "weight": 4}
    manifest, plan = (folder / MANIFEST_FILE).read_bytes(), (folder / PLAN_FILE).read_bytes()
    yield {
        "name": f"manifest {values}",
        "file": copy / MANIFEST_FILE,
        "seeds": (manifest, plan),
        "work": partial(_open, copy),
    } | common
    only_plan = ground / f"{values}-begun"
    only_plan.mkdir()
    yield {
        "name": f"plan {values}",
        "file": only_plan / PLAN_FILE,
        "seeds": (plan, manifest),
        "work": partial(_begun, only_plan),
    } | common
    shard = ground / f"{values}-shard"
    shutil.copytree(folder, shard)
    for number in range(len(cache.plan.shards)):
        file = shard_file(number)
        yield {
            "name": f"shard {values} {number}",
            "file": shard / file,
            "seeds": ((folder / file).read_bytes(),),
            "work": partial(_rows, ShardCache(folder), shard, number),
            "weight": 6,
        }
    yield {
        "name": f"index {values}",
        "file": shard / INDEX_FILE,
        "seeds": ((folder / INDEX_FILE).read_bytes(),),
        "work": partial(_index, shard, cache.plan),
        "weight": 3,
    }


def _seal_again(file: Path) -> None:
    """As someone would who edits a file: what lies behind the seal is what is looked at."""
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_bytes())
        content = json_bytes({key: value for key, value in found.items() if key not in SEAL_KEYS})
    except (ValueError, AttributeError, RecursionError):  # no JSON object
        return
    file.write_bytes(sealed(content))


def _open(folder: Path) -> None:
    _seal_again(folder / MANIFEST_FILE)
    cache = ShardCache(folder)
    names = [shard.file for shard in cache.plan.shards]
    assert names == [shard_file(i) for i in range(len(names))], names
    cache.index, cache.vocabulary  # noqa: B018
    require_values(cache, [0])
    for fault in verify(folder):
        assert str(fault).isprintable() and len(str(fault)) < MAX_CHARACTERS + 200, str(fault)


def _begun(folder: Path) -> None:
    _seal_again(folder / PLAN_FILE)
    read_plan(folder / PLAN_FILE)
    found = begun(str(folder))
    assert found is not None
    assert found.done == 0


def _rows(cache: ShardCache, folder: Path, shard: int) -> None:
    cache.batches = BatchReader(folder, cache.plan)
    planned = cache.plan.shards[shard]
    require_values(cache, range(planned.first_row, planned.first_row + planned.rows))


def require_values(cache: ShardCache, rows: Sequence[int]) -> None:
    """What is read must be within the rules that a reader relies on."""
    for response in cache.read(rows):
        _require(response, cache.plan.vocabulary_size)


def _require(response: Response, size: int) -> None:
    scores = response.scores
    assert response.input_ids.min() >= 0 and response.input_ids.max() < size, "input_ids"
    assert scores.support_ids.min() >= 0 and scores.support_ids.max() < size, "support_ids"
    assert scores.support_count.sum() == len(scores.support_ids), "support_count"
    assert response.loss_mask.sum() == len(scores.support_count), "loss_mask"
    for values in scores.logprobs.values():
        assert np.isfinite(values).all() and values.max() < 1e-3, "logprobs"


def _index(folder: Path, plan: Any) -> None:
    content = (folder / INDEX_FILE).read_bytes()
    index = read_index(folder, replace(plan, index_sha256=hashlib.sha256(content).hexdigest()))
    for name in ("pair_id", "chosen", "num_tokens", "num_positions"):
        values = getattr(index, name)
        assert len(values) == plan.rows
        values.sum()


def _vocabulary(folder: Path, cache: ShardCache) -> None:
    sound = dict(cache.vocabulary)
    cache.__dict__.pop("vocabulary")
    inside, cache.folder = cache.folder, folder
    if (folder / VOCABULARY_FILE).is_file():
        recorded = {**(cache.manifest.files or {}), VOCABULARY_FILE: sums_of((folder / VOCABULARY_FILE).read_bytes())}
        cache.manifest = replace(cache.manifest, files=recorded)
    try:
        found = cache.vocabulary
    finally:
        cache.__dict__.pop("vocabulary", None)
        cache.folder = inside
        cache.__dict__["vocabulary"] = sound
    texts = TokenTexts(found)
    assert all(isinstance(text, str) for text in texts.pieces([0, 1, 5, 23, 99]))
    require_same_vocabulary(sound, found, "the cache", "the file")


def _texts(folder: Path, plan: Any) -> None:
    content = (folder / TOKENIZER_FILE).read_bytes()
    plan = replace(plan, tokenizer_sha256=hashlib.sha256(content).hexdigest())
    texts = TokenTexts({"the": 3, "cat": 5}, _tokenizer(read_tokenizer(folder, plan) or "", str(folder)))
    for token_id in (0, 3, 5, 17, 99999):
        texts.text(token_id), texts.special(token_id)
    "".join(texts.pieces([3, 5, 4, 0, 17]))
