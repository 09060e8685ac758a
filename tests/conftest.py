"""Fixtures that several test files share: a tiny trio, its data, and caches built from them by the real build."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tiny import load, make_pairs, make_trio, write_jsonl

from precompute.build import build
from precompute.options import BuildOptions
from shards import ShardCache

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave all that is imported by now out of garbage collection, which every Trainer asks for before it trains."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


ALL_PAIRS = ["dpo/reverse", "reference/reference", "reference/reverse", "dpo/reference"]


def build_options(trio, data, out, **overrides):
    models = [f"{role}={folder}" for role, folder in trio.items()]
    given = {"models": models, "data": str(data), "out": str(out), "values": "float32"}
    return BuildOptions(**given | overrides)


@pytest.fixture(scope="session")
def trio_folders(tmp_path_factory):
    return make_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="session")
def trio(trio_folders):
    """The models, loaded: role -> model."""
    return {role: load(folder) for role, folder in trio_folders.items()}


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", make_pairs(12))


@pytest.fixture(scope="session")
def whole_cache(trio_folders, pairs_file, tmp_path_factory):
    """K = V: every token is kept, every pair served, both responses."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    build(
        build_options(
            trio_folders,
            pairs_file,
            out,
            responses="both",
            support="fixed",
            top_k=18,
            pairs=ALL_PAIRS,
            tokens_per_shard=40,
        )
    )
    return ShardCache(out)


@pytest.fixture(scope="session")
def sparse_cache(trio_folders, pairs_file, tmp_path_factory):
    """A ragged support with five tokens a position on average."""
    out = tmp_path_factory.mktemp("sparse") / "cache"
    build(build_options(trio_folders, pairs_file, out, responses="both", top_k=5, max_top_k=12, tokens_per_shard=40))
    return ShardCache(out)
