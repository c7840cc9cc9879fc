"""Evaluation end to end on tiny models: the run's own figure again, whatever the folders are called."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY
from evaluating import EVALUATE, FOLDER, labelled, picture, write_classifier
from PIL import Image
from safetensors.torch import load_file
from started import check_started

from simmim.checkpoints.model_file import load_classifier, save_classifier
from simmim.checkpoints.read import read_weights
from simmim.data.transforms import CenterCrop
from simmim.tasks.classification.evaluation import output_names
from simmim.utils.errors import UserError
from simmim.utils.normalization import Normalisation

SCRATCH = [*EVALUATE, "model=swinv2_nano", *(option for option in TINY if "model." in option)]


@pytest.fixture
def classifier(tmp_path) -> Path:
    return write_classifier(tmp_path / "classifier.safetensors")


@pytest.fixture
def fine_tuned(run, tmp_path) -> Path:
    """A run that was validated otherwise than by default."""
    options = ["trainer.max_steps=4", "data.val_size=30", "data.crop_ratio=0.6"]
    run("finetune", *SCRATCH, *options, name="fine-tuned")
    return tmp_path / "fine-tuned"


def answers(checkpoint: Path, root: Path) -> dict[str, list[int]]:
    """By the plainest way: the output that each image of each folder is taken for."""
    model, _, normalisation = load_classifier(checkpoint)
    model.eval()
    crop = CenterCrop(32)
    said = {}
    for folder in sorted(root.iterdir()):
        images = [
            crop(torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1))
            for path in sorted(folder.iterdir())
        ]
        with torch.no_grad():
            said[folder.name] = (
                model(normalisation.normalise(torch.stack(images))).argmax(1).tolist()
            )
    return said


def load_description(run_dir: Path) -> dict:
    return dict(read_weights(run_dir).description)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_without_a_label_are_not_judged(run, tmp_path, classifier):
    """As hubs have them in the splits of their contests."""
    names = [f"c{number:02d}" for number in range(12)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    picture = Image.new("RGB", (32, 32))
    columns = {"image": [picture] * 3, "label": [-1, 2, -1]}
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"test": dataset}).save_to_disk(tmp_path / "saved")
    options = [f"data.root={tmp_path / 'saved'}", "data.label_column=label", "data.val_split=test"]
    with pytest.raises(UserError, match="2 of 3 held-out images have no label"):
        run("evaluate", *FOLDER, f"checkpoint={classifier}", "data=hf", *options)


@pytest.mark.parametrize("file", [".", "classifier.safetensors", "checkpoints/last.ckpt"])
def test_a_runs_own_figures_again(run, tmp_path, fine_tuned, file):
    expected = json.loads((fine_tuned / "summary.json").read_text())["metrics"]
    found = run("evaluate", *EVALUATE, f"checkpoint={fine_tuned / file}", "data.val_size=30")
    assert found["metrics"]["val/top1"] == expected["val/top1"]
    assert found["metrics"]["val/top5"] == expected["val/top5"]
    assert found["metrics"]["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-6)
    assert found == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (found["images"], found["unreadable_images"], found["classes"]) == (30, 0, 12)


def test_held_out_images_are_shown_as_the_data_says_where_it_does(run, tmp_path, fine_tuned):
    crop = load_description(fine_tuned)["held_out_crop"]
    assert crop == {"crop_ratio": 0.6, "squash": False}
    losses = [
        run("evaluate", *EVALUATE, f"checkpoint={fine_tuned}", "data.val_size=30", *options)[
            "metrics"
        ]["val/loss"]
        for options in ([], ["data.crop_ratio=1"], ["data.squash=true"])
    ]
    # The drawn pictures are square: the largest crop is the whole.
    assert losses[0] != losses[1] == losses[2]


def test_tables_count_every_image_once(run, tmp_path, fine_tuned):
    summary = run("evaluate", *EVALUATE, f"checkpoint={fine_tuned}", "data.val_size=30")
    figures = table(tmp_path / "run" / "per_class.csv")
    confusion = table(tmp_path / "run" / "confusion.csv")
    assert len(figures) == len(confusion) == 12
    for one, row in zip(figures, confusion, strict=True):
        name = row.pop("class")
        assert one["class"] == name
        assert sum(map(int, row.values())) == int(one["images"])
        assert int(row[name]) == int(one["correct"])
        assert float(one["top1"]) == int(one["correct"]) / int(one["images"])
        wrong = {other: int(count) for other, count in row.items() if other != name}
        predicted = one["most_often_taken_for"]
        assert (wrong[predicted] if predicted else 0) == max(wrong.values())
    assert sum(int(one["images"]) for one in figures) == 30
    right = sum(int(one["correct"]) for one in figures)
    assert right / 30 == pytest.approx(summary["metrics"]["val/top1"])
    in_top5 = sum(float(one["top5"]) * int(one["images"]) for one in figures)
    assert in_top5 / 30 == pytest.approx(summary["metrics"]["val/top5"])


def top1(said: dict[str, list[int]], meant: dict[str, int]) -> float:
    right = [answer == meant[name] for name, found in said.items() for answer in found]
    return sum(right) / len(right)


@pytest.mark.parametrize(
    ("names", "split"),
    [
        # As strings, 10 and 11 come before 2.
        ([str(number) for number in range(12)], ""),
        # Half of the classes: the others still compete.
        ([f"c{number:02d}" for number in range(0, 12, 2)], "val"),
        ([f"c{number:02d}" for number in range(12)], "val"),
    ],
)
def test_folders_are_compared_with_the_outputs_that_they_mean(
    run, tmp_path, classifier, names, split
):
    root = labelled(tmp_path / "images" / split, names)
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}"]
    summary = run("evaluate", *FOLDER, *data, f"checkpoint={classifier}")
    said = answers(classifier, root)
    expected = top1(said, {name: int(name.removeprefix("c")) for name in names})
    assert summary["metrics"]["val/top1"] == pytest.approx(expected)
    assert (summary["classes"], summary["outputs"]) == (len(names), 12)
    assert summary["images"] == 3 * len(names)
    rows = {row.pop("class"): row for row in table(tmp_path / "run" / "confusion.csv")}
    for name, found in said.items():
        row = rows[f"c{int(name.removeprefix('c')):02d}"]
        for number in range(12):
            assert int(row.get(f"c{number:02d}", 0)) == found.count(number)


def test_the_order_of_classes_does_not_matter(run, tmp_path, classifier):
    """The same classifier with its outputs in another order gives the same answers."""
    trained = load_classifier(classifier)
    order = [7, 3, 11, 0, 5, 1, 10, 2, 9, 4, 8, 6]
    for tensor in trained.model.head.linear.parameters():
        tensor.data = tensor.data[order]
    permuted = tmp_path / "permuted.safetensors"
    save_classifier(trained.model, permuted, [trained.classes[row] for row in order])
    labelled(tmp_path / "images", list(trained.classes))
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}"]
    first, second = (
        run("evaluate", *FOLDER, *data, f"checkpoint={path}", name=path.stem)["metrics"]
        for path in (classifier, permuted)
    )
    assert first["val/top1"] == second["val/top1"]
    assert first["val/top5"] == second["val/top5"]
    assert 0 < first["val/top5"] < 1


def test_outputs_of_other_classes_can_be_left_out(run, tmp_path, classifier, caplog):
    caplog.set_level("INFO")
    names = ["c01", "c04", "c09"]
    root = labelled(tmp_path / "images", names)
    data = ["data=imagefolder", f"data.root={root}", f"checkpoint={classifier}"]
    everything = run("evaluate", *FOLDER, *data, name="all")
    assert "the data has 3 of the classifier's 12 classes" in caplog.text
    present = run("evaluate", *FOLDER, *data, "outputs=present", name="present")
    assert present["metrics"]["val/top1"] >= everything["metrics"]["val/top1"]
    assert present["metrics"]["val/top5"] == 1
    assert set(table(tmp_path / "present" / "confusion.csv")[0]) == {"class", *names}
    assert [row["class"] for row in table(tmp_path / "present" / "per_class.csv")] == names


def test_an_unreadable_image_is_not_counted(run, tmp_path, classifier):
    root = labelled(tmp_path / "images", ["c00", "c01"])
    (root / "c01" / "9.png").write_text("no image")
    data = ["data=imagefolder", f"data.root={root}", f"checkpoint={classifier}"]
    summary = run("evaluate", *FOLDER, *data)
    assert (summary["images"], summary["unreadable_images"]) == (6, 1)
    assert [row["images"] for row in table(tmp_path / "run" / "per_class.csv")] == ["3", "3"]
    with pytest.raises(UserError, match="cannot read image"):
        run("evaluate", *FOLDER, *data, "data.on_error=raise", name="strict")


def test_images_are_normalised_as_the_classifier_was_trained(run, tmp_path, classifier, caplog):
    caplog.set_level("INFO")
    trained = load_classifier(classifier)
    half = Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    save_classifier(trained.model, classifier, trained.classes, half)
    root = labelled(tmp_path / "images", list(trained.classes))
    data = ["data=imagefolder", f"data.root={root}", f"checkpoint={classifier}"]
    summary = run("evaluate", *FOLDER, *data)
    meant = {name: number for number, name in enumerate(trained.classes)}
    assert summary["metrics"]["val/top1"] == pytest.approx(top1(answers(classifier, root), meant))
    assert "normalised as the checkpoint was trained: mean (0.5" in caplog.text


def test_values_in_other_units_keep_their_own_normalisation(run, tmp_path, classifier, caplog):
    """As counts of a sensor, where the weights were trained on colours."""
    for name in load_classifier(classifier).classes:
        (tmp_path / "images" / name).mkdir(parents=True)
        values = np.random.default_rng(0).normal(1000, 400, (3, 40, 40)).astype(np.float32)
        np.save(tmp_path / "images" / name / "0.npy", values)
    root = tmp_path / "images"
    units = ["data.mean=[1200,1100,900]", "data.std=[500,450,400]"]
    data = ["data=imagefolder", f"data.root={root}", f"checkpoint={classifier}"]
    run("evaluate", *FOLDER, *data, *units)
    assert "normalised as the checkpoint" not in caplog.text
    assert "normalised by the data's own mean (1200, 1100, 900)" in caplog.text


def test_a_classifier_that_diverged_is_not_judged(run, tmp_path, classifier):
    trained = load_classifier(classifier)
    trained.model.head.linear.weight.data[0] = torch.nan
    save_classifier(trained.model, classifier, trained.classes)
    root = labelled(tmp_path / "images", list(trained.classes))
    data = ["data=imagefolder", f"data.root={root}", f"checkpoint={classifier}"]
    with pytest.raises(UserError, match="are not finite: the model had diverged; use another"):
        run("evaluate", *FOLDER, *data)


def test_parts_of_a_set_are_no_classes(run, tmp_path, classifier):
    for part in ("train", "unlabelled"):
        labelled(tmp_path / "images" / part, ["cat", "dog"])
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "mode=knn", "knn.k=1"]
    with pytest.raises(
        UserError, match="the classes would be train, unlabelled, the parts of a data set"
    ):
        run("evaluate", *FOLDER, *data, f"checkpoint={classifier}")


def test_another_size_and_window(run, fine_tuned):
    sizes = ["model.image_size=64", "model.window_size=8"]
    summary = run("evaluate", *EVALUATE, *sizes, f"checkpoint={fine_tuned}")
    assert summary["image_size"] == [64, 64]
    start = [f"init.checkpoint={fine_tuned}", "trainer.max_steps=1"]
    carried = run("transfer", *EVALUATE, *sizes, *start, name="carried")["metrics"]
    assert summary["metrics"]["val/top1"] == carried["direct/top1"]
    assert summary["metrics"]["val/loss"] == carried["direct/loss"]


def test_a_foreign_classifier_is_judged_as_the_model_named(run, tmp_path, classifier):
    """Its outputs have no names, and serve in the order of the folders."""
    root = labelled(tmp_path / "images", [f"c{number:02d}" for number in range(12)])
    data = ["data=imagefolder", f"data.root={root}"]
    tensors = {f"model.{name}": tensor for name, tensor in load_file(classifier).items()}
    torch.save({"state_dict": tensors}, tmp_path / "bare.pth")
    model = [option for option in SCRATCH if option.startswith("model")]
    ours = run("evaluate", *FOLDER, *data, f"checkpoint={classifier}", name="ours")
    start = f"checkpoint={tmp_path / 'bare.pth'}"
    foreign = run("evaluate", *FOLDER, *data, *model, start, name="bare")
    assert foreign["metrics"] == ours["metrics"]
    tables = [(tmp_path / name / "confusion.csv").read_text() for name in ("ours", "bare")]
    assert tables[0] == tables[1]


MISTAKES = {
    (): "nothing to evaluate; set checkpoint=",
    ("checkpoint=nowhere",): "checkpoint nowhere does not exist",
    ("checkpoint={encoder}",): "judge it with mode=knn or mode=linear",
    ("checkpoint={classifier}", "mode=knn", "knn.k=0"): "knn.k 0 leaves nobody to vote",
    ("checkpoint={classifier}", "mode=knn", "knn.k=17"): "knn.k 17 is more than the 16 training",
    ("checkpoint={classifier}", "knn.temperature=0"): "knn.temperature 0 is not positive",
    ("checkpoint={classifier}", "linear.l2=[]"): "linear.l2 [] are not positive numbers",
    ("checkpoint={classifier}", "linear.held_out_share=1"): "held_out_share 1 is not between",
    ("checkpoint={classifier}", "linear.max_iterations=0"): "max_iterations 0 is not positive",
    ("checkpoint={classifier}", "mode=judge"): "mode=judge is unknown; use classify or knn or",
    ("checkpoint={classifier}",): "12 of the data's 12 are not among them",
    ("checkpoint={classifier}", "mode=linear", "trainer.devices=2"): "use trainer.devices=1",
    (
        "checkpoint={classifier}",
        "trainer.strategy=fsdp",
    ): "evaluate with trainer=auto or trainer=ddp",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_is_named(run, tmp_path, classifier, options):
    from simmim.checkpoints.model_file import save_encoder

    if "trainer.devices=2" in options and (os.cpu_count() or 1) < 2:
        pytest.skip("this machine has one core")
    encoder = tmp_path / "encoder.safetensors"
    save_encoder(load_classifier(classifier).model.encoder, encoder)
    given = [option.format(encoder=encoder, classifier=classifier) for option in options]
    with pytest.raises(UserError) as caught:
        run("evaluate", *EVALUATE, *given)
    assert MISTAKES[options] in str(caught.value)


def test_images_without_classes_are_refused(run, tmp_path, classifier):
    picture(tmp_path / "images" / "0.png", np.random.default_rng(0))
    picture(tmp_path / "images" / "1.png", np.random.default_rng(1))
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}", f"checkpoint={classifier}"]
    for mode in ("classify", "knn", "linear"):
        with pytest.raises(UserError, match=r"classes.*one folder a class"):
            run("evaluate", *FOLDER, *data, f"mode={mode}")


def test_names_of_outputs():
    assert output_names(["b"], [1], 2, ["a", "b"]) == ["a", "b"]
    assert output_names(["x", "y"], [0, 1], 2, []) == ["x", "y"]
    assert output_names(["0", "2"], [0, 2], 3, []) == ["0", "1", "2"]
    assert output_names(["0", "999"], [0, 999], 1000, [])[999] == "n15075141"


@pytest.mark.parametrize("arguments", [["--help"], ["mode=knn", "--cfg", "job"]])
def test_help_and_configuration_do_not_import_torch(tmp_path, arguments):
    code = (
        "import runpy, sys; sys.argv[1:] = " + repr(arguments) + "\n"
        "try: runpy.run_module('simmim.evaluate', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("False"), done.stderr
    assert "checkpoint" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_two_processes_judge_as_one_does(run, tmp_path, classifier):
    """Seven images a class and three classes do not divide by two."""
    root = labelled(tmp_path / "images", ["c02", "c05", "c06"], count=7)
    figures = []
    options = [f"checkpoint={classifier}", "data=imagefolder", f"data.root={root}"]
    options += ["data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"]
    run("evaluate", *options, "trainer.devices=1", name="1")
    check_started("simmim.evaluate", *options, "run_dir=2", cwd=tmp_path, processes=2)
    for folder in (tmp_path / "1", tmp_path / "2"):
        summary = json.loads((folder / "summary.json").read_text())
        tables = [(folder / name).read_text() for name in ("per_class.csv", "confusion.csv")]
        figures.append((summary["metrics"]["val/top1"], summary["images"], tables))
    assert figures[0] == figures[1]
    assert figures[0][1] == 21


def test_a_run_is_not_written_over(run, tmp_path, classifier):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run_dir=.* holds a run"):
        run("evaluate", f"checkpoint={classifier}", "data=demo")
