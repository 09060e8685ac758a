"""Turns errors of a loader's worker or of a lost process into one line; lists library errors of a first step."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist

from shards.errors import AlignDistilError, OptionError, ProcessLost, first_line

OF_A_BACKEND = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "ncclRemoteError")
"""Part of the plain RuntimeErrors that torch.distributed raises when it cannot reach another process."""


@contextlib.contextmanager
def naming_workers() -> Iterator[None]:
    """Replace an error of a loader's worker process by its one line.

    torch raises it again with the worker's traceback as its message; the last line of that is the error. An error of
    our own code keeps its traceback.
    """
    try:
        yield
    except (AlignDistilError, OSError, MemoryError) as exc:
        lines = (exc.given if isinstance(exc, AlignDistilError) else str(exc)).strip().splitlines()
        if len(lines) <= 1 or not lines[0].startswith("Caught "):
            raise
        if isinstance(exc, AlignDistilError):
            raise type(exc)(lines[-1].partition(": ")[2]) from exc
        raise OptionError(f"dataloader_num_workers: a worker ended: {lines[-1]}") from exc
    except RuntimeError as exc:
        if not str(exc).startswith("DataLoader worker"):
            raise
        text = first_line(exc).rstrip(".")
        raise OptionError(f"dataloader_num_workers: {text}; if memory ran out, give fewer workers") from exc


@contextlib.contextmanager
def naming_processes() -> Iterator[None]:
    """Replace what torch.distributed raises when another process of the run has ended by one line."""
    try:
        yield
    except AlignDistilError:
        raise
    except RuntimeError as exc:
        if not (dist.is_initialized() and _is_of_a_backend(exc)):
            raise
        raise ProcessLost(
            f"rank {dist.get_rank()} of {dist.get_world_size()}: expected all processes of this run, got no answer "
            "from one, which has said why if it could; go on with --resume_from_checkpoint true"
        ) from exc


def _is_of_a_backend(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(part in str(error) for part in OF_A_BACKEND)


OF_THE_FIRST_STEP = (ValueError, TypeError, ImportError, NotImplementedError, KeyError, OSError, RuntimeError)
"""Errors of libraries about options when they are first used. A successful step shows that they are right."""
