"""Models with random weights, random data, and the cache that the real build makes of them."""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.step.options import StepOptions
from precompute.build.build import build
from precompute.build.options import BuildOptions
from precompute.build.plan import support_rule
from precompute.feeding.budget import chunk_positions_for
from precompute.models.folders import load_models
from precompute.scoring.score import Scorer
from precompute.scoring.support import SupportRule
from shards.cli.device import resolve_device
from shards.format.schema import ROLES, Role
from shards.modelfiles.find import resolve
from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.trainer import DistillTrainer

SPECIAL = ("<pad>", "<s>", "</s>")
LOGIT_DEVIATION = 4.0
"""Scale of the random models' logits. Standard normal logits would give ln V - 8 nats of entropy, 2.4 at V = 32,000."""
MOVED = 0.01
"""How far dpo and reverse move each weight of the reference, relative to its size."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """What is measured.

    trainer        its model is the student, a copy of the reference; its data is the cache
    live           dpo and reverse, for the online step
    scorer, rule   what the build scores with
    build_seconds  of the whole build of the cache, all its rows: models loaded, threshold set, shards written; by the
                   "clock" and of the "processor"
    """

    trainer: DistillTrainer
    live: Mapping[Role, Any]
    scorer: Scorer
    rule: SupportRule
    build_seconds: Mapping[str, float]


def make_bench(options: StepOptions) -> Bench:
    """Write three models and their data, build the cache, load everything. Earlier ones in --out are replaced."""
    out = Path(options.out)
    for name in ("models", "cache", "scratch"):
        shutil.rmtree(out / name, ignore_errors=True)
    tokenizer = make_tokenizer(options.vocabulary)
    folders = write_models(out / "models", tokenizer, options)
    asked = BuildOptions(
        models=[f"{role}={folder}" for role, folder in folders.items()],
        data=str(write_data(out / "data.jsonl", options)),
        out=str(out / "cache"),
        max_length=options.sequence_length,
        top_k=options.top_k,
        max_top_k=min(max(512, options.top_k), options.vocabulary),
        dtype=options.dtype,
        device=options.device,
        sample_rows=options.rows,
    )
    started, used = time.perf_counter(), time.process_time()
    threshold = build(asked).plan.log_threshold
    build_seconds = {"clock": time.perf_counter() - started, "processor": time.process_time() - used}
    device = resolve_device(torch, options.device, 0)
    found = {role: resolve(str(folder)) for role, folder in folders.items()}
    models = load_models(found, options.vocabulary, dtype=options.dtype, device=str(device))
    chunk = chunk_positions_for(device)
    return Bench(
        trainer=make_trainer(folders["reference"], tokenizer, options, device),
        live={role: models[role].model.requires_grad_(False) for role in ("dpo", "reverse")},
        scorer=Scorer(models=models, pairs=asked.served_pairs, nodes=asked.nodes, chunk_positions=chunk, device=device),
        rule=support_rule(asked, options.vocabulary, threshold),
        build_seconds=build_seconds,
    )


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a word, w3, w4 and so on, after the special ones."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), size))])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def write_models(folder: Path, tokenizer: Any, options: StepOptions) -> dict[Role, Path]:
    """The reference with random weights, dpo and reverse near it."""
    torch.manual_seed(0)
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.hidden_size,
            intermediate_size=options.hidden_size * 11 // 4,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.heads,
            max_position_embeddings=options.sequence_length,
            tie_word_embeddings=False,  # with random weights every token would predict itself
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():  # hidden states have entries of size 1
        reference.lm_head.weight.normal_(std=LOGIT_DEVIATION / math.sqrt(options.hidden_size))
    start = {name: weight.clone() for name, weight in reference.state_dict().items()}
    folders: dict[Role, Path] = {role: folder / role for role in ROLES}
    for role, path in folders.items():
        if role != "reference":
            noise = {name: weight + MOVED * weight.std() * torch.randn_like(weight) for name, weight in start.items()}
            reference.load_state_dict(
                {name: noise[name] if weight.ndim > 1 else weight for name, weight in start.items()}
            )
        else:
            reference.load_state_dict(start)
        reference.to(getattr(torch, options.dtype)).save_pretrained(path)
        reference.float()
        tokenizer.save_pretrained(path)
    return folders


def write_data(path: Path, options: StepOptions) -> Path:
    """Rows of random words for every batch of the loader."""
    generator = np.random.default_rng(0)
    words = options.sequence_length - 1  # the build adds the end token
    ids = generator.integers(len(SPECIAL), options.vocabulary, (options.rows * options.loader_batches, words))
    rows = [[f"w{i}" for i in row] for row in ids]
    cut = options.prompt_tokens
    data = [{"prompt": " ".join(row[:cut]), "completion": " " + " ".join(row[cut:])} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path


def make_trainer(student: Path, tokenizer: Any, options: StepOptions, device: torch.device) -> DistillTrainer:
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32")
    args = DistillArguments(
        output_dir=str(Path(options.out) / "scratch"),
        per_device_train_batch_size=options.rows,
        global_batch_size=options.rows,
        chunk_positions=options.chunk_positions,
        bf16=False,
        use_cpu=device.type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    data = CachedResponses([Path(options.out) / "cache"])
    trainer = DistillTrainer(model.train(), args, data, processing_class=tokenizer)
    trainer.model.to(getattr(torch, options.dtype))  # which a trainer refuses; here a step ends before the optimizer
    return trainer
