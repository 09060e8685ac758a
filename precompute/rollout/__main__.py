"""python -m precompute.rollout: samples a model's responses to prompts into a prompt-completion file.

precompute.build takes the file with --data, and student.evaluate with --samples. After a kill, the same command with
the same file continues.

A response that --max_new_tokens cut has `truncated` true. The build ignores that: as with any response of this layout,
it adds the end-of-sequence token, or what the chat template puts after a turn.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from precompute.models.folders import load_merged
from precompute.rollout.completion import sample_row
from precompute.rollout.file import SampleFile
from precompute.rollout.inputs import RolloutInputs, find_sources, read_inputs
from precompute.rollout.options import RolloutOptions
from precompute.rollout.sampling import Engine, Request, TransformersEngine
from precompute.rollout.vllm_engine import load_vllm
from shards.cli.command import parse_dataclasses, run_command
from shards.cli.launcher import launched_processes
from shards.cli.outside import naming_saves
from shards.cli.space import require_writable
from shards.errors import OptionError
from shards.locks.lock import clear_left, exclusive_file, holds
from shards.progress import commanded, progress
from shards.say import say, warn


def rollout(options: RolloutOptions) -> Path:
    """Sample the requested file, finish it, or recognise it as done. Raises AlignDistilError."""
    if launched_processes() > 1:
        raise OptionError("expected one process; give each its own part of the data, or use --engine vllm")
    path = Path(options.out)
    with contextlib.ExitStack() as stack:
        if not path.exists():  # a finished file is only recognised or refused, by any number of commands
            _alone(path, stack)
        return _rollout(options, path, stack)


def _alone(path: Path, stack: contextlib.ExitStack) -> None:
    """Keep other commands away from the file as long as `stack` is open."""
    require_writable(path.parent)
    if not holds(path):
        with naming_saves("out"):
            stack.enter_context(exclusive_file(path))


def _rollout(options: RolloutOptions, path: Path, stack: contextlib.ExitStack) -> Path:
    sources = find_sources(options)
    file = SampleFile(path, sources.identity)
    if file.is_done:
        return _found(file)
    inputs = read_inputs(options, sources)
    for note in inputs.notes:
        say(f"{'note':>14}  {note}")
    for warning in inputs.warnings:
        warn(warning)
    engine = load_engine(options, inputs)
    _alone(path, stack)  # it may have been removed meanwhile
    file.begin()
    rows = sample_all(file, engine, inputs, inputs.requests(options.num_samples_per_prompt), options.batch_size)
    file.finish(rows)
    say(summary_text(rows, inputs.skipped))
    say(f"{path}: done")
    return path


def _found(file: SampleFile) -> Path:
    """Report a finished file and leave it unchanged."""
    file.clean()
    clear_left(file.path)
    say(f"{file.path}: already sampled from the same inputs, nothing to do")
    return file.path


def load_engine(options: RolloutOptions, inputs: RolloutInputs) -> Engine:
    """The engine, with the model loaded."""
    trust = options.trust_remote_code
    if options.engine == "vllm":
        return load_vllm(inputs.folder, inputs.sampling, dtype=inputs.dtype, trust_remote_code=trust)
    model = load_merged(
        inputs.folder,
        "model",
        dtype=inputs.dtype,
        device=str(inputs.device),
        attn_implementation=options.attn_implementation,
        trust_remote_code=trust,
    )
    return TransformersEngine(model, inputs.sampling, pad_token_id=inputs.tokenizer.pad_token_id or 0)


def sample_all(
    file: SampleFile, engine: Engine, inputs: RolloutInputs, requests: Sequence[Request], batch_size: int
) -> list[dict[str, Any]]:
    """The rows of all requests: those left by a killed run, and the others, sampled a batch at a time."""
    rows = file.keep([(request.prompt, request.sample) for request in requests], batch_size)
    with progress(None, "sampling", total=len(requests), initial=len(rows), unit="sample") as bar:
        for start in range(len(rows), len(requests), batch_size):
            batch = requests[start : start + batch_size]
            found = [
                sample_row(
                    inputs.prompts[request.prompt],
                    request.sample,
                    token_ids,
                    truncated=truncated,
                    tokenizer=inputs.tokenizer,
                )
                for request, (token_ids, truncated) in zip(batch, engine.sample(batch), strict=True)
            ]
            file.append(found)
            rows += found
            bar.update(len(batch))
    return rows


def summary_text(rows: Sequence[dict[str, Any]], skipped: int) -> str:
    """The number of samples, their length, and what a build of them will report."""
    empty, cut = sum(not row["tokens"] for row in rows), sum(row["truncated"] for row in rows)
    other = sum(not row["same_tokens"] for row in rows)
    mean = sum(row["tokens"] for row in rows) / len(rows)
    lines = {
        "samples": f"{len(rows):,} of {mean:,.1f} tokens on average, {cut:,} cut at max_new_tokens"
        + (f"; {skipped:,} prompts skipped as overlong" if skipped else ""),
        "empty": f"{empty:,}" + ("; build with --on_empty skip" if empty else ""),
        "other tokens": f"{other:,} whose text the build reads as other tokens than were sampled",
    }
    return "\n".join(f"{name:>14}  {text}" for name, text in lines.items())


def main(arguments: Sequence[str] | None = None) -> None:
    (options,) = parse_dataclasses(HfArgumentParser, RolloutOptions, "precompute.rollout", __doc__, arguments)
    with commanded(quiet=options.quiet):
        rollout(options)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished batches stay, and the same command continues from there")
