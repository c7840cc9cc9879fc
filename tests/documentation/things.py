"""The reader's own things, by the names that the pages give them, made when first named."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import compose, pack
from PIL import Image
from safetensors.torch import load_file

from documentation.commands import ARCHITECTURE, HOW_MUCH, SIZES, STEPS, as_typed
from documentation.mixed import labelled_images, mixed_images
from simmim import load_encoder
from simmim.checkpoints import to_official
from simmim.cli.main import run_stage


class Things:
    """Tiny ones: makes each once in a folder of its own, and copies it to where a page names it."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.makers: dict[str, Callable[[Path], None]] = {
            "DIR": images,
            "LABELLED": images,
            "BANDS": bands,
            "SHARDS": self.shards,
            "TABLE.csv": self.table,
            "PRETRAINED": self.pretrained,
            "FINETUNED": self.finetuned,
            "RUN": self.pretrained,
            "RUN2": self.pretrained,
            "OTHER_RUN": self.pretrained,
            "DATASET": self.dataset,
            "official.pth": self.official,
            "encoder.safetensors": self.encoder,
            "classifier.safetensors": self.classifier,
            "photo.jpg": photo,
            "cat.jpg": photo,
            "mask.png": stripes,
            "PHOTOS": photos,
        }

    def provide(self, text: str, folder: Path) -> None:
        """Puts what `text` names into `folder`, where it is not there yet.

        What a command makes itself is not put there: `scripts/make_shards.py DIR SHARDS`.
        """
        for name in self.makers:
            is_named = re.search(rf"(?<![\w./]){re.escape(name)}(?!\w)", text)
            is_made = re.search(rf"make_shards\.py \S+ {name}|(output|--out)[= ]{name}", text)
            if is_named and not is_made and not (folder / name).exists():
                made = self.make(name)
                copy = shutil.copytree if made.is_dir() else shutil.copy
                copy(made, folder / name)

    def names(self) -> dict[str, Any]:
        """What a page's Python may take as given."""
        encoder = load_encoder(self.make("PRETRAINED")).eval()
        return {"encoder": encoder, "images": torch.rand(2, 3, *encoder.image_size)}

    def make(self, name: str) -> Path:
        """Where the thing stands that was made once."""
        path = self.store / name
        if not path.exists():
            self.makers[name](path)
        return path

    def shards(self, path: Path) -> None:
        pack(self.make("DIR"), path, per_shard=12)

    def pretrained(self, path: Path) -> None:
        options = ["data=imagefolder", f"data.root={self.make('DIR')}", *ARCHITECTURE, *SIZES]
        self.run("pretrain", path, [*options, "mask.patch_size=8"])

    def finetuned(self, path: Path) -> None:
        options = ["data=imagefolder", f"data.root={self.make('DIR')}"]
        self.run("finetune", path, [*options, f"init.checkpoint={self.make('PRETRAINED')}"])

    def run(self, stage: str, path: Path, options: list[str]) -> None:
        path.mkdir()
        options = [*options, *HOW_MUCH, *STEPS, f"run_dir={path}"]
        run_stage(stage, compose(stage, options), str(path), options)

    def table(self, path: Path) -> None:
        """A row for each image of `LABELLED`."""
        root = self.make("LABELLED")
        files = sorted(file for file in root.rglob("*") if file.is_file())
        rows = [
            f"{file.relative_to(root).as_posix()},{number * 0.5},{number % 2},{number % 3 == 0:d}"
            for number, file in enumerate(files)
        ]
        path.write_text("\n".join(["image,age,crack,stain", *rows]))

    def official(self, path: Path) -> None:
        weights = load_file(self.make("PRETRAINED") / "encoder.safetensors")
        torch.save({"model": to_official(weights)}, path)

    def encoder(self, path: Path) -> None:
        shutil.copy(self.make("PRETRAINED") / "encoder.safetensors", path)

    def classifier(self, path: Path) -> None:
        shutil.copy(self.make("FINETUNED") / "classifier.safetensors", path)

    def dataset(self, path: Path) -> None:
        import datasets

        files = sorted(str(file) for file in self.make("DIR").rglob("*") if file.is_file())
        labels = [Path(file).parent.name for file in files]
        rows = datasets.Dataset.from_dict({"image": files, "label": labels})
        rows = rows.cast_column("image", datasets.Image()).class_encode_column("label")
        rows.save_to_disk(str(path))


class OrdinaryThings(Things):
    """Such as a newcomer has: hundreds of mixed images, and what commands make of these by default."""

    def __init__(self, store: Path) -> None:
        super().__init__(store)
        self.makers |= {
            "DIR": lambda path: mixed_images(path, 300),
            "LABELLED": lambda path: labelled_images(path, train=240, val=60),
            "BANDS": lambda path: bands(path, 100),
            "mask.png": lambda path: stripes(path, 192),
        }

    def pretrained(self, path: Path) -> None:
        self.run("pretrain", path, ["model=swinv2_t", f"data.root={self.make('DIR')}"])

    def finetuned(self, path: Path) -> None:
        options = [f"data.root={self.make('LABELLED')}"]
        self.run("finetune", path, [*options, f"init.checkpoint={self.make('PRETRAINED')}"])

    def run(self, stage: str, path: Path, options: list[str]) -> None:
        path.mkdir()
        given = dict(option.split("=", 1) for option in options)
        options = [*options, "data=imagefolder", *as_typed(stage, given), f"run_dir={path}"]
        run_stage(stage, compose(stage, options), str(path), options)


def images(path: Path) -> None:
    """Two folders of 20 pictures."""
    for label, folder in enumerate(("ants", "bees")):
        (path / folder).mkdir(parents=True)
        for number in range(20):
            draw(40 * label + number).save(path / folder / f"{number:02}.jpg")


def bands(path: Path, count: int = 20) -> None:
    """Images of 14 bands."""
    path.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 9000, (14, 40, 40), np.uint16)
        np.save(path / f"{number:02}.npy", values)


def photo(path: Path) -> None:
    draw(7).save(path)


def photos(path: Path) -> None:
    """A folder without classes."""
    path.mkdir()
    for number in range(6):
        draw(number).save(path / f"{number}.jpg")


def stripes(path: Path, side: int = 32) -> None:
    """Black and white, as large as what the models see: white is hidden."""
    stripe = np.zeros((side, side), np.uint8)
    stripe[side // 4 : 3 * side // 4] = 255
    Image.fromarray(stripe).save(path)


def draw(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize((60, 40))
