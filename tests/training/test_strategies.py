"""Who starts the processes of a run, how they share the work, and what is refused before any does."""

import sys
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy

from simmim.plan.devices import Device
from simmim.plan.inputs import create_setting
from simmim.training.distributed import strategies
from simmim.training.distributed.fsdp import FullySharded
from simmim.training.distributed.strategies import (
    Launch,
    create_strategy,
    find_launch,
    lightning_precision,
    warn_of_stale_store,
)
from simmim.training.options import resolve_precision
from simmim.training.trainer import agree_with, count_devices
from simmim.utils.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}


def test_torchrun_and_srun_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_launch({}) is None
    assert find_launch(TORCHRUN) == Launch("torchrun", 4, 2)
    for name, value in {**SRUN, "SLURM_JOB_NAME": "job"}.items():
        monkeypatch.setenv(name, value)
    assert find_launch(SRUN) == Launch("srun", 8, 2)


def test_a_slurm_job_without_srun_starts_its_own_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    assert find_launch({"SLURM_NTASKS": "2"}) is None


@pytest.mark.parametrize(
    ("launch", "devices", "num_nodes", "agreed"),
    [
        (None, "auto", "auto", ("auto", 1)),
        (None, 2, 3, (2, 3)),
        (Launch("torchrun", 4, 2), "auto", "auto", (4, 2)),
        (Launch("torchrun", 4, 2), 4, 2, (4, 2)),
        (Launch("srun", 2, 1), [1, 3], 1, ([1, 3], 1)),
    ],
)
def test_the_launcher_decides_the_number_of_processes(
    launch: Launch | None, devices: Any, num_nodes: Any, agreed: tuple[Any, int]
) -> None:
    assert agree_with(launch, devices, num_nodes) == agreed


@pytest.mark.parametrize(
    ("devices", "num_nodes", "message"),
    [
        (8, "auto", "trainer.devices=8, and srun started 4 processes on each of 2 nodes; use .*=4"),
        ("auto", 1, "trainer.num_nodes=1, and srun started .* use trainer.num_nodes=2, or auto"),
        ("auto", "many", "trainer.num_nodes=many is neither a number nor auto"),
    ],
)
def test_other_numbers_than_the_launchers_are_refused(
    devices: Any, num_nodes: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        agree_with(Launch("srun", 4, 2), devices, num_nodes)


def test_restarts_that_would_find_old_addresses_are_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_stale_store({"TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    warn_of_stale_store({"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert not caplog.text
    warn_of_stale_store({"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun" in caplog.text


def test_a_strategy_is_found_by_its_name() -> None:
    assert create_strategy("auto", devices=1, precision="32-true") == "auto"
    for name in ("auto", "ddp"):
        assert isinstance(create_strategy(name, devices=2, precision="32-true"), DDPStrategy)
    sharded = create_strategy("fsdp", devices=8, precision="bf16-mixed", sharded_checkpoints=True)
    assert isinstance(sharded, FullySharded)
    assert count_devices("cpu", [0, 1]) == 2
    assert count_devices("cpu", "auto") == 1


def test_ddp_copies_no_buffers_whatever_its_option_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def older(module: Any, broadcast_buffers: bool = True) -> None: ...

    def newer(module: Any, forward_sync_buffers: bool = True) -> None: ...

    for constructor, option in (
        (older, "broadcast_buffers"),
        (newer, "forward_sync_buffers"),
    ):
        monkeypatch.setattr(strategies, "DistributedDataParallel", constructor)
        strategy = create_strategy("ddp", devices=2, precision="32-true")
        assert isinstance(strategy, DDPStrategy)
        assert strategy._ddp_kwargs[option] is False


def test_a_gpu_that_imitates_bf16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def imitates(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", imitates)
    assert resolve_precision("auto", "gpu") == "32-true"
    assert resolve_precision("bf16-mixed", "gpu") == "bf16-mixed"
    for has_bf16, precision in ((False, "32-true"), (True, "bf16-mixed")):
        setting = create_setting(
            Device("a GPU", "cuda", 10**9, {}, has_bf16=has_bf16),
            batch_size=1,
            accumulation=1,
            precision="auto",
            strategy="auto",
            devices=1,
            nodes=1,
        )
        assert setting.precision == precision


@pytest.mark.parametrize(
    ("name", "sharded", "message"),
    [
        ("fsdp1", False, "trainer.strategy=fsdp1 is unknown; use auto, ddp, fsdp, deepspeed_zero1"),
        ("ddp", True, "sharded_checkpoints=true is for trainer=fsdp, and trainer.strategy is ddp"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(name: str, sharded: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_strategy(name, devices=2, precision="32-true", sharded_checkpoints=sharded)


def test_without_deepspeed_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r'pip install "simmim\[deepspeed\]", or use trainer=fsdp'):
        create_strategy("deepspeed_zero1", devices=8, precision="bf16-mixed")


@pytest.mark.parametrize(
    ("precision", "autocast"),
    [("32-true", None), ("bf16-mixed", "bfloat16"), ("16-mixed", "float16")],
)
def test_zero_shares_out_optimiser_states_and_keeps_weights_float32(
    precision: str, autocast: str | None
) -> None:
    pytest.importorskip("deepspeed")
    strategy = create_strategy("deepspeed_zero1", devices=8, precision=precision)
    assert isinstance(strategy, DeepSpeedStrategy)
    assert strategy.config is not None
    assert strategy.config["zero_optimization"]["stage"] == 1
    assert strategy.config.get("torch_autocast", {}).get("dtype") == autocast
    assert not {"bf16", "fp16"} & strategy.config.keys()
    assert lightning_precision("deepspeed_zero1", precision) == "32-true"
    assert lightning_precision("ddp", precision) == precision
