"""made_from.json: the inputs of a dpo or reverse model, written by `precompute.teachers`, read by the build."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.errors import AlignDistilError, CacheConflict, CacheDamaged
from shards.format.manifest import differences, read_json
from shards.format.schema import Role
from shards.modelfiles.find import ModelFolder

MADE_FROM_FILE = "made_from.json"
DIRECTIONS: dict[Role, str] = {"dpo": "chosen preferred", "reverse": "chosen and rejected swapped"}
"""Which response of a pair a role is trained to prefer."""


def require_same_inputs(found: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raise CacheConflict naming the flags in which two records differ, and the differences in reference and data.

    Library versions may differ. Of the data only the facts in `asked` are compared: before tokenisation these are the
    hashes of the rows.
    """
    for part in ("options", "training", "reference", "tokenizer", "data"):
        if not isinstance(found.get(part, {}), Mapping):
            raise CacheDamaged(f"{where}/{MADE_FROM_FILE}: expected {part} as an object, got {found[part]!r:.60}")
    changes = [*_changed_flags(found, asked), *_changed_model(found, asked)]
    if changes := changes or [*_changed_data(found, asked)]:  # other flags can give other rows or tokens
        remedy = "give another --out, or remove that folder to train again"
        raise CacheConflict(f"{where}: was made from other inputs, {'; '.join(changes)}; {remedy}")


def _changed_flags(found: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for name in ("role", "direction"):  # differs if a folder was renamed
        if found.get(name) != asked[name]:
            yield f"{name}: expected {found.get(name)}, got {asked[name]}"
    for part in ("options", "training"):
        for name, old, new in differences(found.get(part, {}), asked[part]):
            yield f"{name}: expected {old}, got {new}"


def _changed_model(found: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Differences by the name of the hashed part: two hashes side by side would not help anybody."""
    for part in ("reference", "tokenizer"):
        new = asked.get(part, {})
        changed = [name for name, *_ in differences(found.get(part, new), new)]
        names = [name.removesuffix("_sha256") for name in changed if not name.endswith("peft_version")]
        if names:
            yield f"{part}: expected the one that it was trained from, got one with other {', '.join(names)}"


def _changed_data(found: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    old, new = found.get("data", {}), asked["data"]
    if old.get("rows_sha256") != new["rows_sha256"]:
        yield f"data: expected the rows of the {old.get('pairs', 0):,} pairs that it was trained on, got others"
    elif any(old.get(name) != value for name, value in new.items()):
        yield "data: expected the tokens that it was trained on, got other tokens of the same rows"


def direction_warnings(folders: Mapping[Role, ModelFolder], models: Mapping[Role, Any]) -> Iterator[str]:
    """A line for each role that contradicts its own record; none for a folder without a record.

    models: role -> `precompute.models.folders.identity`.
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
    """Hashes of the weights of a model and of its base, from any source."""
    base = model.get("base", {})
    return [part.get("weights_sha256") for part in (model, base if isinstance(base, Mapping) else {})]


def _record(folder: Path) -> dict[str, Any]:
    """The record in a folder; empty if there is no file or one of another kind."""
    try:
        return read_json(folder / MADE_FROM_FILE)
    except AlignDistilError:
        return {}
