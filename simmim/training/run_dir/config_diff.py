"""Which options affect a run's result, and where two configurations differ in them."""

from collections.abc import Iterator, Mapping
from typing import Any

# Options, or whole groups, that affect how fast a run is, what it logs and what it keeps, but not
# its result. All others affect the result.
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
# Paths on this machine. When a run is resumed, their content is compared instead.
PLACES = {
    *("data.root", "data.val_root", "data.statistics", "data.exclude", "data.labels"),
    "init.checkpoint",
}
# The options that make up the global batch. Otherwise, only the random numbers that each device
# draws (drop path, Mixup) depend on the number of devices.
_BATCH = {
    "data.batch_size",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate_grad_batches",
}
_GLOBAL_BATCH = "images a step (data.batch_size × devices × trainer.accumulate_grad_batches)"
STEPS = "steps an epoch"
# The readers that a stream's images are divided among.
READERS = "readers of the stream (devices × data.num_workers)"
_NOTHING = "nothing"
# Options added in later versions, with the value that earlier runs used implicitly.
_ADDED = {
    "head": "linear",
    "loss_region": "masked",
    "data.decode": "workers",
    "augmentation.interpolation": "bicubic",
}

Options = dict[str, Any]


def result_options(config: Mapping[Any, Any], global_batch: int | None = None) -> Options:
    """Dotted names of the options that affect the result, with their values.

    `global_batch` (images per step), if given, replaces the options that it is the product of.
    """
    options = dict(_leaves(config))
    if global_batch is not None:
        options = {name: value for name, value in options.items() if name not in _BATCH}
        options[_GLOBAL_BATCH] = global_batch
    return options


def without_places(options: Options, *, is_stream: bool) -> Options:
    """The options without paths; the URL of a stream stays, because it identifies the content."""
    return {
        name: value
        for name, value in options.items()
        if name not in PLACES or (is_stream and name == "data.root")
    }


def changed_options(before: Options, now: Options) -> list[str]:
    """Names of the options whose values differ.

    The path of one of simmim's own classes is ignored: the class may have moved, and its options
    identify it.
    """
    return sorted(
        name
        for name in before.keys() | now.keys()
        if before.get(name, _ADDED.get(name)) != now.get(name)
        and not (_is_ours(name, before) and _is_ours(name, now))
    )


def is_longer(before: Options, now: Options, changed: list[str]) -> bool:
    """Whether the only difference is that the run became longer."""
    return set(changed) <= LENGTH and all(
        _end(now.get(name)) >= _end(before.get(name)) for name in changed
    )


def describe(before: Options, now: Options, changed: list[str]) -> str:
    """Lists the changes as `name: old → new`."""
    return "; ".join(f"{name}: {_show(before, name)} → {_show(now, name)}" for name in changed)


def _is_ours(name: str, options: Options) -> bool:
    """Whether this is the path of one of simmim's own classes, or missing."""
    path = options.get(name)
    return name.endswith("_target_") and (path is None or str(path).startswith("simmim."))


def _show(options: Options, name: str) -> str:
    if name not in options:
        return _NOTHING
    return "null" if options[name] is None else str(options[name])


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all options that affect the result, with their values."""
    if path in RESULT_INVARIANT:
        return
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, node


def _end(length: int | None) -> float:
    return float("inf") if length is None or length < 0 else length
