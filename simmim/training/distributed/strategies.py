"""Creates Lightning's strategy by name, and finds the launcher that started the processes."""

import inspect
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from simmim.training.distributed.fsdp import FullySharded
from simmim.training.options import require_known
from simmim.utils.console import warn
from simmim.utils.errors import UserError


def create_strategy(
    name: str,
    *,
    devices: int,
    precision: str,
    sharded_checkpoints: bool = False,
    longest_wait: timedelta | None = None,
) -> Strategy | str:
    """Lightning's strategy for this total number of devices; `auto` is DDP for more than one.

    `longest_wait` is the timeout for waiting on other processes (None: PyTorch's default).

    Raises:
        UserError: an unknown name, DeepSpeed not installed, or `sharded_checkpoints` with a
            strategy other than fsdp.
    """
    require_known(name)
    if sharded_checkpoints and name != "fsdp":
        raise UserError(
            f"trainer.sharded_checkpoints=true is for trainer=fsdp, and trainer.strategy is {name}; "
            "use trainer.sharded_checkpoints=false"
        )
    timeout = longest_wait or default_pg_timeout
    if name == "fsdp":
        return FullySharded(save_distributed_checkpoint=sharded_checkpoints, timeout=timeout)
    if name == "deepspeed_zero1":
        return _deepspeed_zero1(precision, timeout)
    if name == "ddp" or devices > 1:
        # Buffers are computed tables, the same on all ranks.
        unsynced: dict[str, Any] = {_buffer_option(): False}
        return DDPStrategy(gradient_as_bucket_view=True, timeout=timeout, **unsynced)
    return "auto"


def _buffer_option() -> str:
    """DDP's option to broadcast rank 0's buffers before each forward pass; renamed in PyTorch 2.13."""
    new = "forward_sync_buffers"
    known = inspect.signature(DistributedDataParallel).parameters
    return new if new in known else "broadcast_buffers"


def _deepspeed_zero1(precision: str, timeout: timedelta) -> DeepSpeedStrategy:
    """ZeRO stage 1: optimiser states are sharded, weights and gradients are replicated.

    Weights stay in float32 and computation uses autocast, as under the other strategies;
    DeepSpeed's own bf16 mode would also round what this encoder computes in float32.
    """
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise UserError(
            'trainer=deepspeed_zero1 needs DeepSpeed; pip install "simmim[deepspeed]", or use '
            "trainer=fsdp"
        ) from error
    config: dict[str, Any] = {
        "zero_optimization": {"stage": 1, "overlap_comm": True, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
    }
    if precision != "32-true":
        kind = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}[precision]
        config["torch_autocast"] = {"enabled": True, "dtype": kind}
    return DeepSpeedStrategy(config=config, timeout=timeout)


def lightning_precision(name: str, precision: str) -> str:
    """The precision for Lightning's Trainer; under DeepSpeed, DeepSpeed's configuration sets it."""
    return "32-true" if name == "deepspeed_zero1" else precision


class Launch(NamedTuple):
    """The program that started the processes of this run, and how many it started."""

    program: str
    processes_per_node: int
    nodes: int


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Torchrun or srun, if one of them started this process; None if the run starts its own."""
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", local, int(environment["WORLD_SIZE"]) // local)
    if "SLURM_STEP_NUM_TASKS" in environment and SLURMEnvironment.detect():
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        return Launch("srun", int(environment["SLURM_STEP_NUM_TASKS"]) // nodes, nodes)
    return None


def warn_of_stale_store(environment: Mapping[str, str] = os.environ) -> None:
    """Warns if processes that torchrun restarts would get the addresses of the previous ones."""
    restarts = int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts > 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        warn(
            f"torchrun --max_restarts={restarts} gives processes that it starts again the addresses of "
            "those before (github.com/pytorch/pytorch/issues/135712), and they may wait for each other "
            "in vain; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun"
        )


def launch_environments(launch: Launch | None) -> list[ClusterEnvironment]:
    """Replaces Lightning's detection of the launcher where it would be wrong.

    In a SLURM job without srun, Lightning would wait for processes that nobody starts. Under srun,
    `callbacks.Preemption` handles a job that is stopped, not Lightning's requeueing.
    """
    if launch is None:
        return [LightningEnvironment()] if SLURMEnvironment.detect() else []
    return [SLURMEnvironment(auto_requeue=False)] if launch.program == "srun" else []
