"""Transfer end to end on tiny models: what is carried over, direct accuracy, windows, errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_DEMO
from PIL import Image
from safetensors.torch import load_file, save_file

import simmim
from simmim.models.swin.position_bias import resize_table
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

DATA = [option for option in TINY_DEMO if not option.startswith("model.")]
MODEL = ["model=swinv2_nano", *(option for option in TINY if option.startswith("model."))]
NO_TRAINING = ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "optim.lr=1e-12"]
LARGER = ["model.image_size=48", "model.window_size=6"]


@pytest.fixture
def finetuned(run, tmp_path) -> Path:
    run("finetune", *DATA, *MODEL, "trainer.max_steps=3", name="finetuned")
    return tmp_path / "finetuned"


def folder_of_colours(root: Path, names: dict[str, tuple[int, int, int]], count: int = 4) -> Path:
    """Plain pictures, a folder a class."""
    for split in ("train", "val"):
        for name, colour in names.items():
            for number in range(count):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 40), colour).save(path)
    return root


def of_folder(root: Path) -> list[str]:
    options = [option for option in DATA if "data." not in option]
    return [
        *options,
        "data=imagefolder",
        f"data.root={root}",
        "data.batch_size=4",
        "data.num_workers=0",
    ]


@pytest.mark.parametrize(
    "file", [".", "classifier.safetensors", "checkpoints/last.ckpt", "checkpoints/best.ckpt"]
)
def test_a_transfer_that_changes_nothing_is_as_accurate_before_training(run, finetuned, file):
    before = json.loads((finetuned / "summary.json").read_text())["metrics"]
    after = run("transfer", *DATA, *NO_TRAINING, f"init.checkpoint={finetuned / file}")["metrics"]
    if "best" not in file:
        assert after["direct/top1"] == before["val/top1"]
        assert after["direct/top5"] == before["val/top5"]
        assert after["direct/loss"] == before["val/loss"]
    assert after["val/top1"] == after["direct/top1"]


def test_pretrained_windows_are_recorded_and_kept_by_a_second_transfer(run, tmp_path, finetuned):
    run("transfer", *DATA, *LARGER, *NO_TRAINING, f"init.checkpoint={finetuned}", name="first")
    again = ["model.image_size=64", "model.window_size=8"]
    start = f"init.checkpoint={tmp_path / 'first'}"
    run("transfer", *DATA, *again, *NO_TRAINING, start, name="second")
    for name, windows in (("first", ((6, 6), (3, 3))), ("second", ((8, 8), (4, 4)))):
        encoder = simmim.load_encoder(tmp_path / name / "encoder.safetensors")
        assert encoder.window_sizes == windows
        # The last stage's had shrunk to its feature map.
        assert encoder.pretrained_window_sizes == ((4, 4), (2, 2))


def test_a_table_is_interpolated_bicubically(run, tmp_path):
    table = [*MODEL, "model.position_bias=table"]
    run("finetune", *DATA, *table, "trainer.max_steps=2", name="finetuned")
    start = f"init.checkpoint={tmp_path / 'finetuned'}"
    run("transfer", *DATA, *LARGER, *NO_TRAINING, start)
    before, after = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("finetuned", "run")
    )
    name = "stages.0.blocks.0.attention.position_bias.table"
    torch.testing.assert_close(
        after[name], resize_table(before[name], (4, 4), (6, 6)), atol=1e-6, rtol=0
    )


def test_a_table_follows_windows_that_are_not_square(run, tmp_path):
    """Turned by a right angle, a table has as many rows, and means something else."""
    flat = ["model.image_size=[32,64]", "model.window_size=[4,8]", "model.position_bias=table"]
    options = [*DATA, *MODEL, *flat]
    run("finetune", *options, "trainer.max_steps=2", "optim.warmup_steps=0", name="finetuned")
    start = f"init.checkpoint={tmp_path / 'finetuned'}"
    upright = ["model.image_size=[64,32]", "model.window_size=[8,4]"]
    run("transfer", *DATA, *upright, *NO_TRAINING, start)
    before, after = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("finetuned", "run")
    )
    name = "stages.0.blocks.0.attention.position_bias.table"
    expected = resize_table(before[name], (4, 8), (8, 4))
    assert not torch.allclose(expected, before[name], atol=1e-4)
    torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=0)


def test_the_head_follows_the_names_of_the_classes(run, tmp_path):
    """Renamed in another order and with one class less, each output still means its class."""
    colours = {"a": (200, 0, 0), "b": (0, 200, 0), "c": (0, 0, 200)}
    first = folder_of_colours(tmp_path / "three", colours)
    run("finetune", *of_folder(first), *MODEL, "trainer.max_steps=2", name="finetuned")
    second = folder_of_colours(tmp_path / "two", {"c": (0, 0, 200), "a": (200, 0, 0)})
    start = f"init.checkpoint={tmp_path / 'finetuned'}"
    run("transfer", *of_folder(second), *NO_TRAINING, start)
    before = load_file(tmp_path / "finetuned" / "classifier.safetensors")["head.linear.weight"]
    after = load_file(tmp_path / "run" / "classifier.safetensors")["head.linear.weight"]
    torch.testing.assert_close(after, before[[0, 2]], atol=1e-6, rtol=0)
    assert simmim.load_classifier(tmp_path / "run").classes == ("a", "c")


def test_classes_that_the_head_does_not_know_are_named(run, tmp_path, finetuned):
    other = folder_of_colours(tmp_path / "other", {"dots": (9, 9, 9), "fur": (0, 0, 200)})
    with pytest.raises(UserError, match=r"12 classes and 1 of the data's 2 .*\(fur; it has bricks"):
        run("transfer", *of_folder(other), f"init.checkpoint={finetuned}")


def test_a_head_without_names_needs_as_many_classes(run, tmp_path, finetuned):
    tensors = load_file(finetuned / "classifier.safetensors")
    theirs = simmim.checkpoints.to_official(tensors)
    save_file(theirs, tmp_path / "official.safetensors")
    options = [*MODEL, f"init.checkpoint={tmp_path / 'official.safetensors'}"]
    two = folder_of_colours(tmp_path / "two", {"dots": (9, 9, 9), "fur": (0, 0, 200)})
    with pytest.raises(UserError, match=r"12 outputs without names and the data has 2 classes"):
        run("transfer", *of_folder(two), *options)
    direct = run("transfer", *DATA, *NO_TRAINING, *options)["metrics"]["direct/top1"]
    known = json.loads((finetuned / "summary.json").read_text())["metrics"]["val/top1"]
    assert direct == known


def test_an_encoder_is_no_classifier(run, tmp_path, finetuned):
    with pytest.raises(UserError, match=r"holds no classification head; fine-tune it first"):
        run("transfer", *DATA, f"init.checkpoint={finetuned / 'encoder.safetensors'}")
    with pytest.raises(UserError, match=r"no classifier to start from; set init\.checkpoint=RUN"):
        run("transfer", *DATA)
    with pytest.raises(UserError, match=r"holds an encoder without classes"):
        simmim.load_classifier(finetuned / "encoder.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.image_size=50"], "image size 50 is not a multiple of 16"),
        (["model.window_size=1"], "window size 1 leaves a token alone"),
        (["model.window_size=9"], r"9 is larger than the 4×4 tokens of a 32-px .*image_size=80"),
        (["data.batch_size=64"], "data.batch_size 64 on 1 device.* needs 64 training images"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_training(run, finetuned, options, message):
    with pytest.raises(UserError, match=message):
        run("transfer", *DATA, *options, f"init.checkpoint={finetuned}")


def test_a_damaged_classifier_is_named(run, tmp_path, finetuned):
    whole = (finetuned / "classifier.safetensors").read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged.safetensors is damaged"):
        run("transfer", *DATA, f"init.checkpoint={damaged}")


def test_a_loaded_classifier_predicts_as_in_the_run(run, tmp_path, finetuned):
    trained = simmim.load_classifier(finetuned / "checkpoints" / "last.ckpt")
    from simmim.data.synthetic.dataset import DemoImages

    images = DemoImages(split="val", size=6, image_size=(32, 32))
    pixels, labels = zip(*(images.load(index) for index in range(6)), strict=True)
    with torch.no_grad():
        logits = trained.model.eval()(trained.normalisation.normalise(torch.stack(pixels)))
    right = (logits.argmax(dim=1) == torch.tensor(labels)).float().mean().item()
    metrics = json.loads((finetuned / "summary.json").read_text())["metrics"]
    assert right == pytest.approx(metrics["val/top1"])
    assert trained.classes == images.classes


def test_a_transfer_started_again_keeps_its_metrics_and_its_best(run, tmp_path, finetuned):
    options = [*DATA, "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "optim.lr=1e-2"]
    options += ["trainer.log_every_n_steps=1", f"init.checkpoint={finetuned}"]
    run("transfer", *options)
    folder = tmp_path / "run"
    rows, best = (folder / "metrics.csv").read_text(), folder / "checkpoints" / "best.ckpt"
    before, written = json.loads((folder / "summary.json").read_text()), best.stat().st_mtime_ns
    run("transfer", *options)
    after = json.loads((folder / "summary.json").read_text())
    assert (folder / "metrics.csv").read_text().startswith(rows)
    assert best.stat().st_mtime_ns == written
    assert after["best"] == before["best"]
    assert after["metrics"] == before["metrics"]


def test_the_checkpoints_normalisation_is_kept(run, tmp_path):
    colours = {"a": (200, 0, 0), "b": (0, 200, 0)}
    folder = folder_of_colours(tmp_path / "colours", colours)
    own = ["data.mean=[0.1,0.2,0.3]", "data.std=[0.5,0.5,0.5]"]
    options = [*of_folder(folder), "trainer.max_epochs=1"]
    first = run("finetune", *options, *own, *MODEL, name="finetuned")
    second = run("transfer", *options, f"init.checkpoint={tmp_path / 'finetuned'}")
    assert second["metrics"]["direct/loss"] == first["metrics"]["val/loss"]
    assert simmim.load_classifier(tmp_path / "run").normalisation.mean == (0.1, 0.2, 0.3)


def test_windows_that_a_file_does_not_tell_are_named(run, tmp_path, finetuned, caplog):
    caplog.set_level("INFO")
    theirs = simmim.checkpoints.to_timm(load_file(finetuned / "classifier.safetensors"))
    save_file(theirs, tmp_path / "timm.safetensors")
    start = [*MODEL, f"init.checkpoint={tmp_path / 'timm.safetensors'}"]
    run("transfer", *DATA, *NO_TRAINING, *start)
    assert "does not tell the windows that its position bias was trained with" in caplog.text
    caplog.clear()
    told = "model.pretrained_window_sizes=[[4,4],[2,2]]"
    run("transfer", *DATA, *NO_TRAINING, *start, told, name="told")
    assert "does not tell the windows" not in caplog.text


def test_a_resumed_transfer_equals_one_that_was_not_interrupted(run, tmp_path, finetuned):
    options = [*DATA, *LARGER, "trainer.max_steps=4", f"init.checkpoint={finetuned}"]
    run("transfer", *options, "save.every_n_steps=2", "save.keep=9", name="whole")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000002.ckpt"
    run("transfer", *options, f"resume={checkpoint}", name="resumed")
    whole, resumed = (
        load_file(tmp_path / name / "classifier.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    direct = [
        json.loads((tmp_path / name / "summary.json").read_text())["metrics"]["direct/loss"]
        for name in ("whole", "resumed")
    ]
    assert direct[0] == direct[1]
    assert np.isfinite(direct[0])
