"""Measures our tokenisation, the tokenizer's own on the same texts, the hash of the rows, and recognising a build."""

import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from benchmarks.tokenizing.layouts import make_tokenizer, synthetic_pairs, write_rows
from benchmarks.tokenizing.options import TokenizingOptions
from precompute.build.build import build
from precompute.build.options import BuildOptions
from precompute.data.reader import DataReader
from precompute.data.sources import Data
from precompute.models.folders import identity, load_tokenizer
from precompute.tokens.corpus import load_corpus, rows_sha256
from precompute.tokens.encode import batches, render, text_of
from precompute.tokens.tokenize import requests_of
from shards.format.schema import ROLES
from shards.modelfiles.find import resolve

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@dataclass
class Clock:
    """Seconds of what ran inside `with`, by the clock and of the processor, all its cores together."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __enter__(self) -> "Clock":
        self.seconds -= time.perf_counter()
        self.cpu_seconds -= time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


def seconds_of(work: Callable[[], object]) -> float:
    with Clock() as clock:
        work()
    return clock.seconds


def tokenizing(data: Path, tokenizer: Any, layout: str, repeats: int) -> dict[str, float]:
    """Seconds of each way, by the clock and of the processor, medians, measured in turn; and texts and tokens."""
    responses = "chosen" if layout == "messages" else "both"
    clocks: dict[str, list[Clock]] = {"encode_batch": [], "load_corpus": [], "rows_sha256": []}
    facts: dict[str, float] = {}
    for _ in range(repeats):
        alone, facts = encode_batch_alone(data, tokenizer)
        with Clock() as ours:
            load_corpus(str(data), tokenizer=tokenizer, responses=responses)
        with Clock() as hashing:
            rows_sha256(Data.of(str(data)))
        for found, clock in zip(clocks.values(), (alone, ours, hashing), strict=True):
            found.append(clock)
    seconds = {name: median(clock.seconds for clock in found) for name, found in clocks.items()}
    cpu = {f"{name}_cpu": median(clock.cpu_seconds for clock in found) for name, found in clocks.items()}
    return facts | seconds | cpu


def encode_batch_alone(data: Path, tokenizer: Any) -> tuple[Clock, dict[str, float]]:
    """The time of encode_batch for exactly these texts, in the same batches; reading and rendering do not count."""
    clock, texts, tokens = Clock(), 0, 0
    for batch in batches(requests_of(row, tokenizer) for row in DataReader(Data.of(str(data)))):
        rendered = render([request for _, requests in batch for request in requests.values()], tokenizer)
        given = [text_of(request) for request in rendered]
        with clock:
            found = tokenizer.backend_tokenizer.encode_batch(given)
        texts, tokens = texts + len(found), tokens + sum(len(encoding) for encoding in found)
    return clock, {"texts": texts, "tokens": tokens}


def recognising(options: TokenizingOptions, folder: Path) -> Iterator[dict[str, float]]:
    """For a build of each size: seconds to report that it is done, and seconds to hash its inputs alone."""
    pairs = synthetic_pairs(min(max(options.built_rows), 1_000), 20, options.seed)
    models = tiny_trio(folder, make_tokenizer(pairs))
    for rows in options.built_rows:
        data = folder / f"built-{rows}.jsonl"
        write_rows(data, "text pairs", pairs, rows)
        asked = BuildOptions(
            models=[f"{role}={path}" for role, path in models.items()],
            data=str(data),
            out=str(folder / f"cache-{rows}"),
            max_length=64,
            support="fixed",
            top_k=1,
        )
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            build(asked)
            found = seconds_of(lambda asked=asked: build(asked))
        hashed = seconds_of(lambda data=data: rows_sha256(Data.of(str(data))))
        folders = [resolve(str(path)) for path in models.values()]
        weights = seconds_of(lambda folders=folders: [identity(model) for model in folders])
        tokenizers = seconds_of(lambda folders=folders: [load_tokenizer(model) for model in folders])
        yield {"rows": rows, "build": found, "rows_sha256": hashed, "models": weights, "tokenizers": tokenizers}


def tiny_trio(folder: Path, tokenizer: Any) -> dict[str, Path]:
    found = {}
    for seed, role in enumerate(ROLES):
        set_seed(seed)
        found[role] = folder / "trio" / role
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(found[role])
        tokenizer.save_pretrained(found[role])
    return found
