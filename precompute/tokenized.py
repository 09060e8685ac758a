"""A row before and after it is tokenised: what `tokenize` takes and gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from precompute.layouts import Layout, ResponseKind
from shards.scores import Response, Scores


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedResponse:
    """One response behind its prompt, T tokens in all.

    input_ids (T,) int32. response_start is the index of the first response token. loss_mask (T,) bool is true at the
    tokens to train on: never before response_start, and never at token 0, which nothing predicts. `truncated` says that
    the response was cut, `prompt_is_prefix` that the prompt tokenised alone is how input_ids starts.
    """

    sample_id: str
    pair_id: int
    chosen: bool
    input_ids: np.ndarray
    response_start: int
    loss_mask: np.ndarray
    truncated: bool
    prompt_is_prefix: bool

    def with_scores(self, scores: Scores) -> Response:
        """The row of a cache that it becomes."""
        return Response(
            sample_id=self.sample_id,
            pair_id=self.pair_id,
            chosen=self.chosen,
            response_start=self.response_start,
            input_ids=self.input_ids,
            loss_mask=self.loss_mask,
            scores=scores,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedResponse:
    """A response without a token to train on; `message` is one line: where, expected, got."""

    sample_id: str
    reason: Literal["overlong", "empty"]
    message: str


Outcome = TokenizedResponse | SkippedResponse


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceRow:
    """A row of the data, ready to be tokenised: what `used_values` gave, and where it stands in its source."""

    where: str
    values: Mapping[str, Any]
    layout: Layout
    pair_id: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedRow:
    """A row with its responses, one of each of its layout's kinds, in their order."""

    row: SourceRow
    outcomes: Mapping[ResponseKind, Outcome]
    empty_prompt: bool
