"""Learning rates by hand."""

import numpy as np
import pytest

from jaxdet.training import schedules


def test_linear_scaling():
    assert schedules.scaled(0.02, 16) == 0.02
    assert schedules.scaled(0.02, 4) == pytest.approx(0.005)
    assert schedules.scaled(0.1, 512, reference=256) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("step", "want"),
    [
        (0, 0.001),
        (50, 0.5005),
        (100, 1),
        (399, 1),
        (400, 0.1),
        (599, 0.1),
        (600, 0.01),
        (999, 0.01),
    ],
)
def test_step_schedule_by_hand(step, want):
    schedule = schedules.step_schedule(
        2.0, steps=1000, warmup_steps=100, warmup_factor=1e-3, milestones=(0.4, 0.6)
    )
    assert float(schedule(step)) == pytest.approx(2 * want, rel=1e-4)


def test_default_milestones_are_the_reference_epochs():
    schedule = schedules.step_schedule(1.0, steps=26 * 500, warmup_steps=0)
    rates = [float(schedule(500 * epoch)) for epoch in range(26)]
    np.testing.assert_allclose(rates, [1] * 16 + [0.1] * 6 + [0.01] * 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "want"), [(0, 0), (5, 0.5), (10, 1), (60, 0.55), (110, 0.1), (500, 0.1)]
)
def test_cosine_schedule_by_hand(step, want):
    schedule = schedules.cosine_schedule(3.0, steps=110, warmup_steps=10, final_fraction=0.1)
    assert float(schedule(step)) == pytest.approx(3 * want, rel=1e-5)


def test_cosine_without_warmup_begins_at_the_peak():
    schedule = schedules.cosine_schedule(3.0, steps=10, warmup_steps=0)
    assert float(schedule(0)) == pytest.approx(3.0)
    assert float(schedule(10)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.scaled(0.1, 0), "Got 0, 16"),
        (
            lambda: schedules.step_schedule(1.0, steps=10, warmup_steps=10),
            "Got warmup_steps=10, steps=10",
        ),
        (
            lambda: schedules.cosine_schedule(1.0, steps=10, warmup_steps=-1),
            "Got warmup_steps=-1, steps=10",
        ),
        (
            lambda: schedules.step_schedule(1.0, steps=9, warmup_steps=0, milestones=(0.9, 0.5)),
            r"Got \[0.9, 0.5\]",
        ),
        (
            lambda: schedules.step_schedule(1.0, steps=9, warmup_steps=0, milestones=(6.0,)),
            r"Got \[6.0\]",
        ),
    ],
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
