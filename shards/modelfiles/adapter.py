"""peft adapters for both `precompute` and `student`: refuses unsupported kinds, loads, merges and checks.

The caller passes in peft, torch and the models; this module imports none of them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from shards.errors import ModelError, first_line
from shards.modelfiles.folder import ADAPTER_CONFIG, read_config, refusing, require_whole
from shards.modelfiles.precision import spacing

_BEFORE_THE_INPUT = "puts trained states before the input"
NOT_FOLLOWED: Mapping[str, str] = {
    "PROMPT_TUNING": _BEFORE_THE_INPUT,
    "MULTITASK_PROMPT_TUNING": _BEFORE_THE_INPUT,
    "P_TUNING": _BEFORE_THE_INPUT,
    "PREFIX_TUNING": _BEFORE_THE_INPUT,
    "CPT": _BEFORE_THE_INPUT,
    "CARTRIDGE": _BEFORE_THE_INPUT,
    "ADAPTION_PROMPT": _BEFORE_THE_INPUT,
    "POLY": "needs a task with every input",
    "SHADOW": "runs a second model beside the first",
    "XLORA": "reads every input twice, to mix adapters by it",
}
"""Kinds that do more than the model's layers hold, so that body and output layer, run separately, would miss it. All
other kinds of peft 0.21 gave the values of their own forward pass (tests/test_adapters.py); all are checked at load."""


def require_followed(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError if adapter_config.json says that we could not compute or repeat the adapter's values."""
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise ModelError(f"{name}/{ADAPTER_CONFIG}: expected peft_type, got {kind!r}")
    why = NOT_FOLLOWED.get(kind)
    if config.get("alora_invocation_tokens"):
        kind, why = "activated LoRA", "starts at its invocation tokens only"
    if str(config.get("init_lora_weights")).startswith("pissa_niter"):
        kind, why = "LoRA with pissa_niter", "draws other weights for its base whenever it is loaded"
    if why:
        raise ModelError(f"{name}: expected an adapter of the model's layers, got {kind}, which {why}")


def lora_config(peft: ModuleType, options: Any) -> Any:
    """peft's LoraConfig from the flags --lora_r, --lora_alpha, --lora_dropout and --lora_target_modules."""
    wanted = options.lora_target_modules
    return peft.LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear" if wanted in (None, ["all-linear"]) else wanted,
        task_type="CAUSAL_LM",
    )


def load_adapter(
    base: Any,
    path: Path,
    who: str,
    *,
    peft: ModuleType,
    torch: ModuleType,
    name: str = "default",
    onto: Any = None,
    tokens: int | None = None,
) -> Any:
    """The PeftModel of a base with this adapter, or `onto` with one more adapter. Raises ModelError.

    tokens: number of tokens of the adapter's own tokenizer, if it has one. A base with fewer embeddings is enlarged, as
    in AutoPeftModelForCausalLM, and the adapter must then hold the values of all new embeddings.
    """
    with refusing(who, "a peft adapter for its base"):
        rows = _widen(base, tokens)
        config = peft.PeftConfig.from_pretrained(str(path))
        if onto is None:
            onto = peft.PeftModelForCausalLM(base, config, adapter_name=name)
        found = onto.load_adapter(str(path), adapter_name=name, torch_device=str(base.device))
    for field in unknown_fields(config, read_config(who, path / ADAPTER_CONFIG)):
        raise ModelError(f"{who}: expected an adapter of peft {peft.__version__} or older, got {field}, unknown to it")
    require_whole(who, {"missing_keys": found.missing_keys})
    for key in sorted(found.unexpected_keys):
        raise ModelError(f"{who}: expected a peft adapter for its base, got {key}, for which the base has no place")
    if rows is not None:
        _require_new_rows(base, rows, who, torch)
    return onto.eval()


def is_set(value: Any) -> bool:
    """Whether a field of an adapter's config has a value; peft writes all fields."""
    return value not in (None, False, "none", [], {})


def unknown_fields(config: Any, given: Mapping[str, Any]) -> list[str]:
    """Fields with a value that this peft does not know; it ignores them with a warning."""
    known = config.to_dict()
    return [name for name, value in given.items() if name not in known and is_set(value)]


def merge(adapted: Any, who: str, logits_of: Callable[[Any], Any]) -> Any:
    """The base with the adapter merged into its weights. Raises ModelError if the result computes something else.

    logits_of: a model's own logits on a few tokens.
    """
    kind = adapted.active_peft_config.peft_type.value
    before = logits_of(adapted)
    try:
        merged = adapted.merge_and_unload()
    except Exception as exc:  # depends on the kind: NotImplementedError, ValueError, AttributeError
        raise ModelError(
            f"{who}: expected an adapter that its base can take up, got {kind} ({first_line(exc)})"
        ) from exc
    largest = float(abs(before).max())
    worst = float(abs(logits_of(merged) - before).max())
    allowed = max(1e-3, 8 * spacing(merged.dtype))  # merged weights are rounded to the base's dtype
    if worst > allowed * largest:
        raise ModelError(f"{who}: expected a merged {kind} to give its own logits, got a difference of {worst:.2g}")
    return merged


def rounded(model: Any, dtype: Any) -> Any:
    """The model with its weights in a dtype of torch; its buffers, such as frequencies of positions, stay as they are.

    An adapter is merged in float32 and the sum rounded once: half-precision arithmetic would round most of it away.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _widen(base: Any, tokens: int | None) -> int | None:
    """Give the base an embedding for each token; returns its previous number, or None if it had enough.

    New embeddings are NaN, so that they cannot be mistaken for trained ones.
    """
    rows = base.get_input_embeddings().weight.shape[0]
    if tokens is None or tokens <= rows:
        return None
    base.resize_token_embeddings(tokens, mean_resizing=False)
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        layer.weight.data[rows:] = float("nan")
    return int(rows)


def _require_new_rows(base: Any, rows: int, who: str, torch: ModuleType) -> None:
    """Raise ModelError if the adapter has no value for the embedding or the output row of a new token."""
    read, write = base.get_input_embeddings(), base.get_output_embeddings()
    with torch.no_grad():
        new_NH = read(torch.arange(rows, read.weight.shape[0], device=base.device))
        logits_NV = write(new_NH[:1])[:, rows:]
    if not bool(torch.isfinite(new_NH).all() and torch.isfinite(logits_NV).all()):
        raise ModelError(
            f"{who}: expected weights for all {rows + len(new_NH):,} tokens of its tokenizer, got none for some of "
            f"those beyond the {rows:,} of its base"
        )
