"""Wrong but well-formed content: a value that no row may hold, planted anywhere, is refused by readers and the writer.

A case plants one fault of `content_faults.PLACED` in a row and at a place drawn from the seed: into a shard with right
checksums, which ShardCache, the student's data set or verify reads, or into a row that the writer is given.
"""

import itertools
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from content_faults import PLACED
from fake_cache import FakeCache, make_cache, unchecked
from faults import V, fix_entry, has_a_position_of_every_kind

from shards import ShardCache, TeacherSpec
from shards.errors import AlignDistilError, CacheDamaged, WrongValues
from shards.format import schema
from shards.format.content import rules, screen
from shards.format.encoding import compact
from shards.format.writer import write_shard
from shards.verify.__main__ import verify
from stress.campaign import Campaign, Outcome, held, missed
from student.data.responses import CachedResponses

ACTORS = ("reader", "loader", "writer", "verify")
TIMES = 20
"""Cases of each fault, codec and actor."""


def kinds() -> list[tuple[str, str, str]]:
    """(fault, values, actor) of all that can be: the writer is given what no column can hold, too."""
    return [
        (fault, values, actor)
        for (fault, placed), values, actor in itertools.product(PLACED.items(), schema.VALUES, ACTORS)
        if (values in placed.codecs or actor == "writer") and (placed.student or actor != "loader")
    ]


def refusal(work: Callable[[], object], kind: type[AlignDistilError]) -> list[str]:
    """The line with which the work was refused; none if it was done."""
    try:
        work()
    except kind as exc:
        return [str(exc)]
    return []


def without_rule(number: int) -> AbstractContextManager[object]:
    stages = tuple(tuple(rule for rule in stage if rule[0] != number) for stage in rules.STAGES)
    stack = ExitStack()
    stack.enter_context(mock.patch.object(rules, "STAGES", stages))
    if number == 10:
        stack.enter_context(mock.patch.object(rules, "lengths", lambda *given: ()))
    return stack


class Content(Campaign):
    name, unit = "content", "faults"

    def __init__(self, ground: Path, seed: int) -> None:
        self.seed, self.ground, self.kinds = seed, ground, kinds()
        self.caches: dict[str, FakeCache] = {
            values: make_cache(ground / values, vocabulary_size=V, pairs=2, response_tokens=40, values=values)
            for values in schema.VALUES
        }
        responses = self.caches["float32"].responses
        self.rows = [row for row, response in enumerate(responses) if has_a_position_of_every_kind(response)]

    def __len__(self) -> int:
        return len(self.kinds) * TIMES

    def case(self, number: int) -> Outcome:
        fault, values, actor = self.kinds[number % len(self.kinds)]
        draw = np.random.default_rng([self.seed, number])
        row = int(draw.choice(self.rows))
        responses = list(self.caches[values].responses)
        column, responses[row] = PLACED[fault].plant(responses[row], draw)
        kind, folder = f"{actor}, {values}", self.ground / f"case-{number}"
        try:
            said = self._said(actor, values, responses, folder)
        except Exception as exc:  # a bare error of numpy or Python is what no user may see
            return missed(kind, f"{fault}: expected one line about {column}, got {type(exc).__name__}: {exc}")
        finally:
            shutil.rmtree(folder)
        where = rf"{re.escape(str(folder))}/part-00000\.arrow row {row} \('[^']*'\): ({column}): expected .*, got .*"
        if any(re.fullmatch(where, line) for line in said):
            return held(kind)
        return missed(kind, f"{fault}: expected one line about {column} of row {row}, got {said[:1] or 'nothing'}")

    def _said(self, actor: str, values: str, responses: list[Any], folder: Path) -> list[str]:
        """The lines of refusal."""
        plan = self.caches[values].plan
        if actor == "writer":
            folder.mkdir()
            return refusal(lambda: write_shard(folder, plan.shards[0], plan, responses), WrongValues)
        shutil.copytree(self.caches[values].folder, folder)
        with unchecked(), mock.patch.object(compact, "_require", lambda *given: None), np.errstate(all="ignore"):
            write_shard(folder, plan.shards[0], plan, responses)
        fix_entry(folder, 0)
        if actor == "verify":
            return [str(fault) for fault in verify(folder)]
        if actor == "reader":
            return refusal(lambda: ShardCache(folder).read(range(len(responses))), CacheDamaged)
        data = CachedResponses([folder], train_on="both").for_teacher(TeacherSpec.preset("aligndistil"))
        return refusal(lambda: data.scores(range(len(data))), CacheDamaged)

    defects: ClassVar[Mapping[str, Any]] = {
        "no check of lengths, counts and D_t": partial(mock.patch.object, screen, "misshapen", lambda *given: False),
        "no check of token ids": partial(mock.patch.object, screen, "_below", lambda *given: True),
        "no check of masks and starts": partial(mock.patch.object, screen, "_wrong_place", lambda *given: False),
        "no check of names": partial(mock.patch.object, screen, "_wrong_name", lambda *given: False),
        "no check of the order of ids": partial(mock.patch.object, screen, "_unordered", lambda *given: False),
        "no check of log-probs": partial(mock.patch.object, screen, "_finite", lambda *given: True),
        "no check of tails": partial(mock.patch.object, screen, "_wrong_tails", lambda *given: False),
        "no check of the mass": partial(mock.patch.object, screen, "_wrong_mass", lambda *given: False),
        "a writer without checks": unchecked,
        **{f"rule {rule} left out": partial(without_rule, rule) for rule in (9, 10, 11, 12, 13, 14, 15, 16, 18)},
    }
