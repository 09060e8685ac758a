"""precompute.rollout, which says of every batch that it is sampled."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

from precompute.rollout import __main__ as rollout
from precompute.rollout.sampling import TransformersEngine


def main(words: Sequence[str]) -> None:
    plain = TransformersEngine.sample

    def sample(engine: Any, batch: Any) -> Any:
        print("sampled a batch")
        return plain(engine, batch)

    with mock.patch.object(TransformersEngine, "sample", sample):
        rollout.main(words)
