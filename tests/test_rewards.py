"""Rubrics: weighted means of pure checks, and what happens where a check cannot say."""

import asyncio
import math

import pytest

from agentgym import (
    ConfigError,
    InfrastructureError,
    Outcome,
    Rubric,
    Task,
    TaskError,
    Unscored,
    answer_equals,
    assistant,
    call,
)
from agentgym.loop import run_sync


def outcome(*messages, answer="48"):
    return Outcome(Task("p", answer), None, messages)


def score(rubric, given=None):
    return run_sync(rubric.score(given or outcome()))


def test_the_reward_is_the_weighted_mean():
    rubric = Rubric(a=(lambda o: 1.0, 3), b=lambda o: 0.5, c=(lambda o: 1.0, 0))
    result = score(rubric)
    assert result.reward == (3 * 1.0 + 1 * 0.5) / 4 == 0.875
    assert result.parts == {"a": 1.0, "b": 0.5, "c": 1.0}


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.01, math.inf, "high", None])
def test_a_verdict_off_the_menu_is_a_task_error_that_names_the_verifier(bad):  # trap 25
    with pytest.raises(TaskError, match="verifier 'judge' gave"):
        score(Rubric(judge=lambda o: bad))


def test_a_verifier_that_fails_is_broken_data_not_a_zero():
    with pytest.raises(TaskError, match="verifier 'judge' failed: KeyError: 'x'"):
        score(Rubric(judge=lambda o: {}["x"]))


def test_a_broken_sandbox_stays_an_infrastructure_error():  # trap 6
    def judge(o):
        raise InfrastructureError("the sandbox is gone")

    with pytest.raises(InfrastructureError):
        score(Rubric(judge=judge))


def test_unscored_is_no_reward_and_keeps_its_reason():
    result = score(Rubric(a=lambda o: 1.0, judge=lambda o: Unscored("off the menu")))
    assert result.unscored == "judge: off the menu"
    assert result.parts == {"a": 1.0}


def test_an_async_verifier_is_awaited():
    async def slow(o):
        await asyncio.sleep(0)
        return 0.25

    rubric = Rubric(slow=slow)
    assert not rubric.is_plain
    assert score(rubric).reward == 0.25


@pytest.mark.parametrize("verifiers", [{}, {"a": (answer_equals, 0)}, {"a": (answer_equals, -1)}, {"a": 3}])
def test_a_rubric_that_cannot_judge_is_refused(verifiers):
    with pytest.raises(ConfigError):
        Rubric(**verifiers)


def test_the_answer_is_the_closing_message_and_only_that():
    assert outcome(assistant(" 48\n")).answer == "48"
    assert answer_equals(outcome(assistant(" 48\n"))) == 1.0
    assert answer_equals(outcome(assistant("48 blue"))) == 0.0
    assert outcome(assistant("48"), assistant("", call("lookup", key=1))).answer is None
    assert outcome(assistant("48", call("lookup", key=1))).answer is None
    assert outcome({"role": "assistant", "content": "48", "finish_reason": "length"}).answer is None
    assert outcome().answer is None
