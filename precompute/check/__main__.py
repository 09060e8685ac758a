"""python -m precompute.check: does a cache still say what its models say? Run it before a long training.

Recomputes some responses of a finished cache with live models and compares: log-probs, D_t, the teacher, and the loss
and gradient of students on their way to it. Exit code 0 if every value is as cached, up to rounding, 1 if one is not, 2
for input that cannot be used. The responses are taken from the cache; the data are not needed.
"""

import functools
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HfArgumentParser

from precompute.check.agreement import identity_differences, numerics_differences, tolerance
from precompute.check.compare import compare
from precompute.check.options import CheckOptions
from precompute.check.report import CheckReport, report_text
from precompute.check.sums import Comparison
from precompute.models.folders import check_vocabularies, identity, load_models, load_tokenizer
from precompute.numerics import numerics
from precompute.scoring.packing import batched
from precompute.scoring.probe import Exact, exact_logprobs, needs_probe, precision, probe_rows
from precompute.scoring.score import Scorer
from shards import Divergence, ShardCache, TeacherSpec
from shards.cli.command import parse_dataclasses, run_command
from shards.cli.device import resolve_device, resolve_dtype, set_products
from shards.errors import CacheMissing, OptionError
from shards.format.encoding.spans import span
from shards.format.plan import Plan
from shards.format.schema import Role
from shards.format.scores import Response, concatenate
from shards.format.writer import write_json
from shards.modelfiles.find import ModelFolder, resolve
from shards.modelfiles.head import require_room
from shards.modelfiles.vocabulary import require_same_vocabulary
from shards.progress import commanded, progress
from shards.say import say

ROWS_AT_A_TIME = 64
REVERSE_KL = Divergence(name="reverse_kl")


def check(options: CheckOptions) -> CheckReport:
    """Compare a sample of the cache with the models. Raises AlignDistilError."""
    cache = ShardCache(options.shards, options.room)
    cache.check(options.spec)
    device = resolve_device(torch, options.device, 0)
    folders = find_models(cache, options.model_names)
    require_vocabulary(cache, folders, trust_remote_code=options.trust_remote_code)
    changed = changed_models(cache, folders, trust_remote_code=options.trust_remote_code)
    for role, texts in changed.items():
        say(f"{role} ({folders[role].name}) changed since the build: {'; '.join(texts)}")

    recorded = cache.plan.identity.get("numerics", {})
    dtype = resolve_dtype(options.dtype or recorded.get("dtype", "auto"), device)
    tf32 = _tf32(options, recorded, dtype, device)
    set_products(torch, dtype=dtype, tf32=tf32, device=device)
    attention = options.attn_implementation or recorded.get("attn_implementation")
    found = numerics(dtype, attention, options.device_map, device, tf32=tf32)
    rows = pick_rows(len(cache), options.sample, options.seed)
    # before the models are loaded: a float32 body needs the memory of two in half precision
    exact = None
    if needs_probe(found):
        exact = float32_bodies(cache, options, folders, rows, found, attention)
    scorer = load_scorer(cache, options, folders, dtype=dtype, attn_implementation=attention, device=device)
    return CheckReport(
        cache=cache.name,
        cache_rows=len(cache),
        rows=rows,
        seed=options.seed,
        values=cache.plan.values,
        spec=options.spec,
        places={role: folder.name for role, folder in folders.items()},
        changed=changed,
        numerics=list(numerics_differences(recorded, found)),
        tolerance=tolerance(recorded, found),
        precision=None if exact is None else precision(scorer, exact, options.spec),
        comparison=compare_rows(cache, rows, scorer, options.spec, options.batch_tokens),
    )


def float32_bodies(
    cache: ShardCache,
    options: CheckOptions,
    folders: Mapping[Role, ModelFolder],
    rows: Sequence[int],
    found: Mapping[str, Any],
    attention: str | None,
) -> Exact:
    """Log-probs of float32 bodies on some of the rows, for the precision of this check's own numerics."""
    return exact_logprobs(
        folders,
        cache.plan.vocabulary_size,
        probe_rows(cache.read(rows)),
        numerics=found,
        device=resolve_device(torch, options.device, 0),
        device_map=options.device_map,
        attn_implementation=attention,
        trust_remote_code=options.trust_remote_code,
    )


def model_places(cache: ShardCache, given: Mapping[Role, str]) -> dict[Role, str]:
    """The folder of each role's model: the given one, else the one of the build. Raises OptionError."""
    for role in given:
        if role not in cache.plan.roles:
            raise OptionError(f"models: expected roles of the cache ({', '.join(cache.plan.roles)}), got {role}")
    places = dict(given)
    for role in cache.plan.roles:
        if role not in given:
            try:
                places[role] = str(cache.provenance["models"][role])
            except (CacheMissing, KeyError, TypeError) as exc:
                raise OptionError(f"models: expected {role}=..., {cache.name} does not say where it lies") from exc
    return {role: places[role] for role in cache.plan.roles}


def find_models(cache: ShardCache, given: Mapping[Role, str]) -> dict[Role, ModelFolder]:
    """The model of each of the cache's roles. Hub models that are not given are taken at the commit of the build."""
    recorded = cache.plan.identity.get("models", {})
    return {
        role: resolve(name, recorded=None if role in given else recorded.get(role))
        for role, name in model_places(cache, given).items()
    }


def require_vocabulary(cache: ShardCache, folders: Mapping[Role, ModelFolder], *, trust_remote_code: bool) -> None:
    """Raise VocabularyMismatch if the models' tokenizers differ from the cache's."""
    tokenizers = {role: load_tokenizer(folder, trust_remote_code=trust_remote_code) for role, folder in folders.items()}
    require_same_vocabulary(cache.vocabulary, check_vocabularies(tokenizers), "the cache", "the models")


def changed_models(
    cache: ShardCache, folders: Mapping[Role, ModelFolder], *, trust_remote_code: bool
) -> dict[Role, list[str]]:
    """Role -> which of its hashes differ from the manifest's; only roles with a difference."""
    recorded = cache.plan.identity.get("models", {})
    found = {
        role: list(identity_differences(recorded.get(role, {}), identity(folder, trust_remote_code=trust_remote_code)))
        for role, folder in folders.items()
    }
    return {role: texts for role, texts in found.items() if texts}


def load_scorer(
    cache: ShardCache,
    options: CheckOptions,
    folders: Mapping[Role, ModelFolder],
    *,
    dtype: str,
    attn_implementation: str | None,
    device: torch.device,
) -> Scorer:
    models = load_models(
        folders,
        cache.plan.vocabulary_size,
        dtype=dtype,
        device=str(device),
        one_at_a_time=options.models_in_memory == "one",
        apart=True,  # what the build did wrong with a shared base would be done again
        device_map=options.device_map,
        attn_implementation=attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    return Scorer(
        models=models,
        pairs=cache.plan.pairs,
        nodes=cache.plan.nodes,
        chunk_positions=options.chunk_positions,
        device=device,
        one_at_a_time=options.models_in_memory == "one",
    )


def pick_rows(rows: int, count: int, seed: int) -> list[int]:
    """`count` different rows of a cache, or all of them, ascending; a pure function of the seed."""
    picked = np.random.default_rng(seed).choice(rows, size=min(count, rows), replace=False)
    return sorted(picked.tolist())


def compare_rows(
    cache: ShardCache, rows: Sequence[int], scorer: Scorer, spec: TeacherSpec, batch_tokens: int
) -> Comparison:
    """The sums of comparing these rows, with a progress bar."""
    with progress(None, "checking", total=len(rows), unit="response") as bar:
        return functools.reduce(operator.add, _comparisons(cache, rows, scorer, spec, batch_tokens, bar))


def _comparisons(
    cache: ShardCache, rows: Sequence[int], scorer: Scorer, spec: TeacherSpec, batch_tokens: int, bar: Any
) -> Iterator[Comparison]:
    """A comparison for every chunk of positions."""
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        responses = cache.read(rows[start : start + ROWS_AT_A_TIME])
        longest = max(len(response.input_ids) for response in responses)
        for role, role_model in scorer.models.items():
            require_room(role_model.model.config, longest, role)
        for batch in batched(responses, batch_tokens):
            yield from _compared(batch, cache.plan, scorer, spec)
            bar.update(len(batch))


def _compared(batch: Sequence[Response], plan: Plan, scorer: Scorer, spec: TeacherSpec) -> Iterator[Comparison]:
    scores, start = concatenate([response.scores for response in batch]), 0
    for logprobs, next_ids_C in next(scorer.chunks([batch])):
        stop = start + len(next_ids_C)
        here = scores.slice(start, stop)
        yield compare(logprobs, next_ids_C, here, span(here, plan), spec, scorer.nodes, REVERSE_KL)
        start = stop


def _tf32(options: CheckOptions, recorded: Mapping[str, Any], dtype: str, device: torch.device) -> bool:
    """Whether products are rounded to TF32: as asked for, else as in the build if this dtype and device can."""
    if options.tf32 is not None:
        return options.tf32
    return bool(recorded.get("tf32")) and dtype == "float32" and device.type == "cuda"


def main(arguments: Sequence[str] | None = None) -> None:
    (options,) = parse_dataclasses(HfArgumentParser, CheckOptions, "precompute.check", __doc__, arguments)
    with commanded(quiet=options.quiet):
        report = check(options)
    print(report_text(report))
    if options.json is not None:
        file = Path(options.json)
        write_json(file.parent, file.name, report.to_json())
    if not report.agrees:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
