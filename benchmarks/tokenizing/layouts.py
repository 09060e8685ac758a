"""The data to tokenise: pairs of text, in several layouts, and a tokenizer trained on such text."""

import json
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Pair = tuple[str, str, str]
"""Prompt, chosen and rejected response."""

LAYOUTS = ("text pairs", "chat pairs", "messages")
SPECIAL = ["</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def in_layout(layout: str, pair: Pair) -> dict[str, Any]:
    """A pair as a row of data; "messages" has the chosen response alone."""
    prompt, chosen, rejected = pair
    if layout == "text pairs":
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    asked = [{"role": "user", "content": prompt}]
    answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    if layout == "chat pairs":
        return {"prompt": asked, "chosen": answers[0], "rejected": answers[1]}
    return {"messages": asked + answers[0]}


def write_rows(path: Path, layout: str, pairs: Iterable[Pair], rows: int) -> None:
    """The pairs in turn, again and again, as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for pair in islice(cycle(pairs), rows):
            file.write(json.dumps(in_layout(layout, pair)) + "\n")


def synthetic_pairs(count: int, words: int, seed: int) -> list[Pair]:
    """Text of made-up words whose frequencies are as uneven as in a language."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("eeeetttaaoooiinnsshhrrdlcumwfgypbvk"))
    lexicon = ["".join(generator.choice(letters, size)) for size in generator.integers(2, 11, 20_000)]

    def texts() -> Iterator[str]:
        while True:
            size = int(generator.integers(words // 2, words * 3 // 2 + 1))
            ranks = np.minimum(generator.zipf(1.2, size) - 1, len(lexicon) - 1)
            yield " ".join(lexicon[rank] for rank in ranks) + "."

    make = texts()
    return [(next(make)[: 3 * words], f" {next(make)}", f" {next(make)}") for _ in range(count)]


def make_tokenizer(pairs: Iterable[Pair]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 8,000 tokens with a chat template, trained on the pairs."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8_000,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((" ".join(pair) for pair in pairs), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = CHAT
    return tokenizer
