"""Checkpoints in parts: read whole, and without running what their pickles say."""

import os
import pathlib
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from simmim.checkpoints.read import read_weights
from simmim.checkpoints.run_state import read_state, require_resumable
from simmim.checkpoints.sharded.merge import is_sharded, name_parameters, read_whole
from simmim.utils.errors import UserError

NAMES = ["model.mask_token", "model.encoder.norm.weight", "model.head.linear.weight"]
SHAPES = [(3,), (4,), (2, 5)]
REST = {"epoch": 1, "global_step": 7, "loops": {}, "callbacks": {}, "encoder": {"no": "encoder"}}


def moments(shift: float) -> dict[str, torch.Tensor]:
    return {
        name: torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape) + shift
        for name, shape in zip(NAMES, SHAPES, strict=True)
    }


def groups() -> list[dict[str, Any]]:
    """Not in the order of the parameters: weight decay sorts them."""
    return [
        {"params": [NAMES[0], NAMES[1]], "lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.99)},
        {"params": [NAMES[2]], "lr": 0.1, "weight_decay": 0.05, "betas": (0.9, 0.99)},
    ]


def write_distributed(path: Path) -> Path:
    state = {
        name: {"step": torch.tensor(7.0), "exp_avg": value, "exp_avg_sq": value + 100}
        for name, value in moments(10).items()
    }
    content = {
        "state_dict": moments(0),
        "optimizer_0": {"state": state, "param_groups": groups()},
    }
    dcp.save(content, checkpoint_id=path, no_dist=True)
    torch.save(REST, path / "meta.pt")
    return path


class Place:
    """Stands in this test for DeepSpeed's class of the same attributes."""

    def __init__(self, start: int, numel: int) -> None:
        self.start, self.numel = start, numel


Place.__module__, Place.__qualname__ = "deepspeed.utils.tensor_fragment", "fragment_address"
Place.__name__ = "fragment_address"


def write_deepspeed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two processes, between which the second parameter is split."""
    fake = types.ModuleType("deepspeed.utils.tensor_fragment")
    fake.fragment_address = Place  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", types.ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "deepspeed.utils.tensor_fragment", fake)
    folder = path / "checkpoint"
    folder.mkdir(parents=True)
    shapes = [
        OrderedDict(
            (name, torch.Size(shape)) for name, shape in zip(NAMES[:2], SHAPES[:2], strict=True)
        ),
        OrderedDict([(NAMES[2], torch.Size(SHAPES[2]))]),
    ]
    weights = {"module": moments(0), "param_shapes": shapes, "dp_world_size": 2, **REST}
    torch.save(weights, folder / "mp_rank_00_model_states.pt")
    first = torch.cat([value.flatten() for value in list(moments(10).values())[:2]])
    second = moments(10)[NAMES[2]].flatten()
    numbered = [{**group, "params": [number]} for number, group in enumerate(groups())]
    places = [
        [{NAMES[0]: Place(0, 3), NAMES[1]: Place(3, 1)}, {NAMES[2]: Place(0, 5)}],
        [{NAMES[1]: Place(0, 3)}, {NAMES[2]: Place(0, 5)}],
    ]
    for rank, (own_first, own_second) in enumerate(
        [(first[:4], second[:5]), (torch.cat([first[4:], torch.zeros(1)]), second[5:])]
    ):
        state = {
            number: {"step": torch.tensor(7.0), "exp_avg": own, "exp_avg_sq": own + 100}
            for number, own in enumerate((own_first, own_second))
        }
        content = {
            "optimizer_state_dict": {
                "base_optimizer_state": {"state": state, "param_groups": numbered},
                "param_slice_mappings": places[rank],
            }
        }
        torch.save(content, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    for name in ("deepspeed.utils.tensor_fragment", "deepspeed.utils", "deepspeed"):
        monkeypatch.delitem(sys.modules, name)
    return path


def test_an_index_is_read_as_python_3_13_writes_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pathlib._local", pathlib)
        patch.setattr(type(tmp_path), "__module__", "pathlib._local")
        path = write_distributed(tmp_path / "last.ckpt")
    assert b"pathlib._local" in (path / ".metadata").read_bytes()
    assert torch.equal(read_whole(path)["state_dict"][NAMES[0]], moments(0)[NAMES[0]])


@pytest.mark.parametrize("kind", ["distributed", "deepspeed"])
def test_a_checkpoint_in_parts_is_read_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write = {
        "distributed": lambda: write_distributed(path),
        "deepspeed": lambda: write_deepspeed(path, monkeypatch),
    }
    write[kind]()
    assert is_sharded(path)
    assert read_state(path)["global_step"] == 7
    require_resumable(path)
    whole = read_whole(path)
    assert {name: whole[name] for name in REST} == REST
    for name, value in moments(0).items():
        assert torch.equal(whole["state_dict"][name], value)
    (optimizer,) = whole["optimizer_states"]
    assert [group["params"] for group in optimizer["param_groups"]] == [[0, 1], [2]]
    assert optimizer["param_groups"][1]["weight_decay"] == 0.05
    for number, name in enumerate(NAMES):
        assert torch.equal(optimizer["state"][number]["exp_avg"], moments(10)[name])
        assert torch.equal(optimizer["state"][number]["exp_avg_sq"], moments(110)[name])
        assert optimizer["state"][number]["step"] == 7
    named = name_parameters(optimizer, NAMES)
    assert list(named["state"]) == NAMES
    assert [group["params"] for group in named["param_groups"]] == [NAMES[:2], NAMES[2:]]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch stolen",)


def test_an_index_that_would_run_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_distributed(tmp_path / "last.ckpt")
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"its index names (posix|nt)\.system, which is no weight"):
        read_weights(path)
    assert not Path("stolen").exists()


def test_states_that_would_run_something_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_deepspeed(tmp_path / "last.ckpt", monkeypatch)
    torch.save(Evil(), path / "checkpoint" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        read_whole(path)
    assert not Path("stolen").exists()


@pytest.mark.parametrize("part", [".metadata", "__0_0.distcp", "meta.pt"])
def test_a_damaged_part_is_one_clear_line(part: str, tmp_path: Path) -> None:
    path = write_distributed(tmp_path / "last.ckpt")
    content = (path / part).read_bytes()
    (path / part).write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=r"is damaged or no checkpoint \(") as caught:
        read_whole(path)
    assert "\n" not in str(caught.value)
