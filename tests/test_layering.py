"""Imports point down the flow: entry points > stages > tasks > models > encoder, data beside them."""

import ast
from pathlib import Path

import pytest

import simmim

PACKAGE = Path(simmim.__file__).parent

# A module may import from its own layer's row or from any row below, never from one above.
LAYERS = [
    [
        "__main__",
        *("benchmark", "check", "evaluate", "export", "finetune", "plan", "pretrain", "report"),
        *("reconstruct", "transfer"),
    ],
    ["command_line"],
    ["mistakes"],
    ["sweeps", "studies", "finished", "processes"],
    ["stages"],
    ["diagnosing"],
    [
        *("benchmarking", "checking", "diagnostics", "evaluation", "exporting", "planning"),
        "reconstructing",
    ],
    ["preflight"],
    ["runs", "planned_run", "starting", "resuming"],
    ["reports"],
    [
        "configuration",
        "trainer",
        "summary",
        "metrics_csv",
        "tensorboard_log",
        "wandb_log",
        "mlflow_log",
        "one_writer",
        "differences",
    ],
    ["strategies", "fully_sharded", "trainer_options"],
    ["callbacks"],
    ["resources"],
    ["tasks", "features"],
    ["optim", "data"],
    ["contact_sheet"],
    ["reconstruction"],
    ["checkpoints", "sharding"],
    ["models"],
    ["chosen_masks"],
    ["heads", "losses", "masking", "analysis"],
    ["encoder"],
    ["logs"],
    [
        "normalisation",
        "held_out_crop",
        "randomness",
        "torch_device",
        "sizes",
        "console",
        "interruption",
        "writing",
        "failures",
    ],
    ["composed"],
    ["arguments"],
    ["known_options"],
    ["errors"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def layer(module: str) -> str:
    # A package's command stands above the package.
    return "__main__" if module.endswith(".__main__") else module.split(".")[1]


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(names if node.module == "simmim" else [node.module])
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("simmim.")}


def modules() -> list[tuple[str, Path]]:
    return [
        (".".join(("simmim", *path.relative_to(PACKAGE).with_suffix("").parts)), path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "__init__.py"
    ]


def test_every_module_stands_in_a_layer():
    assert {layer(name) for name, _ in modules()} == set(LEVEL)


def test_imports_point_down():
    upward = [
        f"{name} imports {imported}"
        for name, path in modules()
        for imported in imports(path)
        if LEVEL[layer(imported)] < LEVEL[layer(name)]
    ]
    assert upward == []


def test_encoder_and_data_do_not_know_each_other():
    crossing = [
        f"{name} imports {imported}"
        for name, path in modules()
        for imported in imports(path)
        if {layer(name), layer(imported)} == {"encoder", "data"}
        or (
            layer(name) == "data"
            and layer(imported) in ("models", "heads", "losses", "checkpoints")
        )
    ]
    assert crossing == []


def test_no_grab_bags():
    names = {part for name, _ in modules() for part in name.split(".")}
    assert not names & {"utils", "util", "helpers", "common", "misc", "manager"}


def imported_first(module: str, paths: dict[str, Path]) -> set[str]:
    """All modules, ours and others', that are imported when this one is."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        # A package's own module comes before what stands in it.
        for step in {name, name.rpartition(".")[0]}:
            path = paths.get(step) or paths.get(f"{step}.__init__")
            if step in found or path is None:
                continue
            found.add(step)
            tree = ast.parse(path.read_text())
            for node in tree.body:
                if isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    waiting += [f"{node.module}.{alias.name}" for alias in node.names]
                    waiting.append(node.module)
        found.add(name)
    return found


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("planning", {"pytorch_lightning", "torchmetrics", "torchvision", "timm", "matplotlib"}),
        ("exporting", {"pytorch_lightning", "torchmetrics", "torchvision", "timm", "matplotlib"}),
        ("stages", {"timm", "matplotlib", "transformers"}),
    ],
)
def test_a_command_does_not_wait_for_what_it_does_not_need(command, unneeded):
    # What nodes name that every stage builds.
    built = ["checkpoints.loading", "encoder", "masking", "optim"]
    paths = dict(modules())
    imported = set().union(*(imported_first(f"simmim.{name}", paths) for name in [command, *built]))
    assert "torch" in imported
    assert not {name.partition(".")[0] for name in imported} & unneeded
