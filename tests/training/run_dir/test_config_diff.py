"""Which options decide what a run comes to."""

import pytest
from conftest import compose

from simmim.training.run_dir.config_diff import RESULT_INVARIANT, changed_options, result_options

# Root keys that decide the result, whole or but for single options of theirs. A new option has to be
# put here or into RESULT_INVARIANT.
DECIDING = {
    *("augmentation", "data", "ema", "init", "mask", "mixing", "mode", "model", "optim"),
    *("seed", "target_window", "trainer", "head", "loss_region", "task"),
}


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "transfer"])
def test_every_option_of_a_stage_either_decides_or_makes_no_difference(stage):
    keys = {str(key) for key in compose(stage, [])}
    assert keys - DECIDING - RESULT_INVARIANT == set()
    decided = {name.partition(".")[0] for name in result_options(compose(stage, []))}
    assert decided == keys & DECIDING


def test_single_options_that_only_tell_or_speed_up_make_no_difference():
    options = result_options(compose("pretrain", ["data=imagefolder", "data.root=DIR"]))
    for name in ("data.num_workers", "data.max_bad_fraction", "model.attention_backend"):
        assert name not in options
    for name in ("data.exclude", "data.max_pixels", "model.window_size", "trainer.precision"):
        assert name in options


def test_options_that_came_later_differ_from_what_runs_did_before_alone():
    assert changed_options({"seed": 0}, {"seed": 0, "head": "linear"}) == []
    assert changed_options({"seed": 0}, {"seed": 0, "loss_region": "image"}) == ["loss_region"]
    assert changed_options({"seed": 0}, {"seed": 0, "data.decode": "workers"}) == []
    assert changed_options({"seed": 0}, {"seed": 0, "data.decode": "device"}) == ["data.decode"]


def test_classes_of_ours_may_move_and_others_are_told_apart():
    before, moved = {"mask._target_": "simmim.old.Mask"}, {"mask._target_": "simmim.new.Mask"}
    assert changed_options(before, moved) == changed_options(before, {}) == []
    assert changed_options(before, {"mask._target_": "theirs.Mask"}) == ["mask._target_"]
