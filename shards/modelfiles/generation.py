"""Keeps a generation config that transformers refuses to save, so that a model is saved as it was loaded."""

import functools
from typing import Any

from shards.errors import first_line


def keep_generation_config(model: Any) -> str | None:
    """Make a model savable with any generation config. Returns the fault that transformers finds, if any."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return None
    try:
        config.validate(strict=True)
    except ValueError as exc:
        kind: Any = type(config)
        config.__class__ = _kept(kind)
        return first_line(exc)
    return None


@functools.cache
def _kept(kind: Any) -> Any:
    """The class of a config, without the check that transformers makes before it saves one."""

    def validate(self: Any, *args: Any, **kwargs: Any) -> None:
        pass

    return type(f"Kept{kind.__name__}", (kind,), {"validate": validate})
