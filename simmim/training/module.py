"""Base class of the training tasks: seeding, optimiser, schedule, metadata of checkpoints."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from typing_extensions import Unpack

from simmim.checkpoints.metadata import describe_encoder
from simmim.checkpoints.model_file import save_encoder
from simmim.data.dataset import Sample
from simmim.data.decoding.on_device import UndecodedBatch
from simmim.models.classifier import HeadedEncoder
from simmim.models.simmim import SimMIM
from simmim.training.distributed.fsdp import shard
from simmim.training.optim import AdamWRecipe
from simmim.utils.console import warn
from simmim.utils.normalization import Normalisation
from simmim.utils.rng import derive_seed

# The keys of a parameter group that the recipe sets.
_OF_RECIPE = ("lr", "weight_decay", "betas", "eps")


class TrainingArguments(TypedDict):
    """Arguments of every training task.

    `batch_size` is images per device and forward pass; with the trainer's world size and gradient
    accumulation it determines each image's place in the global batch. `total_steps` and
    `steps_per_epoch` are optimiser steps, for the schedule.
    """

    normalisation: Normalisation
    optimization: AdamWRecipe
    batch_size: int
    total_steps: int
    steps_per_epoch: int
    seed: int


class MicroBatch(NamedTuple):
    """One micro-batch of a step: the batch from the loader, its number in the epoch, and its loss."""

    batch: Sample | UndecodedBatch
    number: int
    loss: Float[Tensor, ""]


class StepMetrics(NamedTuple):
    """Metrics of a step before the optimiser takes it, on the CPU and the same on all ranks.

    `loss` is the mean over its micro-batches and over all ranks; `gradient_norm` is the norm before
    clipping, or None under DeepSpeed, which manages the gradients itself.
    """

    loss: float
    gradient_norm: float | None


class TrainingModule(pl.LightningModule):
    """Trains a model with an encoder by a recipe, over a known number of steps.

    Attributes:
        metric_names: names of the validation metrics that it logs.
        micro_batches: micro-batches of the current step.
        to_log: metrics on the device, by name, to be read and logged together with the step's loss.
        skipped_step: whether the last step was skipped and changed no weight.
    """

    metric_names: tuple[str, ...]

    def __init__(
        self, model: SimMIM | HeadedEncoder, **arguments: Unpack[TrainingArguments]
    ) -> None:
        super().__init__()
        self.model = model
        self.normalisation = arguments["normalisation"]
        self.optimization = arguments["optimization"]
        self.batch_size = arguments["batch_size"]
        self.total_steps = arguments["total_steps"]
        self.steps_per_epoch = arguments["steps_per_epoch"]
        self.seed = arguments["seed"]
        self.validated_step: int | None = None
        self.micro_batches: list[MicroBatch] = []
        self.to_log: dict[str, Float[Tensor, ""]] = {}
        self.skipped_step = False
        self._recipe: list[dict[str, Any]] = []
        self._loaded: Sample | UndecodedBatch | None = None
        self._gradient_norm: Tensor | None = None

    def configure_model(self) -> None:
        """Shards the weights under FSDP (Lightning calls this on all ranks)."""
        if self.device_mesh is not None:
            # Lightning's mesh also has a tensor-parallel dimension. FSDP would read two dimensions
            # as hybrid sharding: replicas along the first, shards along the second.
            shard(self.model, self.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        """Applies this run's recipe where it differs from that of the resumed checkpoint.

        Loading the checkpoint has restored the values that its optimiser and schedule had.
        """
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, LambdaLR)
        scheduler.base_lrs = [own["lr"] for own in self._recipe]
        groups = self.trainer.optimizers[0].param_groups
        for group, own, factor in zip(groups, self._recipe, scheduler.lr_lambdas, strict=True):
            lr = own["lr"] * factor(scheduler.last_epoch)
            group |= {**own, "initial_lr": own["lr"], "lr": lr}

    def compute_loss(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of one batch at this step."""
        raise NotImplementedError

    def on_before_batch_transfer(
        self, batch: Sample | UndecodedBatch, dataloader_idx: int
    ) -> Sample | UndecodedBatch:
        """Keeps the batch on the CPU during its step, so that its loss can be computed again."""
        if self.trainer.training:
            self._loaded = batch
        return batch

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        """Makes drop path and Mixup a function of (seed, step, rank)."""
        self.seed_micro_batch(batch_idx)

    def seed_micro_batch(self, batch_idx: int) -> None:
        """Seeds the generators of PyTorch, Python and NumPy by step, micro-batch and rank."""
        accumulation = self.trainer.accumulate_grad_batches
        micro_step = self.global_step * accumulation + batch_idx % accumulation
        seed = derive_seed(self.seed, "step", micro_step, self.global_rank)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def training_step(self, batch: Sample, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of one micro-batch, which is recorded for the current step."""
        loss = self.compute_loss(batch, batch_idx)
        if len(self.micro_batches) == self.trainer.accumulate_grad_batches:
            self.micro_batches.clear()
        assert self._loaded is not None
        self.micro_batches.append(MicroBatch(self._loaded, batch_idx, loss.detach()))
        return loss

    def compute_loss_again(self, micro_batch: MicroBatch) -> Float[Tensor, ""]:
        """The loss of a micro-batch again, with the same random numbers, before the weights change."""
        batch = self.transfer_batch_to_device(micro_batch.batch, self.device, 0)
        self.seed_micro_batch(micro_batch.number)
        with self.trainer.precision_plugin.train_step_context():
            return self.compute_loss(batch, micro_batch.number)

    def measure_step(self, optimizer: torch.optim.Optimizer) -> StepMetrics | None:
        """Computes and logs loss and gradient norm; None before the last micro-batch of the step.

        All logged metrics of a step are read from the device here, in one transfer: nothing else in
        a step waits for the device.
        """
        # DeepSpeed's strategy calls this after each micro-batch.
        if len(self.micro_batches) < self.trainer.accumulate_grad_batches:
            return None
        mine = torch.stack([micro_batch.loss for micro_batch in self.micro_batches]).mean()
        loss = self.trainer.strategy.reduce(mine, reduce_op="mean")
        assert isinstance(loss, Tensor)
        metrics = {"train/loss": loss}
        self._gradient_norm = None
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):
            gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
            norm = get_total_norm(gradients)
            self._gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            metrics["train/gradient_norm"] = self._gradient_norm
        metrics |= self.to_log
        self.to_log = {}
        values = torch.stack([metric.float() for metric in metrics.values()]).tolist()
        read = dict(zip(metrics, values, strict=True))
        self.log_dict(read, batch_size=1)
        self.skipped_step = False
        return StepMetrics(read["train/loss"], read.get("train/gradient_norm"))

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Logs a Python number as a CPU tensor; Lightning would copy it to the device and back."""
        held = torch.tensor(float(value)) if isinstance(value, (int, float)) else value
        super().log(name, held, *args, **kwargs)

    def skip_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drops the gradients; without them the optimiser changes neither weights nor its state."""
        optimizer.zero_grad(set_to_none=True)
        self.skipped_step = True

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients, by the norm that `measure_step` has computed."""
        if gradient_clip_val is not None and self._gradient_norm is not None:
            clip_grads_with_norm_(_parameters(optimizer), gradient_clip_val, self._gradient_norm)

    def log_validation(self, metrics: dict[str, Metric]) -> dict[str, torch.Tensor]:
        """Computes these metrics over all ranks, logs and resets them, and returns the values."""
        values = {name: metric.compute() for name, metric in metrics.items()}
        self.log_dict(values)
        for metric in metrics.values():
            metric.reset()
        for name, value in values.items():
            if not value.isfinite():
                warn(
                    f"held-out {name} is {float(value)} after step {self.global_step}: the model gives "
                    "some held-out image no finite output"
                )
        self.validated_step = self.global_step
        return values

    def configure_optimizers(self) -> Any:
        """AdamW and its learning-rate schedule, which is stepped after every optimiser step."""
        effective_batch = (
            self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        )
        precision, device = self.trainer.precision, self.device.type
        optimizer = self.optimization.optimizer(
            self.model,
            effective_batch,
            depths=self.model.encoder.depths,
            # With fp16, a fused step unscales the gradients itself, which is too late for clipping.
            fused=True if precision != "16-mixed" and device in ("cpu", "cuda") else None,
        )
        self._recipe = [
            {name: value for name, value in group.items() if name in _OF_RECIPE}
            for group in optimizer.param_groups
        ]
        scheduler = self.optimization.scheduler(
            optimizer, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def report_facts(self) -> dict[str, Any]:
        """Facts about this task that the run's report shows besides its metrics."""
        return {}

    def save_weights(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Writes `encoder.safetensors` to `folder`; `weights` is the whole model's state dict."""
        prefix = "encoder."
        of_encoder = {
            name.removeprefix(prefix): tensor
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        path = folder / "encoder.safetensors"
        save_encoder(self.model.encoder, path, self.normalisation, of_encoder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds a description of the encoder that is enough to rebuild it without a configuration."""
        checkpoint["encoder"] = describe_encoder(self.model.encoder, self.normalisation)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
