"""Three models with random weights, a batch of random responses, and the work to measure on them.

Dimensions: N response positions, C of a chunk, H hidden size, V vocabulary, P prompt tokens.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.building.options import BuildingOptions
from benchmarks.step.bench import make_tokenizer, write_models
from precompute.build.options import BuildOptions
from precompute.build.plan import log_threshold, make_plan, support_rule
from precompute.feeding.budget import CPU_BATCH_TOKENS
from precompute.models.folders import load_models
from precompute.models.role_model import RoleModel
from precompute.scoring.packing import pack
from precompute.scoring.partitions import Block, block_size, blocks
from precompute.scoring.score import Hidden, Scorer, hidden_states
from precompute.scoring.support import SupportRule, token_scores, values_on
from precompute.tokens.corpus import Corpus
from precompute.tokens.tally import facts_of
from precompute.tokens.tokenized import TokenizedResponse
from shards.cli.device import resolve_device
from shards.format.finishing import Findings
from shards.format.plan import Plan
from shards.format.schema import Pair
from shards.format.writer import write_shard
from shards.modelfiles.find import resolve

Work = Callable[[], None]
CHUNK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    scorer: Scorer
    rule: SupportRule
    rows: list[TokenizedResponse]
    plan: Plan
    folder: Path


def make_bench(options: BuildingOptions) -> Bench:
    """Write and load the models, set the threshold, plan one shard. Earlier files in --out are replaced."""
    out = Path(options.out)
    shutil.rmtree(out / "models", ignore_errors=True)
    shutil.rmtree(out / "cache", ignore_errors=True)
    folders = write_models(out / "models", make_tokenizer(options.vocabulary), options.models)
    (out / "cache").mkdir(parents=True)
    device = resolve_device(torch, options.device, 0)
    found = {role: resolve(str(folder)) for role, folder in folders.items()}
    models = load_models(found, options.vocabulary, dtype=options.dtype, device=str(device))
    rows = make_rows(options)
    positions = sum(int(row.loss_mask.sum()) for row in rows)
    asked = BuildOptions(
        models=[f"{role}={folder}" for role, folder in folders.items()],
        data="random",
        top_k=options.top_k,
        max_top_k=max(BuildOptions.max_top_k, options.top_k),
        batch_tokens=str(CPU_BATCH_TOKENS),
        chunk_positions=CHUNK,
        tokens_per_shard=positions,
        sample_rows=2,
    )
    scorer = Scorer(models=models, pairs=asked.served_pairs, nodes=asked.nodes, chunk_positions=CHUNK, device=device)
    highest = support_rule(asked, options.vocabulary, None).highest
    threshold = log_threshold(scorer, rows, asked, highest)
    corpus = Corpus(
        responses=rows,
        rows_read=options.pairs,
        facts=facts_of(rows),
        skipped={},
        has_pairs=True,
        data_sha256="",
    )
    plan = make_plan(asked, {}, corpus, options.vocabulary, threshold, index_sha256="")
    rule = support_rule(asked, options.vocabulary, threshold)
    return Bench(scorer=scorer, rule=rule, rows=rows, plan=plan, folder=out / "cache")


def make_rows(options: BuildingOptions) -> list[TokenizedResponse]:
    """Chosen and rejected response of each pair, random tokens after a common prompt."""
    generator = np.random.default_rng(0)
    shape = (options.rows, options.sequence_length)
    ids_BT = generator.integers(3, options.vocabulary, shape).astype(np.int32)
    ids_BT[1::2, : options.prompt_tokens] = ids_BT[::2, : options.prompt_tokens]
    return [
        TokenizedResponse(
            sample_id=f"{i // 2}/{'rejected' if i % 2 else 'chosen'}",
            pair_id=i // 2,
            chosen=i % 2 == 0,
            response_start=options.prompt_tokens,
            input_ids=ids,
            loss_mask=np.arange(len(ids)) >= options.prompt_tokens,
            truncated=False,
            prompt_is_prefix=True,
        )
        for i, ids in enumerate(ids_BT)
    ]


class Works:
    """The work to measure. Each part starts from the output of the part before, which is already in memory."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.sharing = replace(bench.scorer, share_prompts=True)
        self.models = list(bench.scorer.models.values())
        with torch.no_grad():
            self.hidden = [hidden_states(model, bench.rows) for model in self.models]
        self.logprobs = list(next(bench.scorer.chunks([bench.rows])))
        self.kept = [
            bench.rule.select(token_scores(block, self._strengths(block)))
            for logprobs, _ in self.logprobs
            for block in blocks(logprobs)
        ]
        (found,) = bench.scorer.score([bench.rows], bench.rule)
        self.responses = [row.with_scores(scores) for row, scores in zip(bench.rows, found, strict=True)]

    def all(self) -> Mapping[str, Work]:
        """Name -> work; `benchmarks.building.report` says what each is."""
        names = ("floor", "bodies", "heads", "chunks", "score", "distances", "token_scores", "values")
        names += ("shared_bodies", "shared_score")
        return {name: getattr(self, name) for name in (*names, "write", "check")}

    @torch.no_grad()
    def floor(self) -> None:
        for model in self.models:
            self._heads(model, hidden_states(model, self.bench.rows))

    @torch.no_grad()
    def bodies(self) -> None:
        for model in self.models:
            hidden_states(model, self.bench.rows)

    @torch.no_grad()
    def shared_bodies(self) -> None:
        """With --share_prompts."""
        for model in self.models:
            hidden_states(model, self.bench.rows, share_prompts=True)

    def shared_score(self) -> None:
        """With --share_prompts."""
        for _ in self.sharing.score([self.bench.rows], self.bench.rule):
            pass

    def chunks(self) -> None:
        """Output layers, and the log-probs that their logits become in place."""
        scorer = self.bench.scorer
        states = dict(zip(scorer.models, self.hidden, strict=True))
        packed = pack(self.bench.rows, share_prompts=False).moved(lambda tensor: tensor.to(scorer.device))
        for _ in scorer.chunks_of(Hidden(self.bench.rows, states, packed, None)):
            pass

    @torch.no_grad()
    def heads(self) -> None:
        for model, hidden_NH in zip(self.models, self.hidden, strict=True):
            self._heads(model, hidden_NH)

    def token_scores(self) -> None:
        for logprobs, _ in self.logprobs:
            for block in blocks(logprobs):
                token_scores(block, self._strengths(block))

    def values(self) -> None:
        """Includes the blocks' D_t, as `token_scores` does: `distances` alone shows its cost."""
        pairs, nodes, kept = self.bench.scorer.pairs, self.bench.scorer.nodes, iter(self.kept)
        for logprobs, next_ids_C in self.logprobs:
            ids = next_ids_C.split(block_size(logprobs["dpo"]))
            for block, block_ids_C in zip(blocks(logprobs), ids, strict=True):
                values_on(block, block_ids_C, next(kept), pairs=pairs, nodes=nodes)

    def distances(self) -> None:
        for logprobs, _ in self.logprobs:
            for _ in blocks(logprobs):
                pass

    def score(self) -> None:
        """All of the build's work on the batch except the disk."""
        for _ in self.bench.scorer.score([self.bench.rows], self.bench.rule):
            pass

    def write(self) -> None:
        write_shard(self.bench.folder, self.bench.plan.shards[0], self.bench.plan, self.responses)

    def check(self) -> None:
        Findings.nothing(self.bench.plan).read_back(self.bench.folder, self.bench.plan, 0)

    def _heads(self, model: RoleModel, hidden_NH: torch.Tensor) -> None:
        for hidden_CH in hidden_NH.split(CHUNK):
            model.logits(hidden_CH)

    def _strengths(self, block: Block) -> dict[Pair, torch.Tensor]:
        return block.score_strengths(self.bench.scorer.pairs, self.bench.scorer.nodes)
