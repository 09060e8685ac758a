"""Where trainings of dpo and reverse lie, and which of them can be trusted.

While a role is trained its checkpoints lie in OUT/training/ROLE. A checkpoint counts once the record of its inputs lies
in it, which is written last; OUT/ROLE appears by a rename when weights, tokenizer and record are all in it.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precompute.made_from import MADE_FROM_FILE, require_same_inputs
from shards.errors import CacheConflict
from shards.manifest import read_json
from shards.schema import Role

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


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


def is_exact(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a role that is done was made with the same libraries too: then equal rows were equal tokens."""
    return read_json(folder / MADE_FROM_FILE).get("versions") == record["versions"]


def last_checkpoint(work: Path, record: Mapping[str, Any]) -> Path | None:
    """The last whole checkpoint in a training folder. Raises CacheConflict where one is of other inputs."""
    whole = [path for path in _checkpoints(work) if (path / MADE_FROM_FILE).is_file()]
    for path in whole:
        require_same_inputs(read_json(path / MADE_FROM_FILE), record, str(path))
    return whole[-1] if whole else None


def remove_training(work: Path) -> None:
    """Remove the checkpoints of a role that is done; what --report_to wrote beside them stays."""
    for path in _checkpoints(work):
        shutil.rmtree(path)
    (work / "README.md").unlink(missing_ok=True)  # TRL's card of a checkpoint
    for folder in (work, work.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _checkpoints(work: Path) -> list[Path]:
    """By ascending step."""
    found = {path: _CHECKPOINT.fullmatch(path.name) for path in work.glob("checkpoint-*")}
    steps = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(steps, key=lambda path: steps[path])
