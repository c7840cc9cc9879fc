"""How often a step waits for a GPU: once, for all that is decided by it and logged of it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY_DEMO
from device_waits import DEVICE, DeviceWaits, tensors_in
from torch.utils._pytree import tree_map_only

from simmim.data.loader import TimedLoader
from simmim.training.callbacks import Throughput

pytestmark = pytest.mark.unchecked

STEPS = 4


@pytest.fixture
def train(run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[list[str]]]]:
    """Trains, and returns who waited in each step, from its first batch to what is logged of it."""
    waits = DeviceWaits()
    steps: list[list[str]] = []
    load = TimedLoader.__iter__

    def load_outside(loader: TimedLoader[Any]) -> Iterator[Any]:
        """Making a batch is no part of the step."""
        batches = load(loader)
        while True:
            waits.stop()
            batch = next(batches, None)
            if batch is None:
                return
            waits.put_on_host(*tensors_in(batch))
            yield batch

    def send(module: pl.LightningModule, batch: Any, device: Any, number: int) -> Any:
        """From pinned memory, as the loader's is where there is a GPU."""
        return tree_map_only(torch.Tensor, torch.clone, batch)

    def begin(callback: Throughput, trainer: pl.Trainer, *_: Any) -> None:
        if len(steps) <= trainer.global_step:
            waits.seen = []
            steps.append(waits.seen)
        waits.start()

    def begin_nothing(*_: Any) -> None:
        """Follows what is moved to and fro, which is none of a step."""
        waits.seen = []
        waits.start()

    def stop(*_: Any) -> None:
        waits.stop()

    monkeypatch.setattr(TimedLoader, "__iter__", load_outside)
    monkeypatch.setattr(pl.LightningModule, "transfer_batch_to_device", send)
    monkeypatch.setattr(Throughput, "on_fit_start", begin_nothing)
    monkeypatch.setattr(Throughput, "on_train_batch_start", begin)
    monkeypatch.setattr(Throughput, "on_train_epoch_end", begin_nothing)
    for end in ("on_validation_start", "on_train_end", "on_exception"):
        monkeypatch.setattr(Throughput, end, stop)

    def train_stage(stage: str, *options: str) -> list[list[str]]:
        run(stage, *TINY_DEMO, *options, "trainer.log_every_n_steps=2")
        return steps

    yield train_stage
    waits.stop()


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("pretrain", ["trainer.max_epochs=1"]),
        (
            "pretrain",
            [
                *("trainer.accumulate_grad_batches=2", "trainer.max_epochs=2"),
                *("target_window=7", "loss_region=image", "model.drop_path_rate=0.1"),
            ],
        ),
        ("finetune", ["model=swinv2_nano", "ema.decay=0.9", "trainer.max_epochs=1"]),
    ],
    ids=["pretrain", "accumulate", "mixup-ema"],
)
def test_a_step_waits_once(train, stage: str, options: list[str]) -> None:
    """Logged or not, in an epoch's first step too; gradients are clipped in all of them."""
    assert train(stage, *options) == [["module.measure_step"]] * STEPS


@pytest.mark.parametrize(
    ("waits", "work"),
    [
        (1, lambda x: x.sum().item()),
        (1, lambda x: float(x[0] * torch.tensor(1.0))),
        (1, lambda x: x.sum() > 0 and None),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.to("cpu")),
        (1, lambda x: x[x > 0.5]),
        (1, lambda x: x[[0, 1]]),
        (1, lambda x: torch.tensor(1.0, device=x.device)),
        (1, lambda x: torch.tensor(1.0).to(x.device)),
        (1, lambda x: x.copy_(torch.ones(4))),
        (0, lambda x: torch.tensor(1.0).to(x.device, non_blocking=True) * x),
        (0, lambda x: float(torch.tensor(1.0).clone() * 2)),
        (0, lambda x: torch.full((4,), 3.0, device=x.device) * x[1:2]),
    ],
)
def test_what_waits_is_seen(waits: int, work: Callable[[torch.Tensor], Any]) -> None:
    seen = DeviceWaits()
    images = torch.rand(4)
    seen.start()
    assert images.device == DEVICE
    work(images)
    seen.stop()
    assert len(seen.seen) == waits
