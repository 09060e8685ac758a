"""BuildOptions: every flag of `python -m precompute.build`."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from shards.command import require_choices
from shards.errors import OptionError
from shards.nodes import DEFAULT_GAIN_NODES, DEFAULT_STRENGTH_NODES, StrengthNodes
from shards.schema import REQUIRED_ROLES, ROLES, Pair, Role


def _flag(default: Any, text: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class BuildOptions:
    """Flags of the build. Raises OptionError for values that contradict each other or are out of range."""

    models: list[str] = field(
        metadata={"help": "role=folder or hub name for dpo, reference and (for contrast) reverse; peft adapters too"}
    )
    data: str = field(
        metadata={"help": ".jsonl, .jsonl.zst, .parquet, .arrow, a save_to_disk folder or a hub name; TRL's columns"}
    )
    out: str = _flag("shards", "folder of the cache")
    split: str = _flag("train", "split of a hub data set or of a saved DatasetDict")
    responses: Literal["chosen", "rejected", "both"] = _flag("chosen", "which responses of a pair are cached")
    limit: int | None = _flag(None, "use only the first N rows of the data")
    max_length: int = _flag(2048, "tokens of prompt and response; longer responses are cut, prompts never")
    on_overlong: Literal["skip", "error"] = _flag("skip", "what becomes of a prompt as long as max_length")
    on_empty: Literal["skip", "error"] = _flag("error", "what becomes of an empty response")

    support: Literal["adaptive", "fixed"] = _flag("adaptive", "as many tokens as a position needs, or top_k everywhere")
    top_k: int = _flag(64, "mean number of tokens kept per position")
    min_top_k: int = _flag(1, "fewest tokens kept at a position")
    max_top_k: int = _flag(512, "most tokens kept at a position")
    pairs: list[str] | None = _flag(
        None, "anchor/negative pairs to serve; default dpo/reverse and reference/reference, as far as models are given"
    )
    gain_nodes: list[float] = _flag(list(DEFAULT_GAIN_NODES), "gains whose strengths are nodes, from 0")
    strength_nodes: list[float] = _flag(list(DEFAULT_STRENGTH_NODES), "constant strengths that are nodes, from 0")
    values: Literal["compact", "float32"] = _flag(
        "compact", "how values are stored: in a third of the bytes, or exactly"
    )

    dtype: Literal["auto", "bfloat16", "float32"] = _flag("auto", "dtype of the models' bodies; heads are float32")
    device: str = _flag("auto", "device of models and scores: auto, cpu, cuda, cuda:1, ...")
    device_map: str | None = _flag(None, "as in transformers' from_pretrained")
    attn_implementation: str | None = _flag(None, "as in transformers' from_pretrained")
    trust_remote_code: bool = _flag(False, "run code that comes with a model")
    batch_tokens: int = _flag(8192, "tokens, padding included, of one forward pass")
    chunk_positions: int = _flag(128, "response positions whose full-vocabulary log-probs exist at a time")
    tokens_per_shard: int = _flag(65_536, "response tokens after which a shard ends; the work lost by a kill at most")
    rows_per_batch: int = _flag(4, "rows of a record batch, the unit of random access")
    sample_rows: int = _flag(64, "rows on which the support's threshold is set")

    def __post_init__(self) -> None:
        require_choices(self)
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
        for name in positive:
            if getattr(self, name) < 1:
                raise OptionError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"limit: expected 1 or more, got {self.limit}")
        if self.support == "adaptive" and self.max_top_k < self.top_k:
            raise OptionError(f"max_top_k: expected at least top_k = {self.top_k}, got {self.max_top_k}")
        if self.support == "adaptive" and self.min_top_k > self.top_k:
            raise OptionError(f"min_top_k: expected at most top_k = {self.top_k}, got {self.min_top_k}")
        missing = [pair for pair in self.served_pairs if pair.negative not in self.model_names]
        if missing:
            raise OptionError(f"pairs: {missing[0]} needs --models {missing[0].negative}=..., got {self.models}")
        if self.device_map is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise OptionError(f"device_map: expected one process, or a device for each, got {self.device_map!r}")
        _ = self.nodes

    @property
    def model_names(self) -> dict[Role, str]:
        """Role -> folder or hub name, in the order of ROLES."""
        given: dict[str, str] = {}
        for item in self.models:
            role, separator, name = item.partition("=")
            if role not in ROLES or not separator or not name:
                raise OptionError(f"models: expected role=folder with a role of {', '.join(ROLES)}, got {item!r}")
            if role in given:
                raise OptionError(f"models: expected one folder for {role}, got {given[role]!r} and {name!r}")
            given[role] = name
        for role in REQUIRED_ROLES:
            if role not in given:
                raise OptionError(f"models: expected {role}=..., got only {', '.join(given) or 'nothing'}")
        return {role: given[role] for role in ROLES if role in given}

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
        names += ["batch_tokens", "chunk_positions", "tokens_per_shard", "rows_per_batch"]
        lists: dict[str, Any] = {"pairs": [str(pair) for pair in self.served_pairs]}
        lists |= {"gain_nodes": list(self.nodes.gains), "strength_nodes": list(self.nodes.strengths)}
        return {name: getattr(self, name) for name in names} | lists
