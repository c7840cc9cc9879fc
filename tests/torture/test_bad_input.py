"""Two thousand images of which a twentieth is broken, and ten thousand mutants of image files."""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from broken_images import write_folder
from conftest import TINY

from torture.mutants import MOST_BYTES

pytestmark = pytest.mark.torture

MUTANTS, PARTS = 10_000, 4


def test_a_folder_with_a_twentieth_broken_trains_through_and_lists_it_exactly(run, tmp_path):
    reasons = write_folder(tmp_path / "images", 2000, 100)
    options = [*TINY, "data=imagefolder", f"data.root={tmp_path / 'images'}", "data.batch_size=20"]
    # 1,900 are trained on: whole batches alone.
    options += ["trainer.max_epochs=1", "reconstructions.count=2"]
    ends = []
    for name, workers in (("first", 0), ("second", 0), ("workers", 3)):
        summary = run("pretrain", *options, f"data.num_workers={workers}", name=name)
        entries = [
            json.loads(line)
            for line in (tmp_path / name / "skipped.jsonl").read_text().splitlines()
        ]
        assert summary["unreadable_images"] == len(entries) == len(reasons) == 100
        found = {entry["image"]: entry for entry in entries}
        assert found.keys() == reasons.keys()
        assert all(part in found[image]["reason"] for image, part in reasons.items())
        listed = sorted((entry["image"], entry["reason"], entry["epoch"]) for entry in entries)
        weights = (tmp_path / name / "encoder.safetensors").read_bytes()
        ends.append((listed, weights, summary["metrics"]))
    assert ends[0] == ends[1] == ends[2]


def test_mutants_are_read_or_refused_and_take_neither_time_nor_memory(tmp_path):
    """A crash, a hang (SIGALRM) or another error than the one for bad images ends a part's process."""
    program = Path(__file__).with_name("mutants.py")

    def read_part(part: int) -> dict:
        folder = tmp_path / str(part)
        folder.mkdir()
        count = MUTANTS // PARTS
        done = subprocess.run(
            [sys.executable, str(program), str(part * count), str(count), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        last = (folder / "last").read_text()
        assert done.returncode == 0, f"mutant {last}: exit {done.returncode}\n{done.stderr[-2000:]}"
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as threads:
        parts = list(threads.map(read_part, range(PARTS)))
    outcomes = sum((Counter(part["outcomes"]) for part in parts), Counter())
    print(dict(sorted(outcomes.items())))
    assert outcomes.total() == MUTANTS
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tiff", "npy", "tif"):
        assert outcomes[f"{suffix} image"] > 0
        assert outcomes[f"{suffix} refused"] > 0
    assert max(part["grown_bytes"] for part in parts) < MOST_BYTES
