"""Fixtures that several test files share: a tiny trio, its data, and caches built from them by the real build.

The libraries are imported where they are used: with -n the process that only hands out the tests reads this file too,
before any worker starts. Nothing that is imported is garbage, so nothing is collected until all tests are.
"""

import functools
import gc
import importlib.metadata
import os
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

import pytest

gc.disable()
# no test pulls the plug: that files are flushed before they are named is seen by the calls (test_codec.py)
os.fsync = lambda descriptor: None
# every training asks several times which packages there are, and each time the answer is parsed anew
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)


LESS = [
    ("student.train.distance", "ROWS", 4),  # every training measures its student twice
    ("precompute.build.work.speed", "PASSES", 1),  # and every build its own speed
    ("transformers.core_model_loading", "GLOBAL_WORKERS", 1),  # threads that each load starts
]


def pytest_collection_modifyitems(items) -> None:
    """First what starts processes by `fresh`: with -n one worker has all of it, and loads the libraries for it once."""
    items.sort(key=lambda item: not {"fresh", "run_ranks"} & vars(item.module).keys())


def pytest_collection_finish() -> None:
    """Leave all that is imported by now out of garbage collection, which every Trainer asks for before it trains."""
    if "torch" in sys.modules:
        _prepare(sys.modules["torch"])
    for name, constant, value in LESS:
        if name in sys.modules:
            setattr(sys.modules[name], constant, value)
    for name in ("accelerate.utils.memory", "precompute.scoring.probe"):  # a Trainer's start, and every probe
        if name in sys.modules:
            sys.modules[name].gc = YoungGarbage
    gc.freeze()
    gc.enable()


class YoungGarbage:
    """`gc` for those who ask for all garbage: only the new is looked for, not all that a worker has ever imported."""

    @staticmethod
    def collect() -> int:
        return gc.collect(1)


def _prepare(torch) -> None:
    """One thread; and no random weights for models that are about to be loaded, which are on no device until then."""
    torch.set_num_threads(1)
    for layer in (torch.nn.Linear, torch.nn.Embedding):
        layer.reset_parameters = _unless_on_meta(layer.reset_parameters)


def _unless_on_meta(reset):
    return lambda module: None if module.weight.is_meta else reset(module)


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def _without_interpreter(ensure_running):
    """Whoever starts the server of forks first, Triton in it is not interpreted: its forks choose anew (`fresh`)."""

    @functools.wraps(ensure_running)
    def start():
        with mock.patch.dict(os.environ):
            os.environ.pop("TRITON_INTERPRET", None)
            ensure_running()

    return start


forkserver.ensure_running = forkserver._forkserver.ensure_running = _without_interpreter(forkserver.ensure_running)


@pytest.fixture(autouse=True)
def environment_of_its_own():
    """A test leaves nothing in the environment: Trainer's arguments write there what they ask accelerate for."""
    with mock.patch.dict(os.environ):
        yield


ALL_PAIRS = ["dpo/reverse", "reference/reference", "reference/reverse", "dpo/reference"]


def build_options(trio, data, out, **overrides):
    from precompute.build.options import BuildOptions

    models = [f"{role}={folder}" for role, folder in trio.items()]
    given = {"models": models, "data": str(data), "out": str(out), "values": "float32"}
    return BuildOptions(**given | overrides)


@pytest.fixture(scope="session")
def trio_folders(tmp_path_factory):
    from tiny import make_trio

    return make_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="session")
def trio(trio_folders):
    """The models, loaded: role -> model."""
    from tiny import load

    return {role: load(folder) for role, folder in trio_folders.items()}


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    from tiny import make_pairs, write_jsonl

    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", make_pairs(12))


def build_cache(options):
    from precompute.build.build import build
    from shards import ShardCache

    build(options)
    return ShardCache(options.out)


@pytest.fixture(scope="session")
def whole_cache(trio_folders, pairs_file, tmp_path_factory):
    """K = V: every token is kept, every pair is served, both responses."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    settings = {"responses": "both", "support": "fixed", "top_k": 18, "pairs": ALL_PAIRS, "tokens_per_shard": 40}
    return build_cache(build_options(trio_folders, pairs_file, out, **settings))


@pytest.fixture(scope="session")
def sparse_cache(trio_folders, pairs_file, tmp_path_factory):
    """A ragged support with a mean of five tokens per position."""
    out = tmp_path_factory.mktemp("sparse") / "cache"
    settings = {"responses": "both", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 40}
    return build_cache(build_options(trio_folders, pairs_file, out, **settings))


@pytest.fixture(scope="session")
def object_server():
    pytest.importorskip("obstore"), pytest.importorskip("moto")
    from object_server import ObjectServer

    server = ObjectServer()
    yield server
    server.close()


@pytest.fixture
def bucket(object_server, monkeypatch, tmp_path):
    """An empty bucket, the environment to reach it, and a mirror of its own."""
    from object_server import Bucket

    from shards.places import objects

    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ALIGNDISTIL_CACHE", str(tmp_path / "mirror"))
    monkeypatch.setattr(objects, "PATIENCE", objects.Patience(tries=3, pause=0.01))
    object_server.proxy.forget()
    yield Bucket(object_server.new_bucket(), object_server.proxy)
    object_server.proxy.forget()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium for tests of pages; without one they are skipped (`browser.REQUIRED`)."""
    from browser import chromium

    with chromium() as found:
        yield found
