"""Folders for `from_pretrained`, written and read: models, classes, preprocessing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from parity.compare import FLOAT32, assert_equal, randomise
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from torch import nn

import simmim
from simmim.checkpoints.class_names import imagenet_synsets
from simmim.checkpoints.model_file import TrainedModel, load_trained
from simmim.checkpoints.read import read_weights
from simmim.data.transforms import CenterCrop
from simmim.export.hugging_face import save_hugging_face
from simmim.models.classifier import Classifier
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

SMALL = {"image_size": 64, "window_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [1, 2]}


def create(name: str = "swinv2_t", **changes: Any) -> SwinTransformer:
    return simmim.create_encoder(name, **(SMALL | changes))


def save(model: nn.Module, folder: Path, classes: tuple[str, ...] = (), crop: Any = None) -> Any:
    """Writes a model with drawn weights; returns it with all else."""
    encoder: Any = getattr(model, "encoder", model)
    normalisation = Normalisation()
    if encoder.in_channels != 3:
        normalisation = Normalisation(*((share,) * encoder.in_channels for share in (0.4, 0.2)))
    trained: Any = TrainedModel(randomise(model), classes, normalisation, crop)
    save_hugging_face(trained, folder)
    return trained


def load(cls: Any, folder: Path) -> Any:
    """Every weight must be used, and none be missing."""
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


ENCODERS = [
    {},
    {"pretrained_window_sizes": [3, 4]},
    {"patch_size": 8, "in_channels": 5},
    {"window_size": 16},
    {"image_size": (64, 128)},
    {"name": "swin_t"},
    {"name": "swin_t", "window_size": 2, "image_size": (32, 64)},
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=str)
@torch.no_grad()
def test_they_compute_the_same_and_it_comes_back(tmp_path, encoder):
    ours = Classifier(create(**encoder), 3)
    trained = save(ours, tmp_path, ("cat", "dog", "fish"))
    images = torch.randn(2, ours.encoder.in_channels, *ours.encoder.image_size)
    theirs = load(transformers.AutoModelForImageClassification, tmp_path)
    assert_equal(theirs(images).logits, ours(images), FLOAT32)
    again = load_trained(tmp_path)
    assert again.classes == trained.classes
    assert again.encoder.arguments == trained.encoder.arguments
    expected = ours.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in again.model.state_dict().items())

    save(ours.encoder, tmp_path / "encoder")
    theirs = load(transformers.AutoModel, tmp_path / "encoder")
    assert_equal(theirs(images).pooler_output, ours.encoder(images).mean((2, 3)), FLOAT32)
    assert isinstance(load_trained(tmp_path / "encoder").model, SwinTransformer)


@pytest.mark.parametrize("name", ["swinv2_t", "swin_t"])
@torch.no_grad()
def test_masked_image_modelling(tmp_path, name):
    ours = SimMIM(create(name))
    save(ours, tmp_path)
    theirs = load(transformers.AutoModelForMaskedImageModeling, tmp_path)
    images, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 16, 16) < 0.5
    reconstruction = theirs(images, bool_masked_pos=mask.flatten(1)).reconstruction
    assert_equal(reconstruction, ours(images, mask), FLOAT32)
    again = load_trained(tmp_path)
    assert isinstance(again.model, SimMIM)
    assert torch.equal(again.model(images, mask), ours(images, mask))


@pytest.mark.parametrize("crop", [(1.0, False), (0.875, False), (1.0, True)])
@pytest.mark.parametrize("size", [(64, 64), (90, 64), (100, 201)])
def test_pictures_are_prepared_as_held_out_ones_here(tmp_path, size, crop):
    shown = {"crop_ratio": crop[0], "squash": crop[1]}
    trained = save(Classifier(create(), 2), tmp_path, ("cat", "dog"), shown)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(picture, return_tensors="pt").pixel_values
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    ours = trained.normalisation.normalise(CenterCrop(64, *crop)(image)[None])
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().mean() < 0.02


def test_their_own_folder_describes_itself(tmp_path):
    config = transformers.Swinv2Config(
        image_size=128,
        embed_dim=32,
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        window_size=8,
        pretrained_window_sizes=[6, 6, 0],
        num_labels=3,
    )
    transformers.Swinv2ForImageClassification(config).save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.origin == "Hugging Face"
    assert weights.pretrained_window_sizes == [[6, 6], [6, 6], [8, 8]]
    # They call nameless outputs LABEL_0 and so on.
    assert weights.classes == ()
    assert weights.num_classes == 3
    trained = load_trained(tmp_path)
    assert trained.encoder.image_size == (128, 128)
    assert trained.normalisation == Normalisation()


def test_imagenet_by_description_is_imagenet_by_synset(tmp_path):
    """So that folders of synsets find their outputs."""
    descriptions = ImageNetInfo("imagenet-1k").label_descriptions()
    save(Classifier(create(), 1000), tmp_path, tuple(descriptions))
    assert read_weights(tmp_path).classes == imagenet_synsets(1000)
    own = tuple(f"class {number}" for number in range(1000))
    save(Classifier(create(), 1000), tmp_path, own)
    assert read_weights(tmp_path).classes == own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"main_branch_norm_every": 2}, "no norms on the main branch"),
        ({"position_bias": "linear_cpb"}, "no Swin with res_post, cosine, linear_cpb"),
        ({"window_size": 3}, "window 3 does not divide"),
        ({"window_size": (2, 4)}, "one window and shift for both axes.* 2×4"),
        # The shorter axis no longer shifts, the longer one does.
        ({"image_size": (32, 64), "window_size": 8}, "one window and shift.*shifted by 0×4"),
        ({"name": "swin_t", "window_size": 16}, "V1 cannot shrink a window.*16 exceeds.* 8"),
        ({"pretrained_window_sizes": [(2, 3), 4]}, "no pretrained window of 2×3"),
        ({"pretrained_window_sizes": [1, 4]}, "no pretrained window of 1 for a window of 4"),
    ],
)
def test_what_hugging_face_cannot_express_is_refused(tmp_path, changes, message):
    trained = TrainedModel(create(**changes), (), Normalisation())
    with pytest.raises(UserError, match=f"Hugging Face.*{message}.*use format="):
        save_hugging_face(trained, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_oblong_masked_images_are_refused(tmp_path):
    trained = TrainedModel(SimMIM(create(image_size=(64, 128))), (), Normalisation())
    with pytest.raises(UserError, match="square images only, and this is 64×128"):
        save_hugging_face(trained, tmp_path / "hf")


def test_a_deeper_head_is_refused(tmp_path):
    trained = TrainedModel(SimMIM(create(), "mlp"), (), Normalisation())
    with pytest.raises(UserError, match=r"linear head, and this.*head=mlp; export.*use format="):
        save_hugging_face(trained, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vit"}, "describes a vit; give a folder of swin or swinv2"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings=True, and simmim's"),
        ({"hidden_act": "relu"}, "hidden_act=relu, and simmim's encoder has gelu"),
    ],
)
def test_another_model_of_theirs_is_named(tmp_path, change, message):
    save(create(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    save(create(), tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json .*copy it again"):
        read_weights(tmp_path)


def test_windows_that_do_not_divide_the_map_are_told_of(tmp_path, caplog):
    """Their models attend to the padding that this takes."""
    for window_size, tells in ((8, False), (7, True)):
        config = transformers.SwinConfig(
            **{"image_size": 64, "embed_dim": 32, "depths": [1, 1], "num_heads": [1, 2]},
            window_size=window_size,
        )
        folder = tmp_path / str(window_size)
        transformers.SwinModel(config).save_pretrained(folder)
        caplog.clear()
        load_trained(folder)
        assert ("the window 7 does not divide the feature map 16" in caplog.text) == tells


def test_other_channels_without_a_preprocessor_are_normalised_alike(tmp_path):
    config = transformers.Swinv2Config(
        **{"image_size": 64, "window_size": 4, "embed_dim": 32, "depths": [1, 1]},
        **{"num_heads": [1, 2], "num_channels": 1},
    )
    transformers.Swinv2Model(config).save_pretrained(tmp_path)
    normalisation = load_trained(tmp_path).normalisation
    assert normalisation.mean == pytest.approx((0.449,), abs=1e-3)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    with pytest.raises(
        UserError, match="has 3 means and 1 standard deviations, and the model takes 1"
    ):
        load_trained(tmp_path)


def test_a_state_dict_of_theirs_is_theirs(tmp_path):
    config = transformers.SwinConfig(
        **{
            "image_size": 64,
            "window_size": 4,
            "embed_dim": 32,
            "depths": [1, 1],
            "num_heads": [1, 2],
        }
    )
    weights = transformers.SwinForImageClassification(config).state_dict()
    torch.save(weights, tmp_path / "theirs.pth")
    assert read_weights(tmp_path / "theirs.pth").origin == "Hugging Face"
