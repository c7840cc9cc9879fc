"""Fine-tuning end to end on tiny models: where it starts from, what it trains, what it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_DEMO
from PIL import Image
from safetensors.torch import load_file

import simmim
from simmim.models.classifier import Classifier
from simmim.tasks.classification.module import ClassificationModule
from simmim.training.optim import AdamWRecipe
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

# `model=auto` takes its architecture from the checkpoint: no switch of it is given.
FINETUNE = [option for option in TINY_DEMO if not option.startswith("model.")]
SCRATCH = [*FINETUNE, "model=swinv2_nano", *(option for option in TINY if "model." in option)]

# What the papers augment with; drawn pictures do without by default.
STRONG = [
    "augmentation.rand_augment=rand-m9-mstd0.5-inc1",
    "augmentation.random_erasing=0.25",
    "mixing.mixup=0.8",
    "mixing.cutmix=1.0",
]


@pytest.fixture
def pretrained(run, tmp_path) -> Path:
    run("pretrain", *TINY_DEMO, "trainer.max_steps=2", name="pretrained")
    return tmp_path / "pretrained"


@pytest.mark.parametrize("file", ["encoder.safetensors", "checkpoints/last.ckpt", "."])
def test_starts_from_what_pretraining_leaves(run, tmp_path, pretrained, file):
    summary = run(
        "finetune",
        *FINETUNE,
        f"init.checkpoint={pretrained / file}",
        "trainer.max_steps=1",
        "optim.lr=1e-12",
    )
    before, after = (
        load_file(folder / "encoder.safetensors") for folder in (pretrained, tmp_path / "run")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)
    assert 0 <= summary["metrics"]["val/top1"] <= summary["metrics"]["val/top5"] <= 1


def test_the_papers_augmentation_trains(run):
    summary = run("finetune", *SCRATCH, *STRONG, "trainer.max_steps=2")
    assert np.isfinite(summary["metrics"]["val/loss"])


def test_without_a_checkpoint_it_says_that_it_starts_from_scratch(run, caplog):
    caplog.set_level("INFO")
    run("finetune", *SCRATCH, "trainer.max_steps=1")
    assert "from scratch" in caplog.text


def test_coverage_is_reported(run, pretrained, caplog):
    caplog.set_level("INFO")
    run("finetune", *FINETUNE, f"init.checkpoint={pretrained}", "trainer.max_steps=1")
    count = len(load_file(pretrained / "encoder.safetensors"))
    assert f"{count} tensors loaded, 0 of them reshaped, 0 missing, 0 unexpected" in caplog.text


def test_linear_mode_trains_the_head_alone(run, tmp_path, pretrained):
    options = ["mode=linear", "trainer.max_steps=4", "optim.warmup_steps=0"]
    run("finetune", *FINETUNE, f"init.checkpoint={pretrained}", *options)
    before, after = (
        load_file(folder / "encoder.safetensors") for folder in (pretrained, tmp_path / "run")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_learns_what_colour_tells(run, colours):
    summary = run(
        "finetune",
        *[option for option in SCRATCH if "data." not in option],
        "data=imagefolder",
        f"data.root={colours}",
        "data.batch_size=4",
        "data.num_workers=0",
        "trainer.max_epochs=20",
        "trainer.check_val_every_n_epoch=20",
        "augmentation.rand_augment=null",
        "augmentation.random_erasing=0",
        "mixing.mixup=0",
        "mixing.cutmix=0",
        "optim.lr_batch_size=null",
        "optim.lr=3e-3",
    )
    assert summary["metrics"]["val/top1"] == 1


@pytest.fixture
def colours(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("red", "green", "blue")):
            for image in range(count):
                values = rng.integers(0, 100, (40, 40, 3))
                values[..., number] += 150
                path = tmp_path / "colours" / split / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(path)
    return tmp_path / "colours"


def test_a_larger_window_keeps_the_pretrained_ones(run, tmp_path, pretrained):
    run(
        "finetune",
        *FINETUNE,
        f"init.checkpoint={pretrained}",
        "model.image_size=64",
        "model.window_size=8",
        "trainer.max_steps=1",
    )
    encoder = simmim.load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert encoder.window_sizes == ((8, 8), (4, 4))
    assert encoder.pretrained_window_sizes == ((4, 4), (2, 2))


def test_a_named_model_keeps_the_pretrained_windows_too(run, tmp_path, pretrained):
    sizes = ["model.image_size=64", "model.window_size=8"]
    start = f"init.checkpoint={pretrained}"
    run("finetune", *SCRATCH, *sizes, start, "trainer.max_steps=1")
    encoder = simmim.load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert encoder.window_sizes == ((8, 8), (4, 4))
    assert encoder.pretrained_window_sizes == ((4, 4), (2, 2))


def test_a_switch_that_shapes_do_not_show_is_refused(run, pretrained):
    options = [*SCRATCH, "model.position_bias=linear_cpb", f"init.checkpoint={pretrained}"]
    with pytest.raises(UserError, match=r"model.position_bias is linear_cpb .* with log_cpb"):
        run("finetune", *options)


def test_a_frozen_encoder_drops_no_path_after_a_resume_either():
    encoder = simmim.create_encoder("swinv2_nano", image_size=64, window_size=8, drop_path_rate=0.5)
    task = ClassificationModule(
        Classifier(encoder, 3),
        classes=("a", "b", "c"),
        normalisation=Normalisation(),
        optimization=AdamWRecipe(lr=1e-3, weight_decay=0.05),
        batch_size=2,
        total_steps=1,
        steps_per_epoch=1,
        seed=0,
        mode="linear",
    )
    task.train()
    assert task.model.head.training
    assert not any(module.training for module in encoder.modules())


def test_a_resumed_run_equals_one_that_was_not_interrupted(run, tmp_path):
    """Mixup, drop path, RandAugment and erasing included."""
    options = [*SCRATCH, *STRONG, "model.drop_path_rate=0.2", "trainer.max_steps=6"]
    run("finetune", *options, "save.every_n_steps=3", "save.keep=9", name="whole")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000003.ckpt"
    run("finetune", *options, f"resume={checkpoint}", name="resumed")
    whole, resumed = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_metrics_count_each_held_out_image_once(run):
    summary = run("finetune", *SCRATCH, "trainer.max_steps=1")
    right = summary["metrics"]["val/top1"] * 6
    assert right == pytest.approx(round(right))


def test_images_without_classes_are_refused(run, tmp_path):
    for number in range(4):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    options = ["data=imagefolder", f"data.root={tmp_path}", "data.batch_size=2"]
    with pytest.raises(UserError, match="one folder a class"):
        run("finetune", *SCRATCH[:0], "model=swinv2_nano", *options, name="refused")


def test_a_class_only_in_val_is_refused(run, colours):
    (colours / "val" / "violet").mkdir()
    Image.new("RGB", (40, 40)).save(colours / "val" / "violet" / "0.png")
    options = ["data=imagefolder", f"data.root={colours}", "data.batch_size=2"]
    with pytest.raises(UserError, match=r"no training image.*violet"):
        run("finetune", "model=swinv2_nano", *options)


def test_another_architecture_names_tensors_and_shapes(run, pretrained):
    with pytest.raises(UserError, match=r"another architecture: .* in the file, .* in the model"):
        run("finetune", *FINETUNE, "model=swinv2_nano", f"init.checkpoint={pretrained}")


def test_odd_batches_do_not_mix(run):
    with pytest.raises(UserError, match=r"data\.batch_size 3 is odd"):
        run("finetune", *SCRATCH, *STRONG, "data.batch_size=3")


def test_summary_says_what_it_was(run, tmp_path):
    run("finetune", *SCRATCH, "trainer.max_steps=1")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stage"] == "finetune"
