"""A run goes on where its data and weights lie elsewhere now, and not where they are others."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_DEMO
from PIL import Image
from safetensors.torch import load_file, save_file

from simmim.checkpoints.run_state import read_state
from simmim.data.sources.fingerprint import describe_source
from simmim.data.sources.image_folder import open_folder
from simmim.training import run as runs
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

OPTIONS = ["logger=csv", "reconstructions.count=0", "save.monitor=null", "trainer.max_steps=2"]


def images(folder: Path, count: int = 20) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (40, 40), (number, 99, 0)).save(folder / f"{number:02}.png")
    return folder


def test_data_and_weights_may_lie_elsewhere_but_not_be_others(run, tmp_path, monkeypatch):
    run("pretrain", *TINY_DEMO, *OPTIONS, "trainer.max_steps=1", name="first")
    weights = tmp_path / "first" / "encoder.safetensors"
    first = images(tmp_path / "job-1" / "photos")
    data = [*TINY, *OPTIONS, "data=imagefolder", "data.val_ratio=0.2"]
    run("pretrain", *data, f"data.root={first}", f"init.checkpoint={weights}")

    moved = tmp_path / "job-2"
    shutil.move(tmp_path / "job-1", moved)
    shutil.copy(weights, moved)
    monkeypatch.chdir(moved)
    there = ["data.root=photos", "init.checkpoint=encoder.safetensors"]
    assert run("pretrain", *data, *there, "trainer.max_steps=3")["steps"] == 3

    with pytest.raises(UserError, match=r"weights at the start: \w+ → null"):
        run("pretrain", *data, there[0], "trainer.max_steps=4")
    others = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(others, moved / "others.safetensors")
    with pytest.raises(UserError):
        run("pretrain", *data, there[0], "init.checkpoint=others.safetensors")
    (moved / "photos" / "03.png").rename(moved / "photos" / "03b.png")
    with pytest.raises(UserError, match=r"(training|held-out) images: \d+ \(\w+\) → \d+ \("):
        run("pretrain", *data, *there, "trainer.max_steps=4")


def test_a_name_a_class_or_the_order_tells_sources_apart(tmp_path):
    source = open_folder(images(tmp_path / "a", 3))
    told = describe_source(source)
    assert told == describe_source(open_folder(images(tmp_path / "elsewhere" / "b", 3)))
    assert told != describe_source(open_folder(images(tmp_path / "c", 4)))
    source.paths = source.paths[::-1]
    assert told != describe_source(source)


def test_what_precision_auto_stands_for_is_compared(run, tmp_path, monkeypatch):
    run("pretrain", *TINY_DEMO, *OPTIONS, "trainer.precision=auto")
    state = read_state(tmp_path / "run" / "checkpoints" / "last.ckpt")
    (options,) = (kept["options"] for kept in state["callbacks"].values() if "options" in kept)
    assert options["trainer.precision"] == "32-true"
    assert run("pretrain", *TINY_DEMO, *OPTIONS, "trainer.precision=32")["steps"] == 2
    # A machine on which auto is another one.
    monkeypatch.setattr(runs, "resolve_precision", lambda precision, kind: "bf16-mixed")
    with pytest.raises(UserError, match=r"trainer.precision: 32-true → bf16-mixed"):
        run("pretrain", *TINY_DEMO, *OPTIONS, "trainer.precision=auto", "trainer.max_steps=3")


def test_the_steps_of_an_epoch_stay_even_where_other_options_are_forced(run, tmp_path):
    run("pretrain", *TINY_DEMO, *OPTIONS)
    longer = ["trainer.max_steps=3", "resume_force=true"]
    with pytest.raises(UserError, match=r"cannot change the steps of an epoch"):
        run("pretrain", *TINY_DEMO, *OPTIONS, *longer, "data.batch_size=2")
    assert run("pretrain", *TINY_DEMO, *OPTIONS, *longer, "data.train_size=17")["steps"] == 3
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
