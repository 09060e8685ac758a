"""The student's forward pass with the loss in it: body, output layer in chunks, sparse divergence.

Wrappers (DDP, FSDP, DeepSpeed, peft) still see, and save, the PreTrainedModel itself: only its `forward` is replaced,
and without targets that is unchanged.

Dimensions: B sequences, T tokens, N response positions, C positions of a chunk, V vocabulary, H hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from shards import Divergence
from shards.cli.device import Kernels
from shards.errors import ModelError
from shards.modelfiles.head import LogitTransform, body_of, probe_ids, require_same_logits, require_width
from student.loss.fused import FusedLoss, Sums, why_not_fused
from student.loss.products import half_of, multiply
from student.loss.rows import response_states
from student.loss.sparse import METRICS, SparseTargets, loss_sums, position_metrics, sparse_divergence
from student.loss.whole import in_call_of, is_split


class DistillForward:
    """Replaces `model.forward`: with `targets` it returns loss and metrics, without them the model's own output.

    Returns {"loss_sum": sum over positions of coefficient * divergence, "weak_sums": the WEAK_SUMS, "metrics": sums of
    the METRICS over the positions that count}.
    Logits exist for `chunk_positions` positions at a time. With a plain output layer their gradient is computed at once
    (`student.loss.fused`); any other output layer (see `why_not_fused`) is called as a module, and again for the
    backward pass. Raises ModelError for a model whose logits are not those of its body and output layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        vocabulary_size: int,
        divergence: Divergence,
        chunk_positions: int,
        kernels: Kernels = "torch",
        half_of: Callable[[torch.Tensor, torch.Tensor, torch.dtype | None], torch.dtype | None] = half_of,
    ) -> None:
        """half_of: which dtype the inputs of the output layer's products are rounded to; another one emulates a GPU."""
        self.model = model
        self.vocabulary_size = vocabulary_size
        self.divergence = divergence
        self.chunk_positions = chunk_positions
        self.kernels: Kernels = kernels
        self.half_of = half_of
        self._transform = LogitTransform.of(model.config)
        self._fused = FusedLoss(
            vocabulary_size=vocabulary_size,
            divergence=divergence,
            transform=self._transform,
            chunk_positions=chunk_positions,
            kernels=kernels,
        )
        self._own_forward = model.forward
        self._why_not_before = None if self.head is None else why_not_fused(self.head)
        self._check_head()

    def install(self) -> None:
        """Replace the model's forward."""
        self.model.forward = self

    def restore(self) -> None:
        """Restore the model's own forward."""
        if "forward" in vars(self.model):
            del self.model.forward

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        targets: SparseTargets | None = None,
        position: torch.Tensor | None = None,
        packed: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if targets is None:
            return self._own_forward(input_ids, attention_mask, *args, **kwargs)
        assert input_ids is not None and position is not None, "they come with the targets"
        return self.distill(response_states(self.model, input_ids, attention_mask, position, packed), targets)

    def distill(self, hidden_NH: torch.Tensor, targets: SparseTargets) -> dict[str, torch.Tensor]:
        """Loss and metrics from the hidden states of the response positions."""
        head, reason = self.head, self.why_not_fused
        if reason is None and is_split(head):
            loss, weak_3, metrics_X = in_call_of(head, self._sums, hidden_NH, targets)
        else:
            loss, weak_3, metrics_X = self._sums(hidden_NH, targets, reason)
        return {"loss_sum": loss, "weak_sums": weak_3, "metrics": metrics_X}

    def _sums(self, hidden_NH: torch.Tensor, targets: SparseTargets, reason: str | None = None) -> Sums:
        """The loss with the output layer's weight whole; reason: why its logits are computed again."""
        head = self.head
        self._require_weights(head)
        half = None if reason else self._half(hidden_NH, head)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            if half is not None:
                return self._fused(hidden_NH, head, targets, half)
            run = self._fused if reason is None else self._chunk_by_chunk
            return run(self._wide(hidden_NH), head, targets)

    @torch.no_grad()
    def measure(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position: torch.Tensor,
        targets: SparseTargets,
    ) -> dict[str, torch.Tensor]:
        """`divergence`, the METRICS, and `next_logprob` of the response token itself: (N,) each, nats.

        `finite_state` (N,) says where the hidden states are finite: a soft cap on the logits would hide others.
        `kept_logprobs` (M,) and `tail_logprob` (N,) are the model's own, for comparisons with other teachers.
        """
        hidden_NH = response_states(self.model, input_ids, attention_mask, position)
        finite_N = hidden_NH.isfinite().all(-1)
        self._require_weights(self.head)
        hidden_NH, head = self._evaluated_head(hidden_NH)
        next_ids_N = input_ids.flatten()[position + 1]
        found, kept = [], []
        for positions, part in targets.chunks(self.chunk_positions):
            logits_CV = self._logits(hidden_NH[positions], head)
            value_C, student_M, student_tail_C = sparse_divergence(logits_CV, part, self.divergence, self.kernels)
            kept.append(student_M)
            next_logit_C = logits_CV.gather(-1, next_ids_N[positions, None])[:, 0]
            columns = (
                value_C,
                next_logit_C - logits_CV.logsumexp(-1),
                student_tail_C,
                position_metrics(student_M, student_tail_C, part),
            )
            found.append(torch.column_stack(columns))
        names = ("divergence", "next_logprob", "tail_logprob", *METRICS)
        by_name = dict(zip(names, torch.cat(found).unbind(-1), strict=True))
        return by_name | {"finite_state": finite_N, "kept_logprobs": torch.cat(kept)}

    def _half(self, hidden_NH: torch.Tensor, head: Any) -> torch.dtype | None:
        """The dtype of the output layer's products if they have half-precision inputs; None otherwise."""
        device = hidden_NH.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self.half_of(hidden_NH, head.weight, autocast) if self.why_not_fused is None else None

    @staticmethod
    def _wide(hidden_NH: torch.Tensor) -> torch.Tensor:
        """At least float32: bf16 logits are 0.125 apart, while the teacher's signal is a tenth of a nat."""
        return hidden_NH.to(torch.promote_types(hidden_NH.dtype, torch.float32))

    def _evaluated_head(self, hidden_NH: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Hidden states, and a call that gives their float32 products with the output layer."""
        module, half = self.head, self._half(hidden_NH, self.head)
        if half is None:
            hidden_NH = self._wide(hidden_NH)
            return hidden_NH, self._float_head(module, hidden_NH.dtype)
        weight_WH = module.weight.to(half)

        def head(hidden_CH: torch.Tensor) -> torch.Tensor:
            room_CW = hidden_CH.new_empty(len(hidden_CH), len(weight_WH), dtype=torch.float32)
            product_CW = multiply(hidden_CH, weight_WH.t(), out=room_CW)
            return product_CW if module.bias is None else product_CW.add_(module.bias)

        return hidden_NH.to(half), head

    def _logits(self, hidden_CH: torch.Tensor, head: Any) -> torch.Tensor:
        return self._transform(head(hidden_CH)[:, : self.vocabulary_size], torch)

    @property
    def head(self) -> Any:
        """The output module; read each time, because a wrapper can replace it, or its weight, later."""
        return self.model.get_output_embeddings()

    @property
    def why_not_fused(self) -> str | None:
        """Why the logits are computed again for the backward pass; None if the forward pass computes the gradient.

        Of a split output layer it is what was so before a wrapper put its own hooks and type there.
        """
        return self._why_not_before if is_split(self.head) else why_not_fused(self.head)

    def _chunk_by_chunk(self, hidden_NH: torch.Tensor, module: Any, targets: SparseTargets) -> Sums:
        head = self._float_head(module, hidden_NH.dtype)
        parts = []
        for positions, part in targets.chunks(self.chunk_positions):
            chunk = (hidden_NH[positions], part, head)
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._chunk, *chunk, use_reentrant=False))
            else:
                parts.append(self._chunk(*chunk))
        loss, weak_3, metrics_X = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
        return loss, weak_3, metrics_X

    def _chunk(self, hidden_CH: torch.Tensor, targets: SparseTargets, head: Any) -> Sums:
        logits_CV = self._logits(hidden_CH, head)
        found = sparse_divergence(logits_CV, targets, self.divergence, self.kernels)
        return loss_sums(*found, targets, self.divergence)

    @staticmethod
    def _float_head(module: Any, dtype: torch.dtype) -> Any:
        """The output module itself, or a call of it with its parameters in `dtype` if they are narrower."""
        parameters = dict(module.named_parameters())
        if all(parameter.dtype == dtype for parameter in parameters.values()):
            return module
        wide = {name: parameter.to(dtype) for name, parameter in parameters.items()}
        return lambda hidden_CH: functional_call(module, wide, (hidden_CH,))

    def _require_weights(self, module: Any) -> None:
        if any(parameter.numel() == 0 for parameter in module.parameters()):
            raise ModelError(
                f"{type(self.model).__name__}: expected the weight of the output layer, got an empty one (split "
                "by DeepSpeed ZeRO-3 while it was loaded); load the model with student.load.load_model"
            )

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare the logits from body, output layer and transform with the model's own.

        In the caller's autocast: flash attention refuses float32 weights without it.
        """
        model = self.model
        module = self.head
        name = type(model).__name__
        if module is None:
            raise ModelError(f"student: expected a model with an output layer, got {name}")
        self._require_weights(module)
        require_width(module.weight.shape[0], self.vocabulary_size, "student")
        training = model.training
        model.eval()
        ids_BT = torch.tensor([probe_ids(self.vocabulary_size)], device=model.device)
        hidden_TH = body_of(model, "student")(input_ids=ids_BT, use_cache=False)[0][0]
        product_TW = module(hidden_TH)
        ours_TV = self._transform(product_TW, torch).float()
        theirs_TV = self._own_forward(input_ids=ids_BT, use_cache=False).logits[0].float()
        model.train(training)
        autocast = torch.is_autocast_enabled(model.device.type)
        require_same_logits(
            ours_TV, theirs_TV, dtype=product_TW.dtype, who="student", model_class=name, autocast=autocast
        )


def base_model(model: Any) -> PreTrainedModel:
    """The PreTrainedModel itself, taken out of a PeftModel if necessary."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()
