"""Checks that all ranks have read the same inputs, such as caches of the same build under one name."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from shards import ShardCache
from shards.cli.ranks import first_difference
from shards.modelfiles.find import ModelFolder, fingerprint
from student.options import DistillArguments

LIBRARIES = ("aligndistil-offline", "torch", "transformers", "accelerate")


def require_same_inputs(args: DistillArguments, caches: Sequence[ShardCache], source: ModelFolder) -> None:
    """End all ranks, with one line from the first, if one has read other inputs. source: the student's weights."""
    processes = PartialState()
    if processes.num_processes == 1:
        return
    mine = (platform.node(), inputs(args, caches, source))
    difference = first_difference(gather_object([mine]))
    if difference is None:
        return
    if processes.is_main_process:
        print(f"error: {difference}", file=sys.stderr, flush=True)
    processes.wait_for_everyone()  # until the first has printed it: a launcher ends the others as soon as one ends
    raise SystemExit(2)


def inputs(args: DistillArguments, caches: Sequence[ShardCache], source: ModelFolder) -> dict[str, Any]:
    """The identity of a rank's inputs."""
    # the cache's reference was compared with its record when it was found (student.train.reference)
    model = fingerprint(source) if args.model else caches[0].plan.identity["models"]["reference"]
    return {
        "shards": [cache.plan.sha256 for cache in caches],
        "shards_sha256": [[entry.sha256 for entry in cache.manifest.entries] for cache in caches],
        "model": model,
        "options": {"teacher": str(args.spec), "train_on": args.train_on, "seed": args.seed},
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
