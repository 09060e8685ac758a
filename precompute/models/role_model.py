"""RoleModel: hidden states and float32 logits of one role's model, checked at load against the model's own.

Dimensions: B sequences, T tokens, N positions, V vocabulary, W width of the output layer, H hidden size.
"""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from precompute.models.output_layer import OutputLayer
from shards.errors import ModelError
from shards.format.schema import Role
from shards.modelfiles.head import LogitTransform, body_of, probe_ids, require_same_logits, require_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoleModel:
    """One role: hidden states of its body, and float32 logits of its output layer."""

    def __init__(
        self,
        role: Role,
        model: "PreTrainedModel",
        vocabulary_size: int,
        *,
        own_logits_TV: torch.Tensor | None = None,
        peft_model: Any = None,
        adapted: bool = False,
        head_device: str | None = None,
    ) -> None:
        """head_device: the device for a copy of the output layer, so that the body can be moved away; None: no copy.

        own_logits_TV: from the role's own forward pass while its base had no other adapters (`own_logits`).
        peft_model: has the adapters of all roles that share the base; None if the role shares with nobody.
        """
        self.role = role
        self.model = model
        self.vocabulary_size = vocabulary_size
        self._peft_model = peft_model
        self._adapted = adapted
        self._transform = LogitTransform.of(model.config)
        self._body = body_of(model, role)
        with self.active():
            module = model.get_output_embeddings()
            if module is None:
                raise ModelError(f"{role}: expected a model with an output layer, got {type(model).__name__}")
            require_width(module.weight.shape[0], vocabulary_size, role)
            hidden_dtype = self._check_head(
                module, own_logits(model, vocabulary_size) if own_logits_TV is None else own_logits_TV
            )
            device = module.weight.device if head_device is None else torch.device(head_device)
            self.output_layer = OutputLayer.of(module, hidden_dtype, device, own=head_device is not None)
            self.device = self.output_layer.device

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
        """Keep the body on a device during the context, then move it back."""
        body: Any = self.model
        home = body.device
        body.to(device)
        try:
            yield
        finally:
            body.to(home)

    def compile(self, backend: str = "inductor") -> None:
        """Run the body through torch.compile from now on, for batches of any shape. Raises ModelError."""
        if self._peft_model is not None:
            raise ModelError(
                f"{self.role}: expected a base of its own with --torch_compile, got one that roles share; leave it out"
            )
        self._body = torch.compile(self._body, dynamic=True, backend=backend)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the body."""
        return self.model.dtype

    @property
    def window(self) -> int | None:
        """How many tokens its layers with a window look back, at most; None if all layers see everything."""
        config = self.model.config.get_text_config()
        found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return min((size for size in found if size is not None), default=None)

    def hidden(
        self,
        input_ids_BT: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids_BT: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Last hidden states, (B, T, H), in the body's dtype.

        attention_mask: (B, T), which tokens are not padding; or (B, 1, T, T) bool, which tokens each token sees; or
        None if all rows stand in one, without padding, where position_ids begin again. lengths: of these rows.
        """
        device = self.model.device
        if (
            attention_mask is not None and attention_mask.dim() == 4
        ):  # as numbers to add, which every attention implementation accepts
            seen = torch.zeros(attention_mask.shape, dtype=self.dtype, device=attention_mask.device)
            attention_mask = seen.masked_fill_(~attention_mask, torch.finfo(self.dtype).min)
        inputs = {"input_ids": input_ids_BT, "attention_mask": attention_mask, "position_ids": position_ids_BT}
        given = {name: tensor.to(device) for name, tensor in inputs.items() if tensor is not None}
        return self._body(**given, **self._flash_lengths(lengths), use_cache=False)[0]

    def _flash_lengths(self, lengths: Sequence[int] | None) -> dict[str, Any]:
        """For flash attention, which else would wait for the device in every layer to learn where rows begin."""
        if lengths is None or not str(self.model.config._attn_implementation).startswith("flash_attention"):
            return {}
        ends_B = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.model.device)
        longest = max(lengths)
        cumulated = {"cu_seq_lens_q": ends_B, "cu_seq_lens_k": ends_B}
        return cumulated | {"max_length_q": longest, "max_length_k": longest}

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Float32 logits over the vocabulary, (N, V), on the device of the output layer. Call it inside `active`."""
        return self._transform(self.output_layer(hidden_NH)[:, : self.vocabulary_size], torch)

    @torch.no_grad()
    def _check_head(self, module: Any, theirs_TV: torch.Tensor) -> torch.dtype:
        """Compare the logits from body, output layer and transform with the role's own, in the model's own dtype.

        Returns the dtype of the hidden states.
        """
        ids_BT = torch.tensor([probe_ids(self.vocabulary_size)])
        hidden_TH = self.hidden(ids_BT, torch.ones_like(ids_BT))[0]
        ours_TV = self._transform(module(hidden_TH.to(module.weight.device)), torch).float()
        theirs_TV = theirs_TV.to(ours_TV.device)
        if bool(torch.isfinite(theirs_TV).all()):  # else scoring will name the sample and position
            dtype, name = module.weight.dtype, type(self.model).__name__
            require_same_logits(ours_TV, theirs_TV, dtype=dtype, who=self.role, model_class=name)
        return hidden_TH.dtype


@torch.no_grad()
def own_logits(model: Any, vocabulary_size: int) -> torch.Tensor:
    """The logits of a whole model, or of a PeftModel, on a few tokens, (T, W), in float32.

    A base may have fewer embeddings than the vocabulary: its adapter adds more, or it is refused.
    """
    known = min(vocabulary_size, model.config.get_text_config().vocab_size)
    ids_BT = torch.tensor([probe_ids(known)], device=model.device)
    found = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False)
    return found.logits[0].float()
