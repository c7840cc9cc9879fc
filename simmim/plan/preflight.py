"""The check before weights are allocated: whether a run fits into memory, and what would fit."""

from collections.abc import Sequence

from simmim.checkpoints.model_init import ModelInit
from simmim.models.swin.kernels.triton_attention import require_device
from simmim.plan.devices import show_bytes, this_gpu, this_machine
from simmim.plan.inputs import CreateModel, create_planner, create_setting, describe_setting
from simmim.plan.planner import Plan
from simmim.plan.suggestions import Suggestion, find_suggestions
from simmim.training.run import Run
from simmim.utils.console import say
from simmim.utils.errors import DoesNotFitError


def require_memory(
    start: ModelInit,
    run: Run,
    create_model: CreateModel,
    *,
    has_average: bool = False,
) -> None:
    """Checks that the run fits on its devices; with `preflight=warn`, only logs if it does not.

    Raises:
        DoesNotFitError: the run needs more memory than there is.
        UserError: the selected attention kernel does not run on these devices.
    """
    trainer, options = run.trainer, run.options
    device = trainer.strategy.root_device
    if start.planned.attention_backend == "triton":
        require_device(device)
    on_gpu = device.type == "cuda"
    # CPU processes share their machine's memory, and the first may already use a part of it.
    if not on_gpu and trainer.local_rank:
        return
    planner = create_planner(
        start,
        create_model,
        this_gpu(device.index or 0) if on_gpu else this_machine(),
        run.optimization,
        has_average=has_average,
    )
    setting = create_setting(
        planner.device,
        batch_size=options["data"].batch_size,
        accumulation=options["trainer"].accumulate_grad_batches,
        precision=options["trainer"].precision,
        strategy=options["trainer"].strategy,
        devices=trainer.num_devices,
        nodes=trainer.num_nodes,
    )
    if planner.fits(setting):
        return
    message = describe_shortage(
        planner.plan(setting), find_suggestions(planner, setting, start.smaller_models())
    )
    if options["preflight"] == "stop":
        raise DoesNotFitError(message + "\npreflight=warn starts it all the same")
    say(message)


def describe_shortage(plan: Plan, ways: Sequence[Suggestion]) -> str:
    """The memory needed by part, the memory available, and the suggestions that would fit."""
    lines = [
        f"this run does not fit: each device needs {show_bytes(plan.needed)}, and "
        f"{plan.device.name} has {show_bytes(plan.available)}"
    ]
    lines += [f"  {name:<20}{show_bytes(size):>10}" for name, size in plan.parts.items()]
    lines.append(describe_setting(plan.setting))
    if not ways:
        return "\n".join([*lines, "no other setting of this model fits; use a smaller one"])
    lines.append("these would fit, the cheapest first:")
    for way in ways:
        lines += [f"  {way.overrides}", f"      {show_bytes(way.plan.needed)}; {way.price}"]
    return "\n".join(lines)
