"""The figures of every surveyed row, and of the pairs that they make. Pure.

Dimensions: R rows, P pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shards.format.index import RowIndex
from shards.format.schema import ROLES, Role
from shards.survey.reading import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFigures:
    """Arrays with a value per surveyed row, (R,), in the order of the cache. Memory: about 70 bytes a row.

    row              its number in the cache
    pair_id, chosen  as in the cache's index
    length           its response tokens that are distilled
    logprob          role -> sum of the log-probs of these tokens, nats
    reward           sum of their contrastive rewards
    largest_distance, mean_distance   of D_t
    margin           reward of the chosen response of its pair minus that of the rejected one; NaN if not both were read
    """

    row: np.ndarray
    pair_id: np.ndarray
    chosen: np.ndarray
    length: np.ndarray
    logprob: Mapping[Role, np.ndarray]
    reward: np.ndarray
    largest_distance: np.ndarray
    mean_distance: np.ndarray
    margin: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def margins(self) -> np.ndarray:
        """The margin of each pair, (P,): over zero where the preference is told right."""
        return self.margin[self.chosen & ~np.isnan(self.margin)]

    def margins_of(self, value_R: np.ndarray) -> np.ndarray:
        """Chosen minus rejected of any value of the rows, (P,)."""
        return _margin(self.pair_id, self.chosen, value_R)[self.chosen & ~np.isnan(self.margin)]

    def implicit_reward(self, role: Role) -> np.ndarray:
        """sum_t [l_role(y_t) - l_reference(y_t)], (R,), nats."""
        return self.logprob[role] - self.logprob["reference"]

    @property
    def length_correlation(self) -> float:
        """Pearson's correlation of length and reward; NaN if one of them never varies."""
        if len(self) < 2 or not np.ptp(self.length) or not np.ptp(self.reward):
            return float("nan")
        return float(np.corrcoef(self.length, self.reward)[0, 1])


def row_sums(part: Part, negative: Role, reward_N: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of the rows of a part, each (R,)."""
    starts, sizes = part.starts[:-1], np.diff(part.starts)
    distance_N = part.l1_distance[negative].astype(np.float64)

    def total(values_N: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values_N.astype(np.float64), starts)

    return {
        "row": part.rows,
        "length": sizes,
        "reward": total(reward_N),
        "largest_distance": np.maximum.reduceat(distance_N, starts),
        "mean_distance": total(distance_N) / sizes,
        **{f"logprob {role}": total(values_N) for role, values_N in part.next_logprob.items()},
    }


def row_figures(sums: Sequence[Mapping[str, np.ndarray]], index: RowIndex) -> RowFigures:
    """The figures of all rows, of the `row_sums` of their parts."""
    found = {name: np.concatenate([part[name] for part in sums]) for name in sums[0]}
    logprob = {role: found.pop(name) for role in ROLES if (name := f"logprob {role}") in found}
    pair_id, chosen = index.pair_id[found["row"]], index.chosen[found["row"]]
    margin = _margin(pair_id, chosen, found["reward"])
    return RowFigures(pair_id=pair_id, chosen=chosen, margin=margin, logprob=logprob, **found)


def _margin(pair_id: np.ndarray, chosen: np.ndarray, value_R: np.ndarray) -> np.ndarray:
    """Chosen minus rejected of a pair, at both of its rows, (R,); NaN where one of them is missing."""
    margin_R = np.full(len(value_R), np.nan)
    first, second = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    _, of_chosen, of_rejected = np.intersect1d(pair_id[first], pair_id[second], return_indices=True)
    first, second = first[of_chosen], second[of_rejected]
    margin_R[first] = margin_R[second] = value_R[first] - value_R[second]
    return margin_R
