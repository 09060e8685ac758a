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

from precompute.corpus import Corpus, load_corpus, rows_sha256
from precompute.made_from import direction_warnings
from precompute.models import ModelFolder, check_vocabularies, identity, load_models, load_tokenizer, resolve
from precompute.options import BuildOptions
from precompute.plan import (
    build_identity,
    holds_build,
    log_threshold,
    make_plan,
    read_earlier,
    resolve_device,
    support_rule,
    with_tokens,
)
from precompute.preferences import sample_directions
from precompute.processes import Processes
from precompute.report import (
    bytes_per_position,
    corpus_warnings,
    directions_text,
    plan_text,
    shared_text,
    summary_text,
)
from precompute.roles import require_different_models
from precompute.score import Scorer, batches_by_length, require_shared_prompts
from precompute.share import load_on_first
from precompute.spread import sample_rows
from precompute.support import SupportRule
from precompute.tokenize import TokenizedResponse
from shards import ShardCache
from shards.batches import BatchReader
from shards.command import OneLineErrors, run_command
from shards.directions import measure_directions
from shards.errors import CacheConflict, DataError, OptionError
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
from shards.space import require_space, require_writable
from shards.statistics import add_shard, new_histograms
from shards.writer import exclusive, remove_temporary_files, write_json, write_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a build is asked to read, by names and hashes; `corpus` where it was tokenised on the way."""

    folders: dict[Role, ModelFolder]
    vocabulary: dict[str, int]
    tokenizer: Any
    identity: dict[str, Any]
    corpus: Corpus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a build has read, before any model is loaded."""

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
    sources = processes.together(lambda: find_sources(options, processes))
    processes.require_equal(sources.identity)
    earlier = processes.together(lambda: read_earlier(out, sources.identity))
    if isinstance(earlier, Manifest):
        found = processes.together(lambda: ShardCache(out).manifest)  # done is what has every shard in its place
        if processes.is_first:
            print(f"{out}: already built from the same inputs, nothing to do")
        return found
    processes.together(lambda: require_writable(out))
    inputs = read_inputs(options, sources, processes)
    earlier = processes.together(lambda: cast(Plan | None, read_earlier(out, inputs.identity)))
    scorer = processes.together(lambda: load_scorer(options, inputs, processes))
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        processes.together(lambda: stack.enter_context(exclusive(out)) if processes.is_first else None)
        return _build(out, options, inputs, scorer, processes, earlier)


def _build(
    out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer, processes: Processes, earlier: Plan | None
) -> Manifest:
    """Plan, shards, manifest."""
    plan = earlier or begin(out, options, inputs, scorer, processes)
    rule = support_rule(options, inputs.vocabulary_size, plan.log_threshold)
    todo = [shard for shard in plan.shards if not (out / shard.file).exists()]
    processes.together(lambda: announce(out, options, inputs, plan, todo, scorer, rule, processes))
    left = set(todo)
    mine = [shard for i, shard in enumerate(plan.shards) if processes.owns(i) and shard in left]
    write_shards(out, plan, mine, inputs.corpus, scorer, rule, options.batch_tokens, show=processes.is_first)
    processes.wait()
    if processes.is_first:
        finish(out, plan)
        if options.responses == "both" and (found := measure_directions(ShardCache(out))):
            print(directions_text(found))
        print(f"{out}: done")
    processes.wait()
    return read_manifest(out)


def announce(
    out: Path,
    options: BuildOptions,
    inputs: Inputs,
    plan: Plan,
    todo: Sequence[ShardPlan],
    scorer: Scorer,
    rule: SupportRule,
    processes: Processes,
) -> None:
    """Say what will be done, and what looks wrong with it, before the work; the first process for all.

    Raises OptionError where the disk has no room for the shards `todo`.
    """
    if not processes.is_first:
        return
    remove_temporary_files(out)
    projected = sum(shard.positions for shard in todo) * bytes_per_position(plan, options.top_k)
    warnings = [require_space(out, projected)]
    speed = _tokens_per_second(scorer, inputs.corpus, rule, options.batch_tokens)
    print(plan_text(plan, inputs.corpus, todo, options.top_k, speed and speed * processes.world_size))
    if options.share_prompts:
        print(shared_text(inputs.corpus.facts))
    if todo:
        sample, batch_tokens = options.sample_rows, options.batch_tokens
        if found := sample_directions(inputs.corpus, scorer, sample=sample, batch_tokens=batch_tokens):
            print(directions_text(found))
    warnings += [*direction_warnings(inputs.folders, inputs.identity["models"]), *corpus_warnings(inputs.corpus)]
    for warning in filter(None, warnings):
        print(f"warning: {warning}")


def find_sources(options: BuildOptions, processes: Processes) -> Sources:
    """Find the models, compare their tokenizers, hash the data.

    Where no build was begun the first process tokenises them while it is at it.
    """
    folders = {role: resolve(name) for role, name in options.model_names.items()}
    trust = options.trust_remote_code
    tokenizers = {role: load_tokenizer(folder, trust_remote_code=trust) for role, folder in folders.items()}
    vocabulary = check_vocabularies(tokenizers)
    size = max(vocabulary.values()) + 1
    if options.top_k > size:
        raise OptionError(f"top_k: expected at most the vocabulary's {size} tokens, got {options.top_k}")
    models = {role: identity(folder, trust_remote_code=trust) for role, folder in folders.items()}
    require_different_models(models, folders)
    device = resolve_device(options.device, processes.local_rank)
    tokenizer, corpus = tokenizers["reference"], None
    if processes.is_first and not holds_build(Path(options.out)):
        require_writable(Path(options.out))
        corpus = tokenized(options, tokenizer)
        data_sha256 = corpus.data_sha256
    else:
        show = processes.is_first
        data_sha256 = rows_sha256(options.data, split=options.split, limit=options.limit, progress=show)
    asked = build_identity(options, device, models, tokenizer, data_sha256)
    return Sources(folders=folders, vocabulary=vocabulary, tokenizer=tokenizer, identity=asked, corpus=corpus)


def tokenized(options: BuildOptions, tokenizer: Any) -> Corpus:
    return load_corpus(
        options.data,
        tokenizer=tokenizer,
        split=options.split,
        responses=options.responses,
        max_length=options.max_length,
        limit=options.limit,
        on_overlong=options.on_overlong,
        on_empty=options.on_empty,
        sample_pairs=options.sample_rows,
        progress=True,
    )


def read_inputs(options: BuildOptions, sources: Sources, processes: Processes) -> Inputs:
    """The data, tokenised by the first process for all."""
    corpus = load_on_first(lambda: sources.corpus or tokenized(options, sources.tokenizer), processes)
    if corpus.data_sha256 != sources.identity["data"]["rows_sha256"]:
        raise DataError(f"{options.data}: expected the rows of a minute ago, got others; is it still being written?")
    asked = with_tokens(sources.identity, corpus.tokens_sha256)
    return Inputs(folders=sources.folders, vocabulary=sources.vocabulary, corpus=corpus, identity=asked)


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
    data = str(Path(options.data).resolve()) if Path(options.data).exists() else options.data
    write_json(out, PROVENANCE_FILE, {"models": dict(sorted(places.items())), "data": data})
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
