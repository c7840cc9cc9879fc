"""Plans: what strategies share out, what fits, and the ways out."""

import re
from dataclasses import replace

import pytest
import torch

from simmim import create_encoder
from simmim.models.simmim import SimMIM
from simmim.plan.devices import DEVICES, Device, find_device, parse_bytes
from simmim.plan.planner import Planner, Setting, training_days
from simmim.plan.step_memory import StepTracer
from simmim.plan.suggestions import find_suggestions
from simmim.training.optim import AdamWRecipe

SETTING = Setting(64, 1, "32-true", "none", 1, 1)
MODELS = ["swinv2_b", "swinv2_s", "swinv2_t"]


def build(name: str | None) -> SimMIM:
    with torch.device("meta"):
        return SimMIM(
            create_encoder(name or "swinv2_l", image_size=64, window_size=8, depths=(1, 1, 2, 1))
        )


def planner(memory: float, backend: str = "cuda") -> Planner:
    device = Device("a device", backend, int(memory), {})
    return Planner(build, device, AdamWRecipe(lr=1e-4, weight_decay=0.05))


@pytest.fixture(scope="module")
def roomy() -> Planner:
    return planner(1e12)


def test_adamw_and_gradients_take_three_times_the_weights(roomy):
    plan = roomy.plan(SETTING)
    weights = sum(parameter.numel() * 4 for parameter in build(None).parameters())
    assert plan.parameters * 4 == weights
    assert plan.holdings.gradients == weights
    assert plan.holdings.optimizer_states == 2 * weights
    assert plan.needed == sum(plan.parts.values())


def test_fsdp_shares_out_all_and_zero_the_states_alone(roomy):
    alone = roomy.plan(SETTING).holdings
    fsdp = roomy.plan(replace(SETTING, sharing="fsdp", devices=8)).holdings
    zero = roomy.plan(replace(SETTING, sharing="deepspeed_zero1", devices=8)).holdings
    assert fsdp.gradients == pytest.approx(alone.gradients / 8, abs=4)
    assert fsdp.optimizer_states == pytest.approx(alone.optimizer_states / 8, abs=4)
    assert zero.gradients == alone.gradients
    # AdamW's two states and ZeRO's own copy of the weights.
    assert zero.optimizer_states == pytest.approx(alone.gradients * 3 / 8, abs=4)
    assert fsdp.buffers > 0 and zero.buffers > 0


def test_one_image_more_than_the_largest_batch_does_not_fit(roomy):
    tight = planner(roomy.plan(SETTING).needed)
    largest = tight.largest_batch(SETTING)
    assert largest >= 64
    assert tight.fits(replace(SETTING, batch_size=largest))
    assert not tight.fits(replace(SETTING, batch_size=largest + 1))
    assert planner(1e8).largest_batch(SETTING) == 0


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_a_larger_batch_excludes_without_a_trace_what_does_not_fit_and_nothing_else(
    backend, monkeypatch
):
    def tiny(memory: float) -> Planner:
        def build_tiny(name: str | None) -> SimMIM:
            sizes = {"embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4)}
            with torch.device("meta"):
                return SimMIM(create_encoder("swinv2_t", image_size=56, window_size=7, **sizes))

        return replace(planner(memory, backend), build=build_tiny, _models={})

    def images(count: int) -> Setting:
        return replace(SETTING, batch_size=count)

    roomy = tiny(1e12)
    for count in (1, 2, 3):
        needed = roomy.plan(images(count)).needed
        for memory in (needed, needed - 1):
            device = roomy.device._replace(memory=memory)
            knowing = replace(roomy, device=device, _steps={})
            knowing.plan(images(4))
            assert knowing.fits(images(count)) == (memory == needed)

    knowing = replace(roomy, device=roomy.device._replace(memory=int(needed)), _steps={})
    assert not knowing.fits(images(64))
    monkeypatch.setattr(StepTracer, "trace", lambda *_: pytest.fail("it was traced"))
    assert not knowing.fits(images(32))


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_each_way_out_fits_and_keeps_the_images_a_step(backend):
    asked = replace(SETTING, batch_size=128)
    tight = planner(planner(1e12, backend).plan(asked).needed * 0.75, backend)
    ways = find_suggestions(tight, asked, MODELS)
    assert len({way.overrides for way in ways}) == 3
    for way in ways:
        assert way.plan.fits
        assert tight.fits(way.plan.setting)
        assert way.plan.setting.effective_batch == asked.effective_batch


def test_a_model_that_is_too_large_by_itself_is_shared_out_or_made_smaller(roomy):
    held = roomy.plan(SETTING).holdings
    ways = find_suggestions(planner(3 * held.weights), SETTING, MODELS)
    assert any("trainer.strategy=fsdp" in way.overrides for way in ways)
    assert any("model=swinv2_" in way.overrides for way in ways)


def test_days_follow_from_flops_and_utilisation(roomy):
    plan = roomy.plan(replace(SETTING, devices=4, sharing="ddp"))
    days = training_days(plan, images=1e9, peak_flops=1e15, mfu=0.5)
    assert days == pytest.approx(1e9 * plan.flops / (4 * 0.5e15) / 86400)


def test_sizes_are_read_with_their_units():
    assert parse_bytes("80GB") == 80 * 10**9
    assert parse_bytes("1.5 GiB") == 3 * 2**29
    assert parse_bytes(1000) == 1000
    for wrong in ("80 apples", "0GB", "GB"):
        with pytest.raises(ValueError, match=re.escape(wrong)):
            parse_bytes(wrong)


def test_devices_have_names():
    assert find_device("h100") == DEVICES["h100"]
    assert find_device("cpu").process > 0
    with pytest.raises(ValueError, match=r"plan\.device=abacus is unknown"):
        find_device("abacus")
