"""SafeLoads: a Trainer's checkpoint is read without running anything in it, and what cannot be read gives one line."""

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.errors import AlignDistilError, CacheDamaged, first_line

FORCED, UNFORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""What torch.load looks for in the environment: the first one makes it take tensors and plain values only, whoever
calls it; the second one is for old callers that say nothing."""
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
"""Weights that transformers would read where there are no others; our runs write none."""


class SafeLoads:
    """Mixed into a subclass of transformers.Trainer, in front of it."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        for name in PICKLED:
            if (Path(resume_from_checkpoint) / name).exists():
                raise CacheDamaged(f"{resume_from_checkpoint}: expected weights in safetensors only, found {name}")
        with reading(resume_from_checkpoint):
            self._before("_load_from_checkpoint")(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            self._before("_load_optimizer_and_scheduler")(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            self._before("_load_scaler")(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            self._before("_load_rng_state")(checkpoint)

    def _before(self, name: str) -> Any:
        """The Trainer's own method."""
        return getattr(super(), name)


@contextlib.contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """Let torch unpickle tensors and plain values alone. Raises CacheDamaged for what cannot be read so."""
    before = {name: os.environ.pop(name, None) for name in (FORCED, UNFORCED)}
    os.environ[FORCED] = "1"
    try:
        yield
    except AlignDistilError:
        raise
    except Exception as exc:  # of pickle, torch, safetensors and the optimizer: no common base class
        unsafe = isinstance(exc, pickle.UnpicklingError)  # torch's message says how to run the code
        got = "a pickle of more than tensors and plain values" if unsafe else first_line(exc)
        what = "expected a checkpoint that can be read without running code of its files"
        raise CacheDamaged(f"{checkpoint}: {what}, got {got}") from exc
    finally:
        os.environ.pop(FORCED, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
