"""Schedules: their values at known steps."""

import itertools
import math

import pytest

from simmim.training.optim.schedules import cosine, multistep, with_warmup


def test_the_cosine_falls_from_one_through_the_middle_to_its_final_factor() -> None:
    schedule = cosine(110, 10, 0.2)
    values = [schedule(step) for step in (10, 35, 60, 110)]
    assert values == pytest.approx([1.0, 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2, 0.6, 0.2])


def test_the_cosine_stays_at_its_final_factor_beyond_the_end() -> None:
    assert cosine(10, 0, 0.1)(1_000) == pytest.approx(0.1)


def test_the_cosine_never_rises() -> None:
    values = [cosine(50, 5, 0.0)(step) for step in range(5, 51)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_a_run_that_is_all_warm_up_has_a_cosine() -> None:
    assert cosine(10, 10, 0.0)(10) == 1.0


def test_each_milestone_multiplies_from_its_own_step_on() -> None:
    schedule = multistep([10, 20], 0.1)
    values = [schedule(step) for step in (0, 9, 10, 19, 20, 99)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_without_milestones_the_rate_stays() -> None:
    assert {multistep([], 0.1)(step) for step in range(5)} == {1.0}


def test_warm_up_is_linear_and_hands_over_at_one() -> None:
    schedule = with_warmup(lambda step: 100.0 + step, 4, 0.2)
    values = [schedule(step) for step in range(6)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 104, 105])


def test_without_warm_up_the_schedule_begins_at_once() -> None:
    assert with_warmup(lambda step: 7.0, 0, 0.2)(0) == 7.0
