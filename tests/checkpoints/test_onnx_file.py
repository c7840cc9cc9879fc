"""ONNX files of what no other export can hold: padding, mixed switches, norms on the main branch."""

from pathlib import Path

import pytest
import torch
from parity.compare import randomise

import simmim
from simmim.checkpoints.model_file import TrainedModel
from simmim.export import onnx as onnx_file
from simmim.export.onnx import OLDEST_OPSET, require_onnx, save_onnx
from simmim.models.classifier import Classifier
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

pytest.importorskip("onnxruntime")


def create(name: str, **changes) -> TrainedModel:
    sizes = {"image_size": (32, 48), "window_size": 3, "embed_dim": 32, "num_heads": [1, 2]}
    encoder = simmim.create_encoder(name, depths=[2, 2], **(sizes | changes))
    return TrainedModel(randomise(Classifier(encoder, 3)), ("a", "b", "c"), Normalisation())


def test_v1_with_padding(tmp_path: Path):
    assert save_onnx(create("swin_t"), tmp_path / "model.onnx", OLDEST_OPSET) < 1e-5


def test_weights_beside_a_file_that_is_too_large_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_LARGEST_FILE", 1000)
    trained = create("swinv2_t", main_branch_norm_every=2, position_bias="linear_cpb")
    assert save_onnx(trained, tmp_path / "model.onnx", OLDEST_OPSET) < 1e-5
    weights = sum(parameter.nbytes for parameter in trained.model.parameters())
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.8 * weights


@pytest.mark.parametrize("difference", [0.01, float("nan")])
def test_a_file_that_computes_something_else_is_an_error(tmp_path, monkeypatch, difference):
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: difference)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: FakeProgram())
    with pytest.raises(RuntimeError, match=r"differs from PyTorch by (1\.0e-02|nan)"):
        save_onnx(create("swin_t"), tmp_path / "model.onnx", OLDEST_OPSET)


def test_what_onnxruntime_cannot_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: FakeProgram())
    with pytest.raises(UserError, match=r"onnxruntime .* cannot run .*model\.onnx .*use opset=18"):
        save_onnx(create("swin_t"), tmp_path / "model.onnx", OLDEST_OPSET)


class FakeProgram:
    """Writes a file that is none."""

    def __init__(self):
        self.model = self
        self.metadata_props: dict[str, str] = {}

    def save(self, path: Path, **_) -> None:
        path.write_text("no model")


@pytest.mark.parametrize("opset", [17, 1000])
def test_opsets_out_of_range_are_refused(opset):
    with pytest.raises(UserError, match=f"opset={opset} is not between 18.*use opset=18"):
        require_onnx(opset)
