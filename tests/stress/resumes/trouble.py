"""What happens to the loader of a run, or to a rank of it, in the middle of training."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info
from transformers import TrainerCallback

from shards import remote
from shards.copy.folder import FolderStore
from shards.errors import CacheDamaged
from shards.format import batches
from student.data.responses import CachedResponses


class Trouble(TrainerCallback):
    """Something that happens once, before the step after `step`; in one process of its own."""

    name = ""
    workers: Sequence[int] = (0, 1, 2)
    ranks = 1

    def __init__(self, rng: random.Random, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self.choice = rng.random()
        self.reopens = rng.random() < 0.7

    def prepare(self) -> None:
        """In the process of the run, before it begins."""
        if self.reopens:  # else tiny shards are read once and kept
            batches.SMALL_SHARD_BYTES, batches.MAX_OPEN_FILES = 0, 1

    @property
    def flags(self) -> dict[str, Any]:
        """Of the run."""
        return {}

    def happen(self) -> None:
        """Called once."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.happen()

    def repair(self, whole: Path) -> None:
        """Make the caches as they were, from an untouched copy."""
        shutil.rmtree(self.folder)
        shutil.copytree(whole, self.folder)

    def some_shard(self) -> Path:
        shards = sorted(self.folder.glob("cache-0/part-*.arrow"))
        return shards[int(self.choice * len(shards))]


class WorkerKilled(Trouble):
    """As by a person, or by the system when memory runs out."""

    name, workers = "a worker is killed", (1, 2)

    def happen(self) -> None:
        children = multiprocessing.active_children()
        os.kill(children[int(self.choice * len(children))].pid or 0, signal.SIGKILL)


class WorkerFails(Trouble):
    """An error of a kind in one worker, at some row of the order."""

    workers = (1, 2)
    error: Callable[[], Exception]

    def prepare(self) -> None:
        plain, calls = CachedResponses.__getitems__, [0]
        after, error = 1 + 2 * self.step, type(self).error

        def getitems(data: Any, items: Any) -> Any:
            info = get_worker_info()
            calls[0] += 1
            if info is not None and info.id == info.num_workers - 1 and calls[0] > after // info.num_workers:
                raise error()
            return plain(data, items)

        CachedResponses.__getitems__ = getitems  # type: ignore[method-assign]


class DamageInWorker(WorkerFails):
    name = "CacheDamaged in a worker"
    error = staticmethod(lambda: CacheDamaged("part-00000.arrow record batch 1: expected crc32 1, got 2"))


class DiskInWorker(WorkerFails):
    name = "EIO in a worker"
    error = staticmethod(lambda: OSError(errno.EIO, os.strerror(errno.EIO), "part-00000.arrow"))


class MemoryInWorker(WorkerFails):
    name = "MemoryError in a worker"
    error = staticmethod(MemoryError)


class ShardDeleted(Trouble):
    name = "a shard is deleted"

    def happen(self) -> None:
        self.some_shard().unlink()


class ShardTruncated(Trouble):
    name = "a shard is truncated"

    def happen(self) -> None:
        path = self.some_shard()
        os.truncate(path, int(path.stat().st_size * self.choice))


class ShardZeroed(Trouble):
    name = "a shard's content is zeroed"

    def happen(self) -> None:
        path = self.some_shard()
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 8)
            file.write(bytes(size // 2))


class ShardOfAnotherBuild(Trouble):
    name = "a shard of another build takes its place"

    def happen(self) -> None:
        path = self.some_shard()
        shutil.copyfile(self.folder / "cache-1" / path.name, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


class CacheVanishes(Trouble):
    name = "the cache's folder vanishes"

    def happen(self) -> None:
        shutil.rmtree(self.folder / "cache-0")


class CopiesVanish(Trouble):
    """The cache_dir of a cache in a store, which is a folder here."""

    name = "cache_dir vanishes"

    def prepare(self) -> None:
        super().prepare()
        use_folders_as_stores(self.folder)

    @property
    def flags(self) -> dict[str, Any]:
        return {"shards": ["s3://stand-in/cache-0"], "cache_dir": str(self.folder / "copies")}

    def happen(self) -> None:
        shutil.rmtree(self.folder / "copies")


class RankKilled(Trouble):
    name, ranks = "a rank is killed", 2

    def happen(self) -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


class RankFails(Trouble):
    """One rank has an error of its own; the other hears of it by the lost connection only."""

    name, ranks = "an error on one rank", 2

    def happen(self) -> None:
        if os.environ["RANK"] == "1":
            raise CacheDamaged("part-00000.arrow record batch 1: expected crc32 1, got 2")


def use_folders_as_stores(folder: Path) -> None:
    """From now on s3://stand-in/NAME is the folder NAME."""

    class Store(FolderStore):
        def __init__(self, url: Any) -> None:
            super().__init__(folder / str(url).rpartition("/")[2])
            self.url = url

    remote.store_of = Store  # type: ignore[assignment]


TROUBLES: tuple[type[Trouble], ...] = (
    WorkerKilled, DamageInWorker, DiskInWorker, MemoryInWorker, ShardDeleted, ShardTruncated, ShardZeroed,
    ShardOfAnotherBuild, CacheVanishes, CopiesVanish,
)  # fmt: skip
OF_RANKS: tuple[type[Trouble], ...] = (RankKilled, RankFails)
