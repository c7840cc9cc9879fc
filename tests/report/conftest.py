"""A run directory made by hand, with all that a report can show."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import PngImagePlugin

from simmim.checkpoints.model_file import save_encoder
from simmim.models.swin import create_encoder
from simmim.reconstruct.contact_sheet import TILES, Panels, contact_sheet

IMAGES = 3
STEPS = (100, 200, 300)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    folder = tmp_path / "my <run>"
    (folder / "reconstructions").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    write_metrics(folder)
    facts = {
        "stage": "pretrain",
        "state": "finished",
        "total_steps": 300,
        "effective_batch": 32,
        "hidden_share": 0.6,
        "git_revision": "0123abc",
        "packages": {"torch": "2.11.0"},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    exported_config = {
        "config": {"seed": 7, "objective": "val/loss", "mask": {"ratio": 0.6}},
        "overrides": ["mask.ratio=0.6", "data.root=</script><b>"],
    }
    (folder / ".hydra" / "resolved.yaml").write_text(yaml.safe_dump(exported_config))
    for step in STEPS:
        write_sheet(folder, step)
    encoder = create_encoder(
        "swinv2_t", image_size=32, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2)
    )
    save_encoder(encoder, folder / "encoder.safetensors")
    return folder


def write_metrics(folder: Path, **more: float) -> None:
    """300 steps that learn, logged each tenth, validated each hundredth."""
    rows = []
    for step in range(9, 300, 10):
        rows.append(
            {
                "step": step,
                "train/loss": 0.7 - step / 1000,
                "train/lr": 1e-3,
                "train/gradient_norm": 2.0,
                "train/data_wait": 0.03,
                "train/images_per_second": 100.0,
                "train/peak_memory_bytes": 2.0**30,
                "amplitude/stage0_block0": 1.0 + step,
                "amplitude/stage1_block0": 2.0 + step,
            }
        )
        if (step + 1) % 100 == 0:
            rows.append(
                {
                    "step": step,
                    "val/loss": 0.7 - step / 900,
                    "val/baseline_visible_mean": 0.8,
                    "val/baseline_nearest_visible": 0.5,
                    **more,
                }
            )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_sheet(folder: Path, step: int) -> None:
    """Reconstructions whose colour is the step."""
    images = torch.zeros(IMAGES, 3, 32, 32, dtype=torch.uint8)
    sheet = contact_sheet(Panels(images, images + 128, images + step % 256))
    where = PngImagePlugin.PngInfo()
    where.add_text(TILES, json.dumps(sheet.info[TILES]))
    sheet.save(folder / "reconstructions" / f"step-{step:08d}.png", pnginfo=where)
