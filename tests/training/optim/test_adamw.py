"""AdamW's recipe: what decays, how the rate scales and runs, how it is described, and errors."""

import re
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer, create_encoder
from simmim.training.optim import AdamWRecipe, describe_lr
from simmim.training.optim.param_groups import parameter_groups
from simmim.utils.errors import UserError

LAYERS_THAT_DECAY = (
    r"patch_embedding\.projection",
    r"stages\.\d\.blocks\.\d\.attention\.(qkv|projection)",
    r"stages\.\d\.blocks\.\d\.mlp\.fc[12]",
    r"stages\.[12]\.merging\.reduction",
)


def recipe(**changes: Any) -> AdamWRecipe:
    return AdamWRecipe(**({"lr": 1e-4, "weight_decay": 0.05} | changes))


def encoder(**changes: Any) -> SwinTransformer:
    """Four blocks in three stages."""
    return create_encoder(
        "swinv2_nano",
        image_size=32,
        window_size=4,
        embed_dim=32,
        depths=(1, 2, 1),
        num_heads=(1, 2, 4),
        **changes,
    )


def v2_model() -> SimMIM:
    return SimMIM(encoder())


def v1_model() -> SimMIM:
    v1: dict[str, Any] = {"norm": "pre", "similarity": "dot", "position_bias": "table"}
    return SimMIM(encoder(**v1, main_branch_norm_every=2))


def names_by_decay(model: torch.nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that do not."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    sets: dict[float, set[str]] = {0.05: set(), 0.0: set()}
    for group in recipe().optimizer(model, 512, depths=[]).param_groups:
        sets[group["weight_decay"]] |= {names[parameter] for parameter in group["params"]}
    return sets[0.05], sets[0.0]


@pytest.mark.parametrize("create", [v2_model, v1_model])
def test_the_weights_of_linear_layers_decay_and_nothing_else(create: Any) -> None:
    model = create()
    decaying, steady = names_by_decay(model)
    pattern = rf"encoder\.({'|'.join(LAYERS_THAT_DECAY)})\.weight|head\.linear\.weight"
    expected = {name for name, _ in model.named_parameters() if re.fullmatch(pattern, name)}
    # Four blocks of four matrices, two mergings, the patch embedding, the head.
    assert len(expected) == 4 * 4 + 2 + 2
    assert decaying == expected
    assert steady == {name for name, _ in model.named_parameters()} - expected


@pytest.mark.parametrize(
    ("create", "kinds"),
    [
        (v2_model, ["position_bias.mlp.0.weight", "position_bias.mlp.2.weight", "logit_scale"]),
        (v1_model, ["position_bias.table", "attention.k_bias", "norm3.weight"]),
    ],
)
def test_position_biases_norms_scales_and_tokens_do_not_decay(
    create: Any, kinds: list[str]
) -> None:
    _, steady = names_by_decay(create())
    for kind in [*kinds, "q_bias", "norm1.weight", "norm1.bias", "fc1.bias", "mask_token"]:
        assert any(name.endswith(kind) for name in steady), kind


def test_a_classifier_s_head_decays_but_for_its_bias() -> None:
    model = Classifier(encoder(), 10)
    decaying, steady = names_by_decay(model)
    assert "head.linear.weight" in decaying
    assert "head.linear.bias" in steady


def test_frozen_parameters_are_in_no_group() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    [group] = parameter_groups(model, lr=1.0, weight_decay=0.05, depths=[])
    assert group["weight_decay"] == 0
    assert group["params"] == [model.bias]


def test_groups_do_not_depend_on_rate_and_weight_decay() -> None:
    model = torch.nn.Linear(3, 2)
    for weight_decay in (0.0, 0.05):
        matrices, vectors = parameter_groups(model, lr=0.1, weight_decay=weight_decay, depths=[])
        assert matrices == {"params": [model.weight], "lr": 0.1, "weight_decay": weight_decay}
        assert vectors == {"params": [model.bias], "lr": 0.1, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("lr_batch_size", "effective_batch", "expected"),
    [(512, 2048, 4e-4), (512, 512, 1e-4), (512, 64, 1.25e-5), (256, 512, 2e-4), (None, 64, 1e-4)],
)
def test_the_peak_rate_scales_with_the_effective_batch(
    lr_batch_size: int | None, effective_batch: int, expected: float
) -> None:
    scaled = recipe(lr_batch_size=lr_batch_size)
    assert scaled.peak_lr(effective_batch) == pytest.approx(expected)
    optimizer = scaled.optimizer(torch.nn.Linear(2, 2), effective_batch, depths=[])
    assert {group["lr"] for group in optimizer.param_groups} == {scaled.peak_lr(effective_batch)}


def test_betas_and_eps_reach_the_optimiser() -> None:
    optimizer = recipe(betas=[0.8, 0.95], eps=1e-6).optimizer(torch.nn.Linear(2, 2), 512, depths=[])
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)


def test_the_rate_is_described_with_all_that_made_it() -> None:
    assert describe_lr(recipe(), devices=8, batch_size=64, accumulation=4) == (
        "effective batch 2048 = 8 devices × 64 × 4 accumulation → lr 4.0e-4 (0.0001 per 512)"
    )


def test_one_device_is_no_devices() -> None:
    assert describe_lr(recipe(lr=1.6e-5), devices=1, batch_size=32, accumulation=1) == (
        "effective batch 32 = 1 device × 32 × 1 accumulation → lr 1.0e-6 (1.6e-05 per 512)"
    )


def test_a_rate_that_is_not_scaled_says_so() -> None:
    described = describe_lr(
        recipe(lr=1.4e-3, lr_batch_size=None), devices=2, batch_size=3, accumulation=1
    )
    assert described == (
        "effective batch 6 = 2 devices × 3 × 1 accumulation → lr 1.4e-3 (not scaled)"
    )


def factors(steps: list[int], **changes: Any) -> list[float]:
    """Shares of the peak rate at steps of a run of 100 steps, 10 an epoch."""
    schedule = recipe(**changes).factors(100, 10)
    return [schedule(step) for step in steps]


def test_the_cosine_of_a_recipe_warms_up_in_epochs() -> None:
    values = factors([0, 10, 20, 60, 100], warmup_epochs=2, warmup_factor=0.1, final_factor=0.0)
    assert values == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])


def test_warm_up_steps_win_over_epochs() -> None:
    changes = {"warmup_epochs": 5, "warmup_steps": 4, "warmup_factor": 0.0}
    assert factors([0, 2, 4], **changes) == pytest.approx([0.0, 0.5, 1.0])


def test_no_warm_up_steps_win_over_epochs_too() -> None:
    assert factors([0], warmup_epochs=5, warmup_steps=0) == pytest.approx([1.0])


def test_milestones_are_epochs() -> None:
    values = factors([69, 70, 89, 90], schedule="multistep", milestones=[7, 9], gamma=0.5)
    assert values == pytest.approx([1.0, 0.5, 0.5, 0.25])


def test_multistep_warms_up_too() -> None:
    changes = {"schedule": "multistep", "milestones": [5], "warmup_epochs": 1, "warmup_factor": 0.2}
    assert factors([0, 5, 10, 50], **changes) == pytest.approx([0.2, 0.6, 1.0, 0.1])


def test_the_scheduler_runs_the_factors_step_by_step() -> None:
    chosen = recipe(warmup_steps=2, warmup_factor=0.5)
    optimizer = chosen.optimizer(torch.nn.Linear(2, 2), 1024, depths=[])
    scheduler = chosen.scheduler(optimizer, total_steps=4, steps_per_epoch=2)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = [2e-4 * factor for factor in (0.5, 0.75, 1.0, 0.5, 0.0)]
    for group in (0, 1):
        assert [rate[group] for rate in rates] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "optim.lr 0.0 is not positive; use 1e-4"),
        ({"lr": -1e-4}, "optim.lr -0.0001 is not positive; use 1e-4"),
        (
            {"weight_decay": -0.1},
            "optim.weight_decay -0.1 is negative; use 0.05, or 0",
        ),
        ({"lr_batch_size": 0}, "optim.lr_batch_size 0 is not positive; use 512"),
        ({"clip_norm": 0.0}, "optim.clip_norm 0.0 is not positive; use 5, or null"),
        (
            {"warmup_epochs": -1.0},
            "optim.warmup_epochs and optim.warmup_steps cannot be negative; use 0",
        ),
        (
            {"warmup_steps": -1},
            "optim.warmup_epochs and optim.warmup_steps cannot be negative; use 0",
        ),
        (
            {"milestones": [9.0, 7.0]},
            "optim.milestones [9.0, 7.0] must ascend; use [7.0, 9.0]",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        recipe(**changes)


@pytest.mark.unchecked
def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"^optim\.schedule linear is unknown; use cosine or multistep$"
    ):
        recipe(schedule="linear")


def test_nothing_need_be_clipped_or_scaled() -> None:
    assert recipe(clip_norm=None, lr_batch_size=None).clip_norm is None


def test_layer_decay_follows_the_true_depth() -> None:
    """Tokens, the four blocks one by one, and the norm and head together learn at six rates."""
    model = Classifier(encoder(), 10)
    optimizer = recipe(layer_decay=0.5, lr_batch_size=None).optimizer(
        model, 64, depths=model.encoder.depths
    )
    rate = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    peak, last = 1e-4, sum(model.encoder.depths) + 1
    expected = {
        "head.linear.weight": last,
        "encoder.norm.weight": last,
        "encoder.stages.2.blocks.0.attention.qkv.weight": 4,
        "encoder.stages.2.merging.reduction.weight": 3,
        "encoder.stages.1.blocks.1.norm1.weight": 3,
        "encoder.stages.1.blocks.0.attention.position_bias.mlp.0.weight": 2,
        "encoder.stages.0.blocks.0.mlp.fc1.weight": 1,
        "encoder.patch_embedding.projection.weight": 0,
    }
    parameters = dict(model.named_parameters())
    for name, layer in expected.items():
        assert rate[id(parameters[name])] == pytest.approx(peak * 0.5 ** (last - layer)), name


def test_warm_up_begins_and_the_cosine_ends_at_one_rate_for_all_layers() -> None:
    """As timm's scheduler, by which SimMIM's encoders are officially fine-tuned."""
    chosen = recipe(
        lr_batch_size=None,
        layer_decay=0.5,
        warmup_steps=4,
        warmup_factor=0.02,
        final_factor=0.05,
    )
    model = Classifier(encoder(), 10)
    optimizers = [chosen.optimizer(model, 64, depths=model.encoder.depths) for _ in range(2)]
    ours = chosen.scheduler(optimizers[0], total_steps=20, steps_per_epoch=10)
    theirs = CosineLRScheduler(
        optimizers[1],
        t_initial=16,
        lr_min=0.05 * 1e-4,
        warmup_lr_init=0.02 * 1e-4,
        warmup_t=4,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=True,
    )
    for step in range(21):
        theirs.step_update(step)
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        assert rates[0] == pytest.approx(rates[1], rel=1e-9), step
        if step in (0, 20):
            assert rates[0] == pytest.approx([rates[0][0]] * len(rates[0]))
        optimizers[0].step()
        ours.step()
