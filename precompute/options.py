"""BuildOptions and CheckOptions: every flag of `python -m precompute.build` and of `python -m precompute.check`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from precompute.data_options import DataOptions
from shards import TeacherSpec
from shards.command import flag, require_at_least, require_choices
from shards.errors import OptionError
from shards.launcher import launched_processes
from shards.nodes import DEFAULT_GAIN_NODES, DEFAULT_STRENGTH_NODES, StrengthNodes
from shards.schema import REQUIRED_ROLES, ROLES, Pair, Role


@dataclass(kw_only=True)
class BuildOptions(DataOptions):
    """Flags of the build. Raises OptionError for values that contradict each other or are out of range."""

    models: list[str] = field(
        metadata={"help": "role=folder or hub name for dpo, reference and (for contrast) reverse; peft adapters too"}
    )
    out: str = flag("shards", "folder of the cache")
    responses: Literal["chosen", "rejected", "both"] = flag("chosen", "which responses of a pair are cached")
    max_length: int = flag(2048, "tokens of prompt and response; longer responses are cut, prompts never")
    on_overlong: Literal["skip", "error"] = flag("skip", "what becomes of a prompt as long as max_length")
    on_empty: Literal["skip", "error"] = flag("error", "what becomes of an empty response")

    support: Literal["adaptive", "fixed"] = flag("adaptive", "as many tokens as a position needs, or top_k everywhere")
    top_k: int = flag(64, "mean number of tokens kept per position")
    min_top_k: int = flag(1, "fewest tokens kept at a position")
    max_top_k: int = flag(2048, "most tokens kept at a position")
    pairs: list[str] | None = flag(
        None, "anchor/negative pairs to serve; default dpo/reverse and reference/reference, as far as models are given"
    )
    gain_nodes: list[float] = flag(list(DEFAULT_GAIN_NODES), "gains whose strengths are nodes, from 0")
    strength_nodes: list[float] = flag(list(DEFAULT_STRENGTH_NODES), "constant strengths that are nodes, from 0")
    values: Literal["compact", "float32"] = flag("compact", "how values are stored: in half the bytes, or exactly")

    dtype: Literal["auto", "bfloat16", "float32"] = flag("auto", "dtype of the models' bodies; heads are float32")
    device: str = flag("auto", "device of models and scores: auto, cpu, cuda, cuda:1, ...")
    device_map: str | None = flag(None, "as in transformers' from_pretrained")
    models_in_memory: Literal["all", "one"] = flag(
        "all", "one: a model is on the device only while its hidden states of a shard are computed"
    )
    share_prompts: bool = flag(False, "with --responses both: a pair's prompt is run through a body once, not twice")
    attn_implementation: str | None = flag(None, "as in transformers' from_pretrained")
    trust_remote_code: bool = flag(False, "run code that comes with a model")
    batch_tokens: int = flag(8192, "tokens, padding included, of one forward pass")
    chunk_positions: int = flag(128, "response positions whose full-vocabulary log-probs exist at a time")
    tokens_per_shard: int = flag(65_536, "response tokens after which a shard ends; the work lost by a kill at most")
    rows_per_batch: int = flag(1, "rows of a record batch, the unit of random access")
    sample_rows: int = flag(64, "rows on which the support's threshold is set")

    def __post_init__(self) -> None:
        DataOptions.__post_init__(self)
        positive = (
            "max_length",
            "top_k",
            "min_top_k",
            "batch_tokens",
            "chunk_positions",
            "tokens_per_shard",
            "rows_per_batch",
            "sample_rows",
        )
        require_at_least(self, 1, positive)
        if self.support == "adaptive" and self.max_top_k < self.top_k:
            raise OptionError(f"max_top_k: expected at least top_k = {self.top_k}, got {self.max_top_k}")
        if self.support == "adaptive" and self.min_top_k > self.top_k:
            raise OptionError(f"min_top_k: expected at most top_k = {self.top_k}, got {self.min_top_k}")
        missing = [pair for pair in self.served_pairs if pair.negative not in self.model_names]
        if missing:
            raise OptionError(f"pairs: {missing[0]} needs --models {missing[0].negative}=..., got {self.models}")
        if self.device_map is not None and launched_processes() > 1:
            raise OptionError(f"device_map: expected one process, or a device for each, got {self.device_map!r}")
        if self.device_map is not None and self.models_in_memory == "one":
            raise OptionError(f"device_map: expected none with models_in_memory one, got {self.device_map!r}")
        if self.share_prompts and self.responses != "both":
            raise OptionError(f"share_prompts: expected it with --responses both only, got {self.responses}")
        _ = self.nodes

    @property
    def model_names(self) -> dict[Role, str]:
        """Role -> folder or hub name, in the order of ROLES."""
        given = parse_models(self.models)
        for role in REQUIRED_ROLES:
            if role not in given:
                raise OptionError(f"models: expected {role}=..., got only {', '.join(given) or 'nothing'}")
        return given

    @property
    def served_pairs(self) -> tuple[Pair, ...]:
        if self.pairs is None:
            default = (Pair("dpo", "reverse"), Pair("reference", "reference"))
            return tuple(pair for pair in default if pair.negative in self.model_names)
        parsed = tuple(Pair.parse(text) for text in self.pairs)
        if not parsed or len(set(parsed)) != len(parsed):
            raise OptionError(f"pairs: expected one or more different pairs, got {self.pairs}")
        return parsed

    @property
    def nodes(self) -> StrengthNodes:
        return StrengthNodes(gains=tuple(self.gain_nodes), strengths=tuple(self.strength_nodes))

    def identity(self) -> dict[str, Any]:
        """The options that a cache's bytes depend on."""
        names = ["responses", "limit", "max_length", "on_overlong", "on_empty", "support", "top_k", "values"]
        names += ["min_top_k", "max_top_k", "sample_rows"] if self.support == "adaptive" else []
        names += ["share_prompts"] if self.share_prompts else []
        names += ["batch_tokens", "chunk_positions", "tokens_per_shard", "rows_per_batch"]
        lists: dict[str, Any] = {"pairs": [str(pair) for pair in self.served_pairs]}
        lists |= {"gain_nodes": list(self.nodes.gains), "strength_nodes": list(self.nodes.strengths)}
        return {name: getattr(self, name) for name in names} | lists


@dataclass(kw_only=True)
class CheckOptions:
    """Flags of the check. Raises OptionError for values that are out of range or that contradict each other."""

    shards: str = flag("shards", "folder of the cache")
    models: list[str] = flag([], "role=folder or hub name; default: the places that the cache was built from")
    sample: int = flag(16, "responses to recompute; all, where the cache has no more")
    seed: int = flag(0, "which responses: they are a function of it")
    json: str | None = flag(None, "write the report to this file, for machines")

    teacher: Literal["aligndistil", "adaptive", "contrastive", "linear"] = flag("aligndistil", "a named teacher")
    anchor: Literal["dpo", "reference"] | None = flag(None, "what the teacher starts from; default: the teacher's")
    negative: Literal["reverse", "reference"] | None = flag(None, "what it moves away from; default: the teacher's")
    strength: Literal["adaptive", "constant"] | None = flag(None, "gain * D_t + 1e-3, or beta / kl_coef")
    beta: float = flag(0.1, "reward scale of the DPO models")
    gain: float = flag(10.0, "growth of an adaptive strength with D_t")
    kl_coef: float = flag(0.05, "weight of the KL penalty of a constant strength")

    dtype: Literal["auto", "bfloat16", "float32"] | None = flag(None, "of the bodies; default: as in the build")
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
        if self.json is not None:
            _require_file_outside(Path(self.json), Path(self.shards))
        _ = self.model_names, self.spec

    @property
    def model_names(self) -> dict[Role, str]:
        """Role -> folder or hub name, of the roles that were given."""
        return parse_models(self.models)

    @property
    def spec(self) -> TeacherSpec:
        """The teacher: the preset with the given fields put in its place."""
        chosen = {"anchor": self.anchor, "negative": self.negative, "strength": self.strength}
        given = {name: value for name, value in chosen.items() if value is not None}
        return TeacherSpec.preset(self.teacher, beta=self.beta, gain=self.gain, kl_coef=self.kl_coef, **given)


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


def _require_file_outside(file: Path, folder: Path) -> None:
    """Raise OptionError where a file cannot be written, or would lie in the cache's folder."""
    if not os.access(file.parent, os.W_OK) or file.is_dir():
        found = "a folder" if file.is_dir() else f"{file.parent}, which cannot be written to"
        raise OptionError(f"json: expected a file to write, got {found}")
    if folder.resolve() in file.resolve().parents:
        raise OptionError(f"json: expected a file outside of the cache, got {file}")
