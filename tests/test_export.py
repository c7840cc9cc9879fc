"""Exports of what every stage leaves, loaded by the programs that they are for."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from conftest import TINY_DEMO, compose
from torch import Tensor

import simmim
from simmim.checkpoints.model_file import TrainedModel, load_trained
from simmim.cli.main import run_command, run_stage
from simmim.export.stage import save_own
from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.utils.errors import UserError

WITHOUT_MODEL = [option for option in TINY_DEMO if not option.startswith("model.")]
LOADERS = {"timm": timm, "transformers": transformers, "simmim": simmim}

# What the stages leave, and what it is.
CHECKPOINTS = {
    "pretrain": "encoder",
    "pretrain/encoder.safetensors": "encoder",
    "pretrain/checkpoints/last.ckpt": "SimMIM",
    "finetune": "classifier",
    "finetune/encoder.safetensors": "encoder",
    "finetune/classifier.safetensors": "classifier",
    "finetune/checkpoints/last.ckpt": "classifier",
    "transfer": "classifier",
    "transfer/checkpoints/last.ckpt": "classifier",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of each training stage, each from the one before."""
    folder = tmp_path_factory.mktemp("runs")

    def train(stage: str, *overrides: str) -> None:
        (folder / stage).mkdir()
        options = [*overrides, "trainer.max_steps=1", f"run_dir={folder / stage}"]
        run_stage(stage, compose(stage, options), str(folder / stage))

    train("pretrain", *TINY_DEMO)
    train("finetune", *WITHOUT_MODEL, f"init.checkpoint={folder / 'pretrain'}")
    sizes = ["model.image_size=64", "model.window_size=8"]
    train("transfer", *WITHOUT_MODEL, *sizes, f"init.checkpoint={folder / 'finetune'}")
    yield folder


def load(written: dict[str, Any]) -> Any:
    """Runs the line that the command prints."""
    return eval(written["load"], dict(LOADERS))


def draw(trained: Any) -> Tensor:
    return torch.randn(2, 3, *trained.encoder.image_size)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@torch.no_grad()
def test_our_own_file(run, runs, checkpoint):
    written = run("export", f"checkpoint={runs / checkpoint}", "format=safetensors")
    trained, kind = load_trained(runs / checkpoint), CHECKPOINTS[checkpoint]
    loaded = load(written)
    images = draw(trained)
    if kind == "classifier":
        assert Path(written["output"]).name == "classifier.safetensors"
        assert loaded.classes == trained.classes
        assert len(loaded.classes) == loaded.model.head.linear.out_features
        assert torch.equal(loaded.model.eval()(images), trained.model(images))
    else:
        assert Path(written["output"]).name == "encoder.safetensors"
        assert isinstance(trained.model, SimMIM) == (kind == "SimMIM")
        assert torch.equal(loaded.eval()(images), trained.encoder(images))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@torch.no_grad()
def test_timm_loads_it(run, runs, caplog, checkpoint):
    caplog.set_level("INFO")
    written = run("export", f"checkpoint={runs / checkpoint}", "format=timm")
    assert written["load"].startswith("timm.create_model('swinv2_")
    assert written["load"] in caplog.text
    trained, theirs = load_trained(runs / checkpoint), load(written).eval()
    images = draw(trained)
    if isinstance(trained.model, Classifier):
        assert_near(theirs(images), trained.model(images))
    else:
        assert_near(theirs.forward_features(images).permute(0, 3, 1, 2), trained.encoder(images))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@torch.no_grad()
def test_hugging_face_loads_it(run, runs, checkpoint):
    written = run("export", f"checkpoint={runs / checkpoint}", "format=hf")
    trained, theirs = load_trained(runs / checkpoint), load(written).eval()
    images = draw(trained)
    if isinstance(trained.model, Classifier):
        assert_near(theirs(images).logits, trained.model(images))
        names = [theirs.config.id2label[number] for number in range(len(trained.classes))]
        assert tuple(names) == trained.classes
        assert theirs.config.label2id[names[-1]] == len(names) - 1
        auto = transformers.AutoModelForImageClassification.from_pretrained(written["output"])
        assert_near(auto.eval()(images).logits, trained.model(images))
    elif isinstance(trained.model, SimMIM):
        mask = torch.rand(2, 4, 4) < 0.5
        reconstruction = theirs(images, bool_masked_pos=mask.flatten(1)).reconstruction
        assert_near(reconstruction, trained.model(images, mask))
    else:
        tokens = theirs(images).last_hidden_state.transpose(1, 2)
        features = trained.encoder(images)
        assert_near(tokens.unflatten(2, features.shape[2:]), features)


@torch.no_grad()
@pytest.mark.parametrize("checkpoint", ["finetune", "pretrain/checkpoints/last.ckpt"])
def test_onnxruntime_runs_it(run, runs, caplog, checkpoint):
    onnxruntime = pytest.importorskip("onnxruntime")
    caplog.set_level("INFO")
    written = run("export", f"checkpoint={runs / checkpoint}", "format=onnx")
    assert written["difference"] < 1e-4
    assert f"{written['difference']:.1e}" in caplog.text
    # The exporter's own words on each node stay out.
    assert {record.name for record in caplog.records} == {"simmim"}
    session = onnxruntime.InferenceSession(written["output"])
    trained = load_trained(runs / checkpoint)
    is_classifier = isinstance(trained.model, Classifier)
    assert [entry.name for entry in session.get_inputs()] == ["images"]
    names = ["logits"] if is_classifier else ["features"]
    assert [entry.name for entry in session.get_outputs()] == names
    images = torch.randn(5, 3, 32, 32)
    (outputs,) = session.run(None, {"images": images.numpy()})
    model = trained.model if is_classifier else trained.encoder
    np.testing.assert_allclose(outputs, model(images), atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(trained.classes)
    assert json.loads(facts["image_size"]) == [32, 32]
    assert json.loads(facts["mean"]) == list(trained.normalisation.mean)
    assert json.loads(facts["std"]) == list(trained.normalisation.std)


def test_a_hugging_face_folder_is_where_another_stage_starts(run, runs, tmp_path):
    folder = run("export", f"checkpoint={runs / 'finetune'}", "format=hf")["output"]
    start = [*WITHOUT_MODEL, f"init.checkpoint={folder}", "trainer.max_steps=1"]
    run("finetune", *start, name="finetuned")
    encoder = simmim.load_encoder(tmp_path / "finetuned")
    own = simmim.load_encoder(runs / "finetune")
    assert encoder.arguments == own.arguments | {
        "drop_path_rate": encoder.arguments["drop_path_rate"]
    }
    # By their names, the classes find their outputs.
    summary = run("transfer", *start, name="transferred")
    trained = json.loads((runs / "finetune" / "summary.json").read_text())["metrics"]
    assert summary["metrics"]["direct/top1"] == trained["val/top1"]
    assert summary["metrics"]["direct/loss"] == pytest.approx(trained["val/loss"], rel=1e-5)


def test_a_hugging_face_folder_becomes_a_file_of_ours(run, runs):
    folder = run("export", f"checkpoint={runs / 'finetune'}", "format=hf")["output"]
    written = run("export", f"checkpoint={folder}", "format=safetensors")
    loaded, own = load(written), simmim.load_classifier(runs / "finetune")
    assert loaded.classes == own.classes
    assert loaded.normalisation == own.normalisation
    expected = own.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("model.safetensors", "model.safetensors"),
        ("new/model.safetensors", "new/model.safetensors"),
        ("new/folder", "new/folder/timm.safetensors"),
        ("there.is", "there.is/timm.safetensors"),
    ],
)
def test_output_is_a_file_or_a_folder_for_it(run, runs, tmp_path, output, expected):
    (tmp_path / "there.is").mkdir()
    options = [f"checkpoint={runs / 'finetune'}", "format=timm", f"output={tmp_path / output}"]
    assert run("export", *options)["output"] == str(tmp_path / expected)
    assert (tmp_path / expected).is_file()


MISTAKES = {
    "": "checkpoint is not set; use checkpoint=RUN",
    "checkpoint=RUN": "format is not set; use format=safetensors, timm, hf, onnx or checkpoint",
    "checkpoint=RUN format=tim": "format=tim is unknown; use safetensors or timm or hf or onnx",
    "checkpoint=nowhere format=timm": "checkpoint nowhere does not exist",
    "checkpoint=foreign.pth format=timm": "foreign.pth does not say what model it holds (official",
    "checkpoint=RUN format=timm output=model.pth": "output=model.pth does not end in .safetensors",
    "checkpoint=RUN format=hf output=foreign.pth": "output=foreign.pth is a file",
    "checkpoint=RUN format=onnx opset=7": "opset=7 is not between 18",
    "checkpoint=RUN format=safetensors output=RUN": "would overwrite the checkpoint",
    "form=timm": "form is no option; did you mean format",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, runs, monkeypatch, capsys, mistake):
    from simmim.checkpoints import to_official

    monkeypatch.chdir(tmp_path)
    weights = simmim.load_encoder(runs / "pretrain").state_dict()
    torch.save({"model": to_official(weights)}, "foreign.pth")
    arguments = [part.replace("RUN", str(runs / "finetune")) for part in mistake.split()]
    monkeypatch.setattr(sys, "argv", ["simmim.export", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as stopped:
        run_command("export")
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert MISTAKES[mistake] in lines[0]


def test_a_missing_package_is_named_with_the_way_to_it(run, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime, .*pip install 'simmim\[onnx\]'"):
        run("export", f"checkpoint={runs / 'finetune'}", "format=onnx")


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_configuration_do_not_import_torch(tmp_path, arguments):
    code = (
        "import runpy, sys; sys.argv[1:] = " + repr(arguments) + "\n"
        "try: runpy.run_module('simmim.export', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.stdout.strip().endswith("False"), done.stderr
    assert "opset" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_crop_that_it_was_validated_with_goes_along(tmp_path):
    encoder = simmim.create_encoder("swinv2_nano", image_size=32, window_size=2)
    crop = {"crop_ratio": 0.875, "squash": False}
    trained = TrainedModel(Classifier(encoder, 2), ("a", "b"), simmim.Normalisation(), crop)
    save_own(trained, tmp_path / "model.safetensors")
    assert simmim.load_model(tmp_path / "model.safetensors").held_out_crop == crop
