"""python -m precompute.rollout: a model's own responses to the prompts of some data -> a prompt-completion file.

precompute.build takes the file with --data, and student.evaluate with --samples. A run that was killed goes on where it
stopped when the same command is given again, to the same file.

A response that --max_new_tokens cut has `truncated` true. The build does not know: like any other response of that
layout it closes it with the end-of-sequence token, or with what the chat template puts behind a turn.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, GenerationConfig, HfArgumentParser

from precompute.completion import sample_row
from precompute.models import ModelFolder, identity, load_merged, load_tokenizer, resolve
from precompute.plan import numerics, require_writable, resolve_device
from precompute.prompts import Prompt, load_prompts
from precompute.rollout_options import RolloutOptions
from precompute.sample_file import SampleFile
from precompute.sampling import Engine, Request, Sampling, TransformersEngine
from precompute.vllm_engine import load_vllm
from shards.command import OneLineErrors, run_command
from shards.errors import DataError, ModelError, OptionError
from shards.manifest import canonical_json
from shards.model_folder import refusing
from shards.writer import exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a rollout reads before any model is loaded; the prompts that fit into the model, by their number."""

    folder: ModelFolder
    tokenizer: Any
    prompts: dict[int, Prompt]
    skipped: int
    sampling: Sampling
    device: torch.device
    identity: dict[str, Any]

    def requests(self, num_samples: int) -> list[Request]:
        """All samples, those of the longest prompts first: batches are little padded, and the first is the largest."""
        order = sorted(self.prompts.values(), key=lambda prompt: (-len(prompt.token_ids), prompt.id))
        return [
            Request(prompt=prompt.id, sample=sample, token_ids=prompt.token_ids)
            for prompt in order
            for sample in range(num_samples)
        ]


def rollout(options: RolloutOptions) -> Path:
    """Sample, finish or recognise the file that the options ask for. Raises AlignDistilError."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("expected one process; give each its own part of the data, or use --engine vllm")
    path = Path(options.out)
    inputs = read_inputs(options)
    file = SampleFile(path, inputs.identity)
    if file.is_done:
        file.clean()
        print(f"{path}: already sampled from the same inputs, nothing to do")
        return path
    require_writable(path.parent)
    engine = load_engine(options, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.begin()
    with exclusive(file.partial):
        rows = sample_all(file, engine, inputs, inputs.requests(options.num_samples_per_prompt), options.batch_size)
        file.finish(rows)
    print(summary_text(rows, inputs.skipped))
    print(f"{path}: done")
    return path


def read_inputs(options: RolloutOptions) -> Inputs:
    """Find the model, tokenise the prompts, and say what the samples depend on."""
    folder = resolve(options.model)
    trust = options.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    found = load_prompts(options.data, tokenizer=tokenizer, split=options.split, limit=options.limit)
    room = _room(folder, trust_remote_code=trust)
    prompts = {prompt.id: prompt for prompt in found.prompts if _fits(prompt, room, options)}
    if not prompts:
        raise DataError(f"{options.data}: no prompt leaves room for {options.max_new_tokens} tokens out of {room}")
    device = resolve_device(options.device, 0)
    vocabulary = tokenizer.get_vocab()
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        end_ids=end_ids(folder, tokenizer),
        vocabulary_size=max(vocabulary.values()) + 1,
    )
    texts = {"vocabulary_sha256": vocabulary, "chat_template_sha256": tokenizer.chat_template}
    return Inputs(
        folder=folder,
        tokenizer=tokenizer,
        prompts=prompts,
        skipped=len(found.prompts) - len(prompts),
        sampling=sampling,
        device=device,
        identity={
            "options": options.identity(),
            "model": identity(folder, trust_remote_code=trust),
            "tokenizer": {name: hashlib.sha256(canonical_json(text)).hexdigest() for name, text in texts.items()},
            "end_ids": list(sampling.end_ids),
            "data": {"prompts_sha256": found.sha256},
            "numerics": _numerics(options, device),
        },
    )


def end_ids(folder: ModelFolder, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's end-of-sequence token and those that the model's folder names.

    Raises ModelError where there is none.
    """
    path = (folder.base or folder).path
    if (path / "generation_config.json").is_file():
        with refusing(folder.name, "a generation_config.json that can be read"):
            named = GenerationConfig.from_pretrained(path).eos_token_id
    else:
        named = None
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    if not found:
        raise ModelError(f"{folder.name}: expected an end-of-sequence token, got none")
    return tuple(sorted(found))


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


def _room(folder: ModelFolder, *, trust_remote_code: bool) -> int | None:
    """Positions of the model; None where it has no limit."""
    with refusing(folder.name, "a model that transformers knows"):
        config = AutoConfig.from_pretrained((folder.base or folder).path, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _fits(prompt: Prompt, room: int | None, options: RolloutOptions) -> bool:
    length = len(prompt.token_ids)
    if room is None or length + options.max_new_tokens <= room:
        return True
    if options.on_overlong == "error":
        raise DataError(
            f"{prompt.where}: expected a prompt that leaves {options.max_new_tokens} of {room} tokens "
            f"(max_new_tokens, max_position_embeddings), got one of {length}"
        )
    return False


def _numerics(options: RolloutOptions, device: torch.device) -> dict[str, Any]:
    found = numerics(options.dtype, options.attn_implementation, None, device)
    if options.engine == "vllm":
        versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions(name="vllm")}
        found["versions"] |= versions
    return found


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _Parser(cast(Any, RolloutOptions), prog="python -m precompute.rollout", description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    rollout(options)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished batches stay, and the same command goes on from there")
