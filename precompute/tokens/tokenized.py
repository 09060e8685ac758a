"""Types of a row before and after it is tokenised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from precompute.data.layouts import ResponseKind, SourceRow
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
class TokenizedRow:
    """A row with its responses, one for each kind of its layout, in their order."""

    row: SourceRow
    outcomes: Mapping[ResponseKind, Outcome]
    empty_prompt: bool


Row = TokenizedResponse | Response
"""A row to run through the models: tokens with a mask, from data or from a cache."""


AnyRow = TypeVar("AnyRow", TokenizedResponse, Response)


def shared_tokens(first: Row, second: Row) -> int:
    """How many tokens two rows of a pair share before either response; 0 for rows of different pairs."""
    if first.pair_id != second.pair_id:
        return 0
    most = min(first.response_start, second.response_start)
    differ = np.flatnonzero(first.input_ids[:most] != second.input_ids[:most])
    return int(differ[0]) if len(differ) else most


class SharedPrompts:
    """What neighbours share, row after row. `longest`: the two rows that make the longest packed row, if any."""

    def __init__(self) -> None:
        self.saved_tokens = 0
        self.longest: tuple[Row, Row] | None = None
        self._longest = 0
        self._alone: Row | None = None  # the previous row, if it has no partner yet

    def add(self, row: Row) -> None:
        alone, self._alone = self._alone, row
        if alone is None or not (shared := shared_tokens(alone, row)):
            return
        self._alone = None
        self.saved_tokens += shared
        length = len(alone.input_ids) + len(row.input_ids) - shared
        if length > self._longest:
            self.longest, self._longest = (alone, row), length
