"""How tests/golden was made: `PYTHONPATH=tests python tests/golden/make.py`. Two caches, and what decoding them gave.

Made once, by the code that defined version 2 of the format. Version 3 added the index and took the record batches as
they were, so what is decoded is still what the first code gave. Made anew it would turn whatever today's code does
into the law; a shard must be read as it always was, and a version with other columns gets files of its own.
"""

import json
from pathlib import Path

import numpy as np
from fake_cache import flat, make_cache

from shards import ShardCache
from shards.schema import VALUES

FOLDER = Path(__file__).parent


def plain(value):
    """As JSON: nine digits give every float32 back, and null stands for -inf."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return value.tolist()
    return [None if np.isneginf(number) else float(f"{number:.9g}") for number in value.ravel()]


def as_text(rows):
    """JSON with a line for each value of a row."""
    lines = [",\n".join(f"{json.dumps(name)}: {json.dumps(plain(value))}" for name, value in r.items()) for r in rows]
    return "[{\n" + "\n}, {\n".join(lines) + "\n}]\n"


def main():
    for values in VALUES:
        # K_t from 1 to all of 24 tokens, D_t from 1e-4 to 0.8: three of the four units
        make_cache(FOLDER / values, vocabulary_size=24, pairs=1, response_tokens=6, values=values, seed=609)
        cache = ShardCache(FOLDER / values)
        rows = [flat(row) for row in cache.read(range(len(cache)))]
        (FOLDER / f"{values}.json").write_text(as_text(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
