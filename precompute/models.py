"""The models by role: where they are, what they are (identity), and their hidden states and float32 logits."""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from shards.errors import ModelError, first_line
from shards.head import LogitTransform, probe_ids, require_same_logits, require_width
from shards.model_folder import (
    ADAPTER_CONFIG,
    adapter_base,
    read_config,
    refusing,
    require_folder,
    require_tokenizer,
    require_weights,
    require_whole,
    weights_sha256,
)
from shards.schema import Role
from shards.vocabulary import require_same_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on this disk: a full model, or a peft adapter with its base. `commit`: the hub's, if it came from it."""

    name: str
    path: Path
    commit: str | None
    base: "ModelFolder | None" = None


def resolve(name: str) -> ModelFolder:
    """Find a folder or fetch a hub name, and check that safetensors weights are there. Raises ModelError."""
    path, commit = Path(name), None
    if not path.is_dir():
        require_folder(name)
        try:
            path = Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.gguf", "*.onnx"]))
        except Exception as exc:
            raise ModelError(f"{name}: expected a model folder or a hub name, got {first_line(exc)}") from exc
        commit = path.name
    if base := adapter_base(name, path):
        require_weights(name, path, "adapter_model")
        try:
            return ModelFolder(name=name, path=path, commit=commit, base=resolve(base))
        except ModelError as exc:
            raise ModelError(f"{name}: base of the adapter: {exc}") from exc
    if not (path / "config.json").is_file():
        raise ModelError(f"{name}: expected a model folder with config.json, found none")
    require_weights(name, path, "model")
    return ModelFolder(name=name, path=path, commit=commit)


def identity(folder: ModelFolder, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """What a model is: sha256 over its safetensors and its config, its width, its base, its hub commit."""
    stem = "adapter_model" if folder.base else "model"
    config_file = ADAPTER_CONFIG if folder.base else "config.json"
    config = read_config(folder.name, folder.path / config_file)
    config.pop("base_model_name_or_path", None)  # a path; the base itself is identified below
    facts: dict[str, Any] = {
        "weights_sha256": weights_sha256(folder.path, stem),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "hub_commit": folder.commit,
    }
    if folder.base:
        return facts | {"base": identity(folder.base, trust_remote_code=trust_remote_code)}
    with refusing(folder.name, "a model that transformers knows"):
        known = AutoConfig.from_pretrained(folder.path, trust_remote_code=trust_remote_code).get_text_config()
    return facts | {"vocabulary_width": known.vocab_size}


def load_tokenizer(folder: ModelFolder, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a role; an adapter without one has its base's. Raises ModelError where there is none."""
    if not (folder.path / "tokenizer_config.json").is_file() and folder.base:
        return load_tokenizer(folder.base, trust_remote_code=trust_remote_code)
    require_tokenizer(folder.name, folder.path)
    with refusing(folder.name, "a tokenizer that can be read"):
        return AutoTokenizer.from_pretrained(folder.path, trust_remote_code=trust_remote_code)


def check_vocabularies(tokenizers: Mapping[Role, Any]) -> dict[str, int]:
    """The token-to-id map that all roles share. Raises VocabularyMismatch naming the first token that differs."""
    maps = {role: tokenizer.get_vocab() for role, tokenizer in tokenizers.items()}
    first_role, first = next(iter(maps.items()))
    for role, other in maps.items():
        require_same_vocabulary(first, other, first_role, role)
    return dict(sorted(first.items(), key=lambda item: (item[1], item[0])))


class RoleModel:
    """One role: hidden states of its body, and float32 logits of its output layer."""

    def __init__(
        self,
        role: Role,
        model: PreTrainedModel,
        vocabulary_size: int,
        *,
        peft_model: Any = None,
        adapted: bool = False,
        head_device: str | None = None,
    ) -> None:
        """head_device: where the output layer gets a copy of its own, so that the body may leave; None: it has none."""
        self.role = role
        self.model = model
        self.vocabulary_size = vocabulary_size
        self._peft_model = peft_model
        self._adapted = adapted
        self._transform = LogitTransform.of(model.config)
        with self.active():
            module = model.get_output_embeddings()
            if module is None:
                raise ModelError(f"{role}: expected a model with an output layer, got {type(model).__name__}")
            require_width(module.weight.shape[0], vocabulary_size, role)
            shared = head_device is None and module.weight.dtype == torch.float32
            self._head = module if shared else copy.deepcopy(module).float()
            self._check_head(module)
            if head_device is not None:
                self._head.to(head_device)
            self.device = self._head.weight.device

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Switch a shared base to this role: its adapter on, or all adapters off."""
        if self._peft_model is None:
            yield
        elif self._adapted:
            self._peft_model.set_adapter(self.role, inference_mode=True)
            yield
        else:
            with self._peft_model.disable_adapter():
                yield

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Keep the body on a device for as long as this lasts, then send it back to where it was."""
        body: Any = self.model
        home = body.device
        body.to(device)
        try:
            yield
        finally:
            body.to(home)

    @property
    def dtype(self) -> torch.dtype:
        """Of the body."""
        return self.model.dtype

    @property
    def window(self) -> int | None:
        """Tokens that some of its layers look back at most; None where all layers see everything."""
        config = self.model.config.get_text_config()
        found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return min((size for size in found if size is not None), default=None)

    def hidden(
        self, input_ids_BT: torch.Tensor, attention_mask: torch.Tensor, position_ids_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states, (B, T, H), in the body's dtype.

        attention_mask: (B, T), which tokens are not padding; or (B, 1, T, T) bool, what each token sees.
        """
        device = self.model.device
        if attention_mask.dim() == 4:  # as numbers to add, which every kind of attention takes
            seen = torch.zeros(attention_mask.shape, dtype=self.dtype)
            attention_mask = seen.masked_fill_(~attention_mask, torch.finfo(self.dtype).min)
        inputs = {"input_ids": input_ids_BT, "attention_mask": attention_mask, "position_ids": position_ids_BT}
        given = {name: tensor.to(device) for name, tensor in inputs.items() if tensor is not None}
        return self.model.base_model(**given, use_cache=False)[0]

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Float32 logits over the vocabulary, (N, V), on the device of the output layer. Call inside `active`."""
        product_NW = self._head(hidden_NH.to(self.device, torch.float32))
        return self._transform(product_NW[:, : self.vocabulary_size], torch)

    @torch.no_grad()
    def _check_head(self, module: Any) -> None:
        """Compare body, output layer and transform with the model's own logits, in the model's own dtype."""
        ids_BT = torch.tensor([probe_ids(self.vocabulary_size)])
        mask_BT = torch.ones_like(ids_BT)
        hidden_TH = self.hidden(ids_BT, mask_BT)[0]
        ours_TV = self._transform(module(hidden_TH.to(module.weight.device)), torch).float()
        device = self.model.device
        theirs = self.model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False)
        theirs_TV = theirs.logits[0].float().to(ours_TV.device)
        if not bool(torch.isfinite(theirs_TV).all()):
            return  # scoring will say at which sample and position
        narrow = module.weight.dtype == torch.bfloat16
        require_same_logits(ours_TV, theirs_TV, narrow=narrow, who=self.role, model_class=type(self.model).__name__)


def load_models(
    folders: Mapping[Role, ModelFolder],
    vocabulary_size: int,
    *,
    dtype: str,
    device: str,
    one_at_a_time: bool = False,
    **kwargs: Any,
) -> dict[Role, RoleModel]:
    """Load every role, a base that roles share only once. Raises ModelError.

    dtype is auto, bfloat16 or float32; one_at_a_time: bodies stay in the host's memory, and the output layers alone go
    to the device. kwargs go to from_pretrained (device_map, attn_implementation, trust_remote_code).
    """
    bases: dict[Path, PreTrainedModel] = {}
    wrapped: dict[Path, Any] = {}
    for role, folder in folders.items():
        base = folder.base or folder
        path = base.path.resolve()
        if path not in bases:
            bases[path] = _load_base(role, base, dtype=dtype, device="cpu" if one_at_a_time else device, **kwargs)
        if folder.base:
            wrapped[path] = _add_adapter(wrapped.get(path), bases[path], folder, role)
    return {
        role: RoleModel(
            role,
            bases[(path := (folder.base or folder).path.resolve())],
            vocabulary_size,
            peft_model=wrapped.get(path),
            adapted=folder.base is not None,
            head_device=device if one_at_a_time else None,
        )
        for role, folder in folders.items()
    }


def load_merged(folder: ModelFolder, who: str, *, dtype: str, device: str, **kwargs: Any) -> PreTrainedModel:
    """One model, to be trained or sampled from; an adapter is merged into its base. Raises ModelError, naming `who`.

    dtype, device and kwargs as in `load_models`.
    """
    model = _load_base(who, folder.base or folder, dtype=dtype, device=device, **kwargs)
    if folder.base:
        model = _add_adapter(None, model, folder, who).merge_and_unload().requires_grad_(True)
    return model


def _load_base(role: str, folder: ModelFolder, *, dtype: str, device: str, **kwargs: Any) -> PreTrainedModel:
    given = {key: value for key, value in kwargs.items() if value is not None}
    with refusing(f"{role} ({folder.name})", "a causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **given,
        )
    model, info = loaded
    require_whole(f"{role} ({folder.name})", info)
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise ModelError(
            f"{role} ({folder.name}): expected float32 or bfloat16 weights, got {model.dtype}; choose one with --dtype"
        )
    return model.eval() if "device_map" in given else model.to(device).eval()


def _add_adapter(wrapped: Any, base: PreTrainedModel, folder: ModelFolder, role: str) -> Any:
    try:
        from peft import PeftConfig, PeftModelForCausalLM
    except ImportError as exc:
        raise ModelError(f"{role} ({folder.name}): is a peft adapter; install aligndistil-offline[peft]") from exc
    with refusing(f"{role} ({folder.name})", "a peft adapter for its base"):
        if wrapped is None:
            config = PeftConfig.from_pretrained(str(folder.path))
            wrapped = PeftModelForCausalLM(base, config, adapter_name=role)
        found = wrapped.load_adapter(folder.path, adapter_name=role)
    require_whole(f"{role} ({folder.name})", {"missing_keys": found.missing_keys})
    return wrapped.eval()
