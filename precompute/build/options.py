"""BuildOptions: every flag of `python -m precompute.build`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from precompute.cluster.options import ClusterOptions
from precompute.feeding.budget import AUTO
from precompute.models.roles import parse_models
from precompute.tokens.data_options import DataOptions
from shards.cli.command import flag, require_at_least
from shards.cli.device import AskedKernels, Dtype
from shards.cli.launcher import launched_processes
from shards.errors import OptionError
from shards.format.nodes import DEFAULT_GAIN_NODES, DEFAULT_STRENGTH_NODES, StrengthNodes
from shards.format.schema import REQUIRED_ROLES, Pair, Role


@dataclass(kw_only=True)
class BuildOptions(ClusterOptions, DataOptions):
    """Flags of the build. Raises OptionError for values out of range and for contradictions."""

    models: list[str] = field(
        metadata={"help": "role=folder or hub name, for dpo, reference and (for contrast) reverse; peft adapters too"}
    )
    out: str = flag("shards", "folder of the cache, or a URL: s3://, gs://, az://, hf://datasets/")
    responses: Literal["chosen", "rejected", "both"] = flag("chosen", "which responses of a pair to cache")
    max_length: int = flag(2048, "most tokens of prompt and response; longer responses are cut, prompts never")
    on_overlong: Literal["skip", "error"] = flag("skip", "what to do with prompts of max_length tokens or more")
    on_empty: Literal["skip", "error"] = flag("error", "what to do with empty responses")

    support: Literal["adaptive", "fixed"] = flag("adaptive", "as many tokens as a position needs, or always top_k")
    top_k: int = flag(64, "mean number of tokens kept per position")
    min_top_k: int = flag(1, "fewest tokens kept at a position")
    max_top_k: int = flag(2048, "most tokens kept at a position")
    pairs: list[str] | None = flag(
        None, "anchor/negative pairs to serve; default: dpo/reverse and reference/reference, if --models has them"
    )
    gain_nodes: list[float] = flag(list(DEFAULT_GAIN_NODES), "gains whose strengths are nodes, starting at 0")
    strength_nodes: list[float] = flag(list(DEFAULT_STRENGTH_NODES), "constant strengths that are nodes, starting at 0")
    values: Literal["compact", "float32"] = flag("compact", "how values are stored: in half the bytes, or exactly")

    dtype: Dtype = flag("auto", "of the bodies of all roles; auto: float32 on a CPU, float16 on a GPU")
    tf32: bool = flag(False, "with --dtype float32 on a GPU: round the factors of products to TF32's ten bits")
    device: str = flag("auto", "device of models and scores: auto, cpu, cuda, cuda:1, ...")
    mixed_devices: bool = flag(
        False, "GPUs of several models may share the work; a shard's rounding is that of the GPU that it ran on"
    )
    kernels: AskedKernels = flag(
        "auto", "what computes over the vocabulary; auto: Triton kernels on a CUDA device, else plain torch"
    )
    device_map: str | None = flag(None, "as in transformers' from_pretrained")
    models_in_memory: Literal["all", "one"] = flag(
        "all", "one: each model is on the device only while it computes the hidden states of a shard"
    )
    share_prompts: bool = flag(False, "with --responses both: run the prompt of a pair through a body once, not twice")
    padding_free: bool = flag(False, "run the rows of a batch as one, without padding; pays with flash attention only")
    torch_compile: bool = flag(False, "run the models' bodies through torch.compile; needs a compiler")
    attn_implementation: str | None = flag(None, "as in transformers' from_pretrained")
    trust_remote_code: bool = flag(False, "run code that comes with a model")
    batch_tokens: str = flag(
        AUTO, "most tokens of one forward pass, with padding; auto: 8192, on a GPU what its memory holds, up to 16384"
    )
    chunk_positions: int | None = flag(
        None, "response positions with full-vocabulary log-probs in memory at a time; default: 128, on a GPU 512"
    )
    tokens_per_shard: int = flag(65_536, "response tokens of a shard; a kill loses at most one shard of work")
    rows_per_batch: int = flag(1, "rows of a record batch, the unit of random access")
    sample_rows: int = flag(64, "rows from which the threshold of the support is computed")

    def __post_init__(self) -> None:
        DataOptions.__post_init__(self)
        self.require_cluster_flags()
        positive = (
            "max_length",
            "top_k",
            "min_top_k",
            "tokens_per_shard",
            "rows_per_batch",
            "sample_rows",
        )
        self.batch_tokens = str(self.batch_tokens)
        if self.batch_tokens != AUTO and not (self.batch_tokens.isdecimal() and int(self.batch_tokens) >= 1):
            raise OptionError(f"batch_tokens: expected {AUTO}, or 1 or more, got {self.batch_tokens}")
        require_at_least(self, 1, [*positive, *(["chunk_positions"] if self.chunk_positions is not None else [])])
        if self.support == "adaptive" and self.max_top_k < self.top_k:
            raise OptionError(f"max_top_k: expected at least top_k = {self.top_k}, got {self.max_top_k}")
        if self.support == "adaptive" and self.min_top_k > self.top_k:
            raise OptionError(f"min_top_k: expected at most top_k = {self.top_k}, got {self.min_top_k}")
        missing = [pair for pair in self.served_pairs if pair.negative not in self.model_names]
        if missing:
            raise OptionError(f"pairs: {missing[0]} needs --models {missing[0].negative}=..., got {self.models}")
        if self.device_map is not None and launched_processes() > 1:
            raise OptionError(f"device_map: expected one process, or a device for each, got {self.device_map!r}")
        self._require_no_single_gpu()
        if self.device_map is not None and self.models_in_memory == "one":
            raise OptionError(f"device_map: expected none with models_in_memory one, got {self.device_map!r}")
        if self.share_prompts and self.responses != "both":
            raise OptionError(f"share_prompts: expected it with --responses both only, got {self.responses}")
        if self.padding_free and self.share_prompts:
            raise OptionError("padding_free and share_prompts: expected one of them, got both")
        _ = self.nodes

    def _require_no_single_gpu(self) -> None:
        """Raise OptionError for --device cuda:N where every process or worker gets a GPU of its own."""
        given_by = "a launcher" if launched_processes() > 1 else "Ray" if self.ray is not None else None
        if given_by and self.device.startswith("cuda:"):
            expected = f"auto, cuda or cpu, since {given_by} gives each process its GPU"
            raise OptionError(f"device: expected {expected}, got {self.device!r}")

    @property
    def model_names(self) -> dict[Role, str]:
        """Role -> folder or hub name, in the order of ROLES. Raises OptionError if a required role is missing."""
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

    @property
    def tokens_per_batch(self) -> int:
        """batch_tokens as a number; it is known where auto is resolved (`with_sizes`, `with_measured_batches`)."""
        return int(self.batch_tokens)

    def identity(self) -> dict[str, Any]:
        """The options that a cache's bytes depend on."""
        names = ["responses", "limit", "max_length", "on_overlong", "on_empty", "support", "top_k", "values"]
        names += ["min_top_k", "max_top_k", "sample_rows"] if self.support == "adaptive" else []
        names += [name for name in ("share_prompts", "padding_free") if getattr(self, name)]
        names += ["batch_tokens", "chunk_positions", "tokens_per_shard", "rows_per_batch"]
        batch_tokens = AUTO if self.batch_tokens == AUTO else self.tokens_per_batch
        lists: dict[str, Any] = {"pairs": [str(pair) for pair in self.served_pairs]}
        lists |= {"gain_nodes": list(self.nodes.gains), "strength_nodes": list(self.nodes.strengths)}
        return {name: getattr(self, name) for name in names} | {"batch_tokens": batch_tokens} | lists
