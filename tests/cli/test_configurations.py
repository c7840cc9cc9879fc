"""Every file under conf/ composes and builds what it names; every recipe says where it is from."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import compose, pack
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from simmim.cli import schema
from simmim.cli.main import config_directory, find_stage

pytestmark = pytest.mark.unchecked

FILES = sorted(path.relative_to(config_directory()) for path in config_directory().rglob("*.yaml"))
ROOTS = [path.stem for path in FILES if len(path.parts) == 1]
RECIPES = [path.stem for path in FILES if path.parts[0] == "experiment"]
# Shared parts that stand in other files' defaults lists and are no choice by themselves.
CHOICES = [
    (path.parts[0], path.stem)
    for path in FILES
    if len(path.parts) == 2 and path.parts[0] != "experiment" and path.name != "swin.yaml"
]

# The others serve both stages and are built for pretraining.
OF_FINETUNING = {
    ("model", "auto"),
    ("optim", "adamw_finetune"),
    ("finetune_settings", "demo"),
    ("mixing_settings", "classification_demo"),
    *(("task", task) for task in ("classification", "regression", "multilabel")),
}
OF_PLANNING = {("stage", "pretrain"), ("stage", "finetune"), ("stage", "transfer")}
OF_EVALUATION = {("evaluate_settings", "demo")}
OF_TRANSFER = {("optim", "adamw_transfer"), ("transfer_settings", "demo")}


def recipe_stage(recipe: str) -> str:
    header = (config_directory() / "experiment" / f"{recipe}.yaml").read_text()
    command = re.search(r"python -m simmim\.(\w+) experiment=(\w+)", header)
    assert command, "the recipe's header names no command"
    assert command[2] == recipe
    return command[1]


def build(config: DictConfig, tmp_path) -> None:
    """Builds all parts that need neither data on disk nor another machine's devices."""
    with torch.device("meta"):
        encoder = instantiate(config.model)
    if "optim" in config:
        instantiate(config.optim)
        instantiate(config.save, run_dir=tmp_path)
        instantiate(config.guard, run_dir=tmp_path)
    loggers = [
        instantiate(logger, save_dir=tmp_path) for logger in config.get("logger", {}).values()
    ]
    checked_devices = 1 if config.trainer.accelerator == "auto" else config.trainer.devices
    if config.trainer.accelerator != "gpu" or torch.cuda.is_available():
        instantiate(
            config.trainer,
            devices=checked_devices,
            clip_norm=None,
            run_dir=tmp_path,
            loggers=loggers,
            callbacks=[],
        )
    if "report" in config:
        # With labels it is the accuracy on training images, which writes nothing.
        writes = {} if "ema" in config else {"run_dir": tmp_path}
        instantiate(config.report, **writes)
    if "reconstructions" in config:
        instantiate(config.reconstructions, run_dir=tmp_path)
    for node in ("knn", "linear"):
        if node in config:
            instantiate(config[node])
    build_data(config, encoder.image_size, tmp_path)
    if "mask" in config:
        instantiate(config.mask, image_size=encoder.image_size, token_size=encoder.patch_size)
    if "task" in config:
        instantiate(config.task)
    if "mixing" in config:
        instantiate(config.mixing, num_classes=10, batch_size=config.data.batch_size)


def write_images(config: DictConfig, folder):
    """Three images in the form and with the channels that the configuration asks for."""
    files = folder / "images"
    files.mkdir()
    for number in range(3):
        if config.model.get("in_channels") in (3, None):
            Image.new("RGB", (40, 40)).save(files / f"{number}.png")
        else:
            np.save(files / f"{number}.npy", np.zeros((config.model.in_channels, 40, 40), np.int16))
    if config.data._target_.endswith(".webdataset"):
        return pack(files, folder / "shards")
    if config.data._target_.endswith(".hf"):
        datasets = pytest.importorskip("datasets")
        paths = [str(path) for path in files.iterdir()]
        images = datasets.Dataset.from_dict({"image": paths})
        images.cast_column("image", datasets.Image()).save_to_disk(folder / "saved")
        return folder / "saved"
    return files


def build_data(config: DictConfig, image_size: tuple[int, int], tmp_path) -> None:
    """Builds the data; a few images where the configuration leaves it to the user."""
    given = {}
    if "root" in config.data:
        given["root"] = str(write_images(config, tmp_path))
    if config.data.get("statistics"):
        given["statistics"] = tmp_path / "statistics.json"
        values = [1.0] * config.model.in_channels
        given["statistics"].write_text(json.dumps({"mean": values, "std": values}))
    transform = None
    if "augmentation" in config:
        transform = instantiate(config.augmentation, image_size=image_size)
    data = instantiate(config.data, image_size=image_size, train_transform=transform, **given)
    assert len(data.train) > 0 or transform is None
    assert len(data.val) > 0


@pytest.mark.parametrize("stage", ROOTS)
def test_a_stage_reads_every_option_and_no_other(stage):
    config = compose(stage, [])
    known = set(schema.options(find_stage(stage)))
    if stage == "plan":
        # It takes the options of each of the stages that it plans for.
        others = [set(compose(stage, [f"stage={of}"])) for of in ("finetune", "transfer")]
        assert set(config).union(*others) == known
    else:
        assert set(config) == known
    schema.check(config, find_stage(stage))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_builds(tmp_path, group, choice):
    stage = "pretrain"
    if (group, choice) in OF_FINETUNING:
        stage = "finetune"
    elif (group, choice) in OF_TRANSFER:
        stage = "transfer"
    elif (group, choice) in OF_PLANNING:
        stage = "plan"
    elif (group, choice) in OF_EVALUATION:
        stage = "evaluate"
    config = compose(stage, [f"{group}={choice}", f"run_dir={tmp_path}"])
    schema.check(config, find_stage(stage))
    build(config, tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_builds(tmp_path, recipe):
    stage = recipe_stage(recipe)
    config = compose(stage, [f"experiment={recipe}", f"run_dir={tmp_path}"])
    schema.check(config, find_stage(stage))
    build(config, tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_tells_its_source_and_what_to_expect(recipe):
    text = (config_directory() / "experiment" / f"{recipe}.yaml").read_text()
    header = text[: text.index("defaults:")]
    assert re.search(r"arXiv|microsoft/Swin-Transformer", header)
    assert "Expected" in header


def test_no_trainer_is_built_for_devices_that_do_not_exist():
    from simmim.training.trainer import available_accelerator
    from simmim.utils.errors import UserError

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="this machine has no GPU; use trainer=auto"):
        available_accelerator("gpu", 1)


@pytest.mark.parametrize("stage", ROOTS)
def test_a_configuration_has_no_unresolved_reference(tmp_path, stage):
    config = compose(stage, [f"run_dir={tmp_path}"])
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert "${" not in str(resolved)
    assert "???" not in str(resolved)
