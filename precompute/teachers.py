"""python -m precompute.teachers: a reference and preference pairs -> the models dpo and reverse, with TRL's DPOTrainer.

Takes the flags of TRL's DPOConfig, for both trainings alike. A training that was killed goes on from its last
checkpoint when the same command is given again.
"""

import contextlib
import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import HfArgumentParser

from precompute.corpus import load_corpus
from precompute.made_from import DIRECTIONS
from precompute.models import ModelFolder, identity, load_tokenizer, resolve
from precompute.pairs import TokenizedPair, whole_pairs
from precompute.plan import require_writable
from precompute.report import counted, skipped_text
from precompute.teacher_folders import is_done, last_checkpoint, remove_training, training_folder
from precompute.teacher_options import TeacherOptions
from shards.command import OneLineErrors, run_command
from shards.errors import OptionError
from shards.schema import Role
from shards.writer import exclusive

if TYPE_CHECKING:
    from precompute.dpo_arguments import DPOArguments

LIBRARIES = ("aligndistil-offline", "trl", "transformers", "torch", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the trainings read, before any model is loaded; `records`: what made_from.json of each role will say."""

    reference: ModelFolder
    pairs: list[TokenizedPair]
    pairs_text: str
    notes: Sequence[str]
    records: dict[Role, dict[str, Any]]


def make_teachers(options: TeacherOptions, args: "DPOArguments") -> None:
    """Train, finish or recognise OUT/dpo and OUT/reverse. Raises AlignDistilError."""
    from precompute.dpo import train_role

    out, processes = Path(options.out), args.distributed_state
    inputs = read_inputs(options, args)
    done = {role: is_done(out / role, record) for role, record in inputs.records.items()}
    starts = {role: last_checkpoint(training_folder(out, role), record) for role, record in inputs.records.items()}
    require_writable(out)
    processes.wait_for_everyone()  # until every process has seen what is there
    processes.print(f"{'reference':>11}  {options.reference}\n{'pairs':>11}  {inputs.pairs_text}")
    for note in inputs.notes:
        processes.print(f"{'note':>11}  {note}")
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out) if processes.is_main_process else contextlib.nullcontext():
        for role, record in inputs.records.items():
            if done[role]:
                processes.print(f"{out / role}: already trained from the same inputs, nothing to do")
                continue
            start = starts[role]
            processes.print(f"{out / role}: {record['direction']}{f', going on from {start.name}' if start else ''}")
            train_role(role, inputs.pairs, inputs.reference, record, options, args)
            processes.print(f"{out / role}: done")
        if processes.is_main_process:
            for role in inputs.records:  # of a run that was killed between its last step and here
                remove_training(training_folder(out, role))


def read_inputs(options: TeacherOptions, args: "DPOArguments") -> Inputs:
    """Find the reference, tokenise the data as the build does."""
    reference = resolve(options.reference)
    corpus = load_corpus(
        options.sources,
        tokenizer=load_tokenizer(reference, trust_remote_code=args.trust_remote_code),
        responses="both",
        max_length=args.max_length,
        on_overlong=options.on_overlong,
        on_empty=options.on_empty,
        progress=args.distributed_state.is_main_process,
    )
    pairs = whole_pairs(corpus, str(options.sources))
    record = {
        "options": options.identity(),
        "reference": identity(reference, trust_remote_code=args.trust_remote_code),
        "data": {"rows_sha256": corpus.data_sha256, "tokens_sha256": corpus.tokens_sha256, "pairs": len(pairs)},
        "training": args.identity(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    return Inputs(
        reference=reference,
        pairs=pairs,
        pairs_text=f"{len(pairs):,}, from {counted(corpus.rows_read, 'row')} of data{skipped_text(corpus.skipped)}",
        notes=corpus.notes,
        records={role: {"role": role, "direction": direction} | record for role, direction in DIRECTIONS.items()},
    )


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        from precompute.dpo_arguments import DPOArguments
    except ModuleNotFoundError as exc:
        if exc.name != "trl":
            raise
        raise OptionError("teachers: expected trl to be installed; install aligndistil-offline[teachers]") from exc
    # what TRL calls by its old name, a user cannot mend
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    kinds = cast(Any, (TeacherOptions, DPOArguments))
    parser = _Parser(kinds, prog="python -m precompute.teachers", description=__doc__)
    options, args = parser.parse_args_into_dataclasses(arguments)
    make_teachers(options, args)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command goes on from the last checkpoint (--save_steps)")
