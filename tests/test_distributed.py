"""Several processes on the CPU share each batch, and the result is that of one process."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_DEMO, TORCHRUN, rows, run_python, run_within
from safetensors.torch import load_file
from started import check_started, run_started

from simmim.utils.errors import UserError

pytestmark = pytest.mark.unchecked

ALIKE = [
    *(option for option in TINY_DEMO if not option.startswith(("trainer=", "data.train_size"))),
    # Of nine held-out images, the last batch of the second of two processes has but a repeat.
    *("data.train_size=48", "data.val_size=9", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=10", "trainer.log_every_n_steps=1", "save.monitor=null"),
    # L1's gradient jumps where a prediction meets its target, which rounding decides. Of about 15,000
    # masked numbers one then moves the gradient of a weight by 2/15,000 of its own slope. With an eps
    # this large AdamW steps in proportion to gradients, so that a weight moves by 1e-2 of that, 1e-6,
    # and the loss by less; with a small one it would take a whole step of what is little more than
    # rounding.
    *("optim.eps=1", "optim.lr=0.01", "optim.warmup_steps=0"),
]
Train = Callable[..., Path]


def train(folder: Path, *options: str, processes: int = 1, launcher: str = "torchrun") -> Path:
    """A run of 8 images a step, started as torchrun does where it has several processes."""
    # FSDP leaves a process group behind.
    if processes == 1 and "trainer.strategy=fsdp" not in options:
        run_within(folder, "pretrain", *ALIKE, *options, "data.batch_size=8")
        return folder
    own = [*options, f"data.batch_size={8 // processes}", f"run_dir={folder}"]
    if launcher == "lightning":
        run_python("-m", "simmim.pretrain", *ALIKE, *own, cwd=folder.parent)
    else:
        check_started("simmim.pretrain", *ALIKE, *own, cwd=folder.parent, processes=processes)
    return folder


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_same_end(folder: Path, expected: Path) -> None:
    weights, reference = (load_file(run / "encoder.safetensors") for run in (folder, expected))
    assert weights.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)
    metrics, goal = (
        json.loads((run / "summary.json").read_text())["metrics"] for run in (folder, expected)
    )
    assert {name: metrics[name] for name in goal} == pytest.approx(goal, rel=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """20 steps in each way, with checkpoints after each."""
    folder = tmp_path_factory.mktemp("distributed")
    saved = ["trainer.max_steps=20", "save.every_n_steps=1", "save.keep=20"]
    return {
        "one": train(folder / "one", *saved, "trainer=cpu"),
        "ddp": train(folder / "ddp", *saved, "trainer.strategy=ddp", processes=2),
        "fsdp": train(
            folder / "fsdp",
            *saved,
            "trainer.strategy=fsdp",
            "trainer.sharded_checkpoints=true",
            processes=2,
        ),
        "fsdp file": train(
            folder / "fsdp_file",
            *saved,
            "trainer.strategy=fsdp",
            *("model.checkpoint_blocks=all", "model.sequential_attention=1"),
            *("knn.every_n_epochs=1", "knn.k=3"),
            processes=2,
        ),
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp file"])
def test_two_processes_train_as_one_does(runs: dict[str, Path], strategy: str) -> None:
    """Masks, order and augmentation included; nine held-out images do not divide by two."""
    assert len(losses(runs["one"])) == 20
    assert losses(runs[strategy]) == pytest.approx(losses(runs["one"]), abs=1e-5)
    assert_same_end(runs[strategy], runs["one"])


def first_gradients(folder: Path) -> list[torch.Tensor]:
    """Those of the first step, a tenth of which is AdamW's first moment after it."""
    path = folder / "checkpoints" / "step-00000001.ckpt"
    states = torch.load(path, weights_only=True)["optimizer_states"][0]
    numbers = [number for group in states["param_groups"] for number in group["params"]]
    return [10 * states["state"][number]["exp_avg"] for number in numbers]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp file"])
def test_two_processes_come_to_the_gradients_of_one(runs: dict[str, Path], strategy: str) -> None:
    norms = [float(rows(runs[run])[0]["train/gradient_norm"]) for run in (strategy, "one")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    gradients, goal = first_gradients(runs[strategy]), first_gradients(runs["one"])
    assert sum(float(gradient.norm()) for gradient in goal) > 0.1
    for gradient, wanted in zip(gradients, goal, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("start", "strategy", "processes"),
    [
        ("ddp", "auto", 1),
        ("one", "ddp", 2),
        ("one", "fsdp", 2),
        ("fsdp", "fsdp", 1),
        ("fsdp file", "auto", 1),
    ],
)
def test_a_checkpoint_goes_on_in_another_number_of_processes(
    runs: dict[str, Path], tmp_path: Path, start: str, strategy: str, processes: int
) -> None:
    folder = train(
        tmp_path / "on",
        "trainer.max_steps=20",
        f"trainer.strategy={strategy}",
        f"resume={runs[start] / 'checkpoints' / 'step-00000010.ckpt'}",
        processes=processes,
    )
    # A run directory that is new has the row of the step that the checkpoint was written after, too.
    assert losses(folder) == pytest.approx(losses(runs["one"])[9:], abs=1e-5)
    assert_same_end(folder, runs["one"])


def test_a_sharded_checkpoint_made_whole_goes_on_anywhere(
    runs: dict[str, Path], tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    sharded = runs["fsdp"] / "checkpoints" / "step-00000010.ckpt"
    assert sharded.is_dir()
    with pytest.raises(UserError, match="written in parts by trainer=fsdp; use that, or python -m"):
        run("pretrain", *ALIKE, "trainer=cpu", f"resume={sharded}", name="refused")
    whole = tmp_path / "whole.ckpt"
    # In a process of its own, which does not import Lightning.
    export = ("format=checkpoint", f"output={whole}", "run_dir=export")
    run_python("-m", "simmim.export", f"checkpoint={sharded}", *export, cwd=tmp_path)
    folder = train(tmp_path / "on", "trainer.max_steps=20", "trainer=cpu", f"resume={whole}")
    assert_same_end(folder, runs["one"])


def test_the_labelled_stages_run_sharded_and_start_from_parts(tmp_path: Path) -> None:
    """Validation before any training, too, which a transfer begins with."""
    options = [option for option in ALIKE if not option.startswith("model.")]
    options += ["data.batch_size=4", "trainer.max_steps=2", "trainer.strategy=fsdp"]
    for stage, own in {
        "finetune": [
            *(option for option in ALIKE if option.startswith("model.image_size")),
            *("model.window_size=4", "trainer.sharded_checkpoints=true"),
        ],
        "transfer": [
            *("init.checkpoint=finetune/checkpoints/last.ckpt", "model.image_size=64"),
            "model.window_size=8",
        ],
    }.items():
        typed = (*options, *own, f"run_dir={stage}")
        check_started(f"simmim.{stage}", *typed, cwd=tmp_path, processes=2)
    assert (tmp_path / "finetune" / "checkpoints" / "last.ckpt").is_dir()
    metrics = json.loads((tmp_path / "transfer" / "summary.json").read_text())["metrics"]
    assert {"direct/top1", "val/top1"} <= metrics.keys()
    whole = load_file(tmp_path / "transfer" / "classifier.safetensors")
    assert whole["head.linear.weight"].shape[0] == 12


@pytest.mark.slow
def test_fsdp_shares_all_out_and_takes_the_memory_that_is_planned(tmp_path: Path) -> None:
    """With checkpoints in parts: for one file, the first process gathers the others' parts as well."""
    options = ["model=swinv2_t", "data.batch_size=4", "data.train_size=16", "data.val_size=2"]
    options += ["data.num_workers=0", "trainer.accelerator=cpu", "trainer.strategy=fsdp"]
    options += ["trainer.max_steps=2", "reconstructions.count=0", "logger=csv"]
    options += ["trainer.sharded_checkpoints=true", "preflight=warn"]
    # In a process of its own, for a plan counts what its process holds already.
    on = ("plan.device=cpu", "trainer.devices=2", "run_dir=plan")
    run_python("-m", "simmim.plan", *options, *on, cwd=tmp_path)
    planned = json.loads((tmp_path / "plan" / "plan.json").read_text())["needed_bytes"]
    script = str(Path(__file__).with_name("shares.py"))
    # By torchrun itself: what is forked shares memory with others.
    run_python(*TORCHRUN[:-1], script, "pretrain", *options, "run_dir=train", cwd=tmp_path)
    for rank in range(2):
        shares = json.loads((tmp_path / f"shares-{rank}.json").read_text())
        assert shares["parameters"] == pytest.approx(shares["whole"] / 2, rel=1e-3)
        assert shares["states"] == pytest.approx(shares["whole"], rel=1e-3)
        assert planned == pytest.approx(shares["peak_memory_bytes"], rel=0.15)


@pytest.mark.slow
def test_processes_that_lightning_starts_gather_gradients_as_one_does(tmp_path: Path) -> None:
    options = ["trainer.max_steps=4", "trainer.accumulate_grad_batches=2"]
    one = train(tmp_path / "one", *options, "trainer.devices=1")
    two = train(tmp_path / "two", *options, "trainer.devices=2", processes=2, launcher="lightning")
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert_same_end(two, one)


def test_other_numbers_than_the_launchers_are_refused(tmp_path: Path) -> None:
    options = (*ALIKE, "trainer.devices=1", "run_dir=run")
    done = run_started("simmim.pretrain", *options, cwd=tmp_path, processes=2)
    assert done.returncode != 0
    assert (
        "trainer.devices=1, and torchrun started 2 processes on each of 1 nodes; "
        "use trainer.devices=2, or auto" in done.stderr
    )
