"""A training step predicts what has masked pixels alone: the loss is that of the whole image."""

import pytest
import torch

from simmim.models.heads import HeadKind
from simmim.models.losses import LossRegion
from simmim.models.masking import RandomMaskGenerator, cut_squares, masked_tokens
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.pretrain.module import SimMIMModule
from simmim.training.optim import AdamWRecipe
from simmim.utils.normalization import Normalisation


def create_task(
    mask_patch: int,
    target_window: int | None,
    head: HeadKind = "linear",
    loss_region: LossRegion = "masked",
) -> SimMIMModule:
    encoder = SwinTransformer(
        embed_dim=8,
        depths=(1, 1),
        num_heads=(2, 2),
        image_size=(24, 48),
        window_size=3,
        patch_size=2,
    )
    return SimMIMModule(
        SimMIM(encoder, head),
        mask_generator=RandomMaskGenerator((24, 48), mask_patch, token_size=2, ratio=0.3),
        target_window=target_window,
        loss_region=loss_region,
        normalisation=Normalisation(),
        optimization=AdamWRecipe(lr=1e-3, weight_decay=0.0),
        batch_size=3,
        total_steps=1,
        steps_per_epoch=1,
        seed=0,
    )


@pytest.mark.parametrize(
    ("target_window", "head"),
    [(None, "linear"), (5, "linear"), (None, "mlp"), (None, "inverse_swin")],
)
# Smaller than the four pixels of a last token, as large, across two of them, and of many.
@pytest.mark.parametrize("mask_patch", [2, 4, 6, 12])
def test_the_loss_is_that_of_whole_images(
    mask_patch: int, target_window: int | None, head: HeadKind
) -> None:
    torch.manual_seed(0)
    task = create_task(mask_patch, target_window, head)
    images = torch.randint(256, (3, 3, 24, 48), dtype=torch.uint8)
    places = torch.arange(3)
    results = []
    for loss in (
        task.loss(images, places, step=0),
        task.reconstruct(images, places, step=0).loss,
    ):
        gradients = torch.autograd.grad(loss, list(task.model.parameters()), allow_unused=True)
        results.append([loss, *(g for g in gradients if g is not None)])
    for part, whole in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("head", ["linear", "mlp", "inverse_swin"])
def test_of_the_whole_image_visible_pixels_are_learned_from_too(head: HeadKind) -> None:
    torch.manual_seed(0)
    task = create_task(12, 5, head, "image")
    images = torch.randint(256, (3, 3, 24, 48), dtype=torch.uint8)
    result = task.reconstruct(images, torch.arange(3), step=0)
    visible = ~result.mask.unsqueeze(1).expand_as(result.target)
    differences = (result.prediction - result.target).abs()
    share = visible.float().mean()
    expected = share * differences[visible].mean() + (1 - share) * differences[~visible].mean()
    torch.testing.assert_close(task.loss(images, torch.arange(3), step=0), expected)
    # Held-out figures stay those of masked pixels, to compare runs by.
    torch.testing.assert_close(result.loss, differences[~visible].mean())


def test_no_more_tokens_are_predicted_than_can_be_masked() -> None:
    of_each = {patch: create_task(patch, None).mask_generator for patch in (2, 4, 12)}
    # 12 × 6 tokens of 4 pixels; ratios round up.
    assert of_each[12].most_tokens(4) == 3 * 9
    assert of_each[4].most_tokens(4) == 22
    assert of_each[2].most_tokens(4) == 72


def test_squares_are_numbered_row_by_row() -> None:
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, 3, 1] = mask[0, 0, 5] = True
    tokens = masked_tokens(mask, 2, 2)
    assert tokens.tolist() == [[2, 3]]
    pixels = torch.arange(24).view(1, 1, 4, 6)
    assert cut_squares(pixels, tokens, 2)[:, 0].tolist() == [
        [[4, 5], [10, 11]],
        [[12, 13], [18, 19]],
    ]
