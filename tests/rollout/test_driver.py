"""Episodes through real environments: who waits, who is played again, who counts, and that arrival decides nothing."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from agentgym import AgentEnv, Rubric, Task, TaskSet, Unscored, tool
from agentgym.engines.local import LocalEngine
from agentgym.errors import ConfigError, FailureKind, InfrastructureError, PolicyError, StoreError, TaskError
from agentgym.learner.audit import audit
from agentgym.learner.selection import Selected, SelectionConfig, select
from agentgym.ledger import Episode, Source, StopReason
from agentgym.loop import event_loop, run_sync
from agentgym.messages import assistant, call, raw_call
from agentgym.policies.builtin import Scripted, builtin
from agentgym.policies.local import LocalPolicy
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat, written_ledger
from agentgym.rollout import driver
from agentgym.rollout.driver import Driver, Slot, derive_seed
from agentgym.rollout.store import Store

TASKS = TaskSet({"train": [Task(f"Task {i}.", i, metadata={"horizon": 1 + i % 3}) for i in range(24)]})
said_yes = Rubric(said=lambda outcome: float(any(m["content"] == "yes" for m in outcome.messages)))


def slots(count: int, group_size: int = 1) -> list[Slot]:
    return [Slot(TASKS.split("train").id(i // group_size), i % group_size, i // group_size, 7) for i in range(count)]


def play(env_id: str, policy: Any, planned: list[Slot], **options: Any) -> list[Episode]:
    driver = Driver(env_id, policy, **{"run": "train"} | options)
    try:
        return run_sync(asyncio.wait_for(driver.collect(planned), 60))
    finally:
        driver.close()


@pytest.fixture
def speaker(load, tokenizer) -> Callable[..., LocalPolicy]:
    """A policy that samples; every fourth token ends its reply, so that few replies are cut."""

    def made(*, in_step: bool = True) -> LocalPolicy:
        engine = LocalEngine(load("llama"), in_step=in_step)
        policy = LocalPolicy(engine, Renderer(tokenizer), chat=ChatFormat(tools="hidden"), max_tokens=60)
        policy.sampling = replace(policy.sampling, stop_ids=tuple(range(0, len(tokenizer), 4)))
        return policy

    return made


@pytest.fixture
def sampled(speaker) -> LocalPolicy:
    return speaker()


# -- whose fault it is -------------------------------------------------------------------------------------------------


class Faulty(AgentEnv):
    """Task i is worth i % 2. Whatever i % 4 is, the sandbox of half of the tasks breaks: for good, or only once."""

    tasks = TASKS
    rubric = Rubric(worth=lambda outcome: float(outcome.task.answer % 2))
    made: ClassVar[list[Faulty]] = []
    plays: ClassVar[Counter[int]] = Counter()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made.append(self)

    def setup(self) -> None:
        self.plays[self.task.answer] += 1

    def respond(self, message: Any) -> str | None:
        if self.num_turns < 2:
            return "Go on."
        if self.task.answer >= 18 or (self.task.answer >= 12 and self.plays[self.task.answer] == 1):
            raise InfrastructureError("the container is gone")
        return None


@pytest.fixture
def faulty(register_env) -> str:
    Faulty.made.clear()
    Faulty.plays.clear()
    return register_env(Faulty)


def test_trap_40_broken_infrastructure_is_played_again_and_never_a_reward_of_zero(faulty):
    episodes = play(faulty, Scripted(["yes", "yes"]), slots(24), retries=2, concurrency=6)
    lost = [e for e in episodes if e.failure is not None]
    assert [e.failure.kind for e in lost] == [FailureKind.INFRASTRUCTURE] * 6
    assert (lost[0].failure.cause, lost[0].failure.message) == ("InfrastructureError", "the container is gone")
    assert {e.stop_reason for e in lost} == {StopReason.FAILED}
    assert dict(Faulty.plays) == {i: 1 if i < 12 else 2 if i < 18 else 3 for i in range(24)}
    # Worth 1 are 9 of the 18 that were played, so that the estimate is right; with zeros it would be 9 of 24.
    figures = audit(episodes, Selected([None] * 24, 0, 0, 0.0), version=0, trained=0)
    assert figures["reward_mean"] == figures["success"] == 0.5
    assert figures["coverage"] == 18 / 24
    assert figures["failures"] == {"infrastructure": 6}


def test_a_failed_episode_is_played_again_in_a_fresh_environment(faulty):
    play(faulty, Scripted(["yes", "yes"]), slots(24), retries=2, concurrency=6)
    assert len(Faulty.made) == 6 + 6 * 1 + 6 * 2
    assert all(env._closed for env in Faulty.made)


def test_without_retries_a_failure_is_recorded_at_once(faulty):
    episodes = play(faulty, Scripted(["yes", "yes"]), slots(24), retries=0)
    assert sum(e.failure is not None for e in episodes) == 12
    assert set(Faulty.plays.values()) == {1}


def test_trap_45_a_retry_is_the_same_attempt_and_leaves_one_record_of_one_play(faulty, sampled, run_path):
    with Store(run_path) as store:
        episodes = play(faulty, sampled, slots(16), store=store, concurrency=16)
        assert len(list(store.episodes())) == 16
    assert [Faulty.plays[i] for i in (11, 12, 13, 14, 15)] == [1, 2, 2, 2, 2]
    for e in episodes:  # the ledger of one play, the last
        assert [s.source for s in e.ledger] == [Source.OBSERVED, Source.SAMPLED] * 2
        assert len(e.messages) == 4


def test_trap_41_a_group_that_lost_a_member_is_left_out_whole(faulty, sampled):
    # Tasks 0 and 1 never fail; 12 and 13 fail once, for whoever comes first, and are mended by a retry; 18 is lost.
    groups = [0, 1, 12, 13, 18]
    planned = [Slot(TASKS.split("train").id(g), k, g, 7) for g in groups for k in range(3)]
    trajectories = select(play(faulty, sampled, planned), "leave_one_out", SelectionConfig()).trajectories
    assert [t is not None for t in trajectories] == [True] * 12 + [False] * 3


class Sided(AgentEnv):
    """The sandbox of a group's second member breaks, always."""

    tasks = TASKS
    rubric = Rubric(worth=lambda outcome: outcome.final)
    max_turns, blocking = 1, False
    count: ClassVar[Counter[int]] = Counter()

    def respond(self, message: Any) -> str:
        return "Go on."

    def final(self) -> float:
        self.count[self.task.answer] += 1
        if self.task.answer == 1 and self.count[1] == 2:
            raise InfrastructureError("the container is gone")
        if self.task.answer == 2 and self.count[2] == 2:
            raise PolicyError("out of memory by its own code")
        return [1.0, 0.0, 0.0, 1.0][(self.count[self.task.answer] - 1) % 4]


def test_trap_41_what_survives_a_broken_group_is_not_taught_and_a_policys_failure_is(register_env, sampled):
    Sided.count.clear()
    episodes = play(register_env(Sided), sampled, slots(12, group_size=4), concurrency=1, retries=0)
    trajectories = select(episodes, "leave_one_out", SelectionConfig()).trajectories
    # group 0: [1, 0, 0, 1]: the others' means are 1/3, 2/3, 2/3, 1/3
    assert [round(float(t.advantages[0]), 4) for t in trajectories[:4]] == [0.6667, -0.6667, -0.6667, 0.6667]
    # group 1 lost its second member: none is taught, though [1, -, 0, 1] would have looked like a lesson
    assert trajectories[4:8] == [None] * 4
    assert [e.failure.kind for e in episodes if e.failure] == [FailureKind.INFRASTRUCTURE, FailureKind.POLICY]
    # group 2: the second failed by itself, counts as 0 and trains: [1, 0, 0, 1] again
    assert [round(float(t.advantages[0]), 4) for t in trajectories[8:]] == [0.6667, -0.6667, -0.6667, 0.6667]


class Blamed(AgentEnv):
    """Fails in the way the task names."""

    tasks = TaskSet({"train": [Task(name) for name in ("policy", "task", "bug", "unscored", "none")]})
    rubric = Rubric(judged=lambda outcome: Unscored("no tests") if outcome.task.prompt == "unscored" else 1.0)
    plays: ClassVar[Counter[str]] = Counter()

    def setup(self) -> None:
        self.plays[self.task.prompt] += 1
        if self.task.prompt == "task":
            raise TaskError("no such file")

    def respond(self, message: Any) -> None:
        if self.task.prompt == "policy":
            raise PolicyError("out of memory by its own code")
        if self.task.prompt == "bug":
            raise ZeroDivisionError("division by zero")


def test_only_what_is_ours_is_played_again(register_env):
    Blamed.plays.clear()
    split = Blamed.tasks.split("train")
    planned = [Slot(split.id(i), 0, i, 0) for i in range(len(split))]
    episodes = play(register_env(Blamed), Scripted(["yes"]), planned, retries=2)
    found = [(None if e.failure is None else str(e.failure.kind), e.counts, e.reward) for e in episodes]
    assert found == [
        ("policy", True, 0.0),
        ("task", False, 0.0),
        ("infrastructure", False, 0.0),  # an author's bug is nobody's wrong answer
        ("task", False, 0.0),
        (None, True, 1.0),
    ]
    assert dict(Blamed.plays) == {"policy": 1, "task": 1, "bug": 3, "unscored": 1, "none": 1}
    assert episodes[2].failure.cause == "ZeroDivisionError"


# -- why an episode ended ----------------------------------------------------------------------------------------------


class Ends(AgentEnv):
    tasks = TASKS
    rubric = Rubric(half=lambda outcome: 0.5)
    max_turns = 3

    def respond(self, message: Any) -> str | None:
        return None if message["content"] == "answer" else "Go on."

    @tool
    def leave(self) -> str:
        """Leave."""
        self.end()
        return "Left."


def cut(reason: str) -> Any:
    return {**assistant("half a sen"), "finish_reason": reason, "num_tokens": 5}


@pytest.mark.parametrize(
    ("script", "kwargs", "reason", "terminated", "turns"),
    [
        (["no", "answer"], {}, StopReason.ANSWERED, True, 2),
        (["no", assistant("", call("leave"))], {}, StopReason.ENDED, True, 2),
        (["no"] * 9, {}, StopReason.MAX_TURNS, False, 3),
        (["no", cut("length")], {}, StopReason.MAX_TOKENS, False, 2),
        (["no", cut("context")], {}, StopReason.CONTEXT, False, 2),
        ([{**assistant("no"), "num_tokens": 6}] * 9, {"max_tokens": 12}, StopReason.MAX_TOKENS, False, 2),
        (["no"] * 9, {"max_time_s": 1e-9}, StopReason.MAX_TIME, False, 1),
    ],
)
def test_trap_43_every_end_is_named_judged_and_truncated_only_by_a_limit(
    register_env, run_path, script, kwargs, reason, terminated, turns
):
    with Store(run_path) as store:
        (episode,) = play(register_env(Ends), Scripted(script), slots(1), env_kwargs=kwargs, store=store)
        (stored,) = store.episodes()
    for e in (episode, stored):
        assert (e.stop_reason, e.terminated, e.truncated) == (reason, terminated, not terminated)
        assert (e.reward, e.failure, len(e.turns)) == (0.5, None, turns)  # a limit is judged as it stands: kept, not 0


# -- parallel calls ----------------------------------------------------------------------------------------------------


class Slow(AgentEnv):
    tasks = TASKS
    rubric = said_yes

    @tool
    async def slow(self) -> str:
        """Take your time."""
        await asyncio.sleep(0.05)
        return "slow result"

    @tool
    def quick(self) -> str:
        """At once."""
        return "quick result"


@pytest.mark.parametrize("syntax", ["hermes", "xml", "react", "code"])
def test_trap_8_results_of_parallel_calls_keep_the_order_of_the_calls_to_the_last_token(
    register_env, tokenizer, syntax
):
    calls = assistant("", raw_call("slow", "{}", "call_0"), raw_call("quick", "{}", "call_1"))
    (episode,) = play(register_env(Slow), Scripted([calls, "yes"]), slots(1))
    assert [m["content"] for m in episode.messages if m["role"] == "tool"] == ["slow result", "quick result"]
    assert [m["tool_call_id"] for m in episode.messages if m["role"] == "tool"] == ["call_0", "call_1"]
    ledger = written_ledger(episode.messages, Renderer(tokenizer), ChatFormat(syntax, tools="hidden"), None)
    (row,) = ledger.rows()
    text = tokenizer.decode(row.ids)
    first_call, second_call = text.index("slow"), text.index("quick")
    assert first_call < second_call < text.index("slow result") < text.index("quick result") < text.index("yes")
    observed = tokenizer.decode(row.ids[~row.written])
    assert observed.index("slow result") < observed.index("quick result")


# -- determinism -------------------------------------------------------------------------------------------------------


class Sleepy(AgentEnv):
    """Answers from a thread of its own, at a time nobody knows."""

    tasks = TASKS
    rubric = said_yes
    max_turns, blocking = 4, True
    clock = random.SystemRandom()
    most_s = 0.004

    def respond(self, message: Any) -> str | None:
        time.sleep(self.clock.random() * self.most_s)
        letters = len(message["content"])
        return (
            None if letters % 4 == 0 and self.num_turns > 1 else f"{letters} letters, {self.np_random.integers(1000)}."
        )


class Swift(Sleepy):
    most_s, blocking = 0.0, False


class Foreign(gymnasium.Wrapper):
    """Somebody else's wrapper, which knows the sync face only."""

    steps: ClassVar[list[int]] = []

    def step(self, action: Any) -> Any:
        self.steps.append(threading.get_ident())
        return self.env.step(action)


def ledgers(episodes: list[Episode]) -> list[tuple]:
    assert [e.failure for e in episodes] == [None] * len(episodes)
    assert len({len(e.turns) for e in episodes}) == 3  # of several lengths, so that who shares a batch changes
    return [e.ledger.fingerprint() for e in episodes]


def test_trap_42_the_same_plan_gives_the_same_ledgers_whenever_answers_arrive(register_env, speaker):
    def played() -> list[tuple]:
        return ledgers(play(register_env(Sleepy), speaker(), slots(48, 2), concurrency=11))

    assert played() == played()


def test_trap_42_more_seats_than_episodes_and_another_face_change_nothing(register_env, speaker):
    name = register_env(Swift)

    def played(env_id: str, concurrency: int) -> list[tuple]:
        return ledgers(play(env_id, speaker(), slots(24), concurrency=concurrency))

    reference = played(name, 24)
    assert played(name, 200) == reference
    gymnasium.registry[name].entry_point = Sleepy  # through threads
    assert played(name, 24) == reference
    gymnasium.registry[name].entry_point = lambda **kwargs: Foreign(Swift(**kwargs))  # through the sync face
    Foreign.steps.clear()
    assert played(name, 24) == reference
    assert len(Foreign.steps) > 24


def test_fewer_seats_give_the_same_tokens_up_to_rounding(register_env, speaker):
    def played(concurrency: int) -> list[Episode]:
        return play(register_env(Swift), speaker(), slots(24), concurrency=concurrency)

    for many, one in zip(played(24), played(1), strict=True):
        (a,), (b,) = many.ledger.rows(), one.ledger.rows()
        assert a.ids.tolist() == b.ids.tolist()
        assert np.abs(a.logprobs - b.logprobs).max() < 1e-4


def test_out_of_step_nothing_is_lost(register_env, speaker):
    episodes = play(register_env(Sleepy), speaker(in_step=False), slots(48, 2), concurrency=11)
    assert [(e.task_id, e.attempt) for e in episodes] == [(s.task_id, s.attempt) for s in slots(48, 2)]
    assert all(e.failure is None and e.ledger.num_sampled for e in episodes)


def test_a_seed_is_the_slots_and_shared_by_its_group(register_env, sampled):
    split, again = slots(12, 3), slots(12, 3)
    first, second = (play(register_env(Swift), sampled, planned) for planned in (split, again))
    assert [e.ledger for e in first] == [e.ledger for e in second]
    prompts = [e.messages[0]["content"] for e in first]
    assert prompts == [f"Task {i // 3}." for i in range(12)]
    assert {e.seed for e in first} == {7}
    assert len({e.ledger.fingerprint() for e in first}) == 12  # the same episode, other tokens


def test_seeds_are_the_same_on_every_machine_and_differ_by_every_part():
    assert derive_seed(0, "episode", 3, "train:a") == 323181789971144398
    parts = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), ("0", "a", 1), (0, "a1")]
    assert len({derive_seed(*p) for p in parts}) == len(parts)
    assert all(0 <= derive_seed(i) < 2**63 for i in range(100))


# -- threads and faces -------------------------------------------------------------------------------------------------


class Blocking(AgentEnv):
    """Ten steps of 50 ms in which its thread can do nothing else."""

    tasks = TASKS
    rubric = said_yes
    threads: ClassVar[dict[int, set[int]]] = {}
    at_once = 0
    most = 0
    lock = threading.Lock()

    def setup(self) -> None:
        self.threads.setdefault(id(self), set()).add(threading.get_ident())

    def respond(self, message: Any) -> str | None:
        self.threads[id(self)].add(threading.get_ident())
        with self.lock:
            type(self).at_once += 1
            type(self).most = max(self.most, self.at_once)
        time.sleep(0.05)
        with self.lock:
            type(self).at_once -= 1
        return "Go on." if self.num_turns < 10 else None


def test_blocking_environments_overlap_keep_one_thread_each_and_leave_the_loop_free(register_env):
    Blocking.threads.clear()
    lags: list[float] = []

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            lags.append(time.perf_counter() - start - 0.01)

    watcher = asyncio.run_coroutine_threadsafe(watch(), event_loop())
    try:
        planned = [Slot(TASKS.split("train").id(i % 24), i // 24, i, i) for i in range(72)]
        episodes = play(register_env(Blocking), Scripted(["no"] * 10), planned, concurrency=64)
    finally:
        watcher.cancel()
    assert [len(e.turns) for e in episodes] == [10] * 72
    assert Blocking.most >= 48  # of 64 that sleep at once
    assert max(lags) < 1.0
    assert [len(found) for found in Blocking.threads.values()] == [1] * 64
    assert len(set.union(*Blocking.threads.values())) == 64


def test_async_environments_need_no_thread(register_env):
    before = threading.active_count()
    seen: list[int] = []

    class Watching(Scripted):
        def begin(self, env: Any, *, seed: int) -> Any:
            seen.append(threading.active_count())
            return super().begin(env, seed=seed)

    calls = assistant("", raw_call("slow", "{}", "call_0"))
    episodes = play(register_env(Slow), Watching([calls, "yes"]), slots(24))
    assert {e.reward for e in episodes} == {1.0}
    assert max(seen) <= before + 1  # the loop's own


def test_a_foreign_wrapper_is_never_passed_by(register_env):
    name = register_env(Slow)
    gymnasium.registry[name].entry_point = lambda **kwargs: Foreign(Slow(**kwargs))
    Foreign.steps.clear()
    calls = assistant("", raw_call("slow", "{}", "call_0"))
    episodes = play(name, Scripted([calls, "yes"]), slots(6))
    assert {e.reward for e in episodes} == {1.0}
    assert len(Foreign.steps) == 12
    assert len(set(Foreign.steps)) == 6


# -- bookkeeping -------------------------------------------------------------------------------------------------------


def test_episodes_come_back_in_the_order_of_their_slots_with_all_that_is_known(register_env, run_path):
    with Store(run_path) as store:
        told: list[Episode] = []
        driver = Driver(register_env(Sleepy), Scripted(["yes"] * 4), run="before", store=store, concurrency=5)
        episodes = run_sync(driver.collect(slots(24), update=3, on_episode=told.append))
        driver.close()
        driver.close()
        assert {e.key for e in store.episodes()} == {e.key for e in told} == {e.key for e in episodes}
        assert len(store.tasks()) == 24
    assert [e.task_id for e in episodes] == [s.task_id for s in slots(24)]
    e = episodes[4]
    assert (e.run, e.update, e.group, e.split, e.env_id, e.env_version) == (
        "before",
        3,
        4,
        "train",
        "test/Sleepy-v0",
        "v0",
    )
    assert (e.metadata, e.reward_parts, e.ledger, len(e.turns)) == ({"horizon": 2}, {"said": 1.0}, None, 4)
    assert all(turn.env_s >= 0 and turn.policy_s >= 0 for turn in e.turns)


def test_every_session_is_closed_when_its_episode_is_over(register_env, sampled, faulty):
    for name in (register_env(Swift), faulty):
        play(name, sampled, slots(24), concurrency=5)
        assert sampled.engine._sessions == {}


def test_a_driver_that_is_stopped_keeps_what_was_finished_and_can_go_on(register_env, sampled, run_path):
    with Store(run_path) as store:
        driver = Driver(register_env(Swift), sampled, run="train", store=store, concurrency=4)

        async def stopped() -> None:
            finished = asyncio.Event()
            playing = asyncio.ensure_future(driver.collect(slots(24), on_episode=lambda _: finished.set()))
            await finished.wait()
            playing.cancel()
            await asyncio.wait([playing])
            assert playing.cancelled()

        run_sync(stopped())
        assert sampled.engine._sessions == {}
        kept = store.keys("train")
        assert 1 <= len(kept) < 24
        rest = [s for s in slots(24) if (0, s.task_id, s.attempt) not in kept]
        run_sync(asyncio.wait_for(driver.collect(rest), 60))
        driver.close()
        assert len(store.keys("train")) == 24


def test_a_store_that_refuses_stops_the_driver_and_frees_the_engine(register_env, sampled, run_path):
    with Store(run_path) as store:
        play(register_env(Swift), sampled, slots(3), store=store)
        with pytest.raises(StoreError, match="already finished"):
            play(register_env(Swift), sampled, slots(24), store=store, concurrency=4)
    assert sampled.engine._sessions == {}
    assert len(play(register_env(Swift), sampled, slots(3))) == 3


def test_an_environment_without_messages_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"CartPole-v1 is no agentgym\.AgentEnv"):
        play("CartPole-v1", builtin("nop"), slots(1))


def test_no_concurrency_is_refused():
    with pytest.raises(ConfigError, match="concurrency is 0"):
        Driver("agentgym/Door-v0", builtin("nop"), run="x", concurrency=0)


def test_nothing_to_play_is_nothing(register_env, sampled):
    assert play(register_env(Swift), sampled, []) == []


def test_turns_that_never_wait_leave_the_loop_to_others(register_env, monkeypatch):
    monkeypatch.setattr(driver, "PASS_S", 0.0)  # every pass has taken too long: one turn each

    class Chatty(AgentEnv):
        tasks = TASKS
        rubric = Rubric(nothing=lambda outcome: 0.0)
        blocking = False

        def respond(self, message: Any) -> str:
            return "Go on."

    async def counted() -> tuple[int, int]:
        passes, done = 0, False

        async def others() -> None:
            nonlocal passes
            while not done:
                passes += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        played = Driver(register_env(Chatty), Scripted(["yes"] * 9), run="x", env_kwargs={"max_turns": 9})
        episodes = await played.collect(slots(20))
        done = True
        await other
        played.close()
        return passes, sum(len(e.turns) for e in episodes)

    passes, turns = run_sync(counted())
    assert turns == 180
    assert passes >= turns


def test_a_long_quiet_time_gives_no_flood_a_wider_gate(monkeypatch):
    monkeypatch.setattr(driver, "PASS_S", 60.0)
    gate = driver._Turnstile()

    async def quiet_then_flood() -> int:
        for _ in range(500):
            await gate.passed()  # one at a time, quickly
        return gate._batch

    assert run_sync(quiet_then_flood()) == 1


class Generous(AgentEnv):
    """Overrides what the base class guards: its reward is no number."""

    tasks = TASKS
    rubric = said_yes
    blocking = False

    async def astep(self, action: Any) -> Any:
        observation, _, *rest = await super().astep(action)
        return observation, float("inf"), *rest


def test_a_reward_that_is_no_number_is_the_tasks_fault_and_ends_no_run(register_env):
    (episode,) = play(register_env(Generous), Scripted(["yes"]), slots(1))
    assert episode.failure is not None
    assert (episode.failure.kind, episode.reward) == (FailureKind.TASK, 0.0)
    assert "gave the reward inf" in episode.failure.message
