"""Types a command of the documentation, in a form that takes seconds.

A command that `python` starts runs within this process, in a folder where the names that the page uses
for the reader's own things (`DIR`, `RUN`, …) stand for things of the tests. All options of the line
stay. What is added after them depends on the page: on those of a newcomer's first steps it is the
length alone, so that defaults are what runs (`as_typed`); on all others it is what makes a run tiny
(`small`). What cannot run on a machine like this is composed and its options are compared with what
reads them.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException

from documentation.pages import ROOT, words
from simmim.cli import schema
from simmim.cli.main import find_stage, run_stage
from simmim.report.__main__ import main as report

# Programs that need what a test machine lacks, each with what is done instead of running it.
NOT_RUN = {
    "cd": "nothing: it follows a clone of the repository",
    "git": "nothing: it clones the repository",
    ".": "nothing: it activates an environment",
    "conda": "nothing: it makes an environment",
    "tensorboard": "nothing: it serves until it is stopped",
    "less": "nothing: it shows a file",
}
# Scripts that take minutes: that they are there and know the options of the line is checked; what they
# do is tested where it says.
LONG_SCRIPTS = {
    "quickstart.py": "ten minutes; tests/test_notebooks.py runs the same stages",
    "window_transfer.py": "hours; tests/test_scripts.py runs it in small",
    "amplitude.py": "minutes; tests/test_scripts.py runs it in small",
    "claims.py": "an hour and more; tests/test_claims.py runs it in small",
    "memory_table.py": "minutes; tests/test_scripts.py runs a row of it",
    "data_path.py": "minutes; tests/test_scripts.py runs it in small",
    "attention_benchmark": "needs a GPU; tests/test_scripts.py runs it on a CPU in small",
    "compile_attention.py": "takes minutes; tests/models/swin runs what it compiles",
    "plan_accuracy.py": "ten minutes; tests/plan compares plans with what is measured",
    "draw_figures.py": "half a minute; tests/test_figures.py draws them",
}
SCRIPTS = ("make_shards.py", "channel_statistics.py", "gather_sweep.py")
# Stages that are composed and not run.
LONG_STAGES = {"benchmark": "minutes; tests/benchmark runs it in small"}

# What makes another stage small, and those of them that take the data's options.
SMALL = {
    "check": ["processes=1"],
    "analysis": ["images=4", "probe_images=24", "data.batch_size=4", "data.num_workers=0"],
}
OF_DATA = ("analysis",)

TRAINING = ("pretrain", "finetune", "transfer")
HOW_MUCH = ["data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"]
STEPS = ["trainer.max_steps=2", "trainer.check_val_every_n_epoch=1"]
# Of all models that are named, and of the weights that stand in a page's folder.
ARCHITECTURE = [
    "model.patch_size=8",
    "model.embed_dim=32",
    "model.depths=[1,1]",
    "model.num_heads=[1,2]",
]
SIZES = ["model.image_size=32", "model.window_size=4"]
# How long commands of the first steps take. Fine-tuning goes past an epoch of 240 images in batches of
# 64, so that each operation of its augmentation is drawn, about ten times.
LENGTH = {
    "pretrain": ["trainer.max_steps=2"],
    "finetune": ["trainer.max_steps=4"],
    "transfer": ["trainer.max_steps=1"],
    "reconstruct": ["most_images=16"],
}
# What a CPU cannot: a model that they name, unless swinv2_nano, has a block a stage and few channels;
# at 384 pixels there are fewer images at a time. Nothing else is cut.
LARGE_MODEL = ["model.depths=[1,1,1,1]", "model.embed_dim=16", "model.num_heads=[1,1,1,1]"]
LARGE_IMAGES = ["data.batch_size=8", "report.training_images=0"]
# What is added to a line, by its stage and its options.
Additions = Callable[[str, dict[str, str]], list[str]]

# What needs several devices, a GPU, a cluster, a study's database or another program's server.
_ELSEWHERE = re.compile(
    r"trainer=(gpu|ddp|fsdp|deepspeed_zero1)|trainer\.strategy=|trainer\.(devices|num_nodes)=(?!1$)"
    r"|trainer\.precision=(bf16|16)|hydra/(launcher|sweeper)=|compile=(default|reduce)"
    r"|model\.attention_backend=triton|root=.*://|data\.(name|streaming)=|format=checkpoint$"
    r"|logger=(wandb|mlflow)"
)


def type_command(command: str, folder: Path, additions: Additions) -> None:
    """Runs or checks one command in `folder`, or fails with what to do about it."""
    typed = words(command)
    program = typed[0]
    if program in NOT_RUN:
        return
    if program == "python" and typed[1] == "-m" and typed[2].startswith("simmim."):
        type_stage(typed[2].removeprefix("simmim."), typed[3:], folder, additions)
    elif program == "python" and typed[1].startswith("scripts/"):
        type_script(typed[1].removeprefix("scripts/"), typed[2:])
    elif program in ("torchrun", "srun"):
        module = next(place for place, word in enumerate(typed) if word.startswith("simmim."))
        check_options(typed[module].removeprefix("simmim."), typed[module + 1 :])
    elif program == "sbatch":
        check_sbatch(*typed[1:])
    elif program == "make":
        assert re.search(rf"^{typed[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip" or typed[:3] == ["python", "-m", "pip"]:
        check_extras(command)
    else:
        pytest.fail(
            f"nothing says how to test `{command}`: have tests/documentation/commands.py run it, or "
            "name its program in NOT_RUN there with the reason"
        )


def type_stage(stage: str, options: list[str], folder: Path, additions: Additions) -> None:
    """A stage in a run directory below `folder`, unless the line names one."""
    if stage == "report":
        report(options)
        return
    if "--help" in options or "--cfg" in options:
        options = [option for option in options if not option.startswith("--") and option != "job"]
        check_options(stage, options)
        return
    check_options(stage, options)
    if stage in LONG_STAGES or any(
        stage != "plan" and _ELSEWHERE.search(option) for option in options
    ):
        return
    jobs = list(combinations(options))
    # Of a sweep, the first and the last; all were composed.
    for job in dict.fromkeys([jobs[0], jobs[-1]]):
        run_here(stage, list(job), folder, additions, is_sweep=len(jobs) > 1)


def check_options(stage: str, options: list[str]) -> None:
    """Composes the line as it stands, each job of a sweep, and checks every option's name and type."""
    for job in combinations(options):
        schema.check(compose(stage, list(job)), find_stage(stage))


def combinations(options: list[str]) -> Iterator[tuple[str, ...]]:
    """The jobs of a line with `-m`, else the line itself."""
    overrides = [option for option in options if option not in ("-m", "--multirun")]
    if len(overrides) == len(options):
        yield tuple(options)
        return
    parser = OverridesParser.create()
    yield from product(*(values(parser, override) for override in overrides))


def values(parser: OverridesParser, override: str) -> list[str]:
    parsed = parser.parse_override(override)
    if not parsed.is_sweep_override():
        return [override]
    if parsed.is_interval_sweep():
        interval: Any = parsed.value()
        return [f"{parsed.key_or_group}={side}" for side in (interval.start, interval.end)]
    return [f"{parsed.key_or_group}={value}" for value in parsed.sweep_string_iterator()]


def run_here(
    stage: str, options: list[str], folder: Path, additions: Additions, *, is_sweep: bool
) -> None:
    given = dict(option.split("=", 1) for option in options if "=" in option)
    run_dir = Path(given.get("run_dir", f"outputs/{stage}/{len(list(folder.rglob('.hydra')))}"))
    if is_sweep:
        run_dir /= "__".join(option for option in options if not option.startswith("run_dir="))
    added = [*additions(stage, given), f"run_dir='{run_dir}'"]
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        run_stage(stage, compose(stage, [*options, *added]), str(run_dir), options)
    except InstantiationException as error:
        raise error.__cause__ or error from None
    except SystemExit as stopped:
        # simmim.check found images that cannot be read, which is its purpose.
        assert (stage, stopped.code) == ("check", 1), stopped.code


def as_typed(stage: str, given: dict[str, str]) -> list[str]:
    """The length, and what a CPU cannot: all else is as the page and the defaults say."""
    added = LENGTH.get(stage, [])
    names_a_model = given.keys() & {"model", "experiment"}
    if names_a_model and given.get("model") != "swinv2_nano" and stage != "plan":
        added = [*added, *LARGE_MODEL]
    if stage == "transfer" and given.get("model.image_size") == "384":
        added = [*added, *LARGE_IMAGES]
    return added


def small(stage: str, given: dict[str, str]) -> list[str]:
    """What is added to a line with these options so that it takes a second."""
    data = given.get("data", "imagefolder" if "experiment" in given else "demo")
    drawn = ["data.train_size=16", "data.val_size=12"] if data == "demo" else []
    if stage == "plan" and "model" in given:
        return ["model.depths=[1,1,1,1]"]
    if stage == "analysis" and "model" in given:
        return [*LARGE_MODEL, "images=4"]
    if stage not in (*TRAINING, "evaluate"):
        return [*SMALL.get(stage, []), *(drawn if stage in OF_DATA else [])]
    added = [*HOW_MUCH, *drawn]
    if stage in TRAINING:
        added += STEPS
    names_a_model = stage == "pretrain" or "model" in given
    if names_a_model:
        added += [option for option in ARCHITECTURE if option.split("=")[0] not in given]
        if not given.keys() & {"model.image_size", "model.window_size"}:
            added += SIZES
    if stage == "pretrain" and "mask.patch_size" not in given:
        added += ["mask.patch_size=8"]
    return added


def type_script(script: str, options: list[str]) -> None:
    """A script's `main`, or that a long one is there and knows the options."""
    path = ROOT / "scripts" / script
    if path.is_dir():
        path /= "__main__.py"
    assert path.is_file(), f"there is no scripts/{script}"
    if script in LONG_SCRIPTS:
        unknown = [
            word for word in options if word.startswith("--") and word not in path.read_text()
        ]
        assert unknown == [], f"scripts/{script} has no {unknown}"
        recipes = {recipe.stem for recipe in path.with_suffix("").glob("*.yaml")}
        if recipes and options:
            assert options[0] in recipes, f"scripts/{script} has no {options[0]}: {sorted(recipes)}"
        return
    if script not in SCRIPTS:
        pytest.fail(
            f"nothing says how to test scripts/{script}: name it in SCRIPTS of "
            "tests/documentation/commands.py to run it, or in LONG_SCRIPTS with the reason"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        patch.setattr(sys, "argv", [script, *options])
        load(path).main()


def load(path: Path) -> Any:
    """A script as a module that further processes of it can find again."""
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def check_sbatch(file: str, *options: str) -> None:
    """The recipe is there, and what it starts takes the options of the line."""
    recipe = (ROOT / file).read_text()
    default = re.search(r"set -- (.+)", recipe)
    assert default is not None
    own = [word for word in words(default[1]) if "=" in word]
    adds = '"$@"' in default[1]
    given = [*own, *options] if adds or not options else list(options)
    check_options("pretrain", ["data.root=DIR", *given])


def check_extras(command: str) -> None:
    """`pip install 'simmim[a,b]'` names extras that there are."""
    project = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"\[([\w,]+)\]", command):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"there is no extra {extra}"
