"""The controls of a claim: what the learner is told in place of the task's reward."""

from __future__ import annotations

from dataclasses import replace

from agentgym.learner.controls import is_well_formed, taught
from agentgym.ledger import Episode, StopReason, Turn
from agentgym.messages import Message, assistant, call, raw_call, user


def episode(*said: Message, seed: int = 0, reward: float = 0.25) -> Episode:
    messages = (user("open the door"), *said)
    return Episode(
        run="train", update=0, task_id="t", split="train", group=0, attempt=0, seed=seed, ledger=None,
        env_id="test/Door-v0", env_version="0", reward_parts={}, truncated=False,
        messages=messages, turns=tuple(Turn(reward / len(said), None) for _ in said), reward=reward, terminated=True,
        stop_reason=StopReason.ANSWERED,
    )  # fmt: skip


def test_the_environments_own_reward_is_left_alone():
    played = [episode(assistant("it is 7"), seed=seed) for seed in range(3)]
    assert taught(played, "environment") == played


def test_a_coin_is_thrown_per_attempt_and_falls_the_same_way_again():
    one = episode(assistant("it is 7"), seed=5)  # a group's members have one task and one seed
    played = [replace(one, attempt=attempt) for attempt in range(400)]
    rewards = [e.reward for e in taught(played, "random")]
    assert set(rewards) == {0.0, 1.0}
    assert 160 < sum(rewards) < 240
    assert [e.reward for e in taught(played, "random")] == rewards


def test_a_control_is_paid_at_the_end_only():
    (told,) = taught([episode(assistant("", call("look")), assistant("it is 7"))], "format")
    assert told.reward == 1.0
    assert [turn.reward for turn in told.turns] == [0.0, 0.0]


def test_format_asks_how_a_thing_was_said_and_not_what():
    assert is_well_formed(episode(assistant("", call("no_such_tool", x=1)), assistant("wrong")))
    assert not is_well_formed(episode(assistant("", raw_call("look", "{x: 1")), assistant("7")))
    assert not is_well_formed(episode(assistant("", raw_call("look", "[1]")), assistant("7")))
    assert not is_well_formed(episode(assistant("", raw_call("look", "{}", error="no closing tag")), assistant("7")))
    assert not is_well_formed(episode(assistant("  ")))
    assert not is_well_formed(episode({**assistant("it is"), "finish_reason": "length"}))
    assert not is_well_formed(replace(episode(assistant("7")), messages=(user("open the door"),)))
