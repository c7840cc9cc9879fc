"""Which options decide what a run comes to, and where two configurations differ in them."""

from collections.abc import Iterator, Mapping
from typing import Any

# These change how fast a run is, what it tells and what it keeps, and nothing about its result. All
# others change it. A whole group or a single option.
RESULT_INVARIANT = {
    *(
        "run_dir",
        "resume",
        "resume_force",
        "stop_signals",
        "objective",
        "preflight",
        "logger",
        "save",
    ),
    *("reconstructions", "knn", "guard", "report", "compile"),
    *("data.num_workers", "data.on_error", "data.max_bad_fraction"),
    *("model.checkpoint_blocks", "model.sequential_attention", "model.attention_backend"),
    *("trainer.accelerator", "trainer.strategy", "trainer.sharded_checkpoints"),
    *("trainer.deterministic", "trainer.log_every_n_steps"),
    *("trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
}
# A run may be made longer, not shorter: its schedule ends with it.
LENGTH = {"trainer.max_epochs", "trainer.max_steps"}
# Where things lie on this machine. Of a run that goes on, what they hold is compared in their place.
PLACES = {
    *("data.root", "data.val_root", "data.statistics", "data.exclude"),
    "init.checkpoint",
}
# What makes up the global batch. Beside it, only what is drawn for each device (drop path, Mixup)
# depends on their number.
_BATCH = {
    "data.batch_size",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate_grad_batches",
}
_GLOBAL_BATCH = "images a step (data.batch_size × devices × trainer.accumulate_grad_batches)"
STEPS = "steps an epoch"
# What a stream's images are dealt out to.
READERS = "readers of the stream (devices × data.num_workers)"
_NOTHING = "nothing"
# Options that came later, and what runs without them did.
_ADDED = {
    "head": "linear",
    "loss_region": "masked",
    "data.decode": "workers",
    "augmentation.interpolation": "bicubic",
}

Options = dict[str, Any]


def result_options(config: Mapping[Any, Any], global_batch: int | None = None) -> Options:
    """Dotted names of the options that decide the result, with their values.

    With `global_batch` (images that a step takes) this stands for the options that it is made of.
    """
    options = dict(_leaves(config))
    if global_batch is not None:
        options = {name: value for name, value in options.items() if name not in _BATCH}
        options[_GLOBAL_BATCH] = global_batch
    return options


def without_places(options: Options, *, is_stream: bool) -> Options:
    """The same without what says where things lie; a stream's URL is what it holds."""
    return {
        name: value
        for name, value in options.items()
        if name not in PLACES or (is_stream and name == "data.root")
    }


def changed_options(before: Options, now: Options) -> list[str]:
    """Names of the options whose values differ.

    Where a class of simmim lies says nothing: it may have moved, and its options tell it from others.
    """
    return sorted(
        name
        for name in before.keys() | now.keys()
        if before.get(name, _ADDED.get(name)) != now.get(name)
        and not (_is_ours(name, before) and _is_ours(name, now))
    )


def is_longer(before: Options, now: Options, changed: list[str]) -> bool:
    """Whether all that differs is that the run became longer."""
    return set(changed) <= LENGTH and all(
        _end(now.get(name)) >= _end(before.get(name)) for name in changed
    )


def describe(before: Options, now: Options, changed: list[str]) -> str:
    """`name: old → new` for each."""
    return "; ".join(f"{name}: {_show(before, name)} → {_show(now, name)}" for name in changed)


def _is_ours(name: str, options: Options) -> bool:
    """Whether this is the path of a class of simmim's, or there is none."""
    path = options.get(name)
    return name.endswith("_target_") and (path is None or str(path).startswith("simmim."))


def _show(options: Options, name: str) -> str:
    if name not in options:
        return _NOTHING
    return "null" if options[name] is None else str(options[name])


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all options with their values, but for those that make no difference."""
    if path in RESULT_INVARIANT:
        return
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, node


def _end(length: int | None) -> float:
    return float("inf") if length is None or length < 0 else length
