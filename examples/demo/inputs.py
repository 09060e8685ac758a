"""The inputs of the demo: toy preferences and a tiny reference. python -m examples.demo.inputs FOLDER makes both."""

import random
import sys
import textwrap
from pathlib import Path

from examples.demo.grammar import draw
from examples.demo.models import train_reference, train_tokenizer
from examples.demo.report import write_jsonl

SEED = 0
NUM_TEXTS, NUM_PAIRS, NUM_HELD_OUT_PAIRS = 16_000, 1_500, 800


def write_pairs(out: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Write pairs.jsonl and held-out-pairs.jsonl; returns the texts for the reference, and the held-out pairs."""
    texts, pairs = draw(NUM_TEXTS, NUM_PAIRS, held_out=False, rng=random.Random(SEED))
    _, held_out_pairs = draw(0, NUM_HELD_OUT_PAIRS, held_out=True, rng=random.Random(SEED + 1))
    write_jsonl(out / "pairs.jsonl", pairs)
    write_jsonl(out / "held-out-pairs.jsonl", held_out_pairs)
    print(f"{len(texts):,} texts, {len(pairs):,} pairs, {len(held_out_pairs):,} pairs about dishes held out")
    print(textwrap.indent("\n".join(f"{name:>8}  {text.strip()}" for name, text in pairs[0].items()), "  "))
    return texts, held_out_pairs


def write_reference(out: Path, texts: list[str]) -> None:
    """Train a tokenizer and a model on the texts, and save both as `reference`."""
    tokenizer = train_tokenizer(texts)
    reference = train_reference(tokenizer, texts, seed=SEED)
    reference.save_pretrained(out / "reference")
    tokenizer.save_pretrained(out / "reference")
    print(f"{reference.num_parameters():,} parameters, {len(tokenizer)} tokens")


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m examples.demo.inputs FOLDER")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    texts, _ = write_pairs(out)
    write_reference(out, texts)


if __name__ == "__main__":
    main()
