"""What Weights & Biases and MLflow are told of a run, offline; and that no logger ends one."""

import json
import struct
import sys
from pathlib import Path

import pytest
from conftest import TINY_DEMO, compose
from hydra.utils import instantiate
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simmim.training.loggers.base import FaultTolerantLogger, RemoteLogger, is_installed
from simmim.utils.errors import UserError
from simmim.utils.signals import INTERRUPTED, Interrupted

pytestmark = pytest.mark.unchecked

OPTIONS = [*TINY_DEMO, "trainer.log_every_n_steps=1", "reconstructions.count=2"]
SHORT, LONG = "trainer.max_steps=2", "trainer.max_steps=4"


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Nothing is asked of a network, and nothing of this machine's user."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def records(folder: Path) -> list:
    """What an offline run of Weights & Biases wrote, in order.

    Its file has a header of 7 bytes and is a log of LevelDB's then: blocks of 32 KiB, in which the
    parts of a record have a checksum, a length and a kind each.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    content = path.read_bytes()
    found, part, place = [], b"", 7
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def history(record) -> dict:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for item in record.history.item
    }


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run with all loggers that ended after two steps, and was then made two longer."""
    from simmim.cli.main import run_stage

    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("loggers") / "run"
    folder.mkdir()
    loggers = ["logger=[wandb,mlflow]", "logger.wandb.offline=true", "logger.wandb.tags=[a]"]
    for length in (SHORT, LONG):
        config = compose("pretrain", [*OPTIONS, *loggers, length, f"run_dir={folder}"])
        run_stage("pretrain", config, str(folder))
    return folder


def test_wandb_has_figures_configuration_and_pictures(resumed):
    first, second = sorted((resumed / "wandb").glob("offline-run-*"))
    run_id = (resumed / "wandb" / "run_id").read_text().strip()
    assert first.name.endswith(run_id)
    assert second.name.endswith(run_id)
    # What a run logs of the step that it goes on from stands in both parts.
    for folder, steps in ((first, {0, 1}), (second, {1, 2, 3})):
        found = records(folder)
        (begun,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
        assert (begun.run_id, begun.project, begun.display_name) == (run_id, "simmim", "run")
        assert list(begun.tags) == ["a"]
        options = {
            item.key: json.loads(item.value_json)
            for record in found
            if record.WhichOneof("record_type") == "config"
            for item in record.config.update
        }
        assert options["mask"]["ratio"] == 0.6
        rows = [history(r) for r in found if r.WhichOneof("record_type") == "history"]
        assert {row["trainer/global_step"] for row in rows if "train/loss" in row} == steps
        assert any("val/loss" in row for row in rows)
        pictures = list((folder / "files" / "media").rglob("*.png"))
        assert pictures
        assert Image.open(pictures[0]).width > 300
        # The run is over, not cut off.
        assert any(record.WhichOneof("record_type") == "exit" for record in found)


def test_mlflow_has_one_run_with_figures_parameters_and_pictures(resumed):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{resumed / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("simmim")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (resumed / "mlflow" / "run_id").read_text().strip()
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["mask.ratio"] == "0.6"
    assert run.data.params["trainer.max_steps"] == "2"  # what a run began with stays
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert {loss.step for loss in losses} == {0, 1, 2, 3}
    assert len(client.get_metric_history(run.info.run_id, "val/loss")) == 2
    images = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
    whole = [path for path in images if path.endswith(".png")]
    assert [sum(f"step+{step}+" in path for path in whole) for step in (2, 4)] == [1, 1]
    kept = list((resumed / "mlflow" / "artifacts").rglob("*.png"))
    assert sorted(path.name for path in kept) == sorted(Path(path).name for path in whole)
    assert Image.open(kept[0]).width > 300


def test_the_other_logs_stay(resumed):
    assert (resumed / "metrics.csv").is_file()
    events = EventAccumulator(str(resumed / "tensorboard")).Reload()
    assert events.Images("reconstructions")[-1].step == 4
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "ratio: 0.6" in text


def test_a_run_that_begins_anew_is_another_one_elsewhere(tmp_path):
    class Remote(RemoteLogger):
        place = "elsewhere"
        opened: list = []

        def connect(self):
            self.opened.append(self.run_id)
            return ExampleLogger()

        def find_id(self, logger):
            return self.run_id or f"run {len(self.opened)}"

        def add_picture(self, logger, name, picture, step):
            raise AssertionError

    for step in (0, 5, 0, 3):
        log = Remote(tmp_path / "remote")
        log.go_on_after(step)
        log.log_metrics({"a": 1.0}, 1)
    assert Remote.opened == [None, "run 1", None, "run 3"]


class ExampleLogger(FaultTolerantLogger):
    place = "nowhere"

    def open(self):
        raise ConnectionError("no route to host\nand more")

    def add_picture(self, logger, name, picture, step):
        raise AssertionError

    def log_metrics(self, metrics, step=None):
        if type(self) is not ExampleLogger:
            super().log_metrics(metrics, step)


class FailingLog(ExampleLogger):
    opened = 0

    def open(self):
        type(self).opened += 1
        return super().open()


def test_a_log_that_fails_is_told_of_once_and_ends_no_run(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "failing_log", sys.modules[__name__])
    failing = ["+logger.failing._target_=failing_log.create_failing"]
    assert run("pretrain", *OPTIONS, SHORT, *failing)["steps"] == 2
    told = "nowhere cannot be written to (no route to host); no more is added there"
    assert caplog.messages.count(told) == 1
    assert FailingLog.opened == 1
    assert (tmp_path / "run" / "metrics.csv").is_file()


def create_failing(save_dir: str) -> FailingLog:
    return FailingLog()


def test_an_interrupted_run_has_not_failed(tmp_path):
    from mlflow.tracking import MlflowClient

    from simmim.training.loggers.mlflow import MlflowLog

    log = MlflowLog(tmp_path)
    log.log_metrics({"train/loss": 1.0}, 0)
    try:
        raise Interrupted(INTERRUPTED)
    except Interrupted:
        log.finalize("failed")  # so Lightning has it
    client = MlflowClient(log.tracking_uri)
    assert client.get_run(log.run_id).info.status == "KILLED"


def test_a_folder_of_logs_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("no_such_package")
    assert is_installed("torch")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_the_way_to_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    node = compose("pretrain", [f"logger={name}"]).logger[name]
    with pytest.raises(Exception, match=f'pip install "simmim\\[{name}\\]"') as raised:
        instantiate(node, save_dir=tmp_path)
    assert isinstance(raised.value.__cause__, UserError)


@pytest.mark.parametrize("choice", ["csv", "tensorboard", "default", "wandb", "mlflow"])
def test_figures_are_kept_in_the_run_directory_whatever_is_chosen(choice):
    chosen = compose("pretrain", [f"logger={choice}"]).logger
    assert "csv" in chosen
    assert choice in (*chosen, "default")
    assert "wandb" in compose("pretrain", [f"logger=[{choice},wandb]"]).logger
