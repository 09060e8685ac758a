"""A small trio made on the spot: the demo's toy language, a reference trained on it, dpo and reverse by DPO."""

import random
from dataclasses import dataclass
from pathlib import Path

from shards.format.schema import Role

SEED = 0
NUM_TEXTS, NUM_PAIRS, NUM_HELD_OUT_PAIRS = 12_800, 1_000, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Trio:
    """Model folders by role, and files of preference pairs; `held_out` and `data` have no row in common."""

    models: dict[Role, Path]
    data: Path
    held_out: Path


def make_trio(folder: Path) -> Trio:
    """Train and write the three models and their data, in a minute or two. Needs trl (the extra `teachers`)."""
    from examples.demo.grammar import draw
    from examples.demo.models import TEACHER_FLAGS, train_reference, train_tokenizer
    from examples.demo.report import write_jsonl
    from precompute.teachers.__main__ import main as train_teachers

    trio = Trio(
        models={role: folder / role for role in ("dpo", "reverse", "reference")},
        data=folder / "pairs.jsonl",
        held_out=folder / "held-out-pairs.jsonl",
    )
    folder.mkdir(parents=True, exist_ok=True)
    texts, pairs = draw(NUM_TEXTS, NUM_PAIRS, held_out=False, rng=random.Random(SEED))
    _, held_out_pairs = draw(0, NUM_HELD_OUT_PAIRS, held_out=True, rng=random.Random(SEED + 1))
    write_jsonl(trio.data, pairs)
    write_jsonl(trio.held_out, held_out_pairs)
    tokenizer = train_tokenizer(texts)
    train_reference(tokenizer, texts, seed=SEED).save_pretrained(trio.models["reference"])
    tokenizer.save_pretrained(trio.models["reference"])
    places = ["--reference", trio.models["reference"], "--data", trio.data, "--out", folder]
    train_teachers([*map(str, places), "--seed", str(SEED), *TEACHER_FLAGS])
    return trio
