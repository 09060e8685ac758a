"""Everything that a seed draws before any alignment: data, tokenizer, reference, judge."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.alignment.judge import Judge
from benchmarks.alignment.options import AlignmentOptions
from benchmarks.alignment.task import draw_pairs, draw_texts, judge_accuracy, make_tokenizer, prompts, true_reward
from examples.demo.models import train_reference
from examples.demo.report import write_jsonl
from shards.format.schema import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """pairs, few, thirds   files of preference pairs: all, the first of them, all in three parts
    held_out  the same, about other dishes
    judge     maps a model to its quality; has the reference that all start from
    ceiling   share of the held-out pairs that the true reward itself gets right
    """

    seed: int
    folder: Path
    reference: Path
    pairs: Path
    few: Path
    thirds: Sequence[Path]
    held_out: Path
    ceiling: float
    judge: Any

    def models(self, teachers: Path) -> dict[Role, Path]:
        return {"dpo": teachers / "dpo", "reverse": teachers / "reverse", "reference": self.reference}


def make_world(folder: Path, seed: int, options: AlignmentOptions) -> World:
    """Draw the data and train the reference. Everything is a function of seed and options."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    texts = draw_texts(options.texts, rng)
    pairs = draw_pairs(options.pairs, held_out=False, rng=rng)
    held_out = draw_pairs(options.held_out_pairs, held_out=True, rng=rng)
    thirds = [folder / f"pairs-{part}.jsonl" for part in (1, 2, 3)]
    for part, path in enumerate(thirds):
        write_jsonl(path, pairs[part * len(pairs) // 3 : (part + 1) * len(pairs) // 3])
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "few.jsonl", pairs[: options.few_pairs])
    write_jsonl(folder / "held-out.jsonl", held_out)
    tokenizer = make_tokenizer()
    reference = train_reference(tokenizer, texts, seed=seed, hidden_size=options.hidden_size)
    reference.save_pretrained(folder / "reference")
    tokenizer.save_pretrained(folder / "reference")
    asked = prompts(held_out=True)
    return World(
        seed=seed,
        folder=folder,
        reference=folder / "reference",
        pairs=folder / "pairs.jsonl",
        few=folder / "few.jsonl",
        thirds=thirds,
        held_out=folder / "held-out.jsonl",
        ceiling=judge_accuracy(held_out),
        judge=Judge(
            reference,
            tokenizer,
            [prompt for prompt, _ in asked],
            lambda number, response: true_reward(asked[number][1], response),
            samples_per_prompt=options.samples_per_prompt,
            seed=seed,
        ),
    )
