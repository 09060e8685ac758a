"""What roles cannot be: two of them the same model."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from precompute.models import ModelFolder
from shards.errors import ModelError
from shards.schema import Role


def require_different_models(models: Mapping[Role, Mapping[str, Any]], folders: Mapping[Role, ModelFolder]) -> None:
    """Raise ModelError where two roles have equal weights, naming both: they differ nowhere, so nothing is learned.

    models: what `precompute.models.identity` says of each role.
    """
    for one, other in combinations(models, 2):
        if _computes(models[one]) == _computes(models[other]):
            names = f"{one} ({folders[one].name}) and {other} ({folders[other].name})"
            raise ModelError(f"models: expected a model of its own for each role, got equal weights for {names}")


def _computes(model: Mapping[str, Any]) -> list[Any]:
    """What tells two models apart. An adapter's config is a part of it: the scale of what it adds stands there."""
    if base := model.get("base"):
        return [model["weights_sha256"], model["config_sha256"], *_computes(base)]
    return [model["weights_sha256"]]
