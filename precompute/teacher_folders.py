"""Where trainings of dpo and reverse lie, and which of them can be trusted.

While a role is trained its checkpoints lie in OUT/training/ROLE. A checkpoint counts once the record of its inputs lies
in it, which is written last and holds the sizes of the other files; OUT/ROLE appears by a rename when weights,
tokenizer and record are all in it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precompute.made_from import MADE_FROM_FILE, require_same_inputs
from shards.errors import CacheConflict, CacheDamaged
from shards.manifest import read_json
from shards.schema import Role
from shards.whole import damage, file_sizes
from shards.writer import flush_files, write_json

_PREFIX = "checkpoint-"


def training_folder(out: Path, role: Role) -> Path:
    return out / "training" / role


def is_done(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a role's folder is there. Raises CacheConflict where it was made from other inputs, or by other means."""
    if not folder.exists():
        return False
    if not (folder / MADE_FROM_FILE).is_file():
        raise CacheConflict(f"{folder}: expected nothing, or a folder with {MADE_FROM_FILE}, found one without")
    require_same_inputs(read_json(folder / MADE_FROM_FILE), record, str(folder))
    return True


def begin_checkpoint(folder: Path) -> None:
    """Remove what a kill left under the name of a checkpoint that is about to be written."""
    (folder / MADE_FROM_FILE).unlink(missing_ok=True)  # first: from here on it is not whole
    shutil.rmtree(folder, ignore_errors=True)


def sign_checkpoint(folder: Path, record: Mapping[str, Any]) -> None:
    """Say that a checkpoint is whole, once its files have reached the disk."""
    flush_files(sorted(folder.rglob("*")))
    write_json(folder, MADE_FROM_FILE, {**record, "files": file_sizes(folder, without=MADE_FROM_FILE)})


def last_checkpoint(work: Path, record: Mapping[str, Any]) -> tuple[Path | None, str]:
    """The last whole checkpoint in a training folder, and a line on those that are left aside.

    Raises CacheConflict where one is of other inputs.
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
    """What a checkpoint says of itself, and why it is not whole; None where it is."""
    if not (checkpoint / MADE_FROM_FILE).is_file():
        return {}, f"found no {MADE_FROM_FILE}"
    try:
        signed = read_json(checkpoint / MADE_FROM_FILE)
    except CacheDamaged as exc:
        return {}, f"got {exc}"
    return signed, damage(checkpoint, signed.pop("files", {}))


def is_exact(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a role that is done was made with the same libraries too: then equal rows were equal tokens."""
    return read_json(folder / MADE_FROM_FILE).get("versions") == record["versions"]


def remove_training(work: Path) -> None:
    """Remove the checkpoints of a role that is done; what --report_to wrote beside them stays."""
    for path in _checkpoints(work):
        shutil.rmtree(path)
    (work / "README.md").unlink(missing_ok=True)  # TRL's card of a checkpoint
    for folder in (work, work.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _checkpoints(work: Path) -> list[Path]:
    """By ascending step."""
    return sorted((p for p in work.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdecimal()), key=step_of)
