"""made_from.json: what a dpo or reverse model was trained from; `precompute.teachers` writes it, the build reads it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from precompute.models import ModelFolder
from shards.errors import AlignDistilError
from shards.manifest import read_json, refuse_difference
from shards.schema import Role

MADE_FROM_FILE = "made_from.json"
DIRECTIONS: dict[Role, str] = {"dpo": "chosen preferred", "reverse": "chosen and rejected swapped"}
"""Which response of a pair a role was trained to prefer."""


def require_same_inputs(found: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raise CacheConflict naming the first field in which two records differ. Library versions may differ.

    Of the data those facts are compared that `asked` has: before they are tokenised, their rows.
    """
    old, new = ({name: part for name, part in record.items() if name != "versions"} for record in (found, asked))
    if isinstance(old.get("data"), Mapping):
        old["data"] = {name: value for name, value in old["data"].items() if name in asked["data"]}
    refuse_difference(old, new, f"{where}: was made from other inputs")


def direction_warnings(folders: Mapping[Role, ModelFolder], models: Mapping[Role, Any]) -> Iterator[str]:
    """A line for each role that its own record contradicts; none for a folder without a record.

    models: what `precompute.models.identity` says of each role.
    """
    for role, expected in DIRECTIONS.items():
        record = _record(folders[role].path) if role in folders else {}
        found = record.get("direction", expected)
        if found != expected:
            yield f"{role} ({folders[role].name}): expected a model trained with {expected}, got {found}"
        reference = record.get("reference")
        if isinstance(reference, Mapping) and _weights(reference) != _weights(models["reference"]):
            yield f"{role} ({folders[role].name}): was trained from another model than this reference"


def _weights(model: Mapping[str, Any]) -> list[str | None]:
    """Hashes of a model and of its base, wherever they came from."""
    return [part.get("weights_sha256") for part in (model, model.get("base", {}))]


def _record(folder: Path) -> dict[str, Any]:
    """What a folder says of itself; nothing, where the file is not there or not of this kind."""
    try:
        return read_json(folder / MADE_FROM_FILE)
    except AlignDistilError:
        return {}
