"""When a run is stopped: figures made up, thresholds by hand."""

from __future__ import annotations

import pytest

from agentgym.errors import ConfigError
from agentgym.learner.alarms import AlarmConfig, Alarms


def line(*, std: float = 0.3, norm: float = 1.0, entropy: float = 0.5, success: float = 0.2) -> dict:
    return {"reward_std": std, "grad_norm": norm, "entropy": entropy, "success": success}


def first_alarm(lines: list[dict], **config) -> tuple[int, str] | None:
    alarms = Alarms(AlarmConfig(**config))
    return next(((i, said) for i, each in enumerate(lines) if (said := alarms.seen(each))), None)


def test_groups_that_stop_differing_raise_an_alarm_after_so_many_updates_in_a_row():
    at, said = first_alarm([line()] * 5 + [line(std=0.005)] * 20)
    assert at == 5 + 9
    assert said.startswith("reward_std has been below 0.01 for 10 updates at success 20.0%, the last 0.005")
    assert first_alarm(([line(std=0.0)] * 9 + [line()]) * 5) is None
    assert first_alarm([line(std=0.0)] * 50, alarm_reward_std=0) is None


def test_whoever_has_learned_the_task_may_stop_varying():
    assert first_alarm([line(std=0.0, entropy=0.0, success=0.95)] * 50) is None
    assert first_alarm([line(std=0.0, success=0.95)] * 50, alarm_success=0.99)[0] == 9


def test_three_spikes_in_ten_updates_raise_an_alarm():
    calm = [line(norm=1.0 + 0.1 * (i % 3)) for i in range(20)]
    spike = line(norm=40.0)
    assert first_alarm([*calm, spike, *calm[:2], spike, *calm[:2]]) is None
    at, said = first_alarm([*calm, spike, *calm[:2], spike, *calm[:2], spike])
    assert at == 26
    assert "3 of the last 10 gradients are more than 30 times the median, the last 40" in said
    assert first_alarm([line(norm=1.0), line(norm=1e6), line(norm=1e6), line(norm=1e6)]) is None  # nothing to compare
    assert first_alarm([*calm, *[spike] * 5], alarm_gradient=0) is None


def test_a_policy_that_says_one_thing_only_raises_an_alarm():
    at, said = first_alarm([line(entropy=1e-6)] * 12, alarm_patience=4)
    assert at == 3
    assert "--alarm-entropy 0 goes on regardless" in said
    assert first_alarm([{"reward_std": 0.3, "grad_norm": 0.0, "success": 0.0}] * 50) is None  # nothing trained: unknown


@pytest.mark.parametrize("wrong", [{"alarm_patience": 0}, {"alarm_entropy": -1.0}, {"alarm_success": float("nan")}])
def test_thresholds_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        AlarmConfig(**wrong)
