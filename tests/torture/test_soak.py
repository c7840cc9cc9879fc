"""Thousands of steps with all that a run does beside them: no memory and no file stays behind."""

from pathlib import Path

import psutil
import pytest
from conftest import TINY_DEMO

from torture.jobs import start

pytestmark = pytest.mark.torture

STEPS, SETTLED = 3000, 300
OPTIONS = [
    *TINY_DEMO,
    *(f"trainer.max_steps={STEPS}", "trainer.max_epochs=100000", "trainer.log_every_n_steps=10"),
    *("trainer.check_val_every_n_epoch=5", "save.every_n_steps=25", "save.keep=3"),
    *("reconstructions.count=2", "data.num_workers=1"),
]


def measure() -> None:
    """Has this process note its memory and open files every hundred steps."""
    from simmim.training.callbacks import Throughput

    write = Throughput.on_train_batch_end

    def measured(self, trainer, *arguments):
        write(self, trainer, *arguments)
        if trainer.global_step % 100 == 0:
            process = psutil.Process()
            line = f"{trainer.global_step} {process.memory_info().rss} {process.num_fds()}\n"
            with Path(trainer.default_root_dir, "memory.txt").open("a") as file:
                file.write(line)

    Throughput.on_train_batch_end = measured


def test_a_long_run_keeps_its_size(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = start("pretrain", OPTIONS, folder, prepare=measure, seconds=900)
    assert code == 0, (folder / "output.txt").read_text()
    lines = [line.split() for line in (folder / "memory.txt").read_text().splitlines()]
    memory = {int(step): int(held) for step, held, _ in lines}
    files = {int(step): int(count) for step, _, count in lines}
    print(
        f"MB {memory[SETTLED] / 1e6:.1f} → {memory[STEPS] / 1e6:.1f}, files {set(files.values())}"
    )
    assert memory[STEPS] < 1.03 * memory[SETTLED]
    assert len({count for step, count in files.items() if step >= SETTLED}) == 1
