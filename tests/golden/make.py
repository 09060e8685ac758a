"""How tests/golden was made: `PYTHONPATH=tests python tests/golden/make.py`. Two caches, and their decoded values.

It ran once, with the code that defined version 2 of the format. Version 3 added the index and kept the record batches,
so the decoded values are still those of the first code. Do not run it again: the results of today's code would become
the expected ones. Old shards must keep their values, and a version with other columns needs its own files.
"""

import json
from pathlib import Path

import numpy as np
from fake_cache import flat, make_cache

from shards import ShardCache
from shards.format.schema import VALUES

FOLDER = Path(__file__).parent


def plain(value):
    """As JSON: nine digits restore every float32, and null means -inf."""
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
