"""python -m precompute.build: three models and preference data -> a cache.

Plan first, then one shard after the other (each whole or not there at all), the manifest last. A build that was killed
goes on where it stopped when the same command is given again.
"""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm
from transformers import HfArgumentParser

from precompute.corpus import Corpus, load_corpus
from precompute.made_from import direction_warnings
from precompute.models import ModelFolder, check_vocabularies, load_models, load_tokenizer, resolve
from precompute.options import BuildOptions
from precompute.plan import (
    build_identity,
    log_threshold,
    make_plan,
    read_earlier,
    require_writable,
    resolve_device,
    support_rule,
)
from precompute.preferences import sample_directions
from precompute.processes import Processes
from precompute.report import directions_text, plan_text, shared_text, summary_text
from precompute.score import Scorer, batches_by_length, require_shared_prompts
from precompute.spread import sample_rows
from precompute.support import SupportRule
from precompute.tokenize import TokenizedResponse
from shards import ShardCache
from shards.batches import BatchReader
from shards.command import OneLineErrors, run_command
from shards.directions import Direction, measure_directions
from shards.errors import CacheConflict, OptionError
from shards.head import require_room
from shards.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    VOCABULARY_FILE,
    Manifest,
    Plan,
    ShardEntry,
    ShardPlan,
    file_sha256,
    read_json,
    read_manifest,
)
from shards.schema import Role
from shards.scores import Scores
from shards.statistics import add_shard, new_histograms
from shards.writer import exclusive, remove_temporary_files, write_json, write_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a build reads, before any model is loaded."""

    folders: dict[Role, ModelFolder]
    vocabulary: dict[str, int]
    corpus: Corpus
    identity: dict[str, Any]

    @property
    def vocabulary_size(self) -> int:
        """V: the tokenizer's largest id + 1; the widths of output layers may be larger."""
        return max(self.vocabulary.values()) + 1


def build(options: BuildOptions) -> Manifest:
    """Build, finish or recognise the cache that the options ask for. Raises AlignDistilError."""
    processes = Processes.join()
    out = Path(options.out)
    inputs = read_inputs(options, processes)
    earlier = read_earlier(out, inputs.identity)
    processes.wait()
    if isinstance(earlier, Manifest):
        found = ShardCache(out).manifest  # no word of done before every shard is known to be there
        if processes.is_first:
            print(f"{out}: already built from the same inputs, nothing to do")
        return found
    require_writable(out)
    scorer = load_scorer(options, inputs, processes)
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out) if processes.is_first else contextlib.nullcontext():
        return _build(out, options, inputs, scorer, processes, earlier)


def _build(
    out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer, processes: Processes, earlier: Plan | None
) -> Manifest:
    """Plan, shards, manifest."""
    plan = earlier or begin(out, options, inputs, scorer, processes)
    rule = support_rule(options, inputs.vocabulary_size, plan.log_threshold)
    todo = [shard for shard in plan.shards if not (out / shard.file).exists()]
    if processes.is_first:
        speed = _tokens_per_second(scorer, inputs.corpus, rule, options.batch_tokens)
        for warning in direction_warnings(inputs.folders, inputs.identity["models"]):
            print(f"warning: {warning}")
        print(plan_text(plan, inputs.corpus, todo, options.top_k, speed and speed * processes.world_size))
        if options.share_prompts:
            print(shared_text(inputs.corpus.facts))
        remove_temporary_files(out)
    processes.wait()  # until every process has seen which shards are left
    left = set(todo)
    mine = [shard for i, shard in enumerate(plan.shards) if processes.owns(i) and shard in left]
    write_shards(out, plan, mine, inputs.corpus, scorer, rule, options.batch_tokens, show=processes.is_first)
    processes.wait()
    if processes.is_first:
        finish(out, plan)
        if found := _directions(out, options, inputs, scorer):
            print(directions_text(found))
        print(f"{out}: done")
    processes.wait()
    return read_manifest(out)


def _directions(out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer) -> list[Direction]:
    """What dpo and reverse prefer, from the cache where it has both responses of a pair, else from a few rows."""
    if options.responses == "both":
        return measure_directions(ShardCache(out))
    sample, batch_tokens = options.sample_rows, options.batch_tokens
    return sample_directions(inputs.corpus, scorer, sample=sample, batch_tokens=batch_tokens)


def read_inputs(options: BuildOptions, processes: Processes) -> Inputs:
    """Find the models, compare their tokenizers, tokenise the data."""
    folders = {role: resolve(name) for role, name in options.model_names.items()}
    tokenizers = {
        role: load_tokenizer(folder, trust_remote_code=options.trust_remote_code) for role, folder in folders.items()
    }
    vocabulary = check_vocabularies(tokenizers)
    size = max(vocabulary.values()) + 1
    if options.top_k > size:
        raise OptionError(f"top_k: expected at most the vocabulary's {size} tokens, got {options.top_k}")
    corpus = load_corpus(
        options.sources,
        tokenizer=tokenizers["reference"],
        responses=options.responses,
        max_length=options.max_length,
        on_overlong=options.on_overlong,
        on_empty=options.on_empty,
        sample_pairs=options.sample_rows,
        progress=processes.is_first,
    )
    device = resolve_device(options.device, processes.local_rank)
    identity = build_identity(options, device, folders, vocabulary, tokenizers["reference"].chat_template, corpus)
    return Inputs(folders=folders, vocabulary=vocabulary, corpus=corpus, identity=identity)


def load_scorer(options: BuildOptions, inputs: Inputs, processes: Processes) -> Scorer:
    device = resolve_device(options.device, processes.local_rank)
    models = load_models(
        inputs.folders,
        inputs.vocabulary_size,
        dtype=options.dtype,
        device=str(device),
        one_at_a_time=options.models_in_memory == "one",
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    longest, pair = inputs.corpus.facts.longest, inputs.corpus.facts.longest_pair
    for role, role_model in models.items():
        require_room(role_model.model.config, longest, role)
    if options.share_prompts and pair is not None:
        require_shared_prompts(models, pair, longest)
    return Scorer(
        models=models,
        pairs=options.served_pairs,
        nodes=options.nodes,
        chunk_positions=options.chunk_positions,
        device=device,
        one_at_a_time=options.models_in_memory == "one",
        share_prompts=options.share_prompts,
    )


def begin(out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer, processes: Processes) -> Plan:
    """Set the threshold, plan the shards and write the plan: the first process alone, for all."""
    if not processes.is_first:
        processes.wait()
        return Plan.from_json(read_json(out / PLAN_FILE), str(out / PLAN_FILE))
    if read_earlier(out, inputs.identity) is not None:
        raise CacheConflict(f"{out}: expected no build here, found one that began meanwhile; run this one again")
    threshold = None
    if options.support == "adaptive":
        highest = support_rule(options, inputs.vocabulary_size, None).highest
        threshold = log_threshold(scorer, inputs.corpus.responses, options, highest)
    plan = make_plan(options, inputs.identity, inputs.corpus, inputs.vocabulary_size, threshold)
    places = {role: str(folder.path.resolve()) for role, folder in inputs.folders.items() if folder.commit is None}
    places |= {role: folder.name for role, folder in inputs.folders.items() if folder.commit is not None}
    write_json(out, VOCABULARY_FILE, inputs.vocabulary)
    write_json(out, PROVENANCE_FILE, {"models": dict(sorted(places.items())), "data": options.sources.places})
    write_json(out, PLAN_FILE, plan.to_json())
    processes.wait()
    return plan


def write_shards(
    out: Path,
    plan: Plan,
    todo: Sequence[ShardPlan],
    corpus: Corpus,
    scorer: Scorer,
    rule: SupportRule,
    batch_tokens: int,
    *,
    show: bool,
) -> None:
    """Score and write the shards `todo`, with a bar in response tokens. A shard is written while the next is scored."""
    total = sum(shard.positions for shard in todo)
    bar = tqdm(total=total, unit="tok", desc="scoring", smoothing=0.05, disable=not show)
    with bar, ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for shard in todo:
            rows = corpus.responses[shard.first_row : shard.first_row + shard.rows]
            order = batches_by_length(rows, batch_tokens, share_prompts=scorer.share_prompts)
            scores: dict[int, Scores] = {}
            for batch, found in zip(order, scorer.score([[rows[i] for i in b] for b in order], rule), strict=True):
                scores |= zip(batch, found, strict=True)
                bar.update(sum(scores[i].num_positions for i in batch))
            responses = [row.with_scores(scores[i]) for i, row in enumerate(rows)]
            if writing is not None:
                writing.result()  # two shards in memory at most, and an error is seen
            writing = writer.submit(write_shard, out, shard, plan, responses)
        if writing is not None:
            writing.result()


def finish(out: Path, plan: Plan) -> None:
    """Read every shard back, checking it, and write the manifest."""
    reader = BatchReader(out, plan)
    histograms = new_histograms(plan)
    entries = []
    for i, shard in enumerate(tqdm(plan.shards, unit="shard", desc="checking")):
        kept = add_shard(histograms, reader, i)
        path = out / shard.file
        entries.append(ShardEntry(file=shard.file, entries=kept, bytes=path.stat().st_size, sha256=file_sha256(path)))
    statistics = {name: histogram.summary() for name, histogram in histograms.items()}
    manifest = Manifest(plan=plan, entries=tuple(entries), statistics=statistics)
    print(summary_text(manifest))
    write_json(out, MANIFEST_FILE, manifest.to_json())


def _tokens_per_second(scorer: Scorer, corpus: Corpus, rule: SupportRule, batch_tokens: int) -> float | None:
    """The better speed of two passes over a batch of typical rows, for the plan's estimate only.

    None where models are moved in turn: what that costs a token is known after a shard, when the bar shows it.
    """
    if scorer.one_at_a_time:
        return None
    rows = sample_rows(corpus.responses, 16)
    if scorer.share_prompts:
        rows = [row for i in sample_rows(range(len(corpus.responses)), 8) for row in _with_partner(corpus.responses, i)]
    batches = batches_by_length(rows, batch_tokens, share_prompts=scorer.share_prompts)
    batch = [rows[i] for i in batches[len(batches) // 2]]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        positions = sum(scores.num_positions for scores in next(scorer.score([batch], rule)))
        seconds.append(time.perf_counter() - start)
    return positions / min(seconds)


def _with_partner(rows: Sequence[TokenizedResponse], i: int) -> list[TokenizedResponse]:
    """The responses of a row's pair, which stand next to each other."""
    near = rows[max(i - 1, 0) : i + 2]
    return [row for row in near if row.pair_id == rows[i].pair_id]


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _Parser(cast(Any, BuildOptions), prog="python -m precompute.build", description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    build(options)
    Processes.join().leave()


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished shards stay, and the same command goes on from there")
