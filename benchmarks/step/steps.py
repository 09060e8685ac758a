"""The steps to compare: each is a forward pass, a loss and a backward pass of the same student and sequences.

The online step is the one of the online benchmark, and shares no formula with the library.

Dimensions: B sequences, T tokens, N response positions, H hidden size.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks.online.live import collate, compose_live, live_loss, response_logprobs, reverse_kl, sequence_mean
from benchmarks.step.bench import Bench
from shards import TeacherSpec
from student.data.order import BatchItem
from student.loss.sparse import SparseTargets

SPARSE, TWICE, BUILD = "sparse", "sparse, logits twice", "build"
ONLINE, ONLINE_LOGGED = "online", "online, logged"
DENSE, DENSE_RESPONSES, LIGER = "dense", "dense, responses only", "Liger"
Work = Callable[[], Any]
NO_LABEL = -100
SPEC = TeacherSpec()


class Steps:
    """Everything that can be measured on one micro-batch; calls leave gradients behind, `clear` removes them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.trainer = bench.trainer
        self.student = bench.trainer.model
        data = self.trainer.train_dataset
        first = list(range(self.trainer.args.per_device_train_batch_size))
        micro_batch = data.__getitems__([BatchItem(row, True) for row in first])
        self.rows = data.caches[0].read(first)
        self.batch = self.trainer._prepare_inputs(self.trainer.data_collator(micro_batch))
        self.vocabulary_size = data.caches[0].plan.vocabulary_size
        device = self.student.device
        self.live_batch = {name: value.to(device) for name, value in collate(self.rows).items()}
        ids_BT = self.batch["input_ids"]
        masks = [torch.from_numpy(row.loss_mask.astype(bool)) for row in self.rows]
        mask_BT = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True).to(device)
        self.labels_BT = torch.where(mask_BT, ids_BT, NO_LABEL)

    def whole(self) -> dict[str, Work]:
        """Name -> one step; beside them the build's work for the same rows, three models and the support."""
        works = {SPARSE: self.sparse, TWICE: self.twice, DENSE: self.dense, DENSE_RESPONSES: self.dense_responses}
        works |= {ONLINE: self.online, ONLINE_LOGGED: self.online_logged, BUILD: self.build}
        return works | ({LIGER: self.liger} if why_no_liger(self.student.device) is None else {})

    def sparse(self) -> None:
        """The step of DistillTrainer, up to the optimizer."""
        self.trainer.compute_loss(self.student, self.batch, num_items_in_batch=self.batch["num_items"]).backward()

    def twice(self) -> None:
        with called_as_a_module(self.student.get_output_embeddings()):
            self.sparse()

    def dense(self) -> None:
        """transformers' own cross-entropy, with the arguments that its Trainer gives."""
        batch = self.batch
        ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
        out = self.student(input_ids=ids_BT, attention_mask=mask_BT, labels=self.labels_BT, use_cache=False)
        out.loss.backward()

    def dense_responses(self) -> None:
        """Cross-entropy with an output layer that runs at the response positions only."""
        self._responses_loss(self.hidden()).backward()

    def online(self) -> None:
        """Live dpo and reverse models, the composed teacher and a reverse KL over the whole vocabulary."""
        live_loss(self.student, self.bench.live, self.live_batch, SPEC, self.vocabulary_size).backward()

    def online_logged(self) -> None:
        """The same, with the expected rewards and the KLs to both models, which a sparse step gives for its log."""
        models, batch, size = self.bench.live, self.live_batch, self.vocabulary_size
        with torch.no_grad():
            logprobs = {role: response_logprobs(model, batch, size) for role, model in models.items()}
            teacher_NV, weight_N = compose_live(logprobs, SPEC)
        student_NV = response_logprobs(self.student, batch, size)
        loss = sequence_mean(weight_N * reverse_kl(student_NV, teacher_NV), batch["size"])
        with torch.no_grad():
            reward_NV = SPEC.beta * (logprobs["dpo"] - logprobs["reverse"])
            for policy_NV in (student_NV, logprobs["dpo"]):
                (policy_NV.exp() * reward_NV).sum(-1).mean()
            for role_NV in logprobs.values():
                reverse_kl(student_NV, role_NV).mean()
        loss.backward()

    def liger(self) -> None:
        self._liger_loss(self.hidden()).backward()

    def build(self) -> None:
        next(self.bench.scorer.score([self.rows], self.bench.rule))

    def losses(self) -> dict[str, Work]:
        """Name -> loss and output layer alone, from the hidden states on, back to them."""
        with torch.no_grad():
            hidden_BTH = self.hidden()
        position = self.batch["position"]

        def leaf() -> torch.Tensor:
            return hidden_BTH.clone().requires_grad_()

        def sparse() -> None:
            hidden_NH = leaf().flatten(0, 1)[position]
            loss = self.trainer.distill_forward.distill(hidden_NH, SparseTargets(self.batch))["loss_sum"]
            (loss / self.batch["num_items"]).backward()

        def twice() -> None:
            with called_as_a_module(self.student.get_output_embeddings()):
                sparse()

        def dense() -> None:
            logits = self.student.get_output_embeddings()(leaf())
            size = self.student.config.vocab_size
            self.student.loss_function(logits=logits, labels=self.labels_BT, vocab_size=size).backward()

        works: dict[str, Work] = {SPARSE: sparse, TWICE: twice, DENSE: dense}
        works[DENSE_RESPONSES] = lambda: self._responses_loss(leaf()).backward()
        if why_no_liger(self.student.device) is None:
            works[LIGER] = lambda: self._liger_loss(leaf()).backward()
        return works

    def hidden(self) -> torch.Tensor:
        batch = self.batch
        ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
        return self.student.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)[0]

    def clear(self) -> None:
        self.student.zero_grad(set_to_none=True)

    def gradients(self) -> Mapping[str, torch.Tensor]:
        return {name: p.grad for name, p in self.student.named_parameters() if p.grad is not None}

    def _responses_loss(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        position = self.batch["position"]
        logits_NV = self.student.get_output_embeddings()(hidden_BTH.flatten(0, 1)[position])
        return torch.nn.functional.cross_entropy(logits_NV.float(), self.batch["input_ids"].flatten()[position + 1])

    def _liger_loss(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(ignore_index=NO_LABEL)
        weight = self.student.get_output_embeddings().weight
        return loss(weight, hidden_BTH[:, :-1].flatten(0, 1), self.labels_BT[:, 1:].flatten())


@contextlib.contextmanager
def called_as_a_module(head: torch.nn.Module) -> Iterator[None]:
    """A hook that does nothing: with it the output layer is not plain, and its logits are computed twice."""
    hook = head.register_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        hook.remove()


def why_no_liger(device: torch.device) -> str | None:
    """Why Liger's fused cross-entropy is not measured; None if it is."""
    if device.type != "cuda":
        return "Liger's kernels need a GPU"
    return None if importlib.util.find_spec("liger_kernel") else "liger-kernel is not installed"
