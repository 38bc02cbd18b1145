"""The loop on a real environment, engine and store: resumed to the bit, stopped by its audit, nothing twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from agentgym import AgentEnv, Rubric, Task, TaskSet
from agentgym.engines.causal import CausalLM
from agentgym.engines.local import LocalEngine
from agentgym.errors import ConfigError, InfrastructureError
from agentgym.learner.alarms import AlarmConfig
from agentgym.learner.audit import AuditError
from agentgym.learner.checkpoint import Checkpoints, weights_hash
from agentgym.learner.loop import LoopConfig, Trainer
from agentgym.learner.metrics import MetricsLog, read_metrics
from agentgym.learner.sampler import CurriculumConfig, Sampler
from agentgym.learner.selection import SelectionConfig
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig
from agentgym.loop import run_sync
from agentgym.policies.local import LocalPolicy
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat
from agentgym.rollout.driver import Driver
from agentgym.rollout.store import Store

CONFIG = LoopConfig(updates=4, groups=4, group_size=4, minibatches=2, checkpoint_every=2)


class Letters(AgentEnv):
    """Three turns; what is said in the first decides the state, and letters are rewarded."""

    tasks = TaskSet({"train": [Task(f"Say {i}.", i, metadata={"horizon": 1 + i % 2}) for i in range(40)]})
    rubric = Rubric(letters=lambda outcome: sum(map(str.isalpha, _said(outcome))) / max(1, len(_said(outcome))))
    max_turns, blocking = 3, False
    broken: ClassVar[set[int]] = set()

    def setup(self) -> None:
        if self.task.answer in self.broken:
            raise InfrastructureError("the container is gone")

    def respond(self, message: Any) -> str:
        return f"{len(message['content'])} letters."

    def state_key(self) -> str:
        return str(len(self.messages[1]["content"]) % 3)


def _said(outcome: Any) -> str:
    return "".join(m["content"] for m in outcome.messages if m["role"] == "assistant")


@dataclass
class Run:
    """All that one process has, over a folder that outlives it."""

    folder: Path
    lm: Any
    tokenizer: Any
    env_id: str
    config: LoopConfig = CONFIG
    learner_class: type[Learner] = Learner
    split: Any = field(default_factory=lambda: Letters.tasks.split("train"))
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    alarms: AlarmConfig = field(default_factory=lambda: AlarmConfig(alarm_gradient=0.0))

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "run.sqlite")
        self.engine = LocalEngine(self.lm)
        renderer = Renderer(self.tokenizer)
        self.policy = LocalPolicy(self.engine, renderer, chat=ChatFormat(tools="hidden"), max_tokens=40)
        stops = tuple(range(0, len(self.tokenizer), 4))  # most replies end before they are cut
        self.policy.sampling = replace(self.policy.sampling, stop_ids=stops)
        steps = self.config.updates * self.config.minibatches
        lm = CausalLM(deepcopy(self.lm.model)) if self.config.staleness else self.lm
        self.learner = self.learner_class(
            lm, OptimizerConfig(lr=1e-3), total_steps=steps, anchored=self.objective.needs_reference
        )
        self.driver = Driver(self.env_id, self.policy, run="train", store=self.store, retries=0)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")

    async def go(self, on_update: Any = None) -> None:
        done, progress = self.checkpoints.load(self.learner) or (0, {})
        self.store.reopen("train", from_update=done + len(progress.get("ahead", [])))
        metrics = MetricsLog(self.folder / "metrics.jsonl", updates_done=done)
        self.learner.publish(self.lm)
        sampler = Sampler(self.split, self.curriculum, seed=3)
        await Trainer(
            self.driver, self.policy, self.lm, self.learner, sampler, self.config, self.objective, self.checkpoints,
            metrics, progress, selection=self.selection, alarms=self.alarms, on_update=on_update,
        ).run(done)  # fmt: skip

    def end(self) -> tuple[str, list[tuple], list[dict[str, Any]]]:
        """Close, and what came of it: weights, episodes, and the metrics that are not times."""
        self.driver.close()
        self.engine.shutdown()
        episodes = sorted((e.key, e.reward, e.ledger.fingerprint()) for e in self.store.episodes())
        self.store.close()
        lines = [
            {k: v for k, v in r.items() if "seconds" not in k} for r in read_metrics(self.folder / "metrics.jsonl")
        ]
        return weights_hash(self.lm), episodes, lines


@pytest.fixture
def run(load, tokenizer, register_env, tmp_path):
    Letters.broken.clear()

    def started(name: str = "run", **options: Any) -> Run:
        (tmp_path / name).mkdir(exist_ok=True)
        return Run(tmp_path / name, load("llama"), tokenizer, register_env(Letters), **options)

    return started


class Stop(Exception):
    pass


# -- resumed -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def uninterrupted(run) -> tuple:
    whole = run("whole")
    run_sync(whole.go())
    return whole.end()


@pytest.mark.parametrize("stops_after", [1, 2, 3])
def test_trap_47_a_run_stopped_between_updates_goes_on_bit_for_bit(run, uninterrupted, stops_after):
    def stop(line: dict[str, Any]) -> None:
        if line["update"] + 1 == stops_after:
            raise Stop

    first = run()
    with pytest.raises(Stop):
        run_sync(first.go(stop))
    assert len(first.end()[2]) == stops_after
    second = run()
    run_sync(second.go())
    assert second.end() == uninterrupted


def test_trap_46_a_run_stopped_in_mid_update_plays_it_again_whole(run, uninterrupted):
    first = run()

    async def cut_short() -> None:
        going = asyncio.ensure_future(first.go())
        while not {update for update, *_ in first.store.keys("train")} >= {0, 1}:
            await asyncio.sleep(0)
        going.cancel()
        await asyncio.wait([going])

    run_sync(cut_short())
    weights, episodes, lines = first.end()
    assert 16 < len(episodes) < 32  # of update 1, some were finished
    assert len(lines) == 1
    second = run()
    run_sync(second.go())
    assert second.end() == uninterrupted
    assert weights != uninterrupted[0]
    assert Counter(key[1] for key, *_ in uninterrupted[1]) == dict.fromkeys(range(4), 16)  # none lost, none twice


class Tripping(Learner):
    """Fails at its fourth step: between the two of an update."""

    def step(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.version == 3:
            raise Stop
        return super().step(*args, **kwargs)


def test_trap_46_half_an_update_is_never_saved(run, uninterrupted):
    first = run(learner_class=Tripping)
    with pytest.raises(Stop):
        run_sync(first.go())
    assert first.learner.version == 3
    first.end()
    second = run()
    run_sync(second.go())
    assert second.end() == uninterrupted


def test_the_same_seed_gives_the_same_run(run, uninterrupted):
    again = run("again")
    run_sync(again.go())
    assert again.end() == uninterrupted


def test_a_finished_run_that_is_resumed_does_nothing(run, uninterrupted):
    again = run("whole")
    run_sync(again.go())
    assert again.end() == uninterrupted


def test_trap_47_killed_at_ten_random_moments_a_run_goes_on_to_the_same_weights(model_folder, tmp_path):
    """Each time in a process of its own, killed by signal 9 and started again."""
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), model_folder("llama"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    whole, *cut = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cut) == 10
    assert len({each["killed_in"] for each in cut}) >= 4  # updates in whose midst the kill came
    for each in cut:
        assert each["weights"] == whole["weights"]
        assert each["episodes"] == whole["episodes"] == 8 * 16
        assert each["ledgers"] == whole["ledgers"]
        assert each["lines"] == list(range(8))


# -- what an update is -------------------------------------------------------------------------------------------------


def test_trap_21_every_token_is_sampled_under_the_weights_it_trains(run, uninterrupted):
    _, episodes, lines = uninterrupted
    for (_, update, *_), _, segments in episodes:
        versions = {version for *_, version, _, logprobs in segments if logprobs is not None}
        assert versions == {2 * update}  # two optimiser steps per update
    for line in lines:
        assert list(line["staleness"]) == ["0"]
        assert line["mismatch_max"] < 1e-4
        assert line["coverage"] == 1.0
        assert line["episodes"] == 16
    assert [line["update"] for line in lines] == [0, 1, 2, 3]
    assert any(line["kl_k3"] > 0 for line in lines)  # the second step's data are a step old


def test_a_few_updates_teach_a_random_model(run):
    config = LoopConfig(updates=24, groups=8, group_size=6, minibatches=1, checkpoint_every=100)
    learning = run(config=config)
    learning.policy.sampling = replace(learning.policy.sampling, max_tokens=3, stop_ids=())
    run_sync(learning.go())
    rewards = [line["reward_mean"] for line in learning.end()[2]]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


@pytest.mark.parametrize("credit", ["leave_one_out", "grpo", "outcome_mean", "same_state"])
@pytest.mark.parametrize("objective", ["ppo_clip", "reinforce"])
def test_every_credit_goes_with_every_objective(run, credit, objective):
    made = run(f"{credit}-{objective}", config=replace(CONFIG, updates=1, credit=credit))
    before = weights_hash(made.lm)
    run_sync(made.go())
    weights, _, (line,) = made.end()
    assert weights != before
    assert 0 < line["tokens_trained"] <= line["tokens_sampled"]


@pytest.mark.parametrize("credit", ["leave_one_out", "same_state"])
def test_trap_41_an_update_most_of_which_failed_stops_the_run_and_teaches_nothing(run, credit):
    Letters.broken.update(range(4))  # the tasks of update 0
    made = run(config=replace(CONFIG, updates=2, credit=credit))
    before = weights_hash(made.lm)
    with pytest.raises(AuditError, match="16 of 16 episodes failed"):
        run_sync(made.go())
    assert weights_hash(made.lm) == before


def test_trap_41_a_lost_group_leaves_the_others_as_they_are(run):
    Letters.broken.add(1)
    made = run(config=replace(CONFIG, updates=1))
    run_sync(made.go())
    _, episodes, (line,) = made.end()
    assert line["coverage"] == 12 / 16
    assert len(episodes) == 16  # lost ones are recorded as such


# -- what stops it -----------------------------------------------------------------------------------------------------


def test_a_mismatch_beyond_the_limit_stops_the_run(run):
    made = run(config=replace(CONFIG, max_mismatch=1e-12))
    with pytest.raises(AuditError, match="limit 1e-12"):
        run_sync(made.go())
    assert [line["update"] for line in made.end()[2]] == [0]


class Hotter(Learner):
    """Scores at another temperature than the policy's."""

    def step(self, *args: Any, temperature: float = 1.0) -> dict[str, float]:
        return super().step(*args, temperature=temperature + 0.3)


def test_trap_18_another_temperature_in_the_learner_stops_the_run(run):
    made = run(learner_class=Hotter)
    with pytest.raises(AuditError, match="another temperature"):
        run_sync(made.go())
    made.end()


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_consecutive_updates_take_consecutive_tasks_and_wrap_around():
    split, config = Letters.tasks.split("train"), LoopConfig(groups=12, group_size=3)
    sampler = Sampler(split, CurriculumConfig(), seed=0)
    plans = [sampler.slots(update, config.groups, config.group_size) for update in range(4)]
    ids = [split.id(i) for i in range(40)]
    groups = [[slots[i].task_id for i in range(0, 36, 3)] for slots in plans]
    assert groups[0] == ids[:12]
    assert groups[2] == ids[24:36]
    assert groups[3] == ids[36:40] + ids[:8]
    for slots in plans:
        assert [(s.group, s.attempt) for s in slots] == [(g, k) for g in range(12) for k in range(3)]


def test_a_group_shares_task_and_seed_and_no_two_groups_or_updates_share_a_seed():
    split, config = Letters.tasks.split("train"), LoopConfig(groups=40, group_size=2)
    samplers = [Sampler(split, CurriculumConfig(), seed=seed) for seed in (0, 1, 0)]
    plans = [s.slots(update, config.groups, config.group_size) for s in samplers[:2] for update in range(2)]
    for slots in plans:
        assert all(a.seed == b.seed and a.task_id == b.task_id for a, b in zip(slots[::2], slots[1::2], strict=True))
    seeds = [slot.seed for slots in plans for slot in slots[::2]]
    assert len(set(seeds)) == 160
    assert plans[0] == samplers[2].slots(0, config.groups, config.group_size)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"group_size": 1}, "group_size is 1; a group of one has no baseline"),
        ({"groups": 0}, "groups is 0; give at least 1"),
        ({"updates": -1}, "updates is -1"),
        ({"minibatches": 0}, "minibatches is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"groups": 2, "minibatches": 3}, "groups 2 cannot be shared by 3 minibatches"),
        ({"credit": "luck"}, "no credit 'luck': there are outcome_mean"),
    ],
)
def test_a_loop_that_cannot_be_is_refused(wrong, fault):
    with pytest.raises(ConfigError, match=fault):
        LoopConfig(**wrong)


# -- stale by pacing ---------------------------------------------------------------------------------------------------


def stale(run, name: str = "run", *, k: int = 2, updates: int = 6, **options: Any) -> Run:
    config = replace(CONFIG, updates=updates, staleness=k, max_mismatch=1e-3)
    return run(name, config=config, objective=ObjectiveConfig("decoupled_ppo"), **options)


@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_trap_46_a_batch_is_stale_by_so_many_updates_exactly_and_nothing_is_lost_or_doubled(run, k):
    made = stale(run, k=k)
    run_sync(made.go())
    _, episodes, lines = made.end()
    assert Counter(key[1] for key, *_ in episodes) == dict.fromkeys(range(6), 16)
    for (_, update, *_), _, segments in episodes:
        versions = {version for *_, version, _, logprobs in segments if logprobs is not None}
        assert versions == {2 * max(0, update - k)}  # two optimiser steps per update
    for line in lines:
        assert list(line["staleness"]) == [str(2 * min(line["update"], k))]
    assert [line["update"] for line in lines] == list(range(6))


def test_a_stale_run_gives_the_same_bits_whichever_side_is_faster(run, monkeypatch):
    made = stale(run, "a")
    run_sync(made.go())
    slow = stale(run, "b")
    step = slow.learner.step

    def slowed(*args: Any, **kwargs: Any) -> dict[str, float]:
        time.sleep(0.2)
        return step(*args, **kwargs)

    monkeypatch.setattr(slow.learner, "step", slowed)
    run_sync(slow.go())
    ours, theirs = made.end(), slow.end()
    assert ours == theirs
    assert (
        weights_hash(made.learner.lm) == weights_hash(slow.learner.lm) == ours[0]
    )  # the engine's copy is the learner's


@pytest.mark.parametrize("stops_after", [1, 3, 5])
def test_trap_46_a_stale_run_that_was_cut_trains_what_was_sampled_ahead(run, stops_after):
    whole = stale(run, "whole")
    run_sync(whole.go())

    def stop(line: dict[str, Any]) -> None:
        if line["update"] + 1 == stops_after:
            raise Stop

    first = stale(run)
    with pytest.raises(Stop):
        run_sync(first.go(stop))
    first.end()
    second = stale(run)
    run_sync(second.go())
    assert second.end() == whole.end()


# -- numbers that are none ---------------------------------------------------------------------------------------------


class Breaking(Learner):
    """Has a weight that is no number at the steps named."""

    at: ClassVar[set[int]] = set()
    tried = 0

    def step(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.tried += 1
        if self.tried - 1 not in self.at:
            return super().step(*args, **kwargs)
        weight = self.lm.model.model.norm.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(float("nan"))
        try:
            return super().step(*args, **kwargs)
        finally:
            with torch.no_grad():
                weight.copy_(kept)


def test_a_step_that_is_no_number_is_skipped_once_and_its_batch_kept(run):
    Breaking.at = {3}
    made = run(learner_class=Breaking)
    run_sync(made.go())
    _, _, lines = made.end()
    assert [line["steps_skipped"] for line in lines] == [0, 1, 0, 0]
    assert made.learner.version == 7
    (path,) = made.folder.glob("not-finite-*.pt")
    assert path.name == "not-finite-000001-1.pt"
    rows = torch.load(path, weights_only=True)
    assert all(len(row["ids"]) == len(row["sampled"]) == len(row["logprobs"]) for row in rows)
    assert any(row["advantages"].any() for row in rows)


def test_the_second_time_the_run_stops_with_its_state_saved(run):
    Breaking.at = {1, 4}
    made = run(learner_class=Breaking)
    with pytest.raises(AuditError, match=r"update 2: the loss is nan.*not-finite-000002-2.pt.*not the first time"):
        run_sync(made.go())
    assert [line["update"] for line in made.end()[2]] == [0, 1, 2]
    Breaking.at = set()
    again = run(learner_class=Breaking)
    done, progress = again.checkpoints.load(again.learner)
    assert (done, progress["not_finite"], again.learner.version) == (3, 2, 4)
    again.end()


# -- alarms ------------------------------------------------------------------------------------------------------------


def test_an_alarm_stops_the_run_with_its_state_saved_and_it_can_go_on_without(run):
    made = run(alarms=AlarmConfig(alarm_reward_std=9.0, alarm_patience=2, alarm_gradient=0.0))
    with pytest.raises(AuditError, match=r"alarm at update 1: reward_std has been below 9 for 2 updates.*is saved"):
        run_sync(made.go())
    made.end()
    again = run(alarms=AlarmConfig(alarm_reward_std=0.0, alarm_gradient=0.0))
    run_sync(again.go())
    assert [line["update"] for line in again.end()[2]] == [0, 1, 2, 3]


# -- which tasks -------------------------------------------------------------------------------------------------------


class Even(Letters):
    """Only every third task has rewards that differ within a group."""

    def respond(self, message: Any) -> str:
        return "Go on."

    rubric = Rubric(letters=lambda o: 0.5 if o.task.answer % 3 else sum(map(str.isalpha, _said(o))) / 99)


def test_groups_that_are_all_alike_are_replaced_by_the_next_tasks(run, register_env):
    made = run(config=replace(CONFIG, updates=2), selection=SelectionConfig(resample=2))
    made.driver.close()
    made.driver = Driver(register_env(Even), made.policy, run="train", store=made.store, retries=0)
    run_sync(made.go())
    _, episodes, lines = made.end()
    # of tasks 0 to 3, 1 and 2 teach nothing; of the next, 4 and 5, neither do; then 6 does, and 7 does not
    played = Counter(key[1] for key, *_ in episodes)
    assert played[0] == 4 * (4 + 2 + 2)
    assert lines[0]["zero_variance_share"] == 1 / 4
    assert lines[0]["episodes"] == 16


def test_trap_47_the_sampler_goes_on_where_it_was(run):
    def go(name: str, stops: bool) -> tuple:
        options = {"curriculum": CurriculumConfig("updates", curriculum_every=2), "config": replace(CONFIG, updates=4)}

        def stop(line: dict[str, Any]) -> None:
            if stops and line["update"] == 1:
                raise Stop

        made = run(name, **options)
        if stops:
            with pytest.raises(Stop):
                run_sync(made.go(stop))
            made.end()
            made = run(name, **options)
        run_sync(made.go())
        return made.end()

    whole, cut = go("whole", False), go("cut", True)
    assert whole == cut
    horizons = [set(line["by_horizon"]) for line in whole[2]]
    assert horizons == [{"1"}, {"1"}, {"1", "2"}, {"1", "2"}]


def test_a_curriculum_grows_when_the_longest_horizon_is_mastered():
    split = Letters.tasks.split("train")
    sampler = Sampler(split, CurriculumConfig("success", curriculum_success=0.5), seed=0)
    assert [split.find(s.task_id).horizon for s in sampler.slots(0, 5, 1)] == [1] * 5
    sampler.learned({"update": 0, "by_horizon": {"1": 0.4}})
    assert sampler.longest == 1
    sampler.learned({"update": 1, "by_horizon": {"1": 0.5}})
    assert [split.find(s.task_id).horizon for s in sampler.slots(0, 4, 1)] == [2, 1, 2, 1]  # from position 9 on
    other = Sampler(split, CurriculumConfig("success"), seed=0)
    other.load(sampler.state())
    assert other.slots(5, 4, 1) == sampler.slots(5, 4, 1)


def test_a_curriculum_grows_over_gaps_between_horizons():
    sampler = Sampler(Letters.tasks.split("train"), CurriculumConfig("success", curriculum_start=2), seed=0)
    for update, by_horizon in enumerate([{"2": 0.9}, {"2": 0.9}, {"2": 0.9, "4": 0.1}, {"2": 0.9, "4": 0.8}]):
        sampler.learned({"update": update, "by_horizon": by_horizon})
    assert sampler.longest == 5


def test_no_task_comes_twice_in_an_update_and_a_split_may_run_out(run, register_env):
    class Six(Even):
        tasks = TaskSet({"train": [Task(f"Say {i}.", 1, metadata={"horizon": 1}) for i in range(6)]})

    made = run(config=replace(CONFIG, updates=2), selection=SelectionConfig(resample=3))
    made.driver.close()
    made.driver = Driver(register_env(Six), made.policy, run="train", store=made.store, retries=0)
    made.split = Six.tasks.split("train")
    run_sync(made.go())
    _, episodes, lines = made.end()
    assert Counter(key[1] for key, *_ in episodes) == {0: 24, 1: 24}  # all six tasks are dull, each is played once
    assert [line["episodes"] for line in lines] == [16, 16]


@pytest.mark.parametrize("stops_after", [2, 4])
def test_a_stale_run_that_draws_again_goes_on_with_the_groups_it_had_chosen(run, register_env, stops_after):
    def start(name: str) -> Run:
        made = stale(run, name, k=1, updates=5, selection=SelectionConfig(resample=1))
        made.driver.close()
        made.driver = Driver(register_env(Even), made.policy, run="train", store=made.store, retries=0)
        return made

    def stop(line: dict[str, Any]) -> None:
        if line["update"] + 1 == stops_after:
            raise Stop

    whole, first = start("whole"), start("cut")
    run_sync(whole.go())
    with pytest.raises(Stop):
        run_sync(first.go(stop))
    first.end()
    second = start("cut")
    run_sync(second.go())
    assert second.end() == whole.end()


def test_a_stale_run_interrupted_in_mid_update_saves_what_is_whole(run):
    first = stale(run, k=1)

    async def cut_short() -> None:
        going = asyncio.ensure_future(first.go())
        while first.learner.version < 5:
            await asyncio.sleep(0)
        going.cancel()
        await asyncio.wait([going])

    run_sync(cut_short())
    _, _, lines = first.end()
    done, _ = first.checkpoints.load(first.learner)
    assert done == len(lines) >= 3
    second = stale(run, k=1)
    run_sync(second.go())
    _, episodes, lines = second.end()
    assert Counter(key[1] for key, *_ in episodes) == dict.fromkeys(range(6), 16)  # nothing lost, nothing doubled
    assert [line["update"] for line in lines] == list(range(6))


def test_a_curriculum_that_no_task_fits_is_one_sentence():
    split = Letters.tasks.split("train")
    with pytest.raises(ConfigError, match="20 tasks of horizon 1 or less, 21 groups are wanted"):
        Sampler(split, CurriculumConfig("updates"), seed=0).slots(0, 21, 2)
