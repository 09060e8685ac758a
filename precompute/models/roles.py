"""--models: the model of each role; refuses two roles with the same model."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from shards.errors import ModelError, OptionError
from shards.format.schema import ROLES, Role
from shards.modelfiles.find import ModelFolder


def parse_models(items: Sequence[str]) -> dict[Role, str]:
    """Read `role=folder` texts, in the order of ROLES. Raises OptionError for an unknown or repeated role."""
    given: dict[str, str] = {}
    for item in items:
        role, separator, name = item.partition("=")
        if role not in ROLES or not separator or not name:
            raise OptionError(f"models: expected role=folder with a role of {', '.join(ROLES)}, got {item!r}")
        if role in given:
            raise OptionError(f"models: expected one folder for {role}, got {given[role]!r} and {name!r}")
        given[role] = name
    return {role: given[role] for role in ROLES if role in given}


def require_different_models(models: Mapping[Role, Mapping[str, Any]], folders: Mapping[Role, ModelFolder]) -> None:
    """Raise ModelError if two roles have equal weights, naming both: with no difference there is nothing to learn.

    models: role -> `precompute.models.folders.identity`.
    """
    for one, other in combinations(models, 2):
        if _computes(models[one]) == _computes(models[other]):
            names = f"{one} ({folders[one].name}) and {other} ({folders[other].name})"
            raise ModelError(f"models: expected a model of its own for each role, got equal weights for {names}")


def _computes(model: Mapping[str, Any]) -> list[Any]:
    """What distinguishes two models. It includes an adapter's config, which has the scale of what the adapter adds."""
    if base := model.get("base"):
        return [model["weights_sha256"], model["config_sha256"], *_computes(base)]
    return [model["weights_sha256"]]
