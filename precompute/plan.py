"""Before the work: identity of the inputs, shard boundaries, the support's threshold."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from precompute.corpus import Corpus
from precompute.options import BuildOptions
from precompute.score import Scorer, batches_by_length
from precompute.spread import sample_rows
from precompute.support import SupportRule, find_threshold
from precompute.tokenized import TokenizedResponse
from precompute.tokenizer_identity import tokenizer_identity
from shards.errors import CacheConflict, OptionError, first_line
from shards.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    SHARD_GLOB,
    Manifest,
    Plan,
    ShardPlan,
    read_json,
    refuse_difference,
)
from shards.plan import shard_file
from shards.schema import Role

THRESHOLD_POSITIONS = 16_384
"""Of the sample, at most so many are ranked; at 2,048 tokens a position they take 128 MiB."""
LIBRARIES = ("aligndistil-offline", "torch", "transformers", "tokenizers", "jinja2", "numpy", "pyarrow")


def build_identity(
    options: BuildOptions,
    device: torch.device,
    models: Mapping[Role, Any],
    tokenizer: Any,
    data_sha256: str,
) -> dict[str, Any]:
    """Everything that the bytes of a cache depend on. Paths and process counts are no part of it.

    It names the inputs of tokenisation in place of the tokens, which `with_tokens` adds: they follow from it.
    """
    return {
        # the order in which a folder that holds another build is compared: what was asked for before what came of it
        "options": options.identity(),
        "models": models,
        "tokenizer": tokenizer_identity(tokenizer),
        "data": {"rows_sha256": data_sha256},
        "numerics": numerics(options.dtype, options.attn_implementation, options.device_map, device),
    }


def with_tokens(identity: Mapping[str, Any], tokens_sha256: str) -> dict[str, Any]:
    """The identity that a plan records: with what the tokenizer made of the data."""
    return {**identity, "data": {**identity["data"], "tokens_sha256": tokens_sha256}}


def without_tokens(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What `with_tokens` was given."""
    data = {name: value for name, value in identity.get("data", {}).items() if name != "tokens_sha256"}
    return {**identity, "data": data}


def numerics(
    dtype: str, attn_implementation: str | None, device_map: str | None, device: torch.device
) -> dict[str, Any]:
    """What rounding depends on besides the models: the same numerics and inputs give the same values."""
    return {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        # a GPU's sums do not depend on it
        "num_threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def resolve_device(name: str, local_rank: int) -> torch.device:
    """`auto` is this process's GPU where there is one, else the processor. Raises OptionError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as exc:  # a name that torch does not know, a device that is not here
        raise OptionError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r} ({first_line(exc)})") from exc


def holds_build(folder: Path) -> bool:
    """Whether a build was begun here, of whatever inputs."""
    return any((folder / file).exists() for file in (MANIFEST_FILE, PLAN_FILE)) or any(folder.glob(SHARD_GLOB))


def read_earlier(folder: Path, asked: Mapping[str, Any]) -> Manifest | Plan | None:
    """What an earlier build with the same inputs left in `folder`: a finished cache, a plan to go on with, or nothing.

    Tokens are compared where `asked` has them (`with_tokens`).
    Raises CacheConflict where the folder holds another build, naming the first field that differs.
    """
    for file in (MANIFEST_FILE, PLAN_FILE):
        path = folder / file
        if path.exists():
            data = read_json(path)
            earlier = Manifest.from_json(data, str(path)) if file == MANIFEST_FILE else Plan.from_json(data, str(path))
            plan = earlier.plan if isinstance(earlier, Manifest) else earlier
            found = plan.identity if "tokens_sha256" in asked["data"] else without_tokens(plan.identity)
            refuse_difference(found, asked, f"{folder}: holds another build")
            return earlier
    stray = sorted(folder.glob(SHARD_GLOB))
    if stray:
        raise CacheConflict(f"{folder}: expected no shards without a {PLAN_FILE}, found {stray[0].name}")
    return None


def make_plan(
    options: BuildOptions,
    asked: Mapping[str, Any],
    corpus: Corpus,
    vocabulary_size: int,
    log_threshold: float | None,
    index_sha256: str,
) -> Plan:
    return Plan(
        identity=asked,
        roles=tuple(options.model_names),
        pairs=options.served_pairs,
        nodes=options.nodes,
        vocabulary_size=vocabulary_size,
        values=options.values,
        rows_per_batch=options.rows_per_batch,
        log_threshold=log_threshold,
        skipped=dict(sorted(corpus.skipped.items())),
        truncated=corpus.truncated,
        prompt_not_prefix=corpus.prompt_not_prefix,
        index_sha256=index_sha256,
        shards=tuple(plan_shards(corpus.facts.index.num_positions, options.tokens_per_shard)),
    )


def plan_shards(positions: Sequence[int] | np.ndarray, tokens_per_shard: int) -> list[ShardPlan]:
    """Cut the rows, in order, after every `tokens_per_shard` response tokens (a row is never cut)."""
    ends = np.cumsum(positions, dtype=np.int64)
    shards: list[ShardPlan] = []
    first = before = 0
    while first < len(ends):
        last = min(int(np.searchsorted(ends, before + tokens_per_shard)), len(ends) - 1)
        file, here = shard_file(len(shards)), int(ends[last]) - before
        shards.append(ShardPlan(file=file, first_row=first, rows=last + 1 - first, positions=here))
        first, before = last + 1, int(ends[last])
    return shards


def log_threshold(scorer: Scorer, rows: Sequence[TokenizedResponse], options: BuildOptions, highest: int) -> float:
    """The threshold with which the sample keeps top_k tokens on average; of many positions every n-th is looked at."""
    sample = sample_rows(rows, options.sample_rows)
    total = sum(int(row.loss_mask.sum()) for row in sample)
    stride = -(-total // THRESHOLD_POSITIONS)
    ranked: list[np.ndarray] = []
    with tqdm(total=total, unit="tok", desc=f"setting the threshold on {len(sample)} rows") as bar:
        batches = [[sample[i] for i in batch] for batch in batches_by_length(sample, options.batch_tokens)]
        for scores_NK in scorer.ranked_scores(batches, highest):
            ranked.append(scores_NK[::stride].copy())
            bar.update(len(scores_NK))
    return find_threshold(np.concatenate(ranked), top_k=options.top_k, lowest=options.min_top_k)


def support_rule(options: BuildOptions, vocabulary_size: int, threshold: float | None) -> SupportRule:
    """The rule that keeps tokens; a fixed support has no threshold."""
    if options.support == "fixed":
        return SupportRule(lowest=options.top_k, highest=options.top_k, log_threshold=None)
    highest = min(options.max_top_k, vocabulary_size)
    return SupportRule(lowest=min(options.min_top_k, highest), highest=highest, log_threshold=threshold)
