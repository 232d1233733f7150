"""Learning rates: up, down, and where they end."""

from __future__ import annotations

import math

import pytest

from csrm_tasks.training.schedule import Schedule, warmed


def test_it_warms_up_and_decays_linearly_to_zero_after_the_last_step() -> None:
    rates = [warmed(2.0, 100, 0.1).rate(s) for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:] == pytest.approx([2.0 * (100 - s) / 90 for s in range(10, 100)])


def test_a_cosine_falls_to_zero_after_the_warm_up() -> None:
    rates = [warmed(1.0, 100, 0.1, "cosine").rate(s) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(90)])


def test_without_warm_up_it_goes_from_peak_to_end() -> None:
    rates = [Schedule(1.0, 4, end=0.2).rate(s) for s in range(5)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_training_of_one_step_takes_the_peak() -> None:
    assert warmed(3.0, 1, 0.03).rate(0) == 3.0
    assert Schedule(3.0, 0, end=0.1).rate(0) == 3.0
