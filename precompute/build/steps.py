"""Build: the steps that one process does for all. They need no model."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from precompute.build.inputs import BuildInputs
from precompute.build.options import BuildOptions
from precompute.build.plan import make_plan
from precompute.build.report import (
    batches_text,
    bytes_per_position,
    corpus_warnings,
    directions_text,
    plan_text,
    plan_warnings,
    shared_text,
    summary_text,
    times_text,
)
from precompute.feeding.stages import Times
from precompute.models.made_from import direction_warnings
from shards.cli.space import require_space, require_writable
from shards.errors import CacheConflict, CacheDamaged, CacheMissing
from shards.files import remove_temporary_files
from shards.format.encoding.seal import sealed
from shards.format.finishing import Findings, finished
from shards.format.index import INDEX_FILE
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    Manifest,
    covered,
    require_files,
)
from shards.format.plan import Plan
from shards.format.writer import (
    json_bytes,
    plan_bytes,
    require_absent_or_same,
    write_bytes,
    write_manifest,
)
from shards.locks.lock import clear_left, exclusive, holds
from shards.places.out import Out
from shards.say import say, speaks, warn

if TYPE_CHECKING:
    from precompute.build.work.models import Trial


class Left(NamedTuple):
    """Numbers of the shards that are not there yet, and of those that an earlier run wrote."""

    todo: Sequence[int]
    there: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A build with its inputs: plans, announces and finishes. One process of all has it."""

    place: Out
    options: BuildOptions
    inputs: BuildInputs

    @property
    def out(self) -> Path:
        return self.place.folder

    def begin(self, threshold: float | None, precision: Any) -> Plan:
        """Plan the shards and write the plan. precision: what the precision probe found."""
        options, corpus, inputs = self.options, self.inputs.corpus, self.inputs
        index = corpus.facts.index.encoded()
        index_sha256 = hashlib.sha256(index).hexdigest()
        plan = make_plan(options, inputs.identity, corpus, inputs.vocabulary_size, threshold, index_sha256)
        texts = self._texts
        tokenizer_sha256 = hashlib.sha256(texts[TOKENIZER_FILE]).hexdigest() if TOKENIZER_FILE in texts else None
        plan = replace(plan, precision=precision, tokenizer_sha256=tokenizer_sha256)
        files = {
            INDEX_FILE: index,
            **texts,
            PROVENANCE_FILE: sealed(json_bytes({"models": inputs.places, "data": options.data_sources.places})),
        }
        for file in self.place.present():  # without a plan they may be the user's own files
            if file in files:
                require_absent_or_same(self.place.bring(file), files[file])
        for file, content in files.items():
            write_bytes(self.out, file, content)
        write_bytes(self.out, PLAN_FILE, plan_bytes(plan))
        for file in (*files, PLAN_FILE):
            self.place.publish(file, last=file == PLAN_FILE)
        remove_temporary_files(self.out)
        return plan

    @property
    def _texts(self) -> dict[str, bytes]:
        """The files of the tokenizer."""
        vocabulary, tokenizer = json_bytes(self.inputs.vocabulary), self.inputs.tokenizer_json
        return {VOCABULARY_FILE: vocabulary} | ({} if tokenizer is None else {TOKENIZER_FILE: tokenizer.encode()})

    def go_on(self, plan: Plan) -> Plan:
        """Write the index of an interrupted build again.

        Raises CacheDamaged if its plan names another index, or if a file of the tokenizer is not as it was written.
        """
        for file, right in self._texts.items():
            if file in covered(plan) and _content(self.place.bring(file)) != right:
                raise CacheDamaged(f"{self.out / file}: expected what the tokenizer gives, got another text")
        index = self.inputs.corpus.facts.index.encoded()
        if hashlib.sha256(index).hexdigest() != plan.index_sha256:
            expected = f"an index with sha256 {plan.index_sha256}"
            raise CacheDamaged(f"{self.out}: expected {expected}, got another from the data")
        write_bytes(self.out, INDEX_FILE, index)
        self.place.publish(INDEX_FILE)
        remove_temporary_files(self.out)
        return plan

    def left(self, plan: Plan) -> Left:
        """What is to be done."""
        there = self.place.present()
        numbers = range(len(plan.shards))
        return Left(
            [number for number in numbers if plan.shards[number].file not in there],
            [number for number in numbers if plan.shards[number].file in there],
        )

    def warn(self, plan: Plan, left: Left, *, staged: int) -> None:
        """Print warnings about the inputs and the disk. staged: most shards in a staging folder at a time.

        Raises OptionError if the disk has no room for the shards that are left.
        """
        positions = sum(plan.shards[number].positions for number in left.todo)
        projected = positions * bytes_per_position(plan, self.options.top_k)
        models, corpus = self.inputs.identity["models"], self.inputs.corpus
        warnings = [*direction_warnings(self.inputs.folders, models), *corpus_warnings(corpus)]
        at_once = self.place.at_once(projected, len(left.todo), staged)
        for warning in filter(None, [*warnings, require_space(self.out, at_once, self.place.option)]):
            warn(warning)

    def announce(self, plan: Plan, left: Left, trial: "Trial", *, processes: int) -> None:
        """Print the plan, its duration, and what a few rows have shown."""
        options, corpus = self.options, self.inputs.corpus
        speed = trial.tokens_per_second and trial.tokens_per_second * processes
        say(plan_text(plan, corpus, [plan.shards[number] for number in left.todo], options.top_k, speed))
        say(trial.dtype)
        if options.share_prompts:
            say(shared_text(corpus.facts))
        say(batches_text(plan, corpus.responses, options))
        if trial.directions:
            say(directions_text(trial.directions))
        if not speaks():
            for warning in plan_warnings(plan, trial.directions):
                warn(warning)

    def finish(self, plan: Plan, parts: Sequence[Findings], times: Sequence[Times]) -> Manifest:
        """Write the manifest. parts: what was found when the shards were read back; times: of each process."""
        for file in covered(plan):
            self.place.bring(file)
        manifest = finished(self.out, plan, parts)
        say(summary_text(manifest))
        say(times_text(sum(times, Times()), len(times)))
        write_manifest(self.out, manifest)
        self.place.publish(MANIFEST_FILE, last=True)
        say(f"{self.place}: done")
        return manifest


def _content(path: Path) -> bytes:
    """Of a file of a begun build. Raises CacheMissing without it."""
    if not path.is_file():
        raise CacheMissing(f"{path}: expected a file of the build that was begun here, found none")
    return path.read_bytes()


def recognised(place: Out, manifest: Manifest) -> Manifest:
    """The manifest of a finished cache. Raises CacheMissing, CacheDamaged unless every shard is present."""
    require_files(manifest, place.present(), place.name)
    if not place.is_url:
        clear_left(place.folder)
    elif holds(place.folder):
        place.clear()
    say(f"{place}: already built from the same inputs, nothing to do")
    return manifest


def alone(place: Out, stack: contextlib.ExitStack) -> None:
    """Keep other commands out of the folder as long as `stack` is open; of a URL, out of its staging folder.

    A finished cache is only recognised or refused: several commands may do that at a time. Raises CacheConflict.
    """
    if place.is_url:
        require_writable(place.folder, place.option)
        try:
            stack.enter_context(exclusive(place.folder))
        except CacheConflict:
            if MANIFEST_FILE not in place.present():
                raise
    elif not (place.folder / MANIFEST_FILE).exists():
        require_writable(place.folder, place.option)
        stack.enter_context(exclusive(place.folder))


def begin_alone(place: Out, stack: contextlib.ExitStack) -> None:
    """The same right before the work, which may write: a finished cache may have been removed meanwhile."""
    if not holds(place.folder):
        stack.enter_context(exclusive(place.folder))
    place.clear()
