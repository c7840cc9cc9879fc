"""Values as people type them reach the stage as they are, by way of Hydra and its sweeps."""

import random
from pathlib import Path
from typing import Any, get_args

import hydra
import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from simmim.cli import arguments
from simmim.cli.arguments import as_override, as_overrides, literal
from simmim.cli.known_options import choices, config_directory
from simmim.cli.main import find_stage
from simmim.cli.schema import options
from simmim.training.run_dir.config_record import as_literals
from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

NAMES = [
    *(
        "Bilder-ü",
        "写真",
        "epoch=1-step=2.ckpt",
        "a#1",
        "it's",
        "a(1)",
        "a,b",
        "x&y",
        "a[1]",
        "{a}",
    ),
    *("$HOME", "a$b", "${a", "a%20b", "a*b?", "a b", "a\\", "a\\b", "a\nb", "2024", "1e3", "007"),
    *(
        "true",
        "!x",
        "a;b",
        "a|b<c>",
        "`a`",
        '"',
        "'a",
        "@a",
        "a:b",
        "-x",
        "a::b",
        "+a",
        "a/~b",
        "a\tb",
    ),
    *(
        "choice(1,2)x",
        "range(1)",
        "a'b\"c\\",
        "pipe:cat x | tar -x",
        "{000..123}.tar",
        "nul\u200bl",
    ),
]


def value_of(word: str) -> Any:
    """What a stage is given for an option, as Hydra composes it."""
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    return OmegaConf.create({"value": override.value()}).value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["data.root", "run_dir", "init.checkpoint", "logger.wandb.name"])
def test_a_path_is_taken_as_it_is_typed(name, option):
    word = as_override(f"{option}=/data/{name}", "pretrain", is_sweep=False)
    assert value_of(word) == f"/data/{name}"
    # Processes that are started with the same arguments, and a second look, see the same.
    assert as_override(word, "pretrain", is_sweep=False) == word


def test_any_text_is_taken_as_it_is():
    draw = random.Random(0)
    for _ in range(1000):
        text = "x" + "".join(draw.choices("ab$\\{}'\"=#~&(,[ %*ü写\n:!", k=9)) + "x"
        assert OmegaConf.create({"value": literal(text)}).value == text
        if "${" not in text and "\\" not in text:
            word = as_override(f"data.root={text}", "pretrain", is_sweep=False)
            assert value_of(word) == text


def test_what_hydra_takes_as_it_is_stays_as_it_was_typed():
    """A sweep's jobs are named by it."""
    for word in (
        "data.root=/data/images",
        "run_dir=runs/a-1",
        "optim.lr=1e-3",
        "~logger.tensorboard",
    ):
        assert as_override(word, "pretrain", is_sweep=False) == word


def test_a_home_is_found_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    word = as_override("data.root=~/photos", "check", is_sweep=False)
    assert value_of(word) == "/home/me/photos"
    assert value_of(as_override("data.label_column=~/x", "check", is_sweep=False)) == "~/x"
    Path("~").mkdir()
    Path("~/photos").mkdir()
    assert value_of(as_override("data.root=~/photos", "check", is_sweep=False)) == "~/photos"


def test_a_file_that_exists_decides_what_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_override("init.checkpoint=a,b", "pretrain", is_sweep=True) == "init.checkpoint=a,b"
    Path("a,b").mkdir()
    word = as_override("init.checkpoint=a,b", "pretrain", is_sweep=True)
    assert value_of(word) == "a,b"
    assert value_of(as_override("images=[1]", "reconstruct", is_sweep=False)) == [1]
    Path("[1]").mkdir()
    assert value_of(as_override("images=[1]", "reconstruct", is_sweep=False)) == "[1]"
    Path("${seed}").mkdir()
    assert value_of(as_override("data.root=${seed}", "check", is_sweep=False)) == "${seed}"


@pytest.mark.parametrize(
    ("typed", "jobs"),
    [
        ("init.checkpoint=a,b", ["a", "b"]),
        ("init.checkpoint=epoch=1.ckpt,ü.ckpt", ["epoch=1.ckpt", "ü.ckpt"]),
        ("logger.wandb.name=1,2", ["1", "2"]),
        ("init.checkpoint=choice(a,b)", ["a", "b"]),
        ("optim.lr=1e-3,1e-4", [1e-3, 1e-4]),
        ("seed=range(1,3)", [1, 2]),
    ],
)
def test_a_sweep_is_one_over_each_of_its_values(typed, jobs):
    word = as_override(typed, "pretrain", is_sweep=True)
    sweep = OverridesParser.create().parse_override(word)
    name = typed.partition("=")[0]
    assert [value_of(f"{name}={job}") for job in sweep.sweep_string_iterator()] == jobs


def test_lists_of_paths_are_lists():
    word = as_override("images=[a.png,b ü.png,c=1.png]", "reconstruct", is_sweep=False)
    assert value_of(word) == ["a.png", "b ü.png", "c=1.png"]
    assert value_of(as_override("images=32", "analysis", is_sweep=False)) == 32
    assert value_of(as_override("images=32", "reconstruct", is_sweep=False)) == "32"


def test_values_that_are_taken_from_elsewhere_still_are(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    word = as_override("data.root=${oc.env:DATA}/ü", "check", is_sweep=False)
    assert value_of(word) == "/data/ü"


def test_flags_stand_where_they_like_and_are_hydras():
    typed = ["seed=1", "-m", "optim.lr=1,2", "--cfg", "job", "-cd=/x"]
    words = as_overrides(typed, "pretrain")
    assert words == ["seed=1", "optim.lr=1,2", "-m", "--cfg", "job", "-cd=/x"]
    known = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    flags = arguments.FLAGS | arguments.FLAGS_WITH_VALUE | arguments.FLAGS_WITH_CHOICE
    assert known == flags


def test_several_values_need_a_sweep():
    with pytest.raises(UserError, match=r"optim.lr=\[1,2\] for a list, or -m"):
        as_overrides(["optim.lr=1,2"], "pretrain")


def test_what_is_handed_on_says_the_same():
    options = {"data": {"root": ["a${b}", "\\${c"]}, "seed": 3, "none": None}
    handed_on = OmegaConf.create(as_literals(options))
    assert OmegaConf.to_container(handed_on, resolve=True) == options


def text_options(stage: str) -> set[str]:
    """Those that take any text, by the signatures of what a stage builds, for all of its choices."""
    found: set[str] = set()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        first = hydra.compose(config_name=stage)
        groups = {"data": choices("data"), "logger": ["[wandb,mlflow]"]}
        for group, of_group in groups.items():
            for choice in of_group if group in first else []:
                config = hydra.compose(config_name=stage, overrides=[f"{group}={choice}"])
                found |= set(texts(OmegaConf.to_container(config), options(find_stage(stage)), ""))
    return found


def texts(node: Any, taken: dict[str, Any], prefix: str):
    for name, value in node.items():
        if isinstance(value, dict):
            target = value.get("_target_")
            below = options(hydra.utils.get_object(target)) if target else {}
            yield from texts(value, below, f"{prefix}{name}.")
        elif not name.startswith("_") and str in kinds(taken.get(name)):
            yield f"{prefix}{name}"


def kinds(hint: Any) -> set[Any]:
    return {hint} | set(get_args(hint))


# Texts that are words of ours: what they can be is listed, and none has a letter that needs a quote.
OF_OURS = {
    *("device", "plan.device", "plan.device_memory", "target_window", "image_size", "save.mode"),
    *("augmentation.rand_augment", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
    *("trainer.strategy", "trainer.precision", "model.name", "model.attention_backend"),
    *(
        "stop_signals",
        "logger.wandb.tags",
        "model.checkpoint_blocks",
        "optim.schedule",
        "preflight",
        "compile",
        "report.device",
    ),
}


@pytest.mark.parametrize("stage", sorted(path.stem for path in config_directory().glob("*.yaml")))
def test_every_option_that_takes_a_text_is_known_as_one(stage):
    known = arguments.PATHS | arguments.PATHS_OF_STAGE.get(stage, frozenset()) | arguments.NAMES
    assert text_options(stage) - known - OF_OURS == set()
