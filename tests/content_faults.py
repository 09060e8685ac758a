"""Faults that are planted at any place of a row: `PLACED`, name -> (what reads it, codecs that can hold it, how).

A function takes a response and a generator of random numbers, and gives the column that a message must name (a regular
expression) and the response with the fault.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from fake_cache import with_scores
from faults import CONTRAST, V, changed, set_role

from shards.format.schema import ROLES, VALUES

FLOAT32 = ("float32",)


class Placed(NamedTuple):
    """plant: see above. codecs: whose columns can hold it. student: whether a student reads what is wrong."""

    plant: object
    codecs: tuple = VALUES
    student: bool = True


def anywhere(values, wrong, draw):
    """The values with one of `wrong` at a random place."""
    return changed(values, draw.integers(len(values)), draw.choice(wrong))


def of_response(field, wrong, response, draw):
    return field, replace(response, **{field: anywhere(getattr(response, field), wrong, draw)})


def of_scores(field, column, wrong, response, draw):
    return column, with_scores(response, **{field: anywhere(getattr(response.scores, field), wrong, draw)})


def of_role(field, suffix, wrong, roles, response, draw):
    role = draw.choice(roles)
    columns = getattr(response.scores, field)
    found = with_scores(response, **{field: {**columns, role: anywhere(columns[role], wrong, draw)}})
    return rf"\w+{suffix}", found  # other compact columns are differences to this one


def swapped_or_twice(response, draw):
    count_N, ids = response.scores.support_count, response.scores.support_ids.copy()
    n = draw.choice(np.flatnonzero(count_N > 1))
    at = int(count_N[:n].sum() + draw.integers(count_N[n] - 1))
    ids[at : at + 2] = ids[[at + 1, at]] if draw.integers(2) else ids[at]
    return "support_ids", with_scores(response, support_ids=ids)


def wrong_tail(full, wrong, response, draw, column=r"\w+_tail_log\w+"):
    """A tail where all tokens are kept, or none beside some."""
    n = draw.choice(np.flatnonzero((response.scores.support_count == V) == full))
    return column, set_role(response, "tail_logprob", "reference", n, wrong)


def wrong_partition(wrong, response, draw):
    n = draw.choice(np.flatnonzero(response.scores.support_count < V))
    place = (n, draw.integers(6))
    return "dpo_reverse_tail_logpartition", set_role(response, "tail_logpartition", CONTRAST, place, draw.choice(wrong))


def moved_mass(factor, response, draw):
    """Of all positions under one role; a reader sums it at some of them only."""
    role = draw.choice(ROLES)
    moved = np.minimum(response.scores.logprobs[role] + np.log(factor), 0)
    logprobs = {**response.scores.logprobs, role: moved}
    return r"\w+_logprobs", with_scores(response, logprobs=logprobs)


def other_length(field, response, draw):
    """A list is a value shorter, or longer."""

    def cut(values):
        return values[:-1] if draw.integers(2) else np.append(values, values[-1:])

    if field in ("input_ids", "loss_mask"):
        return r"\w+", replace(response, **{field: cut(getattr(response, field))})
    stored = getattr(response.scores, field)
    if isinstance(stored, dict):
        key = draw.choice([str(key) for key in stored])
        return r"\w+", with_scores(response, **{field: {k: cut(v) if str(k) == key else v for k, v in stored.items()}})
    return r"\w+", with_scores(response, **{field: cut(stored)})


def start(response, draw):
    wrong = draw.choice([-1, len(response.input_ids), 2**31 - 1])
    return "response_start", replace(response, response_start=int(wrong))


def late_start(response, draw):
    later = response.response_start + int(draw.integers(1, len(response.input_ids) - response.response_start))
    return "loss_mask", replace(response, response_start=later)


def first_token(response, draw):
    mask = response.loss_mask.copy()
    mask[[0, draw.choice(np.flatnonzero(mask))]] = True, False
    return "loss_mask", replace(response, loss_mask=mask, response_start=0)


def pair(response, draw):
    pair_id = int(draw.choice([-1, -(2**63), response.pair_id + 1]))
    return "(pair_id|sample_id)", replace(response, pair_id=pair_id)


def name(response, draw):
    return "sample_id", replace(response, sample_id=str(draw.choice(["", f"{response.pair_id}/best", "x/chosen"])))


IDS, COUNTS = [V, V + 1, -1, 2**31 - 1, -(2**31)], [0, -1, V + 1, 2**31 - 1]
HIGH, NOT_FINITE = [1e-3, 0.5], [np.nan, np.inf, -np.inf]
PLACED = {
    "token id": Placed(partial(of_response, "input_ids", IDS)),
    "kept id": Placed(partial(of_scores, "support_ids", "support_ids", IDS), FLOAT32),
    "kept id over V": Placed(partial(of_scores, "support_ids", "support_ids", [V, V + 1, 2**23])),
    "kept ids not ascending": Placed(swapped_or_twice),
    "number of kept ids": Placed(partial(of_scores, "support_count", r"support_\w+|\w+", COUNTS), FLOAT32),
    "log-prob not finite": Placed(partial(of_role, "logprobs", "_logprobs", NOT_FINITE, ROLES), FLOAT32),
    "log-prob -inf": Placed(partial(of_role, "logprobs", "_logprobs", [-np.inf], ROLES)),
    "log-prob over 0": Placed(partial(of_role, "logprobs", "_logprobs", HIGH, ROLES)),
    "next log-prob not finite": Placed(
        partial(of_role, "next_logprob", "_next_logprob", NOT_FINITE, ROLES), FLOAT32, student=False
    ),
    "next log-prob over 0": Placed(partial(of_role, "next_logprob", "_next_logprob", HIGH, ROLES), student=False),
    "tail of nothing": Placed(partial(wrong_tail, True, -20.0)),
    "no tail": Placed(partial(wrong_tail, False, -np.inf)),
    "tail over 0": Placed(partial(wrong_tail, False, 0.5, column="reference_tail_logprob"), FLOAT32),
    "tail nan": Placed(partial(wrong_tail, False, np.nan), FLOAT32),
    "partition not finite": Placed(partial(wrong_partition, NOT_FINITE), FLOAT32),
    "mass over 1": Placed(partial(moved_mass, 1.5)),
    "mass under 1": Placed(partial(moved_mass, 0.5), student=False),  # it reads no tail of reverse
    "response start": Placed(start, student=False),
    "response start behind the mask": Placed(late_start, student=False),
    "mask at token 0": Placed(first_token),
    "pair": Placed(pair, student=False),
    "name": Placed(name, student=False),
    **{
        f"length of {field}": Placed(partial(other_length, field), FLOAT32, student=field != "next_logprob")
        for field in ("input_ids", "loss_mask", "support_ids", "logprobs", "next_logprob")
    },
    "D_t": Placed(partial(of_role, "l1_distance", "", [-0.01, 2.1, np.nan, np.inf], ["reverse"])),
}
