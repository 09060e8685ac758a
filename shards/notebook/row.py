"""Row: one response of a cache with its texts and its teacher, for a person: text, table and plot.

`ShardCache.row` makes it. `cache[17]` stays a bare Response: that is what a training reads, thousands of times.

Dimensions: T tokens of a row, N response positions, M kept tokens over all positions.
"""

from functools import cached_property
from typing import Any

import numpy as np

from shards.errors import OptionError
from shards.format import schema
from shards.format.schema import Role
from shards.format.scores import Response
from shards.notebook.extras import extra
from shards.notebook.marks import token_view
from shards.notebook.plots import plot_row
from shards.teacher.compose import Teacher, compose
from shards.teacher.reward import response_reward, rewarded_by
from shards.teacher.served import served_presets
from shards.teacher.spec import TeacherSpec


class Row:
    """A response, its number, and the teacher it is looked at with. Light: texts and teacher are made when asked for.

    spec   of the teacher: as given, else the first preset that the cache serves, or None if it serves none
    """

    def __init__(self, cache: Any, number: int, spec: TeacherSpec | None = None) -> None:
        """cache: a ShardCache. Raises OptionError for a number out of range, TeacherUnavailable for a teacher."""
        if not -len(cache) <= number < len(cache):
            raise OptionError(f"row: expected a number under {len(cache)}, got {number}")
        if spec is not None:
            cache.check(spec)
        self.number = number % len(cache)
        self.response: Response = cache[self.number]
        self.spec = spec or next(iter(served_presets(cache.plan).values()), None)
        self._cache = cache

    @property
    def negative(self) -> Role:
        """Whose log-probs the reward takes away from dpo's."""
        return rewarded_by(self._cache.plan, self.spec)[0]

    @cached_property
    def teacher(self) -> Teacher | None:
        """At the row's positions; None if the cache serves no preset."""
        return None if self.spec is None else compose(self.response.scores, self.spec, self._cache.plan.nodes)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token, (T,); joined they are what the tokenizer decodes."""
        return list(self._cache.token_texts.pieces(self.response.input_ids))

    def text_of(self, token_id: int) -> str:
        """The text of one token alone."""
        return str(self._cache.token_texts.pieces([token_id])[0])

    @property
    def positions(self) -> np.ndarray:
        """Where in input_ids the tokens of the positions are, (N,)."""
        return np.flatnonzero(self.response.loss_mask)

    @property
    def reward(self) -> np.ndarray:
        """beta (l_dpo - l_negative) of each position's own token, (N,)."""
        return response_reward(self.response, *rewarded_by(self._cache.plan, self.spec))

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with a line for each position, from `columns`."""
        pandas = extra("pandas")
        return pandas.DataFrame(self.columns(), index=pandas.Index(self.positions, name="position"))

    def columns(self) -> dict[str, Any]:
        """Name -> (N,) values. Names of the cache's columns mean what docs/format.md says.

        token_id, token     the position's own token, and its text
        reward              beta (l_dpo - l_negative) of it
        support_count, l1_distance_*, *_next_logprob, *_tail_logprob    as in docs/format.md
        strength, weight, teacher_next_logprob, teacher_tail_logprob    of the teacher, if there is one
        """
        scores, teacher = self.response.scores, self.teacher
        found: dict[str, Any] = {
            "token_id": self.response.input_ids[self.positions],
            "token": [self.texts[place] for place in self.positions],
            "reward": self.reward,
            schema.SUPPORT_COUNT: scores.support_count,
            **{schema.l1_distance_column(role): values for role, values in scores.l1_distance.items()},
            **{schema.next_logprob_column(role): values for role, values in scores.next_logprob.items()},
            **{schema.tail_logprob_column(role): values for role, values in scores.tail_logprob.items()},
        }
        if teacher is not None:
            found |= {"strength": teacher.strength, "weight": teacher.weight}
            found |= {"teacher_next_logprob": teacher.next_logprob, "teacher_tail_logprob": teacher.tail_logprob}
        return found

    def plot(self) -> Any:
        """A matplotlib figure: the reward of every token, and its running sum."""
        tokens = [self.texts[place] for place in self.positions]
        return plot_row(self.reward, tokens, f"{self.response.sample_id}: beta (l_dpo - l_{self.negative})")

    def __repr__(self) -> str:
        response = self.response
        return (
            f"Row({self.number} of {self._cache.name}: {response.sample_id}, {len(response.input_ids):,} tokens, "
            f"{response.scores.num_positions:,} positions, reward {self.reward.sum():+.3g})"
        )

    def _repr_html_(self) -> str:
        return token_view(self)


class TokenView:
    """A row as coloured text whose tokens say, under the pointer, what each model would have said instead."""

    def __init__(self, row: Row, top: int = 5) -> None:
        self.row, self.top = row, top

    def __repr__(self) -> str:
        return f"TokenView({self.row!r})"

    def _repr_html_(self) -> str:
        return token_view(self.row, top=self.top)
