"""A user's own pictures: what is drawn, and that the figures are those of validation."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, compose
from PIL import Image, ImageSequence

from simmim.cli.main import run_command, run_stage
from simmim.data.decoding.lazy_image import Box
from simmim.models.losses import visible_mean
from simmim.models.masking import enlarge
from simmim.models.simmim import SimMIM
from simmim.models.swin import SwinTransformer
from simmim.reconstruct.contact_sheet import TILES
from simmim.reconstruct.image_files import find_named
from simmim.reconstruct.resize_to_model import Fitted, fit_image
from simmim.reconstruct.stage import Filler, choose_bands
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation


def draw(path: Path, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pretraining run with options of its own, and the images beside it."""
    folder = tmp_path_factory.mktemp("trained")
    for number in range(14):
        split = "train" if number < 8 else "val"
        draw(folder / "images" / split / f"{number:02}.png", 40, 48, number)
    (folder / "run").mkdir()
    options = ["data=imagefolder", f"data.root={folder / 'images'}", "trainer.max_steps=4"]
    options += ["mask.patch_size=8", "mask.ratio=0.5", "target_window=5", "logger=csv", "seed=3"]
    config = compose("pretrain", [*TINY, *options, f"run_dir={folder / 'run'}"])
    run_stage("pretrain", config, str(folder / "run"))
    return folder


@pytest.fixture
def reconstruct(run, trained):
    """Runs the stage on the run's checkpoint."""
    return lambda *options: run(
        "reconstruct", f"checkpoint={trained / 'run'}", "device=cpu", *options, name="pictures"
    )


def test_the_figures_are_those_of_validation(reconstruct, trained, tmp_path):
    told = reconstruct(f"images={trained / 'images' / 'val'}", "seed=3", "images_per_grid=4")
    expected = json.loads((trained / "run" / "summary.json").read_text())["metrics"]
    for name, figure in (
        ("model", "val/loss"),
        ("visible_mean", "val/baseline_visible_mean"),
        ("nearest_visible", "val/baseline_nearest_visible"),
    ):
        mean = np.mean([image["loss"][name] for image in told["images"]])
        assert mean == pytest.approx(expected[figure], rel=1e-5)
    assert (told["mask"]["patch_size"], told["mask"]["ratio"]) == (8, 0.5)
    assert told["target_window"] == 5
    assert [Path(image["image"]).name for image in told["images"]] == [
        f"{number:02}.png" for number in range(8, 14)
    ]
    assert json.loads((tmp_path / "pictures" / "reconstructions.json").read_text()) == told
    grids = sorted(path.name for path in (tmp_path / "pictures").glob("grid-*"))
    assert grids == ["grid-0000.png", "grid-0001.png"]
    assert [image["grid"] for image in told["images"]] == [grids[0]] * 4 + [grids[1]] * 2
    # Other masks, other figures.
    other = reconstruct(f"images={trained / 'images' / 'val'}", "seed=4")
    assert other["images"][0]["loss"] != told["images"][0]["loss"]


def test_a_given_mask_hides_what_it_says(reconstruct, tmp_path, caplog):
    caplog.set_level("INFO")
    draw(tmp_path / "own.png", 32, 32, 0)
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = [f"images={tmp_path / 'own.png'}", f"mask.file={tmp_path / 'mask.png'}"]
    told = reconstruct(*given)
    (image,) = told["images"]
    pixels = np.asarray(Image.open(tmp_path / "own.png")).astype(float)
    visible, hidden = pixels[:, 16:], pixels[:, :16]
    mean = np.abs(hidden - visible.mean((0, 1))).mean()
    assert image["masked_l1"]["visible_mean"] == pytest.approx(mean, rel=1e-5)
    nearest = np.abs(hidden - pixels[:, 16:17]).mean()
    assert image["masked_l1"]["nearest_visible"] == pytest.approx(nearest, rel=1e-5)
    assert image["masked_share"] == 0.5
    assert f"masked L1 {image['masked_l1']['model']:.3g} (visible mean {mean:.3g}," in caplog.text
    sheet = Image.open(tmp_path / "pictures" / "grid-0000.png")
    ((own, masked, filled),) = json.loads(sheet.info[TILES])
    small = [np.asarray(sheet.crop(box).resize((32, 32), 0)) for box in (own, masked, filled)]
    assert (small[0] == pixels).all()
    assert (small[1][:, :16] == 128).all()
    assert (small[1][:, 16:] == pixels[:, 16:]).all()
    assert (small[2][:, 16:] == pixels[:, 16:]).all()
    # The prediction's error, from the picture but for its rounding and clipping.
    drawn = np.abs(small[2][:, :16] - hidden).mean()
    assert image["masked_l1"]["model"] == pytest.approx(drawn, rel=0.1)
    np.save(tmp_path / "mask.npy", np.array([[True, False]] * 2))
    assert reconstruct(given[0], f"mask.file={tmp_path / 'mask.npy'}")["images"] == told["images"]


def test_an_animation_goes_through_ratios(reconstruct, trained, tmp_path):
    images = f"images={trained / 'images' / 'val'}/*.png"
    frames = ["animate=true", "animation.ratios=[0.25,0.5,0.75]", "animation.seconds=0.2"]
    told = reconstruct(images, *frames)
    with Image.open(tmp_path / "pictures" / "grid-0000.gif") as animation:
        sizes = [frame.size for frame in ImageSequence.Iterator(animation)]
        assert (len(sizes), animation.info["duration"], animation.info["loop"]) == (3, 200, 0)
    with Image.open(tmp_path / "pictures" / "grid-0000.png") as sheet:
        assert set(sizes) == {sheet.size}
    for image in told["images"]:
        assert [step["masked_share"] for step in image["by_ratio"]] == [0.25, 0.5, 0.75]
        assert image["by_ratio"][1] == {"masked_share": 0.5} | image["masked_l1"]
    alone = reconstruct(images, "mask.ratio=0.75", "mask.patch_size=8")
    for image, before in zip(alone["images"], told["images"], strict=True):
        at_ratio = {"masked_share": image["masked_share"]} | image["masked_l1"]
        assert at_ratio == pytest.approx(before["by_ratio"][2])


def test_an_animation_of_few_patches_leaves_one_to_be_seen(reconstruct, trained):
    """32 pixels are four patches of 16: ratios of 0.8 and 0.9 would hide all of them."""
    images = f"images={trained / 'images' / 'val'}/*.png"
    told = reconstruct(images, "animate=true", "mask.patch_size=16")
    for image in told["images"]:
        shares = [step["masked_share"] for step in image["by_ratio"]]
        assert shares == [0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    for ratios in ("[0.5,1.0]", "[]"):
        with pytest.raises(UserError, match=r"animation\.ratios="):
            reconstruct(images, "animate=true", f"animation.ratios={ratios}")
    with pytest.raises(UserError, match=r"animation\.seconds=0.0 is not positive"):
        reconstruct(images, "animate=true", "animation.seconds=0.0")


def test_sizes_of_their_own_are_cut_to_fit(reconstruct, tmp_path, caplog):
    caplog.set_level("INFO")
    for name, height, width in (("a.png", 52, 80), ("b.png", 64, 32), ("c.png", 64, 32)):
        draw(tmp_path / "mixed" / name, height, width, 1)
    own = reconstruct(f"images={tmp_path / 'mixed'}", "image_size=own")["images"]
    assert [image["shown_size"] for image in own] == [[48, 80], [64, 32], [64, 32]]
    assert own[0]["part"] == {"top": 2, "left": 0, "height": 48, "width": 80}
    assert [image["grid"][-8:-4] for image in own] == ["0000", "0001", "0001"]
    assert "a.png 52×80: its middle 48×80; masked L1" in caplog.text
    assert "b.png 64×32; masked L1" in caplog.text
    larger = reconstruct(f"images=[{tmp_path / 'mixed' / 'a.png'}]", "image_size=[64,48]")
    assert larger["images"][0]["shown_size"] == [64, 48]
    assert "a.png 52×80: its middle 52×39, resized to 64×48; masked L1" in caplog.text


def test_an_export_with_its_head_gives_the_same(run, reconstruct, trained, tmp_path):
    last = trained / "run" / "checkpoints" / "last.ckpt"
    folder = run("export", f"checkpoint={last}", "format=hf")["output"]
    images = f"images={trained / 'images' / 'val' / '08.png'}"
    told = reconstruct(images)
    # It does not tell the options of its training.
    options = ["mask.patch_size=8", "mask.ratio=0.5", "target_window=5"]
    exported = run("reconstruct", f"checkpoint={folder}", images, "device=cpu", *options)
    assert exported["images"][0]["loss"] == pytest.approx(told["images"][0]["loss"], rel=1e-4)


def test_bands_are_shown_as_chosen_and_judged_in_their_units():
    torch.manual_seed(0)
    encoder = SwinTransformer(
        embed_dim=8, depths=(1, 1), num_heads=(2, 2), image_size=32, window_size=4, in_channels=5
    )
    normalisation = Normalisation((100.0,) * 5, (10.0, 20.0, 30.0, 40.0, 50.0))
    image = torch.randn(5, 32, 32) * 30 + 100
    mask = torch.rand(1, 8, 8) < 0.5
    one = Fitted(Path("five.npy"), (32, 32), Box(0, 0, 32, 32), image)
    grids = {}
    for bands in ([3, 1, 0], [4]):
        filler = Filler(SimMIM(encoder).eval(), normalisation, None, torch.device("cpu"), bands)
        grids[len(bands)] = filler.fill([one], mask)
    pixels = enlarge(mask, 4)
    guess = visible_mean(image[None], pixels)
    expected = (guess - image).abs()[0][:, pixels[0]].mean()
    assert grids[3].in_units.visible_mean.item() == pytest.approx(expected.item(), rel=1e-5)
    tile = grids[3].sheet.info[TILES][0][0]
    shown = np.asarray(grids[3].sheet.crop(tile).resize((32, 32), 0))
    stretched = ((image[3] - 100) / 40 / 4 + 0.5).clamp(0, 1) * 255
    assert np.abs(shown[..., 0] - stretched.numpy()).max() <= 1
    grey = np.asarray(grids[1].sheet.crop(tile))
    assert (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize(
    ("channels", "bands"), [(3, [0, 1]), (3, [0, 1, 3]), (14, [-1]), (1, [0, 0, 1])]
)
def test_bands_that_there_are_not_are_named(channels, bands):
    with pytest.raises(UserError, match=rf"are not one or three of the {channels} channels"):
        choose_bands(bands, channels)


def test_images_are_named_as_files_folders_globs_or_a_list(tmp_path):
    for name in ("a.png", "b.png", "deep/c.png", "notes.txt"):
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*named: str) -> list[str]:
        found = find_named([f"{tmp_path}/{one}" for one in named], "images")
        return [path.name for path in found]

    assert names("b.png", "a.png") == ["b.png", "a.png"]
    assert names("") == ["a.png", "b.png", "c.png"]
    assert names("*") == ["a.png", "b.png"]
    assert names("**/*.png") == ["a.png", "b.png", "c.png"]
    for wrong in ("no*", "no.png"):
        with pytest.raises(UserError, match=r"images=.* there is n"):
            names(wrong)


def test_an_image_that_is_smaller_than_a_patch_has_no_size_of_its_own(tmp_path):
    draw(tmp_path / "small.png", 16, 64, 0)
    with pytest.raises(UserError, match=r"small.png has 16×64 pixels, and image_size=own needs 32"):
        fit_image(tmp_path / "small.png", 3, None, 32)
    assert fit_image(tmp_path / "small.png", 3, None, 8).image.shape == (3, 16, 64)


MISTAKES = {
    "images=IMAGES": "checkpoint is not set; use checkpoint=RUN",
    "checkpoint=RUN": "images is not set; use images=DIR",
    "checkpoint=RUN images=nowhere": "images=nowhere: there is neither a file nor a folder there",
    "checkpoint=RUN images=[]": "images=[] names nothing",
    "checkpoint=RUN/encoder.safetensors images=IMAGES": "without SimMIM's mask token and head",
    "checkpoint=RUN images=IMAGES image_size=36": "image_size=36 is not a multiple of the encoder's 16",
    "checkpoint=RUN images=IMAGES mask.patch_size=6": "mask patch 6 is not a multiple of the encoder's",
    "checkpoint=RUN images=IMAGES mask.ratio=1": "mask ratio 1 is not between 0 and 1",
    "checkpoint=RUN images=IMAGES mask.file=no.png": "mask.file=no.png does not exist",
    "checkpoint=RUN images=IMAGES mask.file=a.npy animate=true": "leave mask.file out",
    "checkpoint=RUN images=IMAGES mask.file=a.npy mask.ratio=0.5": "mask.file says what is masked",
    "checkpoint=RUN images=IMAGES mask.file=a.npy": "mask a.npy is 3×3 and does not divide",
    "checkpoint=RUN images=IMAGES bands=[7]": "bands=[7] are not one or three of the 3 channels",
    "checkpoint=RUN images=IMAGES most_images=0": "most_images=0 is not positive",
    "checkpoint=RUN images=IMAGES target_window=4": "target window 4 must be odd",
    "checkpoint=RUN images=IMAGES image_size=all": "image_size=all is unknown; use own",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, trained, monkeypatch, capsys, mistake):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.eye(3, dtype=bool))
    typed = mistake.replace("RUN", str(trained / "run"))
    typed = typed.replace("IMAGES", str(trained / "images" / "val"))
    monkeypatch.setattr(sys, "argv", ["simmim.reconstruct", *typed.split()])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as stopped:
        run_command("reconstruct")
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert MISTAKES[mistake] in lines[0]
