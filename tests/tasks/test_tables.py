"""Tasks whose labels are numbers or sets: from a CSV file beside images, and on the demo."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_DEMO
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score
from started import check_started

import simmim
from simmim import create_encoder
from simmim.data import imagefolder
from simmim.data.sources.image_folder import ImageFolder
from simmim.data.sources.label_table import TabledImages, TargetImages
from simmim.models.classifier import Classifier
from simmim.tasks.classification import Classification
from simmim.tasks.multilabel import Multilabel
from simmim.tasks.regression import Regression
from simmim.tasks.regression.labels import as_number
from simmim.tasks.regression.model import Regressor
from simmim.tasks.task import task_named
from simmim.utils.errors import UserError

MODEL = ["model=swinv2_nano", *(option for option in TINY if "model." in option)]
REST = [option for option in TINY if "model" not in option]
TRAINED = ["trainer.max_steps=3", "optim.lr=1e-2"]
HEADER = "image,age,weight,sex,old,heavy"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Grey images, as bright as `age` says, in folders that are no classes; and their table."""
    rng = random.Random(0)
    lines = [HEADER]
    for index in range(48):
        age, weight = rng.randrange(20, 90), rng.uniform(50, 100)
        path = tmp_path / "images" / f"ward{index % 2}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 18), (age * 2,) * 3).save(path)
        flags = f"{int(age > 55)},{'1' if weight > 75 else ''}"
        lines.append(f"ward{index % 2}/{index:03}.png,{age},{weight:.2f},{'FM'[index % 2]},{flags}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def of(folder: Path, labels: str = "labels.csv") -> list[str]:
    return [
        "data=imagefolder",
        f"data.root={folder / 'images'}",
        f"data.labels={folder / labels}",
        "data.val_ratio=0.3",
        "data.batch_size=8",
    ]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_from_a_table_to_predictions(run, folder, tmp_path):
    trained = run("finetune", "task=regression", *of(folder), *MODEL, *REST, *TRAINED)
    assert {"val/loss", "val/mae", "val/r2"} <= trained["metrics"].keys()
    judged = run("evaluate", f"checkpoint={tmp_path / 'run'}", *of(folder), name="judged")
    # Without training images, the stage judges all of the folder.
    rows = read(tmp_path / "judged" / "predictions.csv")
    assert len(rows) == judged["images"] == 48
    true, said = (
        np.array([[float(row[f"{prefix}{name}"]) for name in ("age", "weight")] for row in rows])
        for prefix in ("", "predicted_")
    )
    asked = {line["image"]: line for line in read(folder / "labels.csv")}
    for row in rows:
        assert float(row["age"]) == float(asked["/".join(Path(row["image"]).parts[-2:])]["age"])
    assert judged["metrics"]["val/mae"] == pytest.approx(mean_absolute_error(true, said), rel=1e-4)
    assert judged["metrics"]["val/r2"] == pytest.approx(r2_score(true, said), abs=1e-4)
    by_output = read(tmp_path / "judged" / "per_output.csv")
    assert [row["output"] for row in by_output] == ["age", "weight"]
    for row, one in zip(by_output, r2_score(true, said, multioutput="raw_values"), strict=True):
        assert float(row["r2"]) == pytest.approx(one, abs=1e-4)
    # An untrained head says the mean of its training targets: in their units from the first step on.
    assert np.abs(said.mean(axis=0) - true.mean(axis=0)).max() < 40


def test_sets_from_a_table_to_predictions(run, folder, tmp_path):
    trained = run("finetune", "task=multilabel", *of(folder), *MODEL, *REST, *TRAINED)
    assert {"val/loss", "val/map", "val/f1"} <= trained["metrics"].keys()
    judged = run("evaluate", f"checkpoint={tmp_path / 'run'}", *of(folder), name="judged")
    rows = read(tmp_path / "judged" / "predictions.csv")
    true, said = (
        np.array([[float(row[f"{prefix}{name}"]) for name in ("old", "heavy")] for row in rows])
        for prefix in ("", "probability_")
    )
    asked = {line["image"]: line for line in read(folder / "labels.csv")}
    for row in rows:
        meant = asked["/".join(Path(row["image"]).parts[-2:])]["heavy"] == "1"
        assert (row["heavy"] == "1") == meant
    metrics = judged["metrics"]
    assert metrics["val/map"] == pytest.approx(average_precision_score(true, said), abs=1e-5)
    f1 = f1_score(true, said > 0.5, average="macro", zero_division=0)
    assert metrics["val/f1"] == pytest.approx(f1, abs=1e-5)
    per_label = read(tmp_path / "judged" / "per_label.csv")
    assert [row["label"] for row in per_label] == ["old", "heavy"]
    assert [int(row["images"]) for row in per_label] == true.sum(axis=0).astype(int).tolist()


@pytest.mark.parametrize("separator", ["|", ";", " "])
def test_labels_in_one_column_of_names(folder, separator):
    lines = ["file;found" if separator != ";" else "file,found"]
    names = [["mass"], [], ["node", "mass"]]
    for index, path in enumerate(sorted((folder / "images").rglob("*.png"))):
        lines.append(f"{path.stem}{lines[0][4]}{separator.join(names[index % 3])}")
    (folder / "names.csv").write_text("\n".join(lines))
    images = open_images(folder, "names.csv")
    chosen = Multilabel(["found"], "space" if separator == " " else None)
    assert chosen.label(images) == ("mass", "node")
    assert isinstance(images.train, TargetImages)
    whole = torch.cat([images.train.targets, images.val.targets])
    assert whole.sum(dim=0).tolist() == [32, 16]
    assert (whole.sum(dim=1) == 0).sum() == 16


def open_images(folder: Path, labels: str = "labels.csv"):
    return imagefolder(
        root=folder / "images",
        labels=folder / labels,
        val_ratio=0.3,
        image_size=32,
        batch_size=4,
        train_transform=torch.nn.Identity(),
    )


def test_classes_from_a_column(run, folder, tmp_path):
    summary = run("finetune", "task.column=sex", *of(folder), *MODEL, *REST, *TRAINED)
    assert summary["metrics"]["val/top1"] >= 0
    assert simmim.load_classifier(tmp_path / "run").classes == ("F", "M")


def test_the_demo_has_both(run, tmp_path):
    for task, metric in (("regression", "val/r2"), ("multilabel", "val/map")):
        demo = [option for option in TINY_DEMO if not option.startswith("model")]
        summary = run("finetune", f"task={task}", *demo, *MODEL, "trainer.max_steps=2", name=task)
        assert np.isfinite(summary["metrics"][metric])
        page = (tmp_path / task / "report.html").read_text()
        assert ("R²" if task == "regression" else "mAP") in page


def test_a_regression_moves_to_larger_images(run, folder, tmp_path):
    run("finetune", "task=regression", *of(folder), *MODEL, *REST, *TRAINED, name="small")
    larger = ["model.image_size=48", "model.window_size=4", f"init.checkpoint={tmp_path / 'small'}"]
    summary = run("transfer", "task=regression", *of(folder), *larger, *REST, "trainer.max_steps=1")
    assert {"direct/r2", "val/r2"} <= summary["metrics"].keys()
    small, large = (simmim.load_model(tmp_path / name).model for name in ("small", "run"))
    assert isinstance(small, Regressor) and isinstance(large, Regressor)
    torch.testing.assert_close(small.head.mean, large.head.mean)
    with pytest.raises(UserError, match=r"was trained for task=regression and not classification"):
        run("transfer", *of(folder), *larger, *REST, name="other")


def test_another_programs_model_predicts_the_same_numbers(run, folder, tmp_path):
    import timm
    from transformers import AutoModelForImageClassification

    run("finetune", "task=regression", *of(folder), *MODEL, *REST, *TRAINED)
    trained = simmim.load_model(tmp_path / "run")
    images = torch.randn(2, 3, *trained.encoder.image_size)
    with torch.no_grad():
        expected = trained.model(images)
    ours = run("export", f"checkpoint={tmp_path / 'run'}", "format=safetensors", name="own")
    again = simmim.load_model(ours["output"]).model
    theirs = run("export", f"checkpoint={tmp_path / 'run'}", "format=hf", name="hf")
    other = AutoModelForImageClassification.from_pretrained(theirs["output"]).eval()
    assert other.config.problem_type == "regression"
    called = run("export", f"checkpoint={tmp_path / 'run'}", "format=timm", name="timm")
    third = eval(called["load"], {"timm": timm}).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images), expected)
        torch.testing.assert_close(other(images).logits, expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(third(images), expected, atol=1e-3, rtol=1e-4)
    with pytest.raises(UserError, match=r"holds a model of task=regression.*simmim\.load_model"):
        simmim.load_classifier(tmp_path / "run")


def test_a_resumed_run_refuses_other_numbers(run, folder):
    short = ["task=regression", *of(folder), *MODEL, *REST, "trainer.max_epochs=1"]
    run("finetune", *short)
    lines = (folder / "labels.csv").read_text().splitlines()
    lines[1] = lines[1].replace(lines[1].split(",")[1], "33")
    (folder / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"images: 3\d \(\w+\) → 3\d|images: 1\d \(\w+\) → 1\d"):
        run("finetune", *short[:-1], "trainer.max_epochs=2")


@pytest.mark.parametrize(
    ("options", "change", "said"),
    [
        (
            [],
            ("ward0/000.png,", "ward0/000.png,x"),
            r"line 2 of .* age='x\d\d', .*no finite number",
        ),
        ([], ("ward0/000.png,", "ward0/000.png,nan"), r"no finite number"),
        (["task.columns=[size]"], ("", ""), r"has no column size; it has age, weight, sex"),
        (
            ["task.columns=[sex]"],
            ("", ""),
            r"line \d+ of .* sex='F', which is no finite number, and",
        ),
        (
            [],
            ("ward1/001.png", "ward0/000.png"),
            r"lines 2 and 3 of .* are both for ward0/000\.png",
        ),
        ([], ("ward0/000.png", "ward0/000.png,1"), r"line 2 of .* has 7 entries and the header 6"),
        ([], ("image,age", "image,weight"), r"needs a header line"),
        (
            [],
            ("ward0/000.png", "x" * 200_000),
            r"line 2 of .* not one of a CSV file \(field larger",
        ),
        (["task.columns=[old]"], (",1,", ",0,"), r"all training images have the same old"),
    ],
)
def test_a_wrong_table_is_refused_before_training(run, folder, tmp_path, options, change, said):
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace(*change) if change[0] else text)
    with pytest.raises(UserError, match=said):
        run("finetune", "task=regression", *of(folder), *options, *MODEL, *REST, *TRAINED)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_wrong_sets_are_refused(folder):
    for columns, said in (
        (
            ["age", "old"],
            r"line \d+ of .* has age='\d\d', and a column of a label has 1, 0 or nothing",
        ),
        (["gone"], r"has no column gone"),
    ):
        with pytest.raises(UserError, match=said):
            Multilabel(columns).label(open_images(folder))
    with pytest.raises(UserError, match=r"has labels that the model does not know \(F, M"):
        Multilabel(["sex"], known=("x",)).label(open_images(folder))


def test_images_and_rows_without_each_other_are_told(folder, caplog):
    lines = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join([*lines[:-2], "gone.png,1,2,F,0,1"]))
    images = open_images(folder)
    assert len(images.train) + len(images.val) == 46
    assert "left out, without a row" in caplog.text
    assert "1 of 47 rows" in caplog.text


def test_a_name_of_two_images_is_of_none(tmp_path):
    for part, names in (("train", "ab"), ("val", "ac")):
        (tmp_path / part).mkdir()
        for name in names:
            Image.new("L", (2, 3)).save(tmp_path / part / f"{name}.png")
    (tmp_path / "labels.csv").write_text("image,age\na.png,1\nb.png,2\nc.png,3\n")
    data = imagefolder(
        root=tmp_path,
        labels=tmp_path / "labels.csv",
        image_size=8,
        batch_size=1,
        train_transform=torch.nn.Identity(),
    )
    assert [data.train.table.columns["age"], data.val.table.columns["age"]] == [["2"], ["3"]]


def test_a_whole_path_goes_before_a_file_s_name(tmp_path):
    (tmp_path / "images" / "x").mkdir(parents=True)
    for name in ("a.png", "x/a.png", "x/b.png"):
        Image.new("L", (2, 3)).save(tmp_path / "images" / name)
    # Named from the table's own folder, too.
    (tmp_path / "labels.csv").write_text("image,age\na.png,1\nimages/x/a.png,2\nb,3\n")
    options = {"image_size": 8, "batch_size": 1, "train_transform": torch.nn.Identity()}
    data = imagefolder(
        root=tmp_path / "images", labels=tmp_path / "labels.csv", val_ratio=0.5, **options
    )
    ages = {
        Path(part.identifier(index)).relative_to(tmp_path / "images").as_posix(): age
        for part in (data.train, data.val)
        for index, age in enumerate(part.table.columns["age"])
    }
    assert ages == {"a.png": "1", "x/a.png": "2", "x/b.png": "3"}
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("x/b.png,4\n")
    with pytest.raises(UserError, match=r"lines 4 and 5 of .* are for the same image"):
        imagefolder(root=tmp_path / "images", labels=tmp_path / "labels.csv", **options)


def test_what_cannot_be_judged_is_refused_before_training(folder, tmp_path):
    images = open_images(folder)
    images.val = TabledImages(ImageFolder(folder, ["a"]), images.val.label_table().pick([0]))
    with pytest.raises(UserError, match="1 image is held out, and R² needs two or more"):
        Regression("age").label(images)
    images = open_images(folder)
    names = Multilabel(["old"]).label(images)
    images.val.targets.zero_()
    model = Classifier(create_encoder("swinv2_nano", image_size=32, window_size=2), 1)
    with pytest.raises(UserError, match="no held-out image has any of the labels"):
        Multilabel().create_module(model, names, images, mode="full", mixing=None)
    with pytest.raises(UserError, match="separator is empty"):
        Multilabel(["sex"], separator="").label(open_images(folder))
    table = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(table.replace(",F,", ",,").replace(",M,", ",,"))
    with pytest.raises(UserError, match=r"column sex of .* names no label"):
        Multilabel(["sex"]).label(open_images(folder))
    assert as_number("1e39") is as_number("nan") is None


def test_columns_that_are_not_labels_are_named(folder, caplog):
    assert Multilabel().label(open_images(folder)) == ("old", "heavy")
    assert "not labels, for they hold other than 1 and 0: age, weight, sex" in caplog.text


def test_a_column_without_a_table_is_refused(folder):
    images = imagefolder(
        root=folder / "images",
        image_size=8,
        batch_size=2,
        val_ratio=0.3,
        train_transform=torch.nn.Identity(),
    )
    with pytest.raises(UserError, match=r"task.column=sex is of a table, and there is none"):
        Classification("sex").label(images)


@pytest.mark.parametrize("task", ["task", "classification.labels", "of_tomorrow", "../x"])
def test_a_file_of_an_unknown_task_is_refused(task):
    with pytest.raises(UserError, match="does not know; upgrade simmim"):
        task_named(task)


def test_a_metric_that_is_not_finite_is_not_known():
    assert (
        Regression().describe({"r2": None, "mae": 1.5}) == "R² not known, mean absolute error 1.5"
    )
    assert Multilabel().describe({"map": None, "f1": 0.5}) == "mAP not known, F1 50.0%"


def test_no_row_for_any_image_names_both(folder):
    (folder / "labels.csv").write_text("image,age\nx1,3\nx2,4\n")
    with pytest.raises(
        UserError, match=r"first column has names such as x1, and an image is ward\d/"
    ):
        open_images(folder)


@pytest.mark.parametrize("root", ["linked", "parts", "../{}/linked"])
@pytest.mark.parametrize("below", ["data.root", "the part"])
def test_names_below_a_folder_however_it_is_reached(folder, below, root, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    images = folder / "images"
    for part, ward in (("train", "ward0"), ("val", "ward1")):
        (folder / "parts" / part).mkdir(parents=True)
        (images / ward).rename(folder / "parts" / part / ward)
    (folder / "linked").symlink_to(folder / "parts", target_is_directory=True)
    table = (folder / "labels.csv").read_text()
    if below == "data.root":
        table = table.replace("ward0/", "train/ward0/").replace("ward1/", "val/ward1/")
    (folder / "labels.csv").write_text(table)
    options = {"labels": folder / "labels.csv", "image_size": 8, "batch_size": 2}
    root = root.format(folder.name)
    data = imagefolder(root=root, train_transform=torch.nn.Identity(), **options)
    assert len(data.train) == len(data.val) == 24
    # Without training, the rows of training images are not missed.
    assert len(imagefolder(root=root, train_transform=None, **options).val) == 24
    assert "have no image" not in caplog.text


def test_one_column_needs_no_list():
    assert Regression("age").columns == Multilabel("age").columns == ("age",)


def test_without_a_table_the_error_names_the_one_nearby(run, folder):
    options = [option for option in of(folder) if "labels" not in option]
    with pytest.raises(UserError, match=r"use data=imagefolder data\.labels=.*labels\.csv"):
        run("finetune", "task=regression", *options, *MODEL, *REST, *TRAINED)


def test_an_output_is_in_the_units_of_its_targets(folder):
    """The scale is in the model, and the plain classifier has it in its linear layer."""
    images = open_images(folder)
    task = Regression()
    names = task.label(images)
    encoder = simmim.create_encoder(
        "swinv2_nano", image_size=32, embed_dim=8, depths=[1], num_heads=[1]
    )
    model = task.create_model(encoder, len(names)).eval()
    task.initialise_head(model, images)
    pixels = torch.randn(3, 3, 32, 32)
    plain = task.as_classifier(model)
    assert type(plain) is Classifier
    with torch.no_grad():
        outputs = model(pixels)
        torch.testing.assert_close(plain(pixels), outputs, atol=1e-4, rtol=1e-4)
    mean = images.train.targets.mean(dim=0)
    assert ((outputs - mean).abs() < images.train.targets.std(dim=0)).all()


def test_a_task_is_a_folder_and_a_file(pytestconfig):
    """No other code names the two tasks that came second."""
    root = Path(simmim.__file__).parent
    formats = root / "checkpoints" / "formats" / "hugging_face_config.py"  # its own names of them
    for task in ("regression", "multilabel"):
        assert (root.parent / "conf" / "task" / f"{task}.yaml").is_file()
        naming = [
            path
            for path in sorted(root.rglob("*.py"))
            if f'"{task}"' in path.read_text() and path.parent.name != task and path != formats
        ]
        assert naming == []


def test_summaries_and_facts_name_the_task(run, folder, tmp_path):
    run("finetune", "task=regression", *of(folder), *MODEL, *REST, *TRAINED)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["task"] == "regression"
    assert facts["quality"]["metric"] == "r2"


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_two_processes_judge_as_one_does(run, tmp_path, task):
    """Of nine images in batches of four, the last of the second process has only a repeat."""
    demo = [option for option in TINY_DEMO if not option.startswith("model")]
    run("finetune", f"task={task}", *demo, *MODEL, "trainer.max_steps=2")
    options = [
        f"checkpoint={tmp_path / 'run'}",
        *("data.val_size=9", "data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"),
    ]
    alone = run("evaluate", *options, name="alone")
    both = tmp_path / "both"
    check_started("simmim.evaluate", *options, f"run_dir={both}", cwd=tmp_path, processes=2)
    shared = json.loads((both / "summary.json").read_text())
    assert shared["images"] == alone["images"] == 9
    assert shared["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, abs=1e-6)
    for table in (tmp_path / "alone").glob("*.csv"):
        for one, other in zip(read(table), read(both / table.name), strict=True):
            numbers = [column for column in one if as_number(one[column]) is not None]
            assert [one[name] for name in one if name not in numbers] == [
                other[name] for name in other if name not in numbers
            ]
            assert [float(other[name]) for name in numbers] == pytest.approx(
                [float(one[name]) for name in numbers], rel=1e-4, abs=1e-5, nan_ok=True
            )
