"""Pretraining end to end on tiny models: what a run leaves, that it learns, that it resumes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_DEMO
from PIL import Image
from safetensors.torch import load_file

import simmim
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "encoder.safetensors")


def test_run_directory_holds_what_the_design_promises(run, tmp_path):
    summary = run("pretrain", *TINY_DEMO, "trainer.max_steps=6", "trainer.log_every_n_steps=1")
    folder = tmp_path / "run"
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert [path.name for path in folder.glob("checkpoints/step-*")] == ["step-00000006.ckpt"]
    assert list(folder.glob("tensorboard/events.*"))
    assert (folder / "reconstructions" / "step-00000006.png").is_file()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["train/loss"]) for row in rows) == 6
    assert any(row["val/baseline_visible_mean"] for row in rows)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["steps"] == 6
    assert summary["parameters"] > summary["encoder_parameters"] > 0
    assert summary["peak_memory_bytes"] > 1e6
    assert summary["images_per_second"] > 0
    assert 0 < summary["data_wait"] < 1
    assert any(row["train/data_wait"] for row in rows)
    assert torch.__version__.startswith(summary["packages"]["torch"])


def test_loss_over_baseline_is_the_ratio_of_the_two(run):
    metrics = run("pretrain", *TINY_DEMO, "trainer.max_steps=2")["metrics"]
    ratio = metrics["val/loss"] / metrics["val/baseline_visible_mean"]
    assert metrics["val/loss_over_baseline"] == pytest.approx(ratio, rel=1e-5)


def test_training_lowers_the_held_out_loss(run):
    few = run("pretrain", *TINY_DEMO, "trainer.max_steps=1", name="few")
    long = ["trainer.max_epochs=30", "trainer.check_val_every_n_epoch=30", "optim.warmup_steps=2"]
    more = run("pretrain", *TINY_DEMO, *long, name="more")
    assert more["metrics"]["val/loss"] < 0.9 * few["metrics"]["val/loss"]


def test_encoder_file_rebuilds_the_encoder_without_a_config(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=2")
    images = torch.randn(2, 3, 32, 32)
    outputs = [
        simmim.load_encoder(tmp_path / "run" / name).eval()(images)
        for name in ("encoder.safetensors", "checkpoints/last.ckpt")
    ]
    assert outputs[0].shape == (2, 64, 2, 2)
    assert torch.equal(*outputs)


def test_a_run_is_a_function_of_its_configuration(run, tmp_path):
    options = [*TINY_DEMO, "trainer.max_steps=5", "model.drop_path_rate=0.2"]
    for name, extra in (("a", []), ("b", ["data.num_workers=2"]), ("c", ["seed=1"])):
        run("pretrain", *options, *extra, name=name)
    first, same, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_resumed_run_equals_one_that_was_not_interrupted(run, tmp_path, stop):
    """4 steps an epoch: stops in the middle of the first, at its end, and in the second."""
    options = [*TINY_DEMO, "model.drop_path_rate=0.2", "trainer.max_steps=9"]
    run("pretrain", *options, name="whole")
    kept = [*options, f"save.every_n_steps={stop}", "save.keep=100"]
    run("pretrain", *kept, name="source")
    checkpoint = tmp_path / "source" / "checkpoints" / f"step-{stop:08d}.ckpt"
    run("pretrain", *options, f"resume={checkpoint}", name="resumed")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("minutes", ["1e-9", "null"])
def test_a_run_made_longer_equals_one_of_that_length(run, tmp_path, minutes):
    """Stopped by max_steps in the middle of an epoch and of the accumulation's rhythm."""
    options = [*TINY_DEMO, "optim.schedule=multistep", "trainer.accumulate_grad_batches=2"]
    options += ["data.train_size=24", f"save.every_minutes={minutes}", "save.keep=9"]
    run("pretrain", *options, "trainer.max_steps=7", name="whole")
    run("pretrain", *options, "trainer.max_steps=4", name="longer")
    run("pretrain", *options, "trainer.max_steps=7", name="longer")
    whole, longer = weights(tmp_path / "whole"), weights(tmp_path / "longer")
    assert all(torch.equal(whole[name], longer[name]) for name in whole)


def test_a_file_that_cannot_be_resumed_is_named(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=1")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"text"):
        last.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last.ckpt is damaged or no checkpoint"):
            run("pretrain", *TINY_DEMO, "trainer.max_steps=2")
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"use init.checkpoint="):
        run("pretrain", *TINY_DEMO, f"resume={tmp_path / 'weights.pth'}", name="other")


def test_a_new_run_in_an_old_directory_keeps_its_own_checkpoint(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=3")
    run("pretrain", *TINY_DEMO, "trainer.max_steps=2", "resume=never")
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "step-00000002.ckpt").samefile(folder / "last.ckpt")


def test_metrics_have_one_row_a_step(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=8", "trainer.log_every_n_steps=1")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert all(float(row["train/lr"]) > 0 for row in rows)
    assert rows[3]["val/loss"]


def test_resume_auto_continues_the_run_directory(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=3", "trainer.log_every_n_steps=1")
    summary = run("pretrain", *TINY_DEMO, "trainer.max_steps=5", "trainer.log_every_n_steps=1")
    assert summary["steps"] == 5
    with (tmp_path / "run" / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == ["0", "1", "2", "3", "4"]
    assert run("pretrain", *TINY_DEMO, "trainer.max_steps=2", "resume=never")["steps"] == 2


def test_two_accumulated_batches_equal_one_of_twice_the_size(run, tmp_path):
    options = [*TINY_DEMO, "trainer.max_steps=3", "optim.warmup_steps=0"]
    run("pretrain", *options, "data.batch_size=8", name="whole")
    run("pretrain", *options, "trainer.accumulate_grad_batches=2", name="halves")
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    for name in whole:
        torch.testing.assert_close(halves[name], whole[name], atol=1e-4, rtol=1e-3)


def test_init_checkpoint_starts_from_the_encoder(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=2", name="first")
    start = tmp_path / "first" / "encoder.safetensors"
    run(
        "pretrain",
        *TINY_DEMO,
        "trainer.max_steps=1",
        "optim.lr=1e-12",
        f"init.checkpoint={start}",
        name="second",
    )
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-6, rtol=0)


def test_init_checkpoint_of_another_architecture_is_refused(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=1", name="first")
    start = tmp_path / "first" / "encoder.safetensors"
    with pytest.raises(UserError, match="another architecture"):
        run("pretrain", *TINY_DEMO, "model.embed_dim=64", f"init.checkpoint={start}", name="b")


def test_newest_checkpoints_are_kept(run, tmp_path):
    options = ["trainer.max_steps=5", "save.every_n_steps=1", "save.keep=2"]
    run("pretrain", *TINY_DEMO, *options)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "step-00000004.ckpt", "step-00000005.ckpt"]


def test_checkpoints_by_time(run, tmp_path):
    run("pretrain", *TINY_DEMO, "trainer.max_steps=3", "save.every_minutes=1e-9", "save.keep=9")
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 3


@pytest.mark.parametrize("target_window", ["null", "7"])
def test_perfect_predictions_would_paste_in_the_image(run, tmp_path, target_window):
    """Of each row of tiles, visible pixels of the reconstruction are those of the input."""
    options = ["trainer.max_steps=1", f"target_window={target_window}", "reconstructions.count=2"]
    run("pretrain", *TINY_DEMO, *options)
    sheet = np.asarray(Image.open(tmp_path / "run" / "reconstructions" / "step-00000001.png"))
    heading, gap, tile = sheet.shape[0] - 128 - 8, 4, 128
    columns = [
        sheet[heading : heading + tile, gap + at * (tile + gap) :][:, :tile].astype(int)
        for at in range(3)
    ]
    given, masked, filled = columns
    hidden = (masked == 128).all(-1)
    assert 0.3 < hidden.mean() < 0.9
    assert np.abs(given - filled)[~hidden].max() <= 1
    assert np.abs(given - filled)[hidden].mean() > 1


@pytest.mark.parametrize(
    "options",
    [
        ["model=swin_t", "mask.patch_size=8"],
        ["model=swinv2_nano", "model.similarity=dot", "model.norm=pre"],
        ["model=swinv2_nano", "model.position_bias=linear_cpb", "optim.schedule=multistep"],
        ["model=swinv2_nano", "trainer.precision=bf16-mixed"],
        ["model=swinv2_nano", "model.image_size=[32,48]"],
        ["model=swinv2_nano", "model.drop_path_rate=0.1", "target_window=47"],
        ["model=swinv2_nano", "head=inverse_swin"],
        ["model=swinv2_nano", "head=mlp", "loss_region=image"],
    ],
)
def test_switches_train(run, options):
    shape = [] if "model.image_size=[32,48]" in options else ["model.image_size=32"]
    tiny = [option for option in TINY_DEMO if not option.startswith("model.image_size")]
    summary = run("pretrain", *options, *tiny, *shape, "trainer.max_steps=2")
    assert np.isfinite(summary["metrics"]["val/loss"])


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    rng = np.random.default_rng(0)
    for number in range(12):
        path = folder / f"album {number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50 + number, 3), dtype=np.uint8)).save(path)
    return folder


def test_a_folder_of_images_trains(run, photographs):
    summary = run(
        "pretrain", *TINY, "data=imagefolder", f"data.root={photographs}", "trainer.max_steps=4"
    )
    assert summary["steps"] == 4


def test_a_batch_larger_than_the_folder_says_what_would_fit(run, photographs):
    options = ["data=imagefolder", f"data.root={photographs}", "data.batch_size=64"]
    with pytest.raises(UserError, match=r"there are 11; use data.batch_size=11 or less"):
        run("pretrain", *TINY, *options)
