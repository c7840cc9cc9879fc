"""Imports go down alone: commands > tasks > training > checkpoints, data > models > utils."""

import ast
from pathlib import Path

import pytest

import simmim

PACKAGE = Path(simmim.__file__).parent

COMMANDS = [
    *("pretrain", "finetune", "transfer", "evaluate", "reconstruct", "export", "plan", "check"),
    *("analysis", "report", "benchmark"),
]
# A folder imports from those of rows below its own.
FLOORS = [COMMANDS, ["tasks"], ["training"], ["checkpoints", "data"], ["models"], ["utils"]]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# What one command uses of another.
BETWEEN_COMMANDS = {
    "pretrain": {"evaluate", "plan", "reconstruct"},
    "finetune": {"plan", "report"},
    "transfer": {"finetune", "plan", "report"},
    "report": {"analysis", "reconstruct"},
    "analysis": {"evaluate"},
    "benchmark": {"plan"},
}


def modules() -> dict[str, Path]:
    """All modules by their dotted names."""
    return {
        ".".join(("simmim", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # A package hands on what its files hold, so only what is asked of itself counts.
    named = {name for name in found & MODULES.keys() if name != "simmim"}
    return {name for name in named if not any(other.startswith(f"{name}.") for other in named)}


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def folder(module: str) -> str:
    return module.split(".")[1]


def may_import(importer: str, imported: str) -> bool:
    """Whether a folder may import from another one."""
    if importer == imported:
        return True
    if importer == "cli":
        # It composes the configuration and finds the stage by its name.
        return imported in ("utils", "training")
    if FLOOR[importer] == FLOOR.get(imported):
        return imported in BETWEEN_COMMANDS.get(importer, ())
    return FLOOR[importer] < FLOOR.get(imported, -1)


def test_every_folder_has_a_floor_and_no_module_lies_beside_them():
    found = {folder(name) for name in MODULES if name != "simmim"}
    assert found == {*FLOOR, "cli"}
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert len(found) <= 20


def test_imports_go_down():
    upward = [
        f"{name} imports {imported}"
        for name, names in IMPORTS.items()
        if name != "simmim"
        for imported in names
        if not (name.endswith(".__main__") and folder(imported) == "cli")
        and not may_import(folder(name), folder(imported))
    ]
    assert upward == []


def test_no_two_files_import_each_other():
    """However many others stand between them."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = IMPORTS[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    assert [name for name in MODULES if name in reached(name)] == []


def test_a_command_is_a_door_and_a_story():
    for command in COMMANDS:
        assert (PACKAGE / command / "__main__.py").is_file()
        assert command == "report" or (PACKAGE / command / "stage.py").is_file()


def test_no_grab_bags():
    names = {part for name in MODULES for part in name.split(".")[2:]}
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
        ("plan.stage", {"pytorch_lightning", "torchmetrics", "torchvision", "timm", "matplotlib"}),
        (
            "export.stage",
            {"pytorch_lightning", "torchmetrics", "torchvision", "timm", "matplotlib"},
        ),
        ("pretrain.stage", {"timm", "matplotlib", "transformers"}),
    ],
)
def test_a_command_does_not_wait_for_what_it_does_not_need(command, unneeded):
    # What nodes name that every stage builds.
    built = ["checkpoints.load", "models.swin", "models.masking", "training.optim"]
    imported = set().union(
        *(imported_first(f"simmim.{name}", MODULES) for name in [command, *built])
    )
    assert "torch" in imported
    assert not {name.partition(".")[0] for name in imported} & unneeded
