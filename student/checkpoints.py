"""Checkpoints that can be trusted: signed when all is written, and the newest whole one is taken.

A checkpoint's `distill_run.json` says which run it is of. It is written twice: first with no files, so that the folder
is known for ours while it is being written, and last with the size of every file. Only then is the checkpoint whole.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from shards.errors import AlignDistilError, CacheConflict, CacheDamaged, CacheMissing, OptionError
from shards.manifest import read_json, refuse_difference
from shards.whole import damage, file_sizes
from shards.writer import flush_files, write_json
from student.run import RUN_FILE

STATE_FILE = "trainer_state.json"


def begin(folder: Path, identity: dict[str, Any]) -> None:
    """Make an empty checkpoint folder that says whose it will be. One of ours under the same name is removed."""
    if folder.is_dir():
        require_ours(folder)
        remove(folder)
    folder.mkdir(parents=True)
    write_json(folder, RUN_FILE, identity | {"files": None})


def require_ours(folder: Path) -> None:
    """Raise CacheConflict for a folder that would be written over, or rotated away, and that no run of ours wrote."""
    if any(folder.iterdir()) and not (folder / RUN_FILE).is_file():
        raise CacheConflict(
            f"{folder}: expected a checkpoint with {RUN_FILE}, found none; move it, or give another --output_dir"
        )


def require_all_ours(out: Path) -> None:
    """Raise CacheConflict where the output folder holds checkpoints of others, whatever step they are of."""
    for folder in sorted(out.glob("checkpoint-*")):
        if folder.is_dir():
            require_ours(folder)


def remove_all(out: Path) -> None:
    """Remove the checkpoints of earlier runs. A kill meanwhile leaves none behind that a run could go on from."""
    found = [folder for folder in checkpoints_of(out) if (folder / RUN_FILE).is_file()]
    for folder in found:
        write_json(folder, RUN_FILE, {"files": None})
    for folder in found:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint. Until the rest is gone its file says that it is ours and not whole."""
    write_json(folder, RUN_FILE, {"files": None})
    for path in folder.iterdir():
        if path.name != RUN_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder)


def sign(folder: Path, identity: dict[str, Any], *, weights_only: bool) -> None:
    """Say that a checkpoint is whole, once its files have reached the disk."""
    files = file_sizes(folder, without=RUN_FILE)
    flush_files([folder / name for name in files])
    write_json(folder, RUN_FILE, identity | {"files": files, "weights_only": weights_only})


def fault(folder: Path) -> str | None:
    """Why a run cannot go on from a checkpoint, to be read behind "expected a whole checkpoint"; None where it can."""
    if not (folder / RUN_FILE).is_file():
        return f"found no {RUN_FILE}"
    try:
        signed = read_json(folder / RUN_FILE)
    except AlignDistilError as exc:
        return f"got {exc}"
    if not isinstance(signed.get("files"), dict):
        return "got one that was never finished"
    if lacking := damage(folder, signed["files"]):
        return lacking
    return "got weights alone (--save_only_model true)" if signed.get("weights_only") else None


def is_unfinished(folder: Path) -> bool:
    """Whether a checkpoint was being written when its run ended: ours, and never signed."""
    try:
        return not any(folder.iterdir()) or read_json(folder / RUN_FILE).get("files", {}) is None
    except AlignDistilError:
        return False


def checkpoints_of(out: Path) -> list[Path]:
    """The checkpoint folders of a run, the newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in out.glob("checkpoint-*") if path.is_dir()]
    return [path for _, path in sorted(((int(match[1]), path) for match, path in found if match), reverse=True)]


def newest_whole(out: Path) -> tuple[Path | None, str]:
    """The newest checkpoint that a run can go on from, and a line on the newer ones that it cannot use.

    None where there is none, or only what an interrupted run had begun to write. Raises CacheDamaged where the
    only checkpoints are of another kind or lack something: they are not for us to write over.
    """
    left: list[str] = []
    for folder in checkpoints_of(out):
        reason = fault(folder)
        if reason is None:
            return folder, "; ".join(left)
        left.append(f"{folder.name} is left aside: expected a whole checkpoint, {reason}")
    if not all(map(is_unfinished, checkpoints_of(out))):
        raise CacheDamaged(f"{out}: expected a checkpoint to resume from; {'; '.join(left)}")
    return None, "; ".join(left)


def require_checkpoint(folder: Path, identity: dict[str, Any], last_step: int) -> None:
    """Raise where a run cannot go on from a checkpoint: CacheDamaged, CacheConflict, or OptionError past its end."""
    require_whole(folder)
    signed = read_json(folder / RUN_FILE)
    for name in ("files", "weights_only"):
        del signed[name]
    refuse_difference(signed, identity, f"{folder}: is of another run")
    if (step := step_of(folder)) > last_step:
        raise OptionError(f"{folder}: expected a checkpoint of the run's {last_step:,} steps, got one of step {step:,}")


def require_whole(folder: Path) -> None:
    """Raise CacheDamaged for a checkpoint that no run can go on from, CacheConflict for a folder that is none."""
    reason = fault(folder)
    if reason == f"found no {RUN_FILE}":
        raise CacheConflict(f"{folder}: expected a checkpoint with {RUN_FILE}, found none")
    if reason is not None:
        raise CacheDamaged(f"{folder}: expected a whole checkpoint, {reason}")


def step_of(folder: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(read_json(folder / STATE_FILE)["global_step"])


def checkpoint_to_resume(wanted: Any, out: Path) -> tuple[Path | None, str]:
    """What resume_from_checkpoint means: None or `false`, `true` for the newest whole one of `out`, or a folder.

    The text says which newer checkpoints are left aside. Raises OptionError, CacheDamaged, CacheConflict.
    """
    match str(wanted).lower():
        case "none" | "false":
            return None, ""
        case "true":
            return newest_whole(out)
    folder = Path(os.fspath(wanted))
    if not folder.is_dir():
        raise OptionError(f"resume_from_checkpoint: expected a folder, got {str(wanted)!r}")
    require_whole(folder)
    return folder, ""


def require_found(folder: Path | None, out: Path) -> Path:
    """Raises CacheMissing where there is no checkpoint to resume from."""
    if folder is None:
        raise CacheMissing(f"{out}: expected a checkpoint to resume from, found none")
    return folder
