"""Waiting for data: what is measured, and what is advised."""

import time
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from simmim.data.loader import TimedLoader, describe_wait
from simmim.training.callbacks import throughput
from simmim.training.callbacks.throughput import Throughput


class Slow(Dataset[Any]):
    """Images that take a while."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_counts_the_time_that_its_reader_waits(workers: int) -> None:
    loader = TimedLoader(Slow(), batch_size=1, num_workers=workers)
    assert [int(batch) for batch in loader] == [0, 1, 2, 3]
    first = loader.waited_seconds
    # A worker may get ahead of its reader.
    least = 4 * 0.02 if workers == 0 else 0.0
    assert first > least
    assert [int(batch) for batch in loader] == [0, 1, 2, 3]
    assert loader.waited_seconds > first + least


def test_time_between_batches_is_no_waiting() -> None:
    loader = TimedLoader(Slow(), batch_size=1, num_workers=0)
    started = time.perf_counter()
    for _ in loader:
        time.sleep(0.05)
    assert loader.waited_seconds < time.perf_counter() - started - 4 * 0.05


def train(
    loader: TimedLoader, waits: list[float], log_every: int
) -> tuple[Throughput, list[dict[str, float]]]:
    """Steps of one second, in each of which so long was waited; the first are to warm up."""
    callback, module = Throughput(8, log_every), Mock(spec=pl.LightningModule)
    trainer = Mock(spec=pl.Trainer, train_dataloader=loader, global_step=0, world_size=1)
    trainer.strategy.root_device = torch.device("cpu")
    clock = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput.time, "monotonic", lambda: clock)
        for wait in [1.0] * 5 + waits:
            clock += 1
            loader.waited_seconds += wait
            trainer.global_step += 1
            callback.on_train_batch_end(trainer, module, None, None, 0)
    logged = [call.args[0] for call in module.log_dict.call_args_list]
    return callback, [figures for figures in logged if "train/data_wait" in figures]


def test_the_share_of_the_time_is_logged_but_for_the_first_steps() -> None:
    loader = TimedLoader(Slow())
    callback, logged = train(loader, [0.1, 0.3, 0.0, 0.0, 0.5], log_every=5)
    assert callback.data_wait == pytest.approx(0.9 / 5)
    assert [figures["train/data_wait"] for figures in logged] == [pytest.approx(0.9 / 5)]
    assert logged[0]["train/images_per_second"] == pytest.approx(8)


def test_each_row_is_of_the_steps_since_the_last() -> None:
    _, logged = train(TimedLoader(Slow()), [0.0, 0.4, 0.2, 0.2], log_every=1)
    shares = [figures["train/data_wait"] for figures in logged]
    assert shares == pytest.approx([0.0, 0.4, 0.2, 0.2])


def test_a_run_that_hardly_waits_gets_no_advice() -> None:
    line = describe_wait(0.1, num_workers=1, most_workers=8)
    assert line == "waited for data 10.0% of the time"


def test_more_workers_are_advised_where_there_are_cores() -> None:
    line = describe_wait(0.34, num_workers=1, most_workers=8)
    assert line == "waited for data 34.0% of the time: use data.num_workers=8, it is 1"


def test_smaller_files_are_advised_where_all_cores_read() -> None:
    line = describe_wait(0.34, num_workers=8, most_workers=8)
    assert line.startswith("waited for data 34.0% of the time: data.num_workers=8 takes all cores")
    assert "scripts/make_shards.py DIR OUT --max-side N" in line
