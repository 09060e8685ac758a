"""python -m precompute.rollout: a model's own responses to the prompts of some data -> a prompt-completion file.

precompute.build takes the file with --data, and student.evaluate with --samples. A run that was killed goes on where it
stopped when the same command is given again, to the same file.

A response that --max_new_tokens cut has `truncated` true. The build does not know: like any other response of that
layout it closes it with the end-of-sequence token, or with what the chat template puts behind a turn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm
from transformers import HfArgumentParser

from precompute.completion import sample_row
from precompute.models import load_merged
from precompute.rollout_inputs import Inputs, find_sources, read_inputs
from precompute.rollout_options import RolloutOptions
from precompute.sample_file import SampleFile
from precompute.sampling import Engine, Request, TransformersEngine
from precompute.vllm_engine import load_vllm
from shards.command import OneLineErrors, run_command
from shards.errors import OptionError
from shards.launcher import launched_processes
from shards.outside import naming_saves
from shards.space import require_writable


def rollout(options: RolloutOptions) -> Path:
    """Sample, finish or recognise the file that the options ask for. Raises AlignDistilError."""
    if launched_processes() > 1:
        raise OptionError("expected one process; give each its own part of the data, or use --engine vllm")
    path = Path(options.out)
    sources = find_sources(options)
    file = SampleFile(path, sources.identity)
    if file.is_done:
        return _found(file)
    require_writable(path.parent)
    inputs = read_inputs(options, sources)
    for note in inputs.notes:
        print(f"{'note':>14}  {note}")
    engine = load_engine(options, inputs)
    with naming_saves("out"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with file.begun():
        if file.is_done:
            return _found(file)
        rows = sample_all(file, engine, inputs, inputs.requests(options.num_samples_per_prompt), options.batch_size)
        file.finish(rows)
    print(summary_text(rows, inputs.skipped))
    print(f"{path}: done")
    return path


def _found(file: SampleFile) -> Path:
    """Leave a finished file as it is."""
    file.clean()
    print(f"{file.path}: already sampled from the same inputs, nothing to do")
    return file.path


def load_engine(options: RolloutOptions, inputs: Inputs) -> Engine:
    """What samples, with the model loaded."""
    trust = options.trust_remote_code
    if options.engine == "vllm":
        return load_vllm(inputs.folder, inputs.sampling, dtype=options.dtype, trust_remote_code=trust)
    model = load_merged(
        inputs.folder,
        "model",
        dtype=options.dtype,
        device=str(inputs.device),
        attn_implementation=options.attn_implementation,
        trust_remote_code=trust,
    )
    return TransformersEngine(model, inputs.sampling, pad_token_id=inputs.tokenizer.pad_token_id or 0)


def sample_all(
    file: SampleFile, engine: Engine, inputs: Inputs, requests: Sequence[Request], batch_size: int
) -> list[dict[str, Any]]:
    """The rows of all requests: those that a killed run left, and the others, a batch at a time."""
    rows = file.keep([(request.prompt, request.sample) for request in requests], batch_size)
    with tqdm(total=len(requests), initial=len(rows), unit="sample", desc="sampling", smoothing=0.05) as bar:
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
    """How many samples there are, how long, and what a build of them will meet."""
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


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _Parser(cast(Any, RolloutOptions), prog="python -m precompute.rollout", description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    rollout(options)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished batches stay, and the same command goes on from there")
