"""Stated confidences: figures by hand and against scikit-learn; what a hostile final state says is not believed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from agentgym.errors import ConfigError, FailureKind
from agentgym.evaluation.calibration import calibration, calibration_of, stated


def drawn(n: int, seed: int = 0, digits: int = 2) -> tuple[list[float], list[bool]]:
    """A perfect forecaster: right as often as it says."""
    rng = np.random.default_rng(seed)
    said = rng.beta(2, 1, n).round(digits)
    return said.tolist(), (rng.random(n) < said).tolist()


def test_four_answers_worked_by_hand():
    # bins of width: 0.2 | 0.6 | 0.9 0.9; gaps |0 - 0.2|, |1 - 0.6|, |1/2 - 0.9| with weights 1/4, 1/4, 1/2
    found = calibration([0.2, 0.6, 0.9, 0.9], [False, True, True, False])
    assert found.ece_width == pytest.approx(0.05 + 0.1 + 0.2)
    assert found.brier == pytest.approx((0.04 + 0.16 + 0.01 + 0.81) / 4)
    assert (found.accuracy, found.uncertainty) == (0.5, 0.25)
    assert found.reliability == pytest.approx(0.25 * 0.04 + 0.25 * 0.16 + 0.5 * 0.16)
    assert found.resolution == pytest.approx(0.25 * 0.25 + 0.25 * 0.25)
    assert found.auroc == pytest.approx((0 + 0.5 + 1 + 1) / 4)  # right 0.6, 0.9 against wrong 0.2, 0.9
    assert found.selective == ((0.5, 0.5), (0.75, pytest.approx(2 / 3)), (1.0, 0.5))


def test_equal_mass_bins_split_answers_that_equal_width_bins_hold_together():
    # all within (0.9, 1]: one bin of width, where right and wrong cancel; two bins of mass, where they do not
    said, right = [0.91, 0.92, 0.98, 0.99], [True, True, False, True]
    found = calibration(said, right, num_bins=2)
    assert found.ece_width == pytest.approx(abs(0.75 - 0.95))
    assert found.ece_mass == pytest.approx((abs(1 - 0.915) + abs(0.5 - 0.985)) / 2)


def test_bins_do_not_depend_on_the_order_of_ties():
    said, right = [0.5] * 10 + [0.7] * 3, [True] * 5 + [False] * 5 + [True] * 3
    order = np.random.default_rng(0).permutation(13)
    mixed = calibration([said[i] for i in order], [right[i] for i in order], num_bins=4)
    assert mixed.ece_mass == pytest.approx(calibration(said, right, num_bins=4).ece_mass, abs=1e-12)


def test_brier_is_reliability_minus_resolution_plus_uncertainty_exactly():
    for digits in (1, 2, 15):  # with 15, every confidence is its own group
        found = calibration(*drawn(5000, digits, digits))
        assert found.brier == pytest.approx(found.reliability - found.resolution + found.uncertainty, abs=1e-12)


def test_brier_auroc_and_the_bins_are_those_of_scikit_learn():
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, roc_auc_score

    said, right = drawn(3000, 7, digits=15)
    found = calibration(said, right)
    assert found.brier == pytest.approx(brier_score_loss(right, said), abs=1e-9)
    assert found.auroc == pytest.approx(roc_auc_score(right, said), abs=1e-9)
    rates, means = calibration_curve(right, said, n_bins=10)
    sizes = np.histogram(said, np.linspace(0, 1, 11))[0]
    assert found.ece_width == pytest.approx(float(np.abs(rates - means) @ sizes / 3000), abs=1e-9)
    rates, means = calibration_curve(right, said, n_bins=10, strategy="quantile")
    assert found.ece_mass == pytest.approx(float(np.abs(rates - means).mean()), abs=1e-9)  # 300 in each


def test_a_perfect_forecasters_error_falls_with_the_root_of_n():
    few, many = calibration(*drawn(1000)).ece_width, calibration(*drawn(100_000)).ece_width
    assert many < 0.005
    assert few / many > 3  # 10 in expectation


def test_the_surest_answers_are_taken_first_and_ties_together():
    found = calibration([0.9, 0.9, 0.5, 0.1], [True, True, False, False])
    assert [found.accuracy_at(share) for share in (0.25, 0.5, 0.75, 1.0)] == [1.0, 1.0, pytest.approx(2 / 3), 0.5]
    assert calibration([1.0, 1.0], [True, True]).as_json()["auroc"] is None


@pytest.mark.parametrize("said", [[1.5], [-0.1], [math.nan], [], [0.5, 0.5]])
def test_confidences_that_are_none_are_refused(said):
    with pytest.raises(ConfigError):
        calibration(said, [True])


def test_choice_states_one_confidence_per_question_and_others_one_per_episode(episode):
    given = [
        {"chosen": "a", "confidence": 0.8, "key": "a"},
        {"chosen": "b", "confidence": None, "key": "a"},
        {"chosen": "abstained", "confidence": None, "key": "a"},
    ]
    assert stated(replace(episode(), final={"given": given})) == [(0.8, True), (None, False), (None, False)]
    assert stated(replace(episode(reward=0.0), final={"confidence": 0.3})) == [(0.3, False)]
    assert stated(episode()) == []


@pytest.mark.parametrize("said", ["0.9", True, None, math.nan, math.inf, -1, 2, [0.5], {}])
def test_a_confidence_that_is_no_share_counts_as_not_stated(episode, said):
    assert stated(replace(episode(), final={"confidence": said})) == [(None, True)]


@pytest.mark.parametrize("final", [None, 3, "given", [], {"given": "abc"}, {"given": [1, None, {}]}])
def test_a_final_state_of_another_shape_states_nothing(episode, final):
    assert stated(replace(episode(), final=final)) == []


def test_what_does_not_count_and_what_says_nothing_is_in_no_figure(episode):
    lost = replace(episode(failure=FailureKind.INFRASTRUCTURE), final={"confidence": 0.9})
    played = [replace(episode(), final={"confidence": 0.75}), replace(episode(), final={"confidence": None}), lost]
    found = calibration_of(played)
    assert found is not None
    assert (found.n, found.num_unstated, found.brier) == (1, 1, 0.0625)
    assert calibration_of([episode(), lost]) is None


def test_the_environment_that_asks_for_confidences_is_read():
    from agentgym.loop import run_sync
    from agentgym.messages import assistant, call
    from agentgym.policies.builtin import Scripted
    from agentgym.registry import make
    from agentgym.rollout.driver import Driver, Slot

    split = make("agentgym/Choice-v0", split="test", horizon=1).unwrapped.tasks.split("test")  # type: ignore[attr-defined]
    policy = Scripted([assistant("", call("answer", option="A", confidence=0.25))])
    driver = Driver("agentgym/Choice-v0", policy, run="x", env_kwargs={"split": "test", "horizon": 1})
    try:
        episodes = run_sync(driver.collect([Slot(split.id(i), 0, i, i) for i in range(20)]))
    finally:
        driver.close()
    found = calibration_of(episodes)
    assert found is not None
    assert (found.n, found.confidence) == (20, 0.25)
    assert found.accuracy == sum(e.reward_parts["right"] for e in episodes) / 20
