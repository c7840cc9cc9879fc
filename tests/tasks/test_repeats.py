"""Held-out batches with repeats: every rank runs the model forward, and repeats do not count."""

from typing import Any

import pytest
import torch

from simmim.data.dataset import Sample
from simmim.models.classifier import Classifier
from simmim.models.masking import RandomMaskGenerator
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.pretrain.module import SimMIMModule
from simmim.tasks.classification.evaluation import rank_outputs
from simmim.tasks.classification.metrics import ValidationAccuracy
from simmim.tasks.classification.module import ClassificationModule
from simmim.tasks.evaluation import EvaluationModule
from simmim.training.module import TrainingArguments
from simmim.training.optim import AdamWRecipe
from simmim.utils.normalization import Normalisation


def create_task(kind: str) -> Any:
    torch.manual_seed(0)
    encoder = SwinTransformer(
        embed_dim=8, depths=(1,), num_heads=(2,), image_size=(16, 16), window_size=4, patch_size=4
    )
    arguments: TrainingArguments = {
        "normalisation": Normalisation(),
        "optimization": AdamWRecipe(lr=1e-3, weight_decay=0.0),
        "batch_size": 3,
        "total_steps": 1,
        "steps_per_epoch": 1,
        "seed": 0,
    }
    if kind == "pretraining":
        masks = RandomMaskGenerator((16, 16), 4, ratio=0.5)
        task: Any = SimMIMModule(SimMIM(encoder), mask_generator=masks, **arguments)
    elif kind == "classification":
        task = ClassificationModule(Classifier(encoder, 6), classes=tuple("abcdef"), **arguments)
    else:
        metrics = ValidationAccuracy(6)
        task = EvaluationModule(Classifier(encoder, 6), metrics, rank_outputs, Normalisation())
    return task.eval()


def figures(task: Any) -> list[float]:
    if isinstance(task, SimMIMModule):
        metrics = [task.val_loss, task.val_baseline, task.val_copying]
    else:
        metrics = [*task.held_out.metrics.values()]
    return [float(metric.compute()) for metric in metrics]


@pytest.mark.parametrize("kind", ["pretraining", "classification", "evaluation"])
@torch.no_grad()
def test_a_batch_of_repeats_goes_through_the_model_and_does_not_count(kind: str) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    labels, repeats = torch.tensor([1, 3, 5]), torch.tensor([-1, -1, -1])
    without, with_repeats = create_task(kind), create_task(kind)
    without.validation_step(Sample(images[:2], labels[:2], torch.tensor([4, 7])), 0)
    seen: list[int] = []
    with_repeats.model.register_forward_hook(lambda *_: seen.append(1))
    with_repeats.validation_step(Sample(images, labels, torch.tensor([4, 7, -1])), 0)
    with_repeats.validation_step(Sample(images, labels, repeats), 1)
    assert len(seen) == 2
    assert figures(with_repeats) == pytest.approx(figures(without), rel=1e-6)
