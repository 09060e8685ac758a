"""Measures the models of an evaluation on the responses of a cache, all against one teacher."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards import ShardCache
from shards.cli.device import resolve_device
from shards.cli.flags.cache_flags import room_of
from shards.errors import DataError
from shards.modelfiles.folder import adapter_base, require_weights
from shards.modelfiles.vocabulary import require_same_vocabulary
from shards.preferences.pairs import PreferencePairs, find_pairs
from shards.teacher.served import lacks
from student.evaluate.figures import TIE_NATS, Responses, evaluation
from student.evaluate.measure import ResponseSums, measure
from student.evaluate.report import labels
from student.evaluate.yardstick import Yardstick, choose
from student.load import load_model, load_tokenizer
from student.runs.record import Record, read_record


def on_cache(options: argparse.Namespace) -> dict[str, Any]:
    """The report on --model and --against, as JSON values. Raises AlignDistilError."""
    cache = ShardCache(options.shards, room_of(options))
    names = [*options.model, *([] if options.against is None else [options.against])]
    tokenizers = {name: _tokenizer(name, cache, options) for name in names}  # load all before measuring the first
    recorded = {name: read_record(name) for name in names}
    labelled = zip(labels(len(options.model), options.against is not None), names, strict=True)
    yardstick = choose(options, cache, {label: recorded[name] for label, name in labelled})
    measured = [_measured(name, cache, yardstick, recorded[name], tokenizers[name], options) for name in names]
    against = None if options.against is None else measured[-1]
    pairs = _pairs(cache)
    responses = Responses(index=cache.index, pairs=pairs, beta=yardstick.spec.beta)
    entries = [model.entry(responses, against) for model in measured[: len(options.model)]]
    return {
        "models": entries,
        "against": None if against is None else against.entry(responses, None),
        "cache": cache.name,
        "responses": len(cache),
        "positions": cache.plan.positions,
        "pairs": 0 if pairs is None else len(pairs),
        "teacher": yardstick.spec.to_json(),
        "teacher_text": str(yardstick.spec),
        "teacher_source": yardstick.spec_source,
        "divergence": yardstick.divergence.name,
        "jsd_weight": yardstick.divergence.jsd_weight,
        "divergence_source": yardstick.divergence_source,
        "contrast": "reverse" if "reverse" in cache.plan.roles else "reference",
        "values": cache.plan.values,
        "tie_nats": TIE_NATS,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model, its record and its sums; note: why its own teacher was not measured, in words, if it should be."""

    name: str
    dtype: str
    record: Record | None
    note: str
    sums: ResponseSums

    def entry(self, responses: Responses, against: "Measured | None") -> dict[str, Any]:
        """The part of the report about this model."""
        reduction = None if self.record is None else self.record.reduction
        figures = evaluation(responses, self.sums, None if against is None else against.sums, reduction)
        return {
            "model": self.name,
            "dtype": self.dtype,
            "recorded": None if self.record is None else self.record.to_json(),
            "recorded_text": "no teacher" if self.record is None else f"{self.record}{self.note}",
            **figures,
        }


def _tokenizer(name: str, cache: ShardCache, options: argparse.Namespace) -> Any:
    tokenizer = load_tokenizer(name, trust_remote_code=options.trust_remote_code)
    if Path(name).is_dir():
        require_weights(name, Path(name), "model" if adapter_base(name, Path(name)) is None else "adapter_model")
    require_same_vocabulary(cache.vocabulary, tokenizer.get_vocab(), "the cache", name)
    return tokenizer


def _measured(
    name: str,
    cache: ShardCache,
    yardstick: Yardstick,
    record: Record | None,
    tokenizer: Any,
    options: argparse.Namespace,
) -> Measured:
    """The sums of one model, which is in memory only during this call."""
    model = load_model(
        name,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    own, note = _own(record, cache, yardstick)
    sums = measure(
        model.to(resolve_device(torch, options.device)),
        cache,
        yardstick.spec,
        divergence=yardstick.divergence,
        batch_size=options.batch_size,
        chunk_positions=options.chunk_positions,
        pad_token_id=tokenizer.pad_token_id or 0,
        description=name,
        own=own,
    )
    dtype = str(model.dtype).removeprefix("torch.")
    return Measured(name=name, dtype=dtype, record=record, note=note, sums=sums)


def _own(record: Record | None, cache: ShardCache, yardstick: Yardstick) -> tuple[Record | None, str]:
    """The record for measuring a model against its own teacher, None if there is none, and why not, in words."""
    if record is None:
        return None, ""
    if others := record.other_models(cache.plan):
        return None, f"; warning: with another {', '.join(others)} than this cache's, so that teacher is not in it"
    if yardstick.is_of(record):
        return None, ""
    lacking = lacks(cache.plan, record.spec)
    return (record, "") if lacking is None else (None, f"; warning: not measured: {lacking}")


def _pairs(cache: ShardCache) -> PreferencePairs | None:
    try:
        return find_pairs(cache)
    except DataError:  # a cache can have chosen responses only; the report says what is missing
        return None
