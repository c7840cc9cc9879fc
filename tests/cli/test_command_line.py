"""Commands as a user types them: answers in time, one clear line for each mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image
from started import run_started

from simmim.cli import main as command_line
from simmim.cli.main import config_directory

pytestmark = pytest.mark.unchecked


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"HYDRA_FULL_ERROR": "0"} | environment
    return run_started("simmim.pretrain", *arguments, cwd=cwd, environment=own)


@pytest.mark.parametrize("arguments", [["--help"], ["model=swinv2_g", "--cfg", "job"]])
def test_help_and_configuration_do_not_import_torch(tmp_path, arguments):
    code = (
        "import runpy, sys; sys.argv[1:] = " + repr(arguments) + "\n"
        "try: runpy.run_module('simmim.pretrain', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("False"), done.stderr
    assert "model" in done.stdout
    assert list(tmp_path.iterdir()) == []


MISTAKES = {
    "optim.lrr=1": "optim.lrr is no option; did you mean optim.lr",
    "foo": "foo has no value; use foo=VALUE",
    "model.image_size=[64": "model.image_size=[64 is not of type int",
    "trainer.strategy=dpp": "dpp",
    "optim.betas=[0.9]": "optim.betas [0.9] are not two numbers",
    "lr=1": "lr is no option; did you mean optim.lr?",
    "+extra=1": "extra is no option; there are",
    "data=/my/images": "data=/my/images is unknown; use demo, hf, imagefolder, webdataset; a folder of",
    "model=./weights.pth": "a file of weights is init.checkpoint=./weights.pth",
    "data=": "data= is unknown; use demo",
    "logger=[csv,b]": "logger=b is unknown; use csv",
    "run_dir=null": "run_dir=null names no directory; leave run_dir out",
    "run_dir=": "run_dir= is empty: is a variable not set?",
    "hydra.run.dir=": "hydra.run.dir= is empty",
    "run_dir=a\\${b}": "no run directory's name can have ${ in it",
    "run_dir=/proc/none/run": "/proc/none: No such file or directory",
    "run_dir=/etc/passwd/run": "/etc/passwd/run: Not a directory; a part of this path is a file",
    "run_dir=" + "a" * 300: "File name too long; use a shorter path",
    "init.checkpoint=": "init.checkpoint= is empty: is a variable not set?",
    "init.checkpoint=epoch=1.ckpt": "checkpoint epoch=1.ckpt does not exist",
    "init.checkpoint=a,b": "checkpoint a,b does not exist",
    "resume=${oc.env:NOT_SET_AT_ALL}": 'resume=${oc.env:NOT_SET_AT_ALL}: "Environment variable',
    "optim.lr=${rate}": "optim.lr=${rate}: there is no option rate to take a value from",
    "optim.lr=": "optim.lr= is empty",
    "optim.betas=0.9,0.95": "use optim.betas=[0.9,0.95] for a list, or -m to run a job with each",
    "optim.lr=choice(1,2)": "optim.lr=choice(1,2) are several values; use -m",
    "optim.lr=nan": "optim.lr=nan is not finite",
    "optim.lr=1e400": "optim.lr=inf is not finite",
    "seed=-1": "seed=-1 is not in 0 to 4294967295",
    "seed=4294967296": "seed=4294967296 is not in 0 to",
    "mask.ratio=60%": "mask.ratio=60% is not of type float; use 0.6",
    "init.strict=yes": "init.strict=yes is not of type bool; use true",
    "trainer.max_steps=1e3": "trainer.max_steps=1000.0 is not of type int; use 1000",
    "mask=3": "mask=3 has options of its own",
    "data.root=/data": "data.root is an option of data=hf, data=imagefolder, data=webdataset",
    "data/root=/data": "data/root is no option; did you mean data",
    "+seed=1": "seed is an option already; set it without +, seed=VALUE",
    "~foo": "foo is no option",
    "ä=1": "'ä' is no option's name",
    "--data.root=/data": "options are written without dashes; use data.root=/data",
    "data.root:/data": "data.root:/data has no =; use data.root=/data",
    "/data/images": "/data/images is no option; use data=imagefolder data.root=/data/images",
    "+mask.size=1": "mask.size is no option; there are image_size, patch_size",
    "model=resnet": "model=resnet is unknown; use",
    "model.image_size=200": "image size 200 is not a multiple of 16",
    "mask.patch_size=24": "mask patch 24 does not divide image size 64",
    "mask.patch_size=6": "mask patch 6 is not a multiple of the encoder's patch 8",
    "mask.ratio=1": "mask ratio 1 is not between 0 and 1",
    "init.strict=maybe": "init.strict=maybe is not of type bool",
    "optim.lr={x:1}": "optim.lr={'x': 1} is not of type float",
    "mask.ratio=half": "mask.ratio=half is not of type float",
    "model.num_heads=[3,5]": "3 heads do not divide the 64 channels of stage 1",
    "model.window_size=1": "window size 1",
    "head=deep": "head=deep is unknown; use linear or mlp or inverse_swin",
    "loss_region=all": "loss_region=all is unknown; use masked or image",
    "optim.schedule=linear": "optim.schedule=linear is unknown; use cosine or multistep",
    "data=imagefolder": "set data.root=DIR",
    "trainer.devices=1000": "trainer.devices=1000 is more than this machine's",
    "data.pictures=maps": "data.pictures=maps is unknown; use textures or mosaics",
    "trainer.precision=8": "trainer.precision=8 is unknown; use auto",
    "trainer.max_epochs=null": "the run has no end",
    "target_window=46": "target window 46 must be odd",
    "resume=nowhere.ckpt": "resume=nowhere.ckpt does not exist",
    "init.checkpoint=nowhere.ckpt": "checkpoint nowhere.ckpt does not exist",
    "save.keep=0": "save.keep 0 would keep no checkpoint",
    "data.batch_size=0": "data.batch_size 0 is not positive",
    "experiment=null": "cannot be null; leave it out",
    "model.checkpoint_blocks=[1]": "at most [4,2]",
    "model.sequential_attention=-1": "for each of the 2 stages; use 1, 0 for all at once",
    "trainer.num_nodes=many": "trainer.num_nodes=many is neither a number nor auto",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch 0 is not positive; use 1",
    "trainer.val_check_interval=0": "trainer.val_check_interval 0 is not positive; use batches, or",
    "trainer.val_check_interval=1000000": "batches of an epoch; use ",
    "augmentation.scale=[0,2]": "augmentation.scale [0, 2] is not within",
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command within this process, in `tmp_path`; gives the one line that it is refused with."""
    from simmim.cli.main import run_command

    def line(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["simmim.pretrain", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        with pytest.raises(SystemExit) as stopped:
            run_command("pretrain")
        lines = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return line


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(refused, mistake):
    assert MISTAKES[mistake] in refused(mistake)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["data.root", "=", "/data"], "data.root=/data"),
        (["data.root=", "/data"], "data.root=/data"),
        (["data.root", "=/data"], "data.root=/data"),
        (["data.root", "/data"], "data.root=/data"),
        (["--data.root", "/data"], "data.root=/data"),
        (["data", "root=/data"], "data.root=/data"),
    ],
)
def test_words_that_belong_together_are_told_as_one(refused, words, meant):
    line = refused(*words)
    assert line.startswith(f"error: {words[0]}")
    assert line.endswith(f"use {meant}")


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("no image")
    (tmp_path / "file.txt").write_text("no folder")
    return tmp_path


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "holds no image"),
        ("broken", "holds no readable image"),
        ("file.txt", "is not a folder"),
    ],
)
def test_a_folder_without_images_is_one_line(folders, refused, root, message):
    line = refused("data=imagefolder", f"data.root={root}", "run_dir=run")
    assert root in line
    assert message in line


def test_full_error_brings_the_traceback_back(tmp_path):
    done = command("mask.ratio=2", "run_dir=run", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "mask ratio 2" in done.stderr


def test_a_file_that_vanishes_is_named_in_one_line(folders):
    """Within a loader's worker, too."""
    for number in range(5):
        Image.new("RGB", (64, 64)).save(folders / "empty" / f"{number}.png")
    for number in range(1, 5):
        (folders / "empty" / f"{number}.png").write_text("damaged")
    options = ["data=imagefolder", "data.root=empty", "data.batch_size=4", "data.num_workers=1"]
    options += ["data.on_error=raise"]
    done = command(*options, "run_dir=run", cwd=folders)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "error: cannot read image" in done.stderr


def test_configuration_directory_has_a_root_for_the_command():
    assert (config_directory() / "pretrain.yaml").is_file()


@pytest.mark.parametrize(
    ("stage", "own", "expected"),
    [("pretrain", None, "PASSIVE"), ("pretrain", "ACTIVE", "ACTIVE"), ("benchmark", None, None)],
)
def test_threads_sleep_soon_but_in_a_benchmark_or_where_one_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stage: str,
    own: str | None,
    expected: str | None,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # what the stage sets is undone
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)

    def note(run_dir: str) -> None:
        assert run_dir == str(tmp_path)
        seen.append(os.environ.get("OMP_WAIT_POLICY"))

    seen: list[str | None] = []
    monkeypatch.setattr(command_line, "find_stage", lambda name: note)
    command_line.run_stage(stage, OmegaConf.create({}), str(tmp_path))
    assert seen == [expected]
