"""More tokens for one message: the best of several, what most agree on, and asking again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agentgym import AgentEnv, Rubric, Task, TaskSet, tool
from agentgym.engines.local import LocalEngine
from agentgym.errors import ConfigError
from agentgym.ledger import Episode
from agentgym.loop import run_sync
from agentgym.messages import Message, assistant, call, raw_call
from agentgym.policies.compute import AGAIN, NOW, BestOf, Computed, Forced, Majority
from agentgym.policies.http import ChatPolicy, from_function
from agentgym.policies.local import LocalPolicy
from agentgym.policies.render import Renderer
from agentgym.rollout.driver import Driver, Slot

SUM = "What is 17 + 25?"


class Sum(AgentEnv):
    """One question, with a note that may be read first."""

    tasks = TaskSet({"test": [Task(SUM, str(i)) for i in range(64)]})
    rubric = Rubric(right=lambda outcome: float(outcome.messages[-1]["content"].split()[-1:] == ["42"]))
    blocking = False

    @tool
    def read(self, page: int) -> str:
        """Read a page."""
        return f"page {page}"


def played(policy: Any, env_id: str, count: int = 64) -> list[Episode]:
    tasks = Sum.tasks.split("test")
    driver = Driver(env_id, policy, run="test", env_kwargs={"split": "test"})
    try:
        return run_sync(driver.collect([Slot(tasks.id(i), 0, i, seed=i) for i in range(count)]))
    finally:
        driver.close()


def guess(messages: Sequence[Message], seed: int) -> Message:
    """Right six times in ten; elsewhere one of four wrong sums. Ten tokens each."""
    rng = np.random.default_rng(seed)
    answer = 42 if rng.random() < 0.6 else int(rng.integers(43, 47))
    return {**assistant(f"I think so.\n It is {answer}"), "num_tokens": 10}


def test_what_most_agree_on_is_right_more_often_and_costs_what_all_of_them_cost(register_env):
    env_id, one = register_env(Sum), ChatPolicy(from_function(guess))
    alone, nine = played(one, env_id), played(Computed(one, Majority(9)), env_id)
    assert 0.4 < np.mean([e.reward for e in alone]) < 0.75
    assert np.mean([e.reward for e in nine]) > 0.9  # P(42 is the plurality of nine) = 0.99
    assert {e.messages[-1]["num_tokens"] for e in alone} == {10}
    assert {e.messages[-1]["num_tokens"] for e in nine} == {90}


def test_a_verifier_picks_the_best_and_may_be_async(register_env):
    env_id, one = register_env(Sum), ChatPolicy(from_function(guess))

    async def verify(messages: Sequence[Message], message: Message) -> bool:
        assert messages[-1]["content"] == SUM
        return message["content"].endswith("42")

    assert np.mean([e.reward for e in played(Computed(one, BestOf(8, verify)), env_id)]) == 1.0
    assert np.mean([e.reward for e in played(Computed(one, BestOf(8, lambda m, said: 0.0)), env_id)]) < 0.75


@pytest.mark.parametrize("score", ["good", None, float("nan"), float("inf")])
def test_a_verifier_that_gives_no_number_is_not_the_policys_failure(register_env, score):
    one = ChatPolicy(from_function(guess))
    (episode,) = played(Computed(one, BestOf(2, lambda messages, message: score)), register_env(Sum), count=1)
    assert episode.failure is not None
    assert not episode.counts
    assert "which is no number" in episode.failure.message


def test_a_verifier_that_would_end_the_process_ends_its_episode(register_env):
    def stops(messages: Sequence[Message], message: Message) -> float:
        raise SystemExit(1)

    (episode,) = played(Computed(ChatPolicy(from_function(guess)), BestOf(2, stops)), register_env(Sum), count=1)
    assert episode.failure is not None
    assert episode.failure.message == "stops() raised SystemExit"


def test_where_one_reply_fails_the_others_are_not_waited_for(register_env):
    asked: list[int] = []

    async def says(messages: Sequence[Message], seed: int) -> str:
        asked.append(seed)
        if len(asked) % 3:  # all but the last of each three
            await asyncio.sleep(3600)
        raise RuntimeError("the server is gone")

    (episode,) = played(Computed(ChatPolicy(from_function(says)), Majority(3)), register_env(Sum), count=1)
    assert episode.failure is not None  # and not after an hour


def test_calls_agree_that_mean_the_same_however_they_are_spelt(register_env):
    spelt = iter(['{"page": 2}', '{ "page":3}', '{"page":3}', "{", "["])

    def reads(messages: Sequence[Message]) -> Message:
        return assistant("", raw_call("read", next(spelt))) if len(messages) == 1 else assistant("42")

    (episode,) = played(Computed(ChatPolicy(from_function(reads)), Majority(5)), register_env(Sum), count=1)
    assert episode.messages[2]["content"] == "page 3"


def test_only_the_chosen_reply_is_in_the_conversation_of_the_next_turn(register_env):
    seen: list[list[str]] = []

    def reads(messages: Sequence[Message], seed: int) -> Message:
        seen.append([m["role"] for m in messages])
        if len(messages) == 1:
            return assistant("", call("read", page=1 if seed % 3 else 2))
        return assistant("It is 42")

    (episode,) = played(Computed(ChatPolicy(from_function(reads)), Majority(5)), register_env(Sum), count=1)
    assert sorted(map(len, seen)) == [1] * 5 + [3] * 5
    assert {tuple(roles) for roles in seen if len(roles) == 3} == {("user", "assistant", "tool")}
    assert [m["role"] for m in episode.messages] == ["user", "assistant", "tool", "assistant"]
    assert episode.reward == 1.0


def test_a_policy_that_is_told_to_check_itself_may_change_its_mind(register_env):
    def doubts(messages: Sequence[Message]) -> str:
        return f"It is {40 + sum(m['content'] == AGAIN for m in messages)}"

    env_id, one = register_env(Sum), ChatPolicy(from_function(doubts))
    assert [played(Computed(one, Forced(n)), env_id, count=1)[0].reward for n in (1, 2, 3)] == [0.0, 1.0, 0.0]


def test_a_thought_that_ran_out_of_tokens_is_asked_for_its_answer(register_env):
    def rambles(messages: Sequence[Message]) -> Message:
        if messages[-1]["content"] == NOW:
            return {**assistant("42"), "num_tokens": 1, "finish_reason": "stop"}
        return {**assistant("well, 17 and"), "num_tokens": 50, "finish_reason": "length"}

    (episode,) = played(Computed(ChatPolicy(from_function(rambles)), Forced(1)), register_env(Sum), count=1)
    assert episode.reward == 1.0
    assert episode.messages[-1]["num_tokens"] == 101  # 50, 50 after the check, 1


def test_a_local_model_can_be_wrapped_and_says_the_same_again(load, tokenizer, register_env):
    def votes(n: int) -> list[Episode]:
        policy = LocalPolicy(LocalEngine(load("llama")), Renderer(tokenizer), temperature=0.7, max_tokens=6)
        return played(Computed(policy, Majority(n)), register_env(Sum), count=6)

    first, again, one = votes(4), votes(4), votes(1)
    assert [e.messages for e in first] == [e.messages for e in again]
    assert all(e.ledger is None and e.failure is None for e in first)
    assert sum(e.messages[-1]["num_tokens"] for e in first) > 2 * sum(e.messages[-1]["num_tokens"] for e in one)
    policy = LocalPolicy(LocalEngine(load("llama")), Renderer(tokenizer), temperature=0.7, max_tokens=6)
    read = [e.tokens.prompt for e in played(policy, "test/Sum-v0", count=6)]
    assert [e.tokens.prompt for e in one] == read
    assert [e.tokens.prompt for e in first] == [4 * tokens for tokens in read]


def test_nonsense_is_refused():
    one = ChatPolicy(from_function(guess))
    with pytest.raises(ConfigError, match="Majority with n 0"):
        Computed(one, Majority(0))
    with pytest.raises(ConfigError, match="Forced with again 0"):
        Computed(one, Forced(0))
