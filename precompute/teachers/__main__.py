"""python -m precompute.teachers: trains dpo and reverse from a reference and pairs, with TRL's DPOTrainer.

Takes the flags of TRL's DPOConfig for both trainings. After a kill, the same command continues from the last
checkpoint.
"""

import contextlib
import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import HfArgumentParser

from precompute.models.folders import identity, load_tokenizer
from precompute.models.made_from import DIRECTIONS
from precompute.models.tokenizer_identity import tokenizer_identity
from precompute.processes import Processes
from precompute.teachers.folders import is_done, is_exact, last_checkpoint, remove_training, training_folder
from precompute.teachers.options import TeacherOptions
from precompute.teachers.pairs import TokenizedPair, whole_pairs
from precompute.tokens.corpus import Corpus, load_corpus, rows_sha256
from precompute.tokens.share import load_on_first
from shards.cli.command import parse_dataclasses, run_command
from shards.cli.device import resolve_trained_dtype
from shards.cli.flags.quiet_flag import asked_level
from shards.cli.launcher import launched_processes
from shards.cli.outside import naming_saves
from shards.cli.space import require_here, require_writable
from shards.cli.text import counted, skipped_text
from shards.errors import OptionError
from shards.files import make_folder
from shards.format.schema import Role
from shards.locks.lock import clear_left, exclusive, holds
from shards.modelfiles.find import ModelFolder, resolve
from shards.progress import commanded
from shards.say import say, warn

if TYPE_CHECKING:
    from precompute.teachers.arguments import DPOArguments

LIBRARIES = ("aligndistil-offline", "trl", "transformers", "torch", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSources:
    """The inputs of the trainings, by names and hashes; `records`: made_from.json of each role, without its tokens."""

    reference: ModelFolder
    tokenizer: Any
    records: dict[Role, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherInputs:
    """The inputs as read, before any model is loaded; `records`: the later made_from.json of each role."""

    reference: ModelFolder
    pairs: list[TokenizedPair]
    pairs_text: str
    notes: Sequence[str]
    warnings: Sequence[str]
    records: dict[Role, dict[str, Any]]


def make_teachers(options: TeacherOptions, args: "DPOArguments") -> None:
    """Train OUT/dpo and OUT/reverse, finish them, or recognise them as done. Raises AlignDistilError."""
    require_here(options.out)
    out = Path(options.out)
    options = replace(options, dtype=resolve_trained_dtype(options.dtype, args.device, frozen=options.use_peft))
    processes = Processes.join()
    with contextlib.ExitStack() as stack:
        if not processes.first(lambda: all((out / role).exists() for role in DIRECTIONS)):
            alone(out, stack, processes)
        _make_teachers(options, args, processes, stack)


def alone(out: Path, stack: contextlib.ExitStack, processes: Processes) -> None:
    """Keep other commands out of the folder as long as `stack` is open."""

    def lock() -> None:
        require_writable(out)
        if processes.is_first and not holds(out):
            with naming_saves("out"):
                stack.enter_context(exclusive(out))

    processes.together(lock)


def _make_teachers(
    options: TeacherOptions, args: "DPOArguments", processes: Processes, stack: contextlib.ExitStack
) -> None:
    """stack: closed at the end; unless both roles are there, no other command changes the folder until then."""
    out = Path(options.out)
    sources = processes.together(lambda: find_sources(options, args))
    processes.require_equal(sources.records["dpo"])
    done = processes.together(lambda: [is_done(out / role, record) for role, record in sources.records.items()])
    if all(done) and all(is_exact(out / role, record) for role, record in sources.records.items()):
        for role in sources.records:
            on_first(args)(f"{out / role}: already trained from the same inputs, nothing to do")
            if processes.is_first:
                remove_training(training_folder(out, role))
        if processes.is_first:
            clear_left(out)
    else:
        alone(out, stack, processes)
        train(options, args, read_inputs(options, args, sources, processes), processes)


def train(options: TeacherOptions, args: "DPOArguments", inputs: TeacherInputs, processes: Processes) -> None:
    """Train the roles that are not done yet."""
    from precompute.teachers.dpo import train_role

    out, tell = Path(options.out), on_first(args)
    tell(f"{'reference':>11}  {options.reference}\n{'pairs':>11}  {inputs.pairs_text}")
    for note in inputs.notes:
        tell(f"{'note':>11}  {note}")
    for warning in inputs.warnings if processes.is_first else ():
        warn(warning)
    with naming_saves("out"):
        make_folder(out)
    done = {role: is_done(out / role, record) for role, record in inputs.records.items()}
    starts = {role: last_checkpoint(training_folder(out, role), record) for role, record in inputs.records.items()}
    processes.wait()  # until every process has seen it
    for role, record in inputs.records.items():
        if done[role]:
            tell(f"{out / role}: already trained from the same inputs, nothing to do")
            continue
        start, left_aside = starts[role]
        if left_aside:
            tell(f"{out / role}: {left_aside}")
        tell(f"{out / role}: {record['direction']}{f', going on from {start.name}' if start else ''}")
        train_role(role, inputs.pairs, inputs.reference, record, options, args)
        tell(f"{out / role}: done")
    if processes.is_first:
        for role in inputs.records:  # left by a run that was killed between its last step and here
            remove_training(training_folder(out, role))


def on_first(args: "DPOArguments") -> Callable[[str], None]:
    """`say` on the first process; nothing on the others."""
    return say if args.distributed_state.is_main_process else lambda text: None


def find_sources(options: TeacherOptions, args: "DPOArguments") -> TeacherSources:
    """Find the reference, and hash the data."""
    reference = resolve(options.reference)
    tokenizer = load_tokenizer(reference, trust_remote_code=args.trust_remote_code)
    show = args.distributed_state.is_main_process
    record = {
        "options": options.identity(),
        "reference": identity(reference, trust_remote_code=args.trust_remote_code),
        "tokenizer": tokenizer_identity(tokenizer),
        "data": {"rows_sha256": rows_sha256(options.data_sources, progress=show)},
        "training": args.identity(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    records = {role: {"role": role, "direction": direction} | record for role, direction in DIRECTIONS.items()}
    return TeacherSources(reference=reference, tokenizer=tokenizer, records=records)


def read_inputs(
    options: TeacherOptions, args: "DPOArguments", sources: TeacherSources, processes: Processes
) -> TeacherInputs:
    """Tokenise the data as the build does, on the first process for all."""
    data = sources.records["dpo"]["data"]
    load = functools.partial(tokenized, options, args, sources.tokenizer)
    corpus = load_on_first(load, processes, rows_sha256=data["rows_sha256"])
    found = processes.together(lambda: whole_pairs(corpus, str(options.data_sources)))
    data = data | {"tokens_sha256": corpus.tokens_sha256, "pairs": len(found)}
    records = {role: record | {"data": data} for role, record in sources.records.items()}
    return TeacherInputs(
        reference=sources.reference,
        pairs=found,
        pairs_text=_pairs_text(found, corpus),
        notes=corpus.notes,
        warnings=corpus.warnings,
        records=records,
    )


def tokenized(options: TeacherOptions, args: "DPOArguments", tokenizer: Any) -> Corpus:
    return load_corpus(
        options.data_sources,
        tokenizer=tokenizer,
        responses="both",
        max_length=args.max_length,
        on_overlong=options.on_overlong,
        on_empty=options.on_empty,
        progress=True,
    )


def _pairs_text(pairs: Sequence[TokenizedPair], corpus: Corpus) -> str:
    """How many pairs there are, from how many rows, and which of them teach less than they could."""
    alike = sum(list(pair.chosen.input_ids) == list(pair.rejected.input_ids) for pair in pairs)
    return (
        f"{len(pairs):,}, from {counted(corpus.rows_read, 'row')} of data{skipped_text(corpus.skipped)}"
        + (f"; {counted(corpus.truncated, 'response')} cut at max_length" if corpus.truncated else "")
        + (f"; {counted(alike, 'pair')} of twice the same tokens, which teach nothing" if alike else "")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    launched_processes()  # first: torch would wait for processes that never come
    try:
        from precompute.teachers.arguments import DPOArguments
    except ModuleNotFoundError as exc:
        if exc.name != "trl":
            raise
        raise OptionError("teachers: expected trl to be installed; install aligndistil-offline[teachers]") from exc
    # the user can do nothing about TRL's own deprecation warnings
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    kinds = (TeacherOptions, DPOArguments)
    options, args = parse_dataclasses(HfArgumentParser, kinds, "precompute.teachers", __doc__, arguments)
    with commanded(quiet=options.quiet, level=asked_level(args)):
        make_teachers(options, args)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command continues from the last checkpoint (--save_steps)")
