"""Scores of sampled completions: their mean, and how often one model's beat another's for the same prompt.

Only this module and scorers.py read text in `student`. A student is trained and measured on shards alone. But its own
samples are in no cache, and a reward model judges text with its own tokenizer. Nothing that is read here affects a
loss.

Dimensions: S samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import strict_json
from shards.errors import DataError, OptionError
from shards.files import read_regular
from student.evaluate.figures import Series, compared, outcome_counts, outcomes

Scorer = Callable[[list[Any], list[Any]], Sequence[float]]
"""Maps prompts and completions, text or lists of messages, to one score each; higher is better."""


MAX_BYTES = 2**33


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row of a prompt-completion file. Samples of two files match if `id` (of the prompt) and `sample` are equal."""

    id: str | int
    sample: int
    prompt: Any
    completion: Any

    @property
    def key(self) -> tuple[str, int]:
        return str(self.id), self.sample


def win_rate(file: Path, against: Path | None, scorer: Scorer) -> dict[str, Any]:
    """Mean score and length of the samples; with `against`, those of both over matching samples, and wins.

    Raises DataError for files that are not prompt-completion files with ids, that have no sample in common, or that
    have different prompts under the same id; OptionError for a scorer that does not score every sample.
    """
    samples = read_samples(file)
    if against is None:
        scores_S = scored(samples, scorer)
        return {"score": compared(_series(scores_S, samples), None), "characters": compared(_lengths(samples), None)}
    others = {sample.key: sample for sample in read_samples(against)}
    matched = [(sample, others[sample.key]) for sample in samples if sample.key in others]
    _require_match(file, against, matched)
    mine, theirs = [sample for sample, _ in matched], [sample for _, sample in matched]
    mine_S, theirs_S = scored(mine, scorer), scored(theirs, scorer)
    prompts = len({sample.key[0] for sample in mine})
    unmatched = {"unmatched": len(samples) - len(matched), "unmatched_against": len(others) - len(matched)}
    wins = outcome_counts(outcomes(mine_S - theirs_S, tie=0.0), trials=prompts)
    return {
        "score": compared(_series(mine_S, mine), _series(theirs_S, mine)),
        "characters": compared(_lengths(mine), _lengths(theirs)),
        "win_rate": {**wins, "prompts": prompts, **unmatched},
    }


def read_samples(file: Path) -> list[Sample]:
    """The rows of a .jsonl file with the columns id, prompt, completion and, for several per prompt, sample."""
    try:
        lines = (
            read_regular(file, MAX_BYTES).decode("utf-8").split("\n")
        )  # splitlines would also split at other characters
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{file}: expected a .jsonl file of samples, got {exc}") from exc
    samples: dict[tuple[str, int], Sample] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            sample = _parse(line, f"{file.name} line {number}")
            if sample.key in samples:
                raise DataError(f"{file.name} line {number}: expected another id and sample, got {sample.key} again")
            samples[sample.key] = sample
    if not samples:
        raise DataError(f"{file}: expected samples, found none")
    return list(samples.values())


def scored(samples: Sequence[Sample], scorer: Scorer) -> np.ndarray:
    """The scores of the samples, (S,). Raises OptionError unless each is one finite number."""
    found = scorer([sample.prompt for sample in samples], [sample.completion for sample in samples])
    try:
        scores_S = np.array([float(score) for score in found])
    except (TypeError, ValueError) as exc:
        raise OptionError(f"scorer: expected a list of numbers, got {type(found).__name__} ({exc})") from exc
    if len(scores_S) != len(samples):
        raise OptionError(f"scorer: expected {len(samples)} scores, one a completion, got {len(scores_S)}")
    if not np.isfinite(scores_S).all():
        first = int(np.flatnonzero(~np.isfinite(scores_S))[0])
        raise OptionError(f"scorer: expected finite scores, got {scores_S[first]} for {samples[first].key}")
    return scores_S


def _parse(line: str, where: str) -> Sample:
    try:
        row = strict_json.loads(line)
    except ValueError as exc:
        raise DataError(f"{where}: expected a JSON object, got text that is not JSON ({exc})") from exc
    names = sorted(row) if isinstance(row, dict) else [type(row).__name__]
    if not {"id", "prompt", "completion"} <= set(names):
        raise DataError(f"{where}: expected the columns id, prompt and completion, got {', '.join(names) or 'none'}")
    kinds = [type(row[name]) for name in ("prompt", "completion")]
    if kinds not in ([str, str], [list, list]):
        got = ", ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{where}: expected prompt and completion as text, or both as lists of messages, got {got}")
    sample = row.get("sample", 0)
    if not isinstance(row["id"], (str, int)) or not isinstance(sample, int):
        raise DataError(f"{where}: expected an id and the number of a sample, got {row['id']!r} and {sample!r}")
    return Sample(id=row["id"], sample=sample, prompt=row["prompt"], completion=row["completion"])


def _require_match(file: Path, against: Path, matched: Sequence[tuple[Sample, Sample]]) -> None:
    if not matched:
        raise DataError(f"{against}: expected samples with ids of {file}, found none in common")
    for mine, theirs in matched:
        if mine.prompt != theirs.prompt:
            raise DataError(f"{against} id {theirs.id}: expected the prompt that {file} has, got another")


def _series(values_S: np.ndarray, samples: Sequence[Sample]) -> Series:
    return Series(values=values_S, counts=np.ones(len(samples)), groups=np.array([s.key[0] for s in samples]))


def _lengths(samples: Sequence[Sample]) -> Series:
    return _series(np.array([float(_characters(sample.completion)) for sample in samples]), samples)


def _characters(completion: Any) -> int:
    if isinstance(completion, str):
        return len(completion)
    return sum(len(message.get("content") or "") for message in completion if isinstance(message, dict))
