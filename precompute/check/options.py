"""CheckOptions: every flag of `python -m precompute.check`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from precompute.models.roles import parse_models
from shards.cli.command import flag, require_choices
from shards.cli.device import Dtype
from shards.cli.flags.cache_flags import CacheFlags
from shards.cli.flags.quiet_flag import QuietFlag
from shards.cli.flags.teacher_flags import TeacherFlags
from shards.errors import OptionError
from shards.format.schema import Role
from shards.places.url import is_url


@dataclass(kw_only=True)
class CheckOptions(TeacherFlags, CacheFlags, QuietFlag):
    """Flags of the check. Raises OptionError for values that are out of range or that contradict each other."""

    shards: str = flag("shards", "folder or URL of the cache")
    models: list[str] = flag([], "role=folder or hub name; default: the places that the cache was built from")
    sample: int = flag(16, "responses to recompute; all, where the cache has no more")
    seed: int = flag(0, "which responses: they are a function of it")
    json: str | None = flag(None, "write the report to this file, for machines")

    dtype: Dtype | None = flag(None, "of the bodies; default: as in the build")
    tf32: bool | None = flag(None, "as in precompute.build; default: as in the build, where the device has it")
    device: str = flag("auto", "device of models and values: auto, cpu, cuda, cuda:1, ...")
    device_map: str | None = flag(None, "as in transformers' from_pretrained")
    attn_implementation: str | None = flag(None, "as in transformers' from_pretrained; default: as in the build")
    trust_remote_code: bool = flag(False, "run code that comes with a model")
    models_in_memory: Literal["all", "one"] = flag(
        "all", "on the device: all bodies, each with a base of its own, or one at a time"
    )
    batch_tokens: int = flag(2048, "tokens, padding included, of one forward pass")
    chunk_positions: int = flag(32, "response positions compared at a time, over the whole vocabulary in float64")

    def __post_init__(self) -> None:
        require_choices(self)
        for name, lowest in (("sample", 1), ("seed", 0), ("batch_tokens", 1), ("chunk_positions", 1)):
            if getattr(self, name) < lowest:
                raise OptionError(f"{name}: expected {lowest} or more, got {getattr(self, name)}")
        if self.device_map is not None and self.models_in_memory == "one":
            raise OptionError(f"device_map: expected none with models_in_memory one, got {self.device_map!r}")
        if self.json is not None and not is_url(self.shards):
            _require_file_outside(Path(self.json), Path(self.shards))
        _ = self.model_names, self.spec, self.room

    @property
    def model_names(self) -> dict[Role, str]:
        """Role -> folder or hub name, of the roles that were given."""
        return parse_models(self.models)


def _require_file_outside(file: Path, folder: Path) -> None:
    """Raise OptionError where a file cannot be written, or would lie in the cache's folder."""
    if not os.access(file.parent, os.W_OK) or file.is_dir():
        found = "a folder" if file.is_dir() else f"{file.parent}, which cannot be written to"
        raise OptionError(f"json: expected a file to write, got {found}")
    if folder.resolve() in file.resolve().parents:
        raise OptionError(f"json: expected a file outside of the cache, got {file}")
