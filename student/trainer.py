"""DistillTrainer: a transformers.Trainer that distils a student from cached teachers.

It replaces three parts of Trainer that are wrong for this loss: the order of the data, the count that the loss is
divided by (over all micro-batches of a step and all ranks, never an average of averages), and the evaluation (one sum
over all rows). All else is Trainer's.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from shards.cli.device import resolve_kernels
from shards.errors import OptionError
from shards.modelfiles.head import require_room
from shards.modelfiles.vocabulary import require_same_vocabulary
from student.data.collate import Collator
from student.data.loading import Loading
from student.data.responses import CachedResponses
from student.log.callback import RunLog
from student.loss.forward import DistillForward, base_model
from student.loss.rows import require_padding_free
from student.loss.sparse import SparseTargets
from student.metrics import MetricSums
from student.options import DistillArguments
from student.precision import rounding_of
from student.runs.card import write_model_card
from student.runs.checkpoints import step_of
from student.runs.identity import run_identity
from student.runs.learned import fit_strength
from student.runs.outside import naming_workers
from student.watch.guarded import GuardedTrainer
from student.watch.support import SupportWatch

logger = logging.get_logger(__name__)


class DistillTrainer(GuardedTrainer):
    """Distils `model` from the teacher of `args`, composed from cached responses.

    model               a PreTrainedModel, or a PeftModel around one, with the tokenizer of the cache
    train_dataset, eval_dataset   CachedResponses
    processing_class    the student's tokenizer; compared with the cache's, and saved with the model

    A learned strength without numbers is fitted here, on the pairs of the training caches, and stored in `args`.

    With `padding_free` a few rows are run both ways first.

    Raises VocabularyMismatch, TeacherUnavailable, ModelError, and OptionError for several GPUs without a launcher.
    """

    train_dataset: CachedResponses
    eval_dataset: CachedResponses | None

    def __init__(
        self,
        model: Any,
        args: DistillArguments,
        train_dataset: CachedResponses,
        eval_dataset: CachedResponses | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise OptionError(
                f"expected one GPU per process, got {args.n_gpu} without a launcher; run "
                f"torchrun --nproc_per_node {args.n_gpu} -m student.train ..."
            )
        if processing_class is not None:
            vocabulary = train_dataset.caches[0].vocabulary
            require_same_vocabulary(vocabulary, processing_class.get_vocab(), "the cache", "the student")
        if eval_dataset is not None:
            eval_dataset = train_dataset.like(eval_dataset)
        longest = max(int(dataset.lengths.max()) for dataset in (train_dataset, eval_dataset) if dataset is not None)
        require_room(base_model(model).config, longest, "student")
        fit_strength(args, train_dataset)  # the only slow one of these
        train_dataset = train_dataset.for_teacher(args.spec)
        if eval_dataset is not None:
            eval_dataset = train_dataset.like(eval_dataset)
        pad_token_id = getattr(processing_class, "pad_token_id", None) or 0
        collator: Any = Collator(  # takes a MicroBatch; Trainer's type is a list
            spec=args.spec,
            nodes=train_dataset.nodes,
            reduction=args.reduction,
            pad_token_id=pad_token_id,
            padding_free=args.padding_free,
        )
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        # we divide the sums below by global counts, so Trainer must not divide again
        self.loss_is_scaled_for_ga = True
        with self.accelerator.autocast():  # what is tried at the start: a model does not bring it before its training
            self.distill_forward = DistillForward(
                base_model(model),
                vocabulary_size=train_dataset.caches[0].plan.vocabulary_size,
                divergence=args.loss_divergence,
                chunk_positions=args.chunk_positions,
                kernels=resolve_kernels(args.kernels, args.device.type),
            )
            if args.padding_free:
                require_padding_free(base_model(model), train_dataset.some(4), rounding_of(args, model.dtype))
        self.distill_forward.install()
        self.loading = Loading(args, train_dataset, eval_dataset)
        self.sampler = self.loading.sampler(train_dataset, args.per_device_train_batch_size, shuffle=True)
        self.train_sums = MetricSums()
        self.add_callback(_Steps(self))
        self.run_log = RunLog(self)
        self.add_callback(self.run_log)
        self._eval_sums = MetricSums()
        self._support_watch = SupportWatch()

    def identity_with(self, student: Mapping[str, str | None]) -> dict[str, Any]:
        return run_identity(self.args, self.train_dataset, self.sampler, student)

    @property
    def model_name(self) -> str:
        """Name of the folder or hub model that the student started from."""
        source = Path(str(base_model(self.accelerator.unwrap_model(self.model)).config.name_or_path))
        return source.name if source.is_absolute() else str(source)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        epochs = math.ceil(self.args.num_train_epochs * self.sampler.num_global_batches)
        return self.args.max_steps if self.args.max_steps > 0 else epochs

    def require_ready(self, checkpoint: Path | None = None) -> None:
        """As ResumableTrainer's, and raise OptionError if the order needs more of a store's shards than fit."""
        done, every = 0 if checkpoint is None else step_of(checkpoint), self.sampler.num_global_batches
        self.loading.require_limit(self.sampler, range(done // every, -(-self.num_steps // every)))
        super().require_ready(checkpoint)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank. Not prepared by accelerate, because the sampler already knows the ranks."""
        return self.loading.loader(self.train_dataset, self.sampler, self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All rows once, in order of length, distributed over the ranks."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.train_dataset.like(dataset)
        order = self.loading.sampler(dataset, self.args.eval_batch_size, shuffle=False)
        return self.loading.loader(dataset, order, self.data_collator)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """The micro-batches of a step, and the number of items in them that count, over all ranks."""
        self.train_sums.begin_step()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        num_items = torch.stack([batch["num_items"] for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(num_items, reduction="sum")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's sum divided by the step's global count, times the ranks, because wrappers average."""
        assert num_items_in_batch is not None, "get_batch_samples counts them"
        outputs = self._distill(model, inputs)
        self.train_sums.add(outputs, inputs)
        loss = outputs["loss_sum"] / num_items_in_batch * self.accelerator.num_processes
        self.steps.add(inputs["rows"], loss)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._distill(model, inputs)
        self._eval_sums.add(outputs, inputs)
        return outputs["loss_sum"].detach(), None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop, but instead of an average of batch losses: sums over all rows divided by their count."""
        self._eval_sums = MetricSums()
        with naming_workers():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        assert output.metrics is not None
        for name, value in self._eval_sums.means(self.accelerator, self.args.reduction).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer.log with the metrics of the steps since the previous log."""
        means = self.train_sums.means(self.accelerator, self.args.reduction) if "loss" in logs else {}
        if means:
            logs |= means | {"loss": logs["loss"]}  # Trainer's own: the mean over the steps since the previous log
            self.train_sums = MetricSums()
            self._warn_of_support(means)
        if self.state.global_step == getattr(self, "_initial_global_step", -1):
            logs.pop("train_loss", None)  # a mean over no steps
        super().log(logs, start_time)

    def write_log(self) -> None:
        self.run_log.write(self.args, self.state)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md into the output folder: the cache, the teacher and the recipe."""
        if self.is_world_process_zero():
            write_model_card(self, Path(str(self.args.output_dir)))

    def _distill(self, model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            position=inputs["position"],
            packed=inputs.get("packed"),
            targets=SparseTargets(inputs),
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The micro-batch on the device, but for what only the host reads."""
        given = dict(inputs)
        kept = {name: given.pop(name) for name in ("support_ends", "rows") if name in given}
        return {**super()._prepare_inputs(given), **kept}

    def _prepare_input(self, data: Any) -> Any:
        # Trainer would cast floats to DeepSpeed's dtype here; targets must stay float32
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)  # the loader's memory is pinned
        return super()._prepare_input(data)

    def _warn_of_support(self, means: dict[str, float]) -> None:
        mass, reference_mass = means["support_mass"], means["reference_support_mass"]
        text = self._support_watch.message(self.state.global_step, mass, reference_mass)
        if text is not None and self.is_world_process_zero():
            logger.warning(text)


class _Steps(TrainerCallback):
    """Tells the sampler the epoch, and the metrics when a step ends."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # use the intervals given now, not those of the checkpoint
        state.compute_steps(args, state.max_steps)
        self.trainer.begin_watch()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # from the steps done, so that it is right after a resume; Trainer's own epoch hook is hidden there
        sampler = self.trainer.sampler
        sampler.set_epoch(state.global_step // sampler.num_global_batches)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.train_sums.end_step()
