"""Types of a row before and after it is tokenised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from precompute.data.layouts import Layout, ResponseKind
from shards.format.scores import Response, Scores


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedResponse:
    """One response after its prompt, T tokens in all.

    input_ids (T,) int32. response_start is the index of the first response token. loss_mask (T,) bool is true at tokens
    to train on: never before response_start, and never at token 0, which has no prediction. `truncated`: the response
    was cut. `prompt_is_prefix`: input_ids starts with the prompt tokenised alone.
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
        """The row of a cache, with these scores."""
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
    """A row of the data, ready to be tokenised: the result of `used_values`, and its place in its source."""

    where: str
    values: Mapping[str, Any]
    layout: Layout
    pair_id: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedRow:
    """A row with its responses, one for each kind of its layout, in their order."""

    row: SourceRow
    outcomes: Mapping[ResponseKind, Outcome]
    empty_prompt: bool
