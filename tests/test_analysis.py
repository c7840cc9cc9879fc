"""`python -m simmim.analysis` end to end on tiny encoders."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_DEMO
from PIL import Image

import simmim
from simmim.analysis import activation_amplitudes
from simmim.analysis.diagnostics import DIAGNOSTICS
from simmim.data.synthetic.dataset import DemoImages
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

DATA = ["data.batch_size=4", "data.num_workers=0", "data.train_size=40", "data.val_size=12"]
SMALL = [*DATA, "images=4", "device=cpu", "linear.l2=[1e-2]"]
NAMED = ["model=swinv2_nano", *(option for option in TINY if "model." in option)]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_looked_at_without_further_options(run, tmp_path):
    run(
        "pretrain",
        *(*TINY_DEMO, "trainer.max_steps=4", "save.every_n_steps=2", "logger=csv"),
        name="trained",
    )
    content = run("analysis", *SMALL, f"checkpoint={tmp_path / 'trained'}")
    folder = tmp_path / "run"
    assert content == json.loads((folder / "analysis.json").read_text())
    assert list(content["diagnostics"]) == list(DIAGNOSTICS)
    for name, found in content["diagnostics"].items():
        assert found["files"][0] == f"{name}.csv"
        rows = table(folder / f"{name}.csv")
        assert [list(row) for row in rows] == [list(row) for row in found["figures"]]
        for picture in found["files"][1:]:
            with Image.open(folder / picture) as image:
                assert image.width > 200
                assert image.info["Description"]
                assert len(torch.tensor(list(image.convert("L").getdata())).unique()) > 10
    # A curve over the checkpoints that the run kept, beside an untrained encoder.
    steps = [row["step"] for row in table(folder / "probe.csv")]
    assert steps == ["untrained", "2", "4"]
    scales = {row["scale"] for row in table(folder / "position_bias.csv")}
    assert scales == {"1", "1.5", "2"}


def test_figures_are_those_of_the_library(run, tmp_path):
    encoder = simmim.create_encoder(
        "swinv2_nano", image_size=32, window_size=4, embed_dim=32, depths=[1, 1], num_heads=[1, 2]
    )
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "encoder.safetensors"
    normalisation = Normalisation((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    simmim.save_encoder(encoder, path, normalisation)
    run("analysis", *SMALL, "images=12", f"checkpoint={path}", "what=[amplitude]")
    pictures = DemoImages(split="val", size=12, image_size=(32, 32))
    images = torch.stack([pictures.load(index)[0] for index in range(12)])
    expected = activation_amplitudes(encoder, normalisation.normalise(images))
    for row, block in zip(table(tmp_path / "run" / "amplitude.csv"), expected, strict=True):
        assert row["name"] == block.name
        assert float(row["output"]) == pytest.approx(block.output, rel=1e-4)


def test_two_encoders_at_their_initial_values_beside_each_other(run, tmp_path):
    content = run(
        "analysis", *NAMED, *SMALL, "other=swin_t", "what=[amplitude,attention,cka]", "seed=3"
    )
    models = {row["model"] for row in table(tmp_path / "run" / "amplitude.csv")}
    assert models == {"swinv2_nano", "swin_t"}
    similarity = table(tmp_path / "run" / "cka.csv")
    # Two blocks and the last norm here, twelve and that there.
    assert len(similarity) == 3 * 13
    assert content["diagnostics"]["attention"]["files"] == [
        *("attention.csv", "attention_distance.png", "attention_maps.png")
    ]


def test_two_checkpoints_of_one_name_stay_apart(run, tmp_path):
    paths = [tmp_path / part / "run" / "encoder.safetensors" for part in ("first", "second")]
    for path in paths:
        path.parent.mkdir(parents=True)
        encoder = simmim.create_encoder("swinv2_nano", image_size=32, window_size=4, depths=[1, 1])
        simmim.save_encoder(encoder, path)
    run("analysis", *SMALL, f"checkpoint={paths[0]}", f"other={paths[1]}", "what=[amplitude]")
    models = [row["model"] for row in table(tmp_path / "run" / "amplitude.csv")]
    assert models == ["run/encoder.safetensors"] * 2 + ["run/encoder.safetensors (other)"] * 2


def test_without_labels_the_probe_is_left_out_or_refused(run, tmp_path):
    for number in range(6):
        values = torch.randint(255, (40, 40, 3), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(tmp_path / f"{number}.png")
    folder = [*NAMED, "data=imagefolder", f"data.root={tmp_path}", "data.num_workers=0"]
    content = run("analysis", *folder, "images=2", "device=cpu")
    assert "probe" not in content["diagnostics"]
    assert "features" in content["diagnostics"]
    with pytest.raises(UserError, match="the data has 0 classes"):
        run("analysis", *folder, "what=[probe]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("what=[]", r"what=\[\] asks for nothing"),
        ("what=[amplitudes]", r"what=\['amplitudes'\] is not of type .*'amplitude', 'attention'"),
        ("images=0", "images 0 is not positive"),
        ("probe_images=0", "probe_images 0 is not positive"),
        ("window_scales=[1,-2]", "window_scales .* are not positive"),
        ("query=[3]", r"query \[3\] is no place \[y, x\]"),
        ("query=[3,32]", r"query \[3, 32\] is no place .* use \[20,20\]"),
        ("device=abacus", "device=abacus is unknown"),
        ("other=nowhere", "nowhere does not exist"),
        ("checkpoint=nowhere", "nowhere does not exist"),
        ("what=[probe] probe_images=10", "knn.k 20 is more than the 10 training images"),
    ],
)
def test_a_mistake_is_named_before_any_work(run, monkeypatch, override, message):
    monkeypatch.setattr(
        "simmim.analysis.stage.load_images", lambda *_: pytest.fail("images were read")
    )
    with pytest.raises(UserError, match=message):
        run("analysis", *NAMED, *SMALL, *override.split())


def test_a_model_that_diverged_is_named(run, tmp_path):
    encoder = simmim.create_encoder(
        "swinv2_nano", image_size=32, window_size=4, embed_dim=32, depths=[1, 1], num_heads=[1, 2]
    )
    torch.nn.init.constant_(encoder.norm.bias, torch.nan)
    simmim.save_encoder(encoder, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="are not finite: the model had diverged"):
        run("analysis", *SMALL, f"checkpoint={tmp_path / 'encoder.safetensors'}")


def test_a_runs_directory_is_not_written_to(run, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run; leave run_dir out"):
        run("analysis", *NAMED, *SMALL)
