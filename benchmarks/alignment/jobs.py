"""Runs jobs that depend only on their seed, one after the other or in processes."""

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from benchmarks.command import quiet


class Job(NamedTuple):
    """part: where in the results the work of a seed is kept. The folder is the first argument of the work."""

    part: str
    seed: int
    work: partial[Any]


def each(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Any]]:
    """Jobs with their results, as they finish; in processes if there are several workers."""
    if workers == 1:
        yield from ((job, _do(job.work)) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare) as pool:
        running = {pool.submit(_do, job.work): job for job in jobs}
        for done in tqdm(as_completed(running), total=len(running), desc=jobs[0].part if jobs else "", unit="seed"):
            yield running[done], done.result()


def _do(work: partial[Any]) -> Any:
    """Remove models and caches, also those left by a killed run."""
    folder = work.args[0]
    shutil.rmtree(folder, ignore_errors=True)
    found = work()
    shutil.rmtree(folder)
    return found


def prepare() -> None:
    """Use one thread, which is as fast for models this small; show only this command's own output."""
    quiet()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # the user can do nothing about deprecation warnings of TRL and transformers
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
