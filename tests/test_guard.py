"""Numbers that go wrong in training: what a step with them leaves as it was, and what is told of it."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_DEMO
from pytorch_lightning.plugins import MixedPrecision
from safetensors.torch import load_file
from started import check_started

from simmim.pretrain import stage
from simmim.pretrain.module import SimMIMModule
from simmim.training.callbacks import loss_spikes
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

OVERFLOWS = "b/5.npy"
OPTIONS = [*TINY, "trainer.log_every_n_steps=1", "optim.warmup_steps=0", "save.keep=99"]
OPTIONS += ["augmentation.flip=0", "save.monitor=null", "logger=csv"]
LABELLED = ["augmentation.rand_augment=null", "augmentation.random_erasing=0", "mixing.mixup=0"]
LABELLED += ["mixing.cutmix=0", "ema.decay=0.9", "model=swinv2_nano"]
STEP_BY_STEP = ["save.every_n_steps=1", "trainer.max_steps=5"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two classes of float images; one has NaN in it, one is so large that activations overflow."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 2)):
        for number in range(count):
            image = generator.normal(size=(3, 32, 32)).astype(np.float32)
            if split == "train" and number == 3:
                image[0, 5, 5] = np.nan
            for name in "ab":
                path = folder / split / name / f"{number}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                is_large = split == "train" and f"{name}/{number}.npy" == OVERFLOWS
                np.save(path, np.full_like(image, 1e30) if is_large else image)
    values = {"mean": [0.0] * 3, "std": [1.0] * 3}
    (folder / "statistics.json").write_text(json.dumps(values))
    return folder


def data(images: Path) -> list[str]:
    return [
        *("data=imagefolder", f"data.root={images}"),
        f"data.statistics={images / 'statistics.json'}",
    ]


def told(folder: Path) -> list[dict]:
    path = folder / "unusual_steps.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checkpoint(folder: Path, steps: int) -> dict:
    path = folder / "checkpoints" / f"step-{steps:08d}.ckpt"
    return torch.load(path, weights_only=True)


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_only_skipped(folder: Path, steps: set[int], last: int) -> None:
    """Weights, their average and the optimiser's state are what they were; the rest went on."""
    for step in range(1, last):
        before, after = checkpoint(folder, step), checkpoint(folder, step + 1)
        for part in {"state_dict", "current_model_state"} & before.keys():
            assert equal(before[part], after[part]) == (step in steps)
        states = [state["optimizer_states"][0]["state"] for state in (before, after)]
        assert equal(*states) == (step in steps)
        assert after["lr_schedulers"][0]["last_epoch"] == step + 1
        assert after["global_step"] == step + 1


@pytest.mark.parametrize(("stage", "own"), [("pretrain", []), ("finetune", LABELLED)])
def test_a_step_with_an_image_that_overflows_changes_nothing(
    run, tmp_path, images, caplog, stage, own
):
    """An image with NaN trains, for NaN becomes the mean."""
    caplog.set_level(logging.WARNING)
    run(stage, *OPTIONS, *data(images), *own, *STEP_BY_STEP)
    (record,) = told(tmp_path / "run")
    assert record["event"] == "skipped"
    (suspect,) = record["suspects"]
    assert suspect.endswith(OVERFLOWS)
    assert len(record["images"]) == 4
    assert suspect in record["images"]
    assert record["first_not_finite"].startswith("the output of encoder.patch_embedding")
    assert record["loss"] == "nan"
    assert next(iter(record["amplitudes"])) == "stage1_block1"
    assert_only_skipped(tmp_path / "run", {record["step"]}, last=5)
    (line,) = [message for message in caplog.messages if "is skipped" in message]
    assert f"step {record['step']} is skipped and changes no weight: its loss is nan" in line
    assert f"images {suspect};" in line


def test_a_run_resumed_around_a_skipped_step_equals_the_whole(run, tmp_path, images):
    options = [*OPTIONS, *data(images), *LABELLED, "trainer.max_steps=8"]
    run("finetune", *options, "save.every_n_steps=1", name="whole")
    whole = told(tmp_path / "whole")
    assert len(whole) == 2
    for behind in (0, 1):
        name = f"step-{whole[0]['step'] + behind:08d}.ckpt"
        path = tmp_path / "whole" / "checkpoints" / name
        run("finetune", *options, f"resume={path}", name=f"resumed{behind}")
        weights, resumed = (
            load_file(tmp_path / folder / "encoder.safetensors")
            for folder in ("whole", f"resumed{behind}")
        )
        assert equal(weights, resumed)
        assert told(tmp_path / f"resumed{behind}") == whole[behind:]


def test_a_gradient_that_is_not_finite_spoils_its_step(run, tmp_path, monkeypatch):
    """In the first of two micro-batches, with a finite loss."""
    name = "model.encoder.stages.0.blocks.0.mlp.fc1.weight"

    def spoil(task):
        first = task.trainer.fit_loop.epoch_loop.batch_idx % 2 == 0
        if task.global_step == 1 and first:
            task.get_parameter(name).grad[0, 0] = torch.nan

    monkeypatch.setattr(SimMIMModule, "on_after_backward", spoil)
    accumulated = ["trainer.accumulate_grad_batches=2", "save.every_n_steps=1"]
    run("pretrain", *OPTIONS, *TINY_DEMO, *accumulated, "trainer.max_steps=4")
    (record,) = told(tmp_path / "run")
    assert record["step"] == 1
    assert record["first_not_finite"] == "the gradient of " + name.removeprefix("model.")
    assert record["gradient_norm"] == "nan"
    assert record["loss"] < 2
    assert len(set(record["images"])) == 8
    assert record["suspects"] == []
    assert_only_skipped(tmp_path / "run", {1}, last=4)


def test_a_loss_that_is_not_finite_spoils_its_step_though_gradients_are(run, tmp_path, monkeypatch):
    compute_loss = SimMIMModule.compute_loss

    def spoil(task, batch, batch_idx):
        loss = compute_loss(task, batch, batch_idx)
        return loss + torch.inf if task.global_step == 2 else loss

    monkeypatch.setattr(SimMIMModule, "compute_loss", spoil)
    run("pretrain", *OPTIONS, *TINY_DEMO, *STEP_BY_STEP)
    (record,) = told(tmp_path / "run")
    assert (record["step"], record["loss"], record["first_not_finite"]) == (2, "inf", "the loss")
    assert 0 < record["gradient_norm"] < 100
    assert_only_skipped(tmp_path / "run", {2}, last=5)


def test_weights_that_are_not_finite_end_the_run(run, tmp_path, monkeypatch):
    name = "encoder.stages.0.blocks.0.attention.qkv.weight"

    def spoil(task):
        parameters = dict(task.model.named_parameters())
        for changed in (name, "head.linear.bias"):
            parameters[changed].data.view(-1)[0] = torch.inf

    monkeypatch.setattr(SimMIMModule, "on_train_start", spoil)
    message = (
        rf"3 steps in a row .* the last one step 2; first not finite: parameter {name}; "
        "no step mends weights: go on from an earlier checkpoint"
    )
    with pytest.raises(UserError, match=message):
        run("pretrain", *OPTIONS, *TINY_DEMO, "guard.max_skipped=3")
    assert [record["step"] for record in told(tmp_path / "run")] == [0, 1, 2]


def test_the_first_module_is_named_and_a_resumed_run_ends_where_the_whole_did(
    run, tmp_path, monkeypatch
):
    """Four in a row, of which two are before the checkpoint; recomputed blocks included."""
    module = "encoder.stages.1.blocks.0.attention"

    def spoil(task):
        def spoil_output(module, inputs, output):
            return output * torch.nan if task.global_step >= 2 else output

        task.model.get_submodule(module).register_forward_hook(spoil_output)

    monkeypatch.setattr(SimMIMModule, "on_train_start", spoil)
    options = [*OPTIONS, *TINY_DEMO, "save.every_n_steps=1", "model.checkpoint_blocks=all"]
    options += ["guard.max_skipped=4", "trainer.max_steps=12"]
    message = rf"4 steps .* the last one step 5; first not finite: the output of {module};"
    with pytest.raises(UserError, match=message):
        run("pretrain", *options)
    whole = told(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    start = tmp_path / "run" / "checkpoints" / "step-00000004.ckpt"
    with pytest.raises(UserError, match=message):
        run("pretrain", *options, f"resume={start}")
    assert told(tmp_path / "run") == whole
    assert [record["step"] for record in whole] == [2, 3, 4, 5]
    assert whole[0]["amplitudes"]["stage1_block1"]["variance"] > 0
    assert whole[0]["amplitudes"]["stage2_block1"]["variance"] == "nan"


def test_overflows_by_the_scale_of_fp16_are_lowered_and_not_counted(run, tmp_path, monkeypatch):
    """Infinite gradients at steps 0 and 1, a loss that is not finite at step 3."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def use_fp16(run, model, images):
        run.trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)

    def spoil(task):
        if task.global_step < 2:
            task.model.mask_token.grad[0] = torch.inf

    compute_loss = SimMIMModule.compute_loss

    def spoil_loss(task, batch, batch_idx):
        loss = compute_loss(task, batch, batch_idx)
        return loss * torch.nan if task.global_step == 3 else loss

    monkeypatch.setattr(stage, "announce", use_fp16)
    monkeypatch.setattr(SimMIMModule, "on_after_backward", spoil)
    monkeypatch.setattr(SimMIMModule, "compute_loss", spoil_loss)
    options = [*OPTIONS, *TINY_DEMO, *STEP_BY_STEP]
    run("pretrain", *options)
    assert [record["step"] for record in told(tmp_path / "run")] == [3]
    assert_only_skipped(tmp_path / "run", {1, 3}, last=5)
    assert scaler.get_scale() == 0.5
    # At the smallest scale it is not the scale that is too large.
    with pytest.raises(UserError, match=r"a step had no finite .*: the gradient of mask_token"):
        run("pretrain", *options, "guard.max_skipped=1", name="again")


def test_two_processes_skip_the_same_step_as_one(run, tmp_path, images):
    """Only one of them has the image that overflows."""
    options = [option for option in OPTIONS if option != "trainer=cpu"]
    options += [*data(images), "trainer.accelerator=cpu", "trainer.max_steps=4"]
    run("pretrain", *options, "trainer.devices=1", "data.batch_size=8", name="one")
    shared = [*options, "trainer.strategy=ddp", f"run_dir={tmp_path / 'two'}"]
    check_started("simmim.pretrain", *shared, cwd=tmp_path, processes=2)
    for record, expected in zip(told(tmp_path / "two"), told(tmp_path / "one"), strict=True):
        for what in ("step", "suspects", "first_not_finite", "images"):
            assert record[what] == expected[what]
        assert [Path(suspect).name for suspect in record["suspects"]] == ["5.npy"]
    assert [record["step"] for record in told(tmp_path / "two")] == [1, 2]
    weights, reference = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("two", "one")
    )
    for name, tensor in reference.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)


def test_a_spike_of_the_loss_is_told_and_changes_nothing(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loss_spikes, "_WINDOW", 8)
    caplog.set_level(logging.WARNING)
    compute_loss = SimMIMModule.compute_loss

    def spoil(task, batch, batch_idx):
        loss = compute_loss(task, batch, batch_idx)
        return loss * 20 if task.global_step in (6, 7) else loss

    monkeypatch.setattr(SimMIMModule, "compute_loss", spoil)
    options = [*OPTIONS, *TINY_DEMO, "trainer.max_steps=9", "model.drop_path_rate=0.3"]
    run("pretrain", *options)
    (record,) = told(tmp_path / "run")
    assert (record["event"], record["step"], len(record["images"])) == ("spike", 6, 4)
    assert record["first_not_finite"] is None
    (line,) = [message for message in caplog.messages if "times the last ones' median" in message]
    assert record["images"][0] in line
    run("pretrain", *options, "guard.spike_factor=null", name="untold")
    assert told(tmp_path / "untold") == []
    looked, not_looked = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("run", "untold")
    )
    assert equal(looked, not_looked)


# Of a process of its own, for FSDP leaves a process group behind.
SPIKING = """
from simmim.training.callbacks import loss_spikes
from simmim.pretrain.__main__ import main
from simmim.pretrain.module import SimMIMModule

loss_spikes._WINDOW = 8
compute_loss = SimMIMModule.compute_loss
SimMIMModule.compute_loss = lambda task, batch, number: (
    compute_loss(task, batch, number) * (20 if task.global_step == 6 else 1)
)
main()
"""


def test_a_second_look_under_fsdp_leaves_no_whole_weights_for_the_next_step(
    run, tmp_path, monkeypatch
):
    options = [option for option in [*OPTIONS, *TINY_DEMO] if option != "trainer=cpu"]
    options += ["trainer.accelerator=cpu", "trainer.max_steps=12", "trainer.devices=1"]
    shared = [*options, "trainer.strategy=fsdp", f"run_dir={tmp_path / 'shared'}"]
    script = tmp_path / "spiking.py"
    script.write_text(SPIKING)
    check_started(str(script), *shared, cwd=tmp_path)
    compute_loss = SimMIMModule.compute_loss

    def spike(task, batch, batch_idx):
        return compute_loss(task, batch, batch_idx) * (20 if task.global_step == 6 else 1)

    monkeypatch.setattr(SimMIMModule, "compute_loss", spike)
    run("pretrain", *options, "guard.spike_factor=null", name="whole")
    assert [record["event"] for record in told(tmp_path / "shared")] == ["spike"]
    losses = []
    for name in ("whole", "shared"):
        with (tmp_path / name / "metrics.csv").open() as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file)][:12])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("end", [2.0, 0.3, 1e-3])
def test_losses_that_fall_and_scatter_are_no_spikes(end):
    generator = torch.Generator().manual_seed(0)
    detector = loss_spikes.SpikeDetector(3.0)
    falling = 7 * torch.logspace(0, -1, 600) + end
    scattered = falling * torch.randn(600, generator=generator).mul(0.4).exp()
    assert not any(detector.begins(loss) for loss in scattered.tolist())
    assert detector.begins(50 * detector.median)
    assert not detector.begins(50 * detector.median)
    assert not detector.begins(detector.median)
    assert detector.begins(50 * detector.median)


def test_amplitudes_and_gradient_norm_are_logged(run, tmp_path):
    """Of each block at the steps that are logged, recomputed or not; the norm is not clipped."""
    options = [*OPTIONS, *TINY_DEMO, "trainer.max_steps=4", "trainer.log_every_n_steps=2"]
    options += ["model.depths=[1,2]", "model.drop_path_rate=0.2", "optim.clip_norm=1e-3"]
    run("pretrain", *options)
    run("pretrain", *options, "model.checkpoint_blocks=all", name="recomputed")
    tables = []
    for name in ("run", "recomputed"):
        with (tmp_path / name / "metrics.csv").open() as file:
            tables.append([row for row in csv.DictReader(file) if row["train/loss"]])
    rows = tables[0]
    assert [row["step"] for row in rows] == ["1", "3"]
    blocks = [column for column in rows[0] if column.startswith("amplitude/")]
    assert blocks == [
        f"amplitude/{name}" for name in ("stage1_block1", "stage2_block1", "stage2_block2")
    ]
    for row, recomputed in zip(*tables, strict=True):
        assert float(row["train/gradient_norm"]) > 0.01
        for block in blocks:
            assert 0.01 < float(row[block]) < 100
            assert float(recomputed[block]) == pytest.approx(float(row[block]), rel=1e-5)


def test_a_held_out_loss_that_is_not_finite_is_told(run, tmp_path, images, caplog):
    """Of one batch of two; a mean over the other would pass for the whole."""
    folder = tmp_path / "images"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for number in range(8):
            image = np.full((3, 32, 32), 1e30 if split == "val" and number == 2 else number)
            np.save(folder / split / f"{number}.npy", image.astype(np.float32))
    given = ["data=imagefolder", f"data.root={folder}"]
    given += [f"data.statistics={images / 'statistics.json'}", "trainer.max_steps=1"]
    summary = run("pretrain", *OPTIONS, *given)
    assert summary["metrics"]["val/loss"] is None
    assert any("held-out val/loss is nan after step 1" in line for line in caplog.messages)


def test_options_that_guard_nothing_are_refused(run):
    with pytest.raises(UserError, match=r"guard.max_skipped 0 is not positive; use 10"):
        run("pretrain", *TINY_DEMO, "guard.max_skipped=0")
    with pytest.raises(UserError, match=r"guard.spike_factor 1(\.0)? is not above 1; use 3"):
        run("pretrain", *TINY_DEMO, "guard.spike_factor=1")
