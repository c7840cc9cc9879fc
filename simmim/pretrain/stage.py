"""SimMIM pretraining, from configuration to run directory.

Errors in the configuration are found before data is read, and errors in the data before weights are
allocated: the encoder is first built on the meta device.
"""

import time
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from typing_extensions import Unpack

from simmim.checkpoints.model_init import ModelInit
from simmim.models.heads import HeadKind
from simmim.models.losses import LossRegion, check_target_window
from simmim.models.simmim import SimMIM
from simmim.plan.inputs import simmim_with
from simmim.plan.preflight import require_memory
from simmim.pretrain.module import SimMIMModule
from simmim.training.fit import announce, fit
from simmim.training.run import RunOptions, create_data, create_run, training_arguments
from simmim.utils.console import say


class PretrainOptions(RunOptions):
    """The options of `conf/pretrain.yaml`."""

    model: DictConfig
    init: DictConfig
    mask: DictConfig
    target_window: int | None
    head: HeadKind
    loss_region: LossRegion
    reconstructions: DictConfig
    knn: DictConfig


def pretrain(**options: Unpack[PretrainOptions]) -> dict[str, Any]:
    """Pretrains an encoder by SimMIM: mask and reconstruct. Returns the summary."""
    started = time.monotonic()
    seed, run_dir = options["seed"], options["run_dir"]
    start = ModelInit(options["model"], instantiate(options["init"]))
    if options["target_window"] is not None:
        check_target_window(options["target_window"])
    mask_generator = instantiate(
        options["mask"],
        image_size=start.planned.image_size,
        token_size=start.planned.patch_size,
        seed=seed,
    )
    report = instantiate(options["report"], run_dir=run_dir)
    pictures = instantiate(options["reconstructions"], run_dir=run_dir)
    neighbours = instantiate(options["knn"])
    run = create_run(options, report, [pictures, neighbours], neighbours.metric_names)
    require_memory(start, run, simmim_with(options["head"]))
    images = create_data(run, start.planned)
    arguments = training_arguments(run, start, images)

    pl.seed_everything(seed, verbose=False)
    task = SimMIMModule(
        SimMIM(start.create_encoder(), options["head"]),
        mask_generator=mask_generator,
        target_window=options["target_window"],
        loss_region=options["loss_region"],
        **arguments,
    )
    announce(run, task.model, images)
    summary = fit(run, task, images, stage="pretrain", started=started)
    if summary:
        metrics = summary["metrics"]
        # None: it is not finite, and a warning has said so.
        if metrics["val/loss"] is not None and metrics["val/loss_over_baseline"] is not None:
            say(
                f"held-out masked L1 {metrics['val/loss']:.4f}, "
                f"{metrics['val/loss_over_baseline']:.2f} of predicting each image's visible mean "
                f"({metrics['val/baseline_visible_mean']:.4f})"
            )
        say(f"finished in {summary['seconds']:.0f} s: {run_dir}")
    return summary
