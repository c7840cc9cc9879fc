"""Suggestions to make a run fit into memory: changes of a few options, each checked by a plan."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from simmim.plan.planner import Plan, Planner, Setting

_DEVICES_OF_A_NODE = 8
_MOST_DEVICES = 1024


class Suggestion(NamedTuple):
    """A setting that fits.

    Attributes:
        overrides: the command-line overrides.
        price: the cost of the change.
    """

    overrides: str
    price: str
    plan: Plan


def find_suggestions(
    planner: Planner, asked: Setting, smaller_models: Sequence[str], count: int = 3
) -> list[Suggestion]:
    """The first `count` suggestions that fit, cheapest first; all keep the effective batch size.

    In order: another precision, smaller batches with more accumulation, recomputation of as few
    stages as needed, combinations, sharding over as few devices as needed, a smaller model.

    Args:
        planner: the planner of the run that does not fit.
        asked: the setting that does not fit.
        smaller_models: names of smaller architectures, largest first.
        count: the maximum number of suggestions.
    """
    ways: list[Suggestion] = []
    for price, family in _families(planner, asked, smaller_models):
        found = next((setting for setting in family if planner.fits(setting)), None)
        if found is None or any(way.plan.setting == found for way in ways):
            continue
        depths = planner.model(found).encoder.depths
        ways.append(Suggestion(_overrides(asked, found, depths), price, planner.plan(found)))
        if len(ways) == count:
            break
    return ways


def _families(
    planner: Planner, asked: Setting, smaller_models: Sequence[str]
) -> Iterator[tuple[str, Iterator[Setting]]]:
    """Families of candidate settings with their price; the cheapest of each family comes first."""
    encoder = planner.model(asked).encoder
    is_recomputed = encoder.checkpointed_blocks == encoder.depths
    recomputed = asked if is_recomputed else replace(asked, checkpoint_blocks=encoder.depths)
    if planner.device.has_bf16 and asked.precision == "32-true":
        low = replace(asked, precision="bf16-mixed")
        yield "matrix products in bf16", iter([low])
        yield "bf16, more forward passes a step", _smaller_batches(low)
    yield "more forward passes a step, each of fewer images", _smaller_batches(asked)
    if not is_recomputed:
        yield "forward is computed again where named", _recomputed(planner, asked)
        yield "forward is computed again, more passes a step", _smaller_batches(recomputed)
        yield (
            "forward is computed again, weights and states shared out by srun or torchrun",
            _shared_out(planner, recomputed),
        )
    yield "weights and states shared out by srun or torchrun", _shared_out(planner, asked)
    yield (
        "another model; forward is computed again, more passes a step",
        (setting for name in smaller_models for setting in _smaller(planner, asked, name)),
    )
    yield "another model", (replace(asked, model=name) for name in smaller_models)


def _smaller_batches(setting: Setting) -> Iterator[Setting]:
    """The same effective batch size with more accumulation, largest batches first."""
    images = setting.batch_size * setting.accumulation
    for batch_size in range(setting.batch_size - 1, 0, -1):
        if images % batch_size == 0:
            yield replace(setting, batch_size=batch_size, accumulation=images // batch_size)


def _recomputed(planner: Planner, setting: Setting) -> Iterator[Setting]:
    """Recomputation of the first stage, where activations are largest, then the first two, etc."""
    encoder = planner.model(setting).encoder
    for stages in range(1, len(encoder.depths) + 1):
        counts = (*encoder.depths[:stages], *encoder.checkpointed_blocks[stages:])
        if counts != encoder.checkpointed_blocks:
            yield replace(setting, checkpoint_blocks=counts)


def _shared_out(planner: Planner, setting: Setting) -> Iterator[Setting]:
    """FSDP over more and more devices, doubling each time, each with the largest batches first."""
    images = setting.effective_batch
    count = 2 * setting.world_size if setting.sharing == "fsdp" else max(2, setting.world_size)
    # CPU processes on one machine share its memory.
    of_a_node = _DEVICES_OF_A_NODE if planner.device.backend == "cuda" else 1
    while count <= min(images, _MOST_DEVICES):
        if images % count == 0:
            devices = min(count, max(of_a_node, setting.devices))
            shared = replace(setting, sharing="fsdp", devices=devices, nodes=-(-count // devices))
            if shared.world_size == count:
                own = images // count
                whole = min(own, setting.batch_size)
                whole = next(size for size in range(whole, 0, -1) if own % size == 0)
                fitted = replace(shared, batch_size=whole, accumulation=own // whole)
                yield fitted
                yield from _smaller_batches(fitted)
        count *= 2


def _smaller(planner: Planner, asked: Setting, name: str) -> Iterator[Setting]:
    """A smaller model that recomputes all blocks, with smaller and smaller batches."""
    named = replace(asked, model=name, checkpoint_blocks=None)
    recomputed = replace(named, checkpoint_blocks=planner.model(named).encoder.depths)
    yield recomputed
    yield from _smaller_batches(recomputed)


def _overrides(asked: Setting, found: Setting, depths: Sequence[int]) -> str:
    """The command-line overrides that change `asked` to `found`."""
    blocks: str | None = None
    if found.checkpoint_blocks is not None:
        everything = found.checkpoint_blocks == tuple(depths)
        blocks = "all" if everything else f"[{','.join(map(str, found.checkpoint_blocks))}]"
    changes = {
        "model": (asked.model, found.model),
        "model.checkpoint_blocks": (None, blocks),
        "data.batch_size": (asked.batch_size, found.batch_size),
        "trainer.accumulate_grad_batches": (asked.accumulation, found.accumulation),
        "trainer.precision": (asked.precision, found.precision),
        "trainer.strategy": (asked.sharing, found.sharing),
        # So that no device has to hold a whole checkpoint.
        "trainer.sharded_checkpoints": (False, found.sharing == "fsdp" != asked.sharing),
        "trainer.devices": (asked.devices, found.devices),
        "trainer.num_nodes": (asked.nodes, found.nodes),
    }
    return " ".join(
        f"{name}={str(new).lower() if isinstance(new, bool) else new}"
        for name, (old, new) in changes.items()
        if new != old
    )
