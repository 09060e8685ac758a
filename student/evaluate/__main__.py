"""python -m student.evaluate: measures trained models on held-out pairs of a cache and by their own samples.

--model with --shards measures one or more models on cached responses: distance to the reference and to the teacher of
their training (recorded in their folders; flags override it), implicit rewards, preference accuracy. --samples with
--scorer scores completions written by python -m precompute.rollout. --against and --samples_against compare them with
another model; each difference has a paired error.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from transformers.hf_argparser import string_to_bool

from shards.cli.command import OneLineErrors, require_at_least, run_command
from shards.cli.device import Dtype, resolve_device, resolve_dtype, set_products
from shards.cli.flags.cache_flags import add_cache_flags
from shards.cli.flags.quiet_flag import add_quiet_flag
from shards.cli.flags.teacher_flags import add_teacher_flags
from shards.errors import OptionError
from shards.format.writer import write_text
from shards.progress import commanded
from shards.teacher.divergence import DivergenceName
from student.evaluate.judge import on_cache
from student.evaluate.report import report_text
from student.evaluate.scorers import find_scorer
from student.evaluate.win_rate import win_rate


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """The report, as JSON values. Raises AlignDistilError."""
    _require_enough(options)
    device = resolve_device(torch, options.device)
    options.dtype = resolve_dtype(options.dtype, device)
    set_products(torch, dtype=options.dtype, tf32=options.tf32, device=device)
    report = {} if options.model is None else on_cache(options)
    return report if options.samples is None else report | {"samples": _on_samples(options)}


def _on_samples(options: argparse.Namespace) -> dict[str, Any]:
    scorer = find_scorer(
        options.scorer,
        device=resolve_device(torch, options.device),
        dtype=options.dtype,
        batch_size=options.batch_size,
        trust_remote_code=options.trust_remote_code,
    )
    names = {"file": options.samples, "file_against": options.samples_against}
    named = {name: None if file is None else str(file) for name, file in names.items()}
    return named | {"scorer": options.scorer} | win_rate(options.samples, options.samples_against, scorer)


def _require_enough(options: argparse.Namespace) -> None:
    if options.model is None and options.samples is None:
        raise OptionError("model: expected --model with --shards, or --samples with --scorer, got neither")
    for name, other in (
        ("model", "shards"),
        ("shards", "model"),
        ("against", "model"),
        ("samples", "scorer"),
        ("scorer", "samples"),
        ("samples_against", "samples"),
    ):
        if getattr(options, name) is not None and getattr(options, other) is None:
            raise OptionError(f"{other}: expected with --{name}, got none")
    require_at_least(options, 1, ("batch_size", "chunk_positions"))
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"expected one process, got {os.environ['WORLD_SIZE']} of a launcher; start it with python alone"
        )
    if options.json is not None:
        _require_writable(options.json)


def _require_writable(file: Path) -> None:
    """Raise OptionError, before the work, if the file for its results cannot be written."""
    if file.is_dir() or not file.parent.is_dir():
        raise OptionError(f"json: expected a file in a folder that is there, got {file}")
    try:
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as exc:
        raise OptionError(f"json: expected a place to write to, got {file} ({exc.strerror})") from exc


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineErrors(prog="python -m student.evaluate", description=__doc__)

    def add(name: str, **kwargs: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, **kwargs)

    add("model", metavar="DIR", nargs="+", help="the models: folders (adapters' too) or hub names, one or more")
    add("against", metavar="DIR", help="another model to compare each of them with, such as the reference")
    add("shards", metavar="DIR", help="cache of held-out pairs, built with --responses both (or chosen)")
    add_cache_flags(parser)
    add_quiet_flag(parser)
    add("divergence", choices=get_args(DivergenceName), help="default: as recorded by the first model")
    add(
        "jsd_weight", type=float, help="the teacher's share in the mixture of the generalised JSD; default: as recorded"
    )
    add_teacher_flags(parser, default="the recorded teacher of the first model with a record, else the first preset")
    add("samples", metavar="FILE", type=Path, help="the model's completions, as precompute.rollout writes them")
    add("samples_against", metavar="FILE", type=Path, help="completions of the other model, for the same prompts")
    add("scorer", metavar="NAME", help="a reward model's folder or hub name, module:function or file.py:function")
    add("json", metavar="FILE", type=Path, help="write the report to this file too, for machines")
    add(
        "dtype", choices=get_args(Dtype), default="auto", help="of all models; auto: float32 on a CPU, float16 on a GPU"
    )
    products = "with --dtype float32 on a GPU: round the factors of products to TF32's ten bits"
    add("tf32", type=string_to_bool, nargs="?", const=True, default=False, help=products)
    add("device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("attn_implementation", help="as in transformers' from_pretrained")
    add("trust_remote_code", action="store_true", help="run code that comes with a model")
    add("batch_size", type=int, default=8, help="responses per forward pass")
    add("chunk_positions", type=int, default=256, help="response positions with logits in memory at a time")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with commanded(quiet=options.quiet):
        report = evaluate(options)
    print(report_text(report))
    if options.json is not None:
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            write_text(options.json.parent, options.json.name, text)
        except OSError as exc:
            raise OptionError(f"json: expected a place to write to, got {options.json} ({exc.strerror})") from exc


if __name__ == "__main__":
    run_command(main)
