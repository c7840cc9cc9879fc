"""The papers' recipes: their numbers are the official code's, and their own commands fit."""

import re
from typing import Any, NamedTuple

import pytest
from conftest import compose
from hydra.utils import instantiate

from simmim.checkpoints.model_init import ModelInit
from simmim.cli.main import config_directory
from simmim.plan.devices import find_device
from simmim.plan.inputs import (
    CreateModel,
    classifier_of,
    create_planner,
    create_setting,
    simmim_with,
)
from simmim.training.optim import AdamWRecipe

pytestmark = pytest.mark.unchecked

RECIPES = sorted(path.stem for path in (config_directory() / "experiment").glob("*.yaml"))


class Command(NamedTuple):
    """What a recipe's header says to type, and on what."""

    stage: str
    options: list[str]
    device: str
    batch: int


def command(recipe: str) -> Command:
    header = (
        (config_directory() / "experiment" / f"{recipe}.yaml").read_text().split("defaults:")[0]
    )
    text = re.sub(r"\\\n#", " ", header)
    typed = re.search(r"python -m simmim\.(\w+) (experiment=.*)", text)
    made_for = re.search(r"# Batch (\d+) = [^.]*?, on (A100-40GB|A100|H100|H200)\b", text)
    assert typed, "the header has no command"
    assert made_for, "the header does not say what the batch takes"
    options = [word for word in typed[2].split() if re.fullmatch(r"[\w.]+=\S+", word)]
    # What the user's own files are; the architecture comes with the checkpoint.
    given = [word for word in options if not word.startswith(("data.root=", "init.checkpoint="))]
    if compose(typed[1], given).model.get("name") is None:
        family = re.search(r"swin(v2)?_[a-z]", recipe)
        assert family
        given.append(f"model={family[0]}")
    return Command(typed[1], given, made_for[2], int(made_for[1]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_s_own_command_fits_on_the_hardware_that_it_names(recipe: str) -> None:
    own = command(recipe)
    config = compose("plan", [f"stage={own.stage}", *own.options])
    classes = 21841 if re.search("22k$", recipe) else 1000
    create: CreateModel = classifier_of(classes)
    if own.stage == "pretrain":
        create = simmim_with(config.head)
    device = find_device(own.device)
    start = ModelInit(config.model, instantiate(config.init))
    planner = create_planner(start, create, device, instantiate(config.optim), has_average=False)
    trainer = config.trainer
    setting = create_setting(
        device,
        batch_size=config.data.batch_size,
        accumulation=trainer.accumulate_grad_batches,
        precision=trainer.precision,
        strategy=trainer.strategy,
        devices=int(trainer.devices),
        nodes=1 if trainer.num_nodes == "auto" else int(trainer.num_nodes),
    )
    assert setting.effective_batch == own.batch
    plan = planner.plan(setting)
    assert plan.fits, f"{plan.needed / 1e9:.1f} of {plan.available / 1e9:.1f} GB: {plan.parts}"


# config.py and configs/ of microsoft/Swin-Transformer, configs/swin_base__100ep of microsoft/SimMIM, as
# they have it: rates are for 512 images. `min_lr` None: multistep has none.
SUPERVISED = {
    "warmup_lr": 5e-7,
    "min_lr": 5e-6,
    "lr": 5e-4,
    "decay": 0.05,
    "epochs": 300,
    "warmup": 20,
}
FROM_22K = {
    **{"lr": 2e-5, "warmup_lr": 2e-8, "min_lr": 2e-7},
    **{"decay": 1e-8, "epochs": 30, "warmup": 5},
}
ON_22K = {
    "warmup_lr": 1.25e-7,
    "min_lr": 1.25e-6,
    "lr": 1.25e-4,
    "decay": 0.1,
    "epochs": 90,
    "warmup": 5,
}
SIMMIM_FT = {
    "warmup_lr": 2.5e-7,
    "min_lr": 2.5e-7,
    "lr": 1.25e-3,
    "decay": 0.05,
    "epochs": 100,
    "warmup": 20,
}
OFFICIAL: dict[str, dict[str, Any]] = {
    "swinv2_t_imagenet": {"sizes": (256, 8), "drop_path": 0.2, **SUPERVISED},
    "swinv2_s_imagenet": {"sizes": (256, 8), "drop_path": 0.3, **SUPERVISED},
    "swinv2_b_imagenet": {"sizes": (256, 8), "drop_path": 0.5, **SUPERVISED},
    "swinv2_b_imagenet22k": {"sizes": (192, 12), "drop_path": 0.2, **ON_22K},
    "swinv2_l_imagenet22k": {"sizes": (192, 12), "drop_path": 0.2, **ON_22K},
    "swinv2_b_22k_to_1k": {"sizes": (256, 16), "drop_path": 0.2, **FROM_22K},
    "swinv2_l_22k_to_1k": {"sizes": (256, 16), "drop_path": 0.2, **FROM_22K},
    "simmim_swinv2_b_finetune": {
        **{"sizes": (224, 14), "drop_path": 0.1, "layer_decay": 0.75},
        **SIMMIM_FT,
    },
    "simmim_swin_b_finetune": {
        **{"sizes": (192, 6), "drop_path": 0.1, "layer_decay": 0.9},
        **SIMMIM_FT,
    },
    "simmim_swin_b": {
        **{"sizes": (192, 6), "drop_path": 0.0, "lr": 2e-4, "warmup_lr": 1e-6, "min_lr": 1e-5},
        **{"decay": 0.05, "epochs": 100, "warmup": 10},
    },
    "simmim_swinv2_b": {
        **{"sizes": (192, 12), "drop_path": 0.1, "lr": 1e-4, "warmup_lr": 5e-7, "min_lr": None},
        **{"decay": 0.05, "epochs": 800, "warmup": 10, "multisteps": [700]},
    },
}


@pytest.mark.parametrize("recipe", OFFICIAL)
def test_a_recipe_has_the_official_code_s_numbers(recipe: str) -> None:
    own, theirs = command(recipe), OFFICIAL[recipe]
    config = compose(own.stage, own.options)
    optim: AdamWRecipe = instantiate(config.optim)
    scale = own.batch / 512
    peak = optim.peak_lr(own.batch)
    assert (config.model.image_size, config.model.window_size) == theirs["sizes"]
    assert config.model.drop_path_rate == theirs["drop_path"]
    assert config.trainer.max_epochs == theirs["epochs"]
    assert optim.warmup_epochs == theirs["warmup"]
    assert peak == pytest.approx(theirs["lr"] * scale)
    assert peak * optim.warmup_factor == pytest.approx(theirs["warmup_lr"] * scale)
    if theirs["min_lr"] is None:
        assert (optim.schedule, optim.gamma) == ("multistep", 0.1)
        assert list(optim.milestones) == theirs["multisteps"]
    else:
        assert optim.schedule == "cosine"
        assert peak * optim.final_factor == pytest.approx(theirs["min_lr"] * scale)
    assert optim.weight_decay == theirs["decay"]
    assert optim.layer_decay == theirs.get("layer_decay", 1.0)
    assert (optim.clip_norm, tuple(optim.betas), optim.eps) == (5.0, (0.9, 0.999), 1e-8)
    if own.stage == "pretrain":
        assert (config.mask.patch_size, config.mask.ratio) == (32, 0.6)
        assert config.target_window == (47 if "v2" in recipe else None)
        assert tuple(config.augmentation.scale) == (0.67, 1.0)
        assert config.augmentation.interpolation == "bilinear"  # torchvision's default
    else:
        mixing, augmentation = config.mixing, config.augmentation
        assert (mixing.mixup, mixing.cutmix, mixing.label_smoothing) == (0.8, 1.0, 0.1)
        assert augmentation.rand_augment == "rand-m9-mstd0.5-inc1"
        assert (augmentation.random_erasing, augmentation.interpolation) == (0.25, "bicubic")
        assert tuple(augmentation.scale) == (0.08, 1.0)
        # int(256 / 224 * size), of which the size is cut.
        assert (config.data.crop_ratio, config.data.squash) == (224 / 256, None)
