"""Folders of the trainings of dpo and reverse: where checkpoints are, and which are complete.

During the training of a role its checkpoints are in OUT/training/ROLE. A checkpoint counts as complete once it has the
record of its inputs, which is written last and holds the sizes of the other files. OUT/ROLE appears by a rename when it
has weights, tokenizer and record.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precompute.models.made_from import MADE_FROM_FILE, require_same_inputs
from shards.errors import CacheConflict, CacheDamaged
from shards.files import erase, flush, make_folder, matching, paths_under
from shards.format.manifest import read_json
from shards.format.schema import Role
from shards.format.writer import flush_files, write_json
from shards.modelfiles.whole import damage, file_sizes, surplus

_PREFIX = "checkpoint-"


def training_folder(out: Path, role: Role) -> Path:
    return out / "training" / role


def is_done(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a role's folder is finished. Raises CacheConflict if it has other inputs or was made in another way."""
    if not folder.exists():
        return False
    if not (folder / MADE_FROM_FILE).is_file():
        raise CacheConflict(f"{folder}: expected nothing, or a folder with {MADE_FROM_FILE}, found one without")
    require_same_inputs(read_json(folder / MADE_FROM_FILE), record, str(folder))
    return True


def begin_checkpoint(folder: Path) -> None:
    """Remove what a kill left under the name of a checkpoint that is about to be written."""
    remove_checkpoint(folder)
    make_folder(folder)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, whole or not. Its record goes first: from then on it is not complete."""
    if folder.is_dir():
        (folder / MADE_FROM_FILE).unlink(missing_ok=True)
        flush(folder)
        erase(folder)


def remove_surplus(work: Path, limit: int | None, newest: Path) -> None:
    """Remove the oldest checkpoints beyond a limit, but not the one that has just been written."""
    for folder in surplus(_checkpoints(work), limit, [newest]):
        remove_checkpoint(folder)


def sign_checkpoint(folder: Path, record: Mapping[str, Any]) -> None:
    """Mark a checkpoint as complete, once its files are on the disk."""
    flush_files(paths_under(folder))
    write_json(folder, MADE_FROM_FILE, {**record, "files": file_sizes(folder, without=MADE_FROM_FILE)})


def last_checkpoint(work: Path, record: Mapping[str, Any]) -> tuple[Path | None, str]:
    """The last complete checkpoint in a training folder, and a line about those that are not used.

    Raises CacheConflict if one has other inputs.
    """
    whole, left = None, []
    for path in _checkpoints(work):
        signed, fault = _signature(path)
        if fault is None:
            require_same_inputs(signed, record, str(path))
            whole = path
        else:
            left.append(f"{path.name} is left aside: expected a whole checkpoint, {fault}")
    return whole, "; ".join(left)


def _signature(checkpoint: Path) -> tuple[dict[str, Any], str | None]:
    """The record of a checkpoint, and why it is incomplete; None if it is complete."""
    if not (checkpoint / MADE_FROM_FILE).is_file():
        return {}, f"found no {MADE_FROM_FILE}"
    try:
        signed = read_json(checkpoint / MADE_FROM_FILE)
    except CacheDamaged as exc:
        return {}, f"got {exc}"
    return signed, damage(checkpoint, signed.pop("files", {}))


def is_exact(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a finished role was also made with the same libraries: then equal rows gave equal tokens."""
    return read_json(folder / MADE_FROM_FILE).get("versions") == record["versions"]


def remove_training(work: Path) -> None:
    """Remove the checkpoints of a finished role; files of --report_to beside them stay."""
    for path in _checkpoints(work):
        erase(path)
    (work / "README.md").unlink(missing_ok=True)  # TRL's model card of a checkpoint
    for folder in (work, work.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps before a checkpoint."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _checkpoints(work: Path) -> list[Path]:
    """The checkpoints, by ascending step."""
    return sorted((p for p in matching(work, f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdecimal()), key=step_of)
