"""Checkpoints: marks each one when it is complete, and finds the newest complete one.

A checkpoint's `distill_run.json` says which run it belongs to. It is written twice: first without files, so that the
folder is known to be ours while it is written, and last with the size of every file. Then the checkpoint is complete.
"""

import fnmatch
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.errors import AlignDistilError, CacheConflict, CacheDamaged, CacheMissing, OptionError
from shards.files import TEMPORARY_GLOB, erase, make_folder, matching
from shards.format.manifest import differences, read_json
from shards.format.writer import flush_files, write_json
from shards.modelfiles.whole import damage, file_sizes, surplus
from student.log.files import RUN_FILE, STATE_FILE, checkpoints_of
from student.recipe import CHANGED, FREE, LATER, is_free


def begin(folder: Path, identity: dict[str, Any]) -> None:
    """Make an empty checkpoint folder that names its run. Removes one of ours with the same name."""
    if folder.is_dir():
        require_ours(folder)
        remove(folder)
    make_folder(folder)
    write_json(folder, RUN_FILE, identity | {"files": None})


def require_ours(folder: Path) -> None:
    """Raise CacheConflict for a folder that would be overwritten or removed, but was not written by our runs."""
    if not _is_empty(folder) and not (folder / RUN_FILE).is_file():
        raise CacheConflict(
            f"{folder}: expected a checkpoint with {RUN_FILE}, found none; move it, or give another --output_dir"
        )


def require_all_ours(out: Path) -> None:
    """Raise CacheConflict if the output folder has checkpoints that are not ours, at any step."""
    for folder in matching(out, "checkpoint-*"):
        if folder.is_dir():
            require_ours(folder)


def remove_all(out: Path) -> None:
    """Remove the checkpoints of earlier runs. A kill in between leaves none from which a run could continue."""
    found = [folder for folder in checkpoints_of(out) if (folder / RUN_FILE).is_file()]
    for folder in found:
        write_json(folder, RUN_FILE, {"files": None})
    for folder in found:
        remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint. Until all else is gone, its file says that it is ours and incomplete."""
    write_json(folder, RUN_FILE, {"files": None})
    for path in folder.iterdir():
        if path.name != RUN_FILE:
            erase(path)
    erase(folder)


def remove_unfinished(out: Path) -> None:
    """Remove what earlier runs were killed in the middle of writing, or of removing."""
    for folder in checkpoints_of(out):
        if is_unfinished(folder):
            remove(folder)


def remove_surplus(out: Path, limit: int | None, best: str | None, newest: Path) -> None:
    """Remove the oldest checkpoints beyond a limit, but neither the best one nor the one that was just written.

    transformers' own would leave a folder that nobody knows to be ours, if it were killed.
    """
    for folder in surplus(checkpoints_of(out)[::-1], limit, [newest, *([] if best is None else [Path(best)])]):
        remove(folder)


def sign(folder: Path, identity: dict[str, Any], *, weights_only: bool) -> None:
    """Mark a checkpoint as complete, once its files are on the disk."""
    files = file_sizes(folder, without=RUN_FILE)
    flush_files([folder / name for name in files])
    write_json(folder, RUN_FILE, identity | {"files": files, "weights_only": weights_only})


def fault(folder: Path) -> str | None:
    """Why a run cannot continue from a checkpoint, for use after "expected a whole checkpoint"; None if it can."""
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
    """Whether a checkpoint is ours and was still being written when its run ended."""
    try:
        return _is_empty(folder) or read_json(folder / RUN_FILE).get("files", {}) is None
    except AlignDistilError:
        return False


def _is_empty(folder: Path) -> bool:
    """Whether a folder has nothing but temporary files: its run was killed before it could say whose it is."""
    return all(fnmatch.fnmatchcase(path.name, TEMPORARY_GLOB) for path in folder.iterdir())


def newest_whole(out: Path) -> tuple[Path | None, str]:
    """The newest checkpoint from which a run can continue, and a line about newer ones that it cannot use.

    None if there is none, or only one that an interrupted run had started to write. Raises CacheDamaged if the only
    checkpoints are of another kind or incomplete: we must not overwrite them.
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


def require_checkpoint(
    folder: Path, identity: dict[str, Any], last_step: int, despite: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Raise if a run cannot continue from a checkpoint: CacheDamaged, CacheConflict, or OptionError past its end.

    despite: fields that may differ. Returns the changes that the checkpoint records, and those from it to this run.
    """
    require_whole(folder)
    signed = read_json(folder / RUN_FILE)
    for name in ("files", "weights_only"):
        signed.pop(name, None)
    earlier = signed.pop(CHANGED, [])
    signed |= {name: identity[name] for name in LATER if name not in signed and name in identity}
    step, now = step_of(folder), []
    for name, old, new in differences(signed, identity):
        if not is_free(name, despite):
            remedy = f"; --resume_despite {name} goes on with the new value" if is_free(name, FREE) else ""
            raise CacheConflict(f"{folder}: is of another run, {name}: expected {old}, got {new}{remedy}")
        now.append({"field": name, "until_step": step, "before": json.loads(old), "after": json.loads(new)})
    if step > last_step:
        raise OptionError(f"{folder}: expected a checkpoint of the run's {last_step:,} steps, got one of step {step:,}")
    return earlier, now


def require_whole(folder: Path) -> None:
    """Raise CacheDamaged for an unusable checkpoint, CacheConflict for a folder that is not a checkpoint."""
    reason = fault(folder)
    if reason == f"found no {RUN_FILE}":
        raise CacheConflict(f"{folder}: expected a checkpoint with {RUN_FILE}, found none")
    if reason is not None:
        raise CacheDamaged(f"{folder}: expected a whole checkpoint, {reason}")


def step_of(folder: Path) -> int:
    """The number of optimizer steps before a checkpoint."""
    return int(read_json(folder / STATE_FILE)["global_step"])


def checkpoint_to_resume(wanted: Any, out: Path) -> tuple[Path | None, str]:
    """The meaning of resume_from_checkpoint: None or `false`, `true` for the newest complete one of `out`, or a folder.

    The text names newer checkpoints that are not used. Raises OptionError, CacheDamaged, CacheConflict.
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
    """Raises CacheMissing if there is no checkpoint to resume from."""
    if folder is None:
        raise CacheMissing(f"{out}: expected a checkpoint to resume from, found none")
    return folder
