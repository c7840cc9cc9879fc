"""What `resume` goes on from: where a run began, or how far it came; and whether it may."""

import errno
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY_DEMO, rows
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simmim.checkpoints.read import read_weights
from simmim.checkpoints.run_state import read_state
from simmim.training import run as runs
from simmim.training.callbacks import LearningRate
from simmim.training.callbacks import checkpoint as checkpoints
from simmim.training.run_dir.resume import resume_checkpoint
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

# Four steps an epoch, each in metrics.csv.
OPTIONS = [*TINY_DEMO, "trainer.max_steps=8", "trainer.log_every_n_steps=1"]
OPTIONS += ["save.every_n_steps=2", "reconstructions.count=0"]


def write(path: Path, step: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"encoder": {}, "optimizer_states": [], "global_step": step}, path)
    return path


def test_a_run_that_began_from_a_path_goes_on_from_its_own_when_started_again(
    tmp_path: Path,
) -> None:
    start, last = write(tmp_path / "start.ckpt", 10), tmp_path / "run" / "last.ckpt"
    assert resume_checkpoint(str(start), last).path == start
    write(last, 12)
    assert resume_checkpoint(str(start), last).path == last
    write(last, 8)
    assert resume_checkpoint(str(start), last).path == start


def test_a_checkpoint_is_read_once_before_it_is_loaded(run, tmp_path, monkeypatch):
    run("pretrain", *OPTIONS, "trainer.max_steps=2", "save.monitor=null")
    read = []
    load = torch.load

    def noted(file, *arguments, **options):
        read.append(options.get("map_location"))
        return load(file, *arguments, **options)

    monkeypatch.setattr(torch, "load", noted)
    run("pretrain", *OPTIONS, "trainer.max_steps=4", "save.monitor=null")
    # What it says without its weights, and by Lightning all of it.
    assert read.count("meta") == 1
    assert len(read) == 2


def test_a_requeued_job_goes_on_though_it_was_to_start_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = write(tmp_path / "last.ckpt", 5)
    assert resume_checkpoint("auto", last).path == last
    assert resume_checkpoint("never", last) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert resume_checkpoint("never", last).path == last
    assert resume_checkpoint("never", tmp_path / "none.ckpt") is None


def test_a_path_to_one_of_its_own_is_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, last = write(tmp_path / "step-00000003.ckpt", 3), write(tmp_path / "last.ckpt", 6)
    assert resume_checkpoint(str(earlier), last).path == earlier
    for count in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"):
        with monkeypatch.context() as restarted:
            restarted.setenv(count, "1")
            assert resume_checkpoint(str(earlier), last).path == last
            assert resume_checkpoint("never", last).path == last


def test_a_last_checkpoint_that_is_gone_does_not_start_anew_in_silence(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    last.symlink_to("step-00000010.ckpt")
    with pytest.raises(UserError, match=r"points to a checkpoint that is gone.*; set resume="):
        resume_checkpoint("auto", last)


def flip(path: Path) -> None:
    """Changes one bit in the middle, where weights are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder.safetensors")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run is called any more."""


def killed(hook: str, at_step: int) -> type[LearningRate]:
    """A callback that ends the run at a hook, once so many steps are done."""

    def die(self, trainer, *_):
        if trainer.global_step == at_step and trainer.state.fn == "fit":
            # As where a process is gone: no one closes a logger.
            trainer.loggers = []
            raise Killed

    return type("Dying", (LearningRate,), {hook: die})


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_validation_batch_start", 4),  # the fourth step is saved, its epoch's validation due
        ("on_train_epoch_end", 8),
        ("on_train_epoch_start", 4),
        ("on_before_optimizer_step", 5),
    ],
)
def test_a_run_that_was_killed_loses_no_figure_and_no_validation(
    run, tmp_path, monkeypatch, hook, step
):
    run("pretrain", *OPTIONS, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "LearningRate", killed(hook, step))
        with pytest.raises(Killed):
            run("pretrain", *OPTIONS, name="killed")
    run("pretrain", *OPTIONS, name="killed")
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    assert rows(resumed) == rows(whole)
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())
    events = EventAccumulator(str(resumed / "tensorboard")).Reload()
    for name, steps in (("train/loss", range(8)), ("val/loss", (3, 7))):
        assert [event.step for event in events.Scalars(name)] == list(steps)
    best = [read_state(folder / "checkpoints" / "best.ckpt") for folder in (whole, resumed)]
    assert best[0]["global_step"] == best[1]["global_step"]
    # How many held-out batches there were in all is Lightning's own figure, which nothing depends on.
    for progress in (
        "epoch_progress",
        "epoch_loop.batch_progress",
        "epoch_loop.scheduler_progress",
    ):
        stood = [state["loops"]["fit_loop"][progress] for state in best]
        assert stood[0] == stood[1]


def test_a_run_that_was_killed_after_its_last_step_ends_as_any_other(run, tmp_path, monkeypatch):
    """In the middle of an epoch: its final weights are validated after training."""
    options = [*OPTIONS, "trainer.max_steps=6"]
    whole = run("pretrain", *options, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "LearningRate", killed("on_train_epoch_end", 6))
        with pytest.raises(Killed):
            run("pretrain", *options, name="killed")
    resumed = run("pretrain", *options, name="killed")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    for figure in ("steps", "epochs", "metrics"):
        assert resumed[figure] == whole[figure]


@pytest.mark.parametrize("first", [(4, 1), (1, 4)], ids=str)
def test_a_run_goes_on_in_smaller_or_larger_parts_of_a_step(run, tmp_path, monkeypatch, first):
    """From the middle of an epoch: its steps, its validation and what it learns stay the same."""
    options = [*OPTIONS, "save.every_n_steps=3", "model.drop_path_rate=0"]

    def parts(batch_size: int, accumulation: int) -> list[str]:
        return [
            f"data.batch_size={batch_size}",
            f"trainer.accumulate_grad_batches={accumulation}",
        ]

    run("pretrain", *options, *parts(4, 1), name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "LearningRate", killed("on_before_optimizer_step", 4))
        with pytest.raises(Killed):
            run("pretrain", *options, *parts(*first), name="killed")
    run("pretrain", *options, *parts(2, 2), name="killed")
    whole, resumed = rows(tmp_path / "whole"), rows(tmp_path / "killed")
    assert len(resumed) == len(whole) == 8
    for row, expected in zip(resumed, whole, strict=True):
        for name in ("step", "epoch", "train/lr", "train/loss", "train/gradient_norm", "val/loss"):
            assert bool(row[name]) == bool(expected[name]), (name, row, expected)
            if row[name]:
                assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4), name


def test_a_recipe_that_was_changed_by_force_is_gone_by(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "LearningRate", killed("on_before_optimizer_step", 5))
        with pytest.raises(Killed):
            run("pretrain", *OPTIONS)
    before = rows(tmp_path / "run")
    changed = ["optim.lr=1e-9", "optim.weight_decay=0.7", "resume_force=true"]
    run("pretrain", *OPTIONS, *changed)
    state = read_state(tmp_path / "run" / "checkpoints" / "last.ckpt")
    groups = state["optimizer_states"][0]["param_groups"]
    with pytest.raises(UserError, match=r"cannot change which parameters the optimiser has in a"):
        run("pretrain", *OPTIONS, *changed, "optim.layer_decay=0.8")
    assert {group["weight_decay"] for group in groups} == {0.0, 0.7}
    after = rows(tmp_path / "run")
    rates = [float(row["train/lr"]) for row in after]
    assert rates[:4] == [float(row["train/lr"]) for row in before[:4]]
    assert max(rates[4:]) <= 1e-9 < min(rates[:4])


def test_a_run_that_is_resumed_at_the_end_of_an_epoch_and_again_keeps_its_order(
    run, tmp_path, monkeypatch
):
    """Lightning's own count of epochs falls behind by one, and the second resume takes it for true."""
    options = [*OPTIONS, "trainer.max_steps=12"]
    run("pretrain", *options, name="whole")
    for hook, step in (("on_validation_batch_start", 4), ("on_before_optimizer_step", 7)):
        with monkeypatch.context() as patch:
            patch.setattr(runs, "LearningRate", killed(hook, step))
            with pytest.raises(Killed):
                run("pretrain", *options, name="killed")
    run("pretrain", *options, name="killed")
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())
    states = [read_state(folder / "checkpoints" / "last.ckpt") for folder in (whole, resumed)]
    epochs = [state["loops"]["fit_loop"]["epoch_progress"] for state in states]
    assert epochs[0] == epochs[1]


def test_a_damaged_checkpoint_is_named_and_passed_over(run, tmp_path, caplog):
    run("pretrain", *OPTIONS, name="whole")
    run("pretrain", *OPTIONS, "trainer.max_steps=4")
    folder = tmp_path / "run" / "checkpoints"
    flip(folder / "last.ckpt")
    assert (
        torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    )  # torch is content
    with pytest.raises(UserError, match=r"last.ckpt is damaged or no checkpoint .*set resume="):
        run("pretrain", *OPTIONS, f"resume={folder / 'last.ckpt'}", name="other")
    with pytest.raises(UserError, match=r"step-00000004.ckpt is damaged"):
        read_weights(folder / "step-00000004.ckpt")
    caplog.set_level(logging.INFO)
    run("pretrain", *OPTIONS)
    assert "last.ckpt is damaged" in caplog.text
    assert "going on from" in caplog.text and "step-00000002.ckpt" in caplog.text
    whole, resumed = tmp_path / "whole", tmp_path / "run"
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())
    flip(resumed / "encoder.safetensors")
    with pytest.raises(UserError, match=r"encoder.safetensors is not as it was written"):
        read_weights(resumed / "encoder.safetensors")


def test_options_that_change_the_result_stop_a_resumed_run(run, tmp_path, caplog):
    run("pretrain", *OPTIONS, "trainer.max_steps=2")
    with pytest.raises(UserError) as refused:
        run("pretrain", *OPTIONS, "optim.lr=1e-3", "mask.ratio=0.5", "data.batch_size=2")
    told = str(refused.value)
    for line in ("mask.ratio: 0.6 → 0.5", "optim.lr: ", " → 0.001", "images a step", ": 4 → 2"):
        assert line in told
    assert "resume_force=true" in told
    # As many images a step, and what changes speed, length or logs alone.
    alike = ["data.batch_size=2", "trainer.accumulate_grad_batches=2", "save.keep=1", "logger=csv"]
    assert run("pretrain", *OPTIONS, *alike, "trainer.max_steps=4")["steps"] == 4
    with pytest.raises(UserError, match=r"trainer.max_steps: 4 → 3"):
        run("pretrain", *OPTIONS, "trainer.max_steps=3")
    run("pretrain", *OPTIONS, "trainer.max_steps=5", "mask.ratio=0.5", "resume_force=true")
    assert "going on from" in caplog.text and "mask.ratio: 0.6 → 0.5" in caplog.text
    assert run("pretrain", *OPTIONS, "trainer.max_steps=6", "mask.ratio=0.5")["steps"] == 6


def test_a_full_disk_leaves_the_last_checkpoint_and_is_told_at_the_end(
    run, tmp_path, monkeypatch, caplog
):
    run("pretrain", *OPTIONS, "trainer.max_steps=2")
    folder = tmp_path / "run" / "checkpoints"
    before = sorted(path.name for path in folder.iterdir())
    save = checkpoints.CheckpointFiles.save_checkpoint

    def fill(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path)
        Path(path).write_bytes(Path(path).read_bytes()[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.CheckpointFiles, "save_checkpoint", fill)
        with pytest.raises(
            UserError, match=r"step-00000008.ckpt cannot be written .*No space left"
        ):
            run("pretrain", *OPTIONS)
    assert "step-00000004.ckpt cannot be written" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == before
    assert run("pretrain", *OPTIONS)["steps"] == 8


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            r"data.batch_size=4 \(CUDA out.*use data.batch_size=2 trainer.accumulate_grad_batches=2",
        ),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            r"a loader worker ended \(killed by signal Killed\).*data.num_workers=0",
        ),
    ],
)
def test_what_a_machine_fails_in_is_told_with_a_way_out(run, monkeypatch, error, told):
    def fail(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            raise error

    failing = type("Failing", (LearningRate,), {"on_train_batch_start": fail})
    with monkeypatch.context() as patch:
        patch.setattr(runs, "LearningRate", failing)
        with pytest.raises(UserError, match=told):
            run("pretrain", *OPTIONS)
    assert run("pretrain", *OPTIONS)["steps"] == 8


def test_an_unknown_signal_is_named(run):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="stop_signals: SIGKILL is no signal"):
        run("pretrain", *OPTIONS, "stop_signals=[SIGKILL]")
    assert signal.getsignal(signal.SIGTERM) == before
