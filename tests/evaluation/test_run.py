import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from agentgym import register
from agentgym.env import AgentEnv
from agentgym.errors import ConfigError, FailureKind, InfrastructureError, PolicyError
from agentgym.evaluation.budget import Budget
from agentgym.evaluation.figures import Tally, summarise
from agentgym.evaluation.run import evaluate
from agentgym.ledger import Tokens, Turn
from agentgym.loop import run_sync
from agentgym.messages import Message, assistant
from agentgym.policies.builtin import Scripted, builtin
from agentgym.rewards import Rubric
from agentgym.rollout.store import Store
from agentgym.tasks import Task, TaskSet
from agentgym.tools import tool


class Moody(AgentEnv):
    """Ten tasks, 0 to 9. The sandbox of the first three cannot be started; on the fourth the model's code dies."""

    tasks = TaskSet({"test": [Task(f"Say {i}.", str(i), metadata={"horizon": 1 + i % 2}) for i in range(10)]})
    rubric = Rubric(said=lambda outcome: float(outcome.messages[-1]["content"] == "yes"))
    is_down = True

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"split": "test"} | kwargs)

    def setup(self) -> None:
        if int(self.task.answer) < 3 and self.is_down:
            raise InfrastructureError("no container")
        if self.task.answer == "3":
            raise PolicyError("out of memory by its own code")


@pytest.fixture(scope="session", autouse=True)
def moody() -> None:
    register("evaltest/Moody-v0", f"{Moody.__module__}:Moody")
    gymnasium.registry["evaltest/Moody-v0"].entry_point = Moody  # test modules have no importable name


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "run.sqlite") as made:
        yield made


def play(policy, store, **options):
    return run_sync(evaluate("evaltest/Moody-v0", policy, store=store, run="eval", **options))


def test_broken_infrastructure_leaves_the_denominator_and_says_undecided(store):
    # 10 planned, 3 lost with their container, 7 scored; of these one failed by the model's own code, 6 said yes
    evaluation = play(Scripted(["yes"]), store)
    assert (evaluation.num_planned, evaluation.num_scored, evaluation.overall.successes) == (10, 7, 6)
    assert evaluation.coverage == 0.7
    assert evaluation.undecided
    assert evaluation.failures == {"infrastructure": 3, "policy": 1}
    # tasks 0, 2 (horizon 1) and 1 (horizon 2) are lost
    assert [(p.horizon, p.success.successes, p.success.n, p.num_failed) for p in evaluation.by_horizon] == [
        (1, 3, 3, 2),
        (2, 3, 4, 1),
    ]


def test_the_limit_takes_the_first_tasks_and_attempts_repeat_them(store):
    evaluation = play(Scripted(["yes"]), store, limit=5, attempts=3)
    assert (evaluation.num_planned, evaluation.num_scored) == (15, 6)
    split = Moody.tasks.split("test")
    assert {e.task_id for e in store.episodes()} == {split.id(i) for i in range(5)}
    assert sorted(e.attempt for e in store.episodes()) == sorted([0, 1, 2] * 5)


def test_a_later_start_takes_other_tasks(store):
    play(Scripted(["yes"]), store, limit=3, start=4)
    split = Moody.tasks.split("test")
    assert {e.task_id for e in store.episodes()} == {split.id(i) for i in (4, 5, 6)}


def test_attempts_in_the_store_are_not_played_again(store):
    play(Scripted(["yes"]), store, limit=6)
    seen: list[tuple[int, int]] = []
    evaluation = play(Scripted(["no"]), store, limit=10, progress=lambda done, planned: seen.append((done, planned)))
    assert seen == [(done, 10) for done in range(3, 11)]  # of six, three had been lost with their container
    assert (evaluation.num_scored, evaluation.overall.successes) == (7, 2)  # 4 and 5 said yes before; 6 to 9 now no


def test_other_runs_in_the_same_file_are_left_out(store):
    run_sync(evaluate("evaltest/Moody-v0", Scripted(["yes"]), store=store, run="before", limit=10))
    assert play(Scripted(["no"]), store).overall.successes == 0
    assert store.runs() == {"before": 10, "eval": 10}


def test_a_tasks_seed_is_its_own_whatever_the_limit_and_the_run(store):
    def seeds(run: str, limit: int) -> dict[str, int]:
        run_sync(evaluate("evaltest/Moody-v0", Scripted(["yes"]), store=store, run=run, limit=limit, seed=7))
        return {e.task_id: e.seed for e in store.episodes(run=run)}

    few, many = seeds("before", 5), seeds("after", 10)
    assert few.items() <= many.items()
    assert len(set(many.values())) == 10


def test_without_a_store_the_figures_are_the_same(store):
    assert play(Scripted(["yes"]), None).overall == play(Scripted(["yes"]), store).overall


def test_horizons_beyond_the_default_are_the_environments_argument():
    evaluation = run_sync(
        evaluate("agentgym/Lookup-v0", builtin("gold"), store=None, run="x", horizons=(2, 11), limit=3)
    )
    assert [(p.horizon, p.success.successes, p.success.n) for p in evaluation.by_horizon] == [(2, 3, 3), (11, 3, 3)]
    assert evaluation.mean_turns == 7.5  # 3 of 2 look-ups and an answer, 3 of 11 and an answer


@pytest.mark.parametrize("name", ["limit", "attempts", "concurrency"])
def test_nothing_to_play_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"{name} (is )?0"):
        play(Scripted(["yes"]), None, **{name: 0})


def test_an_environment_that_speaks_no_messages_is_refused():
    with pytest.raises(ConfigError, match="CartPole-v1"):
        run_sync(evaluate("CartPole-v1", builtin("nop"), store=None, run="x"))


def test_the_sums_of_a_summary_are_those_of_its_episodes(episode):
    episodes = [
        episode("test:a"),
        episode("test:b", reward=0.5),
        episode("test:c", reward=0.0, failure=FailureKind.TASK),
    ]
    evaluation = summarise("a/B-v0", "test", episodes)
    assert (evaluation.reward.mean, evaluation.reward.n, evaluation.mean_turns) == (0.75, 2, 0.0)
    assert evaluation.stop_reasons == {"answered": 2, "failed": 1}
    assert evaluation.as_json()["verdict"] == "undecided"  # 2 of 3


def test_every_figure_of_a_summary_by_hand(episode):
    # two tasks, two attempts each; the second task's second attempt was lost with its container
    def played(task: str, attempt: int, reward: float, parts: dict, failure: FailureKind | None = None):
        said: Message = {**assistant("x"), "num_tokens": 10, "prompt_tokens": 100}
        made = episode(task, reward, attempt=attempt, failure=failure)
        turns = (Turn(0.0, None, 1.0, 0.5), Turn(reward, None, 1.0, 0.5))
        return replace(made, messages=(said, said), turns=turns, reward_parts=parts)

    episodes = [
        played("test:a", 0, 1.0, {"right": 1.0, "short": 1.0}),
        played("test:a", 1, 0.0, {}, FailureKind.POLICY),
        played("test:b", 0, 0.4, {"right": 0.0, "short": 0.8}),
        played("test:b", 1, 0.0, {}, FailureKind.INFRASTRUCTURE),
    ]
    budget = Budget(price_in=1.0, price_out=5.0)
    e = summarise("a/B-v0", "test", episodes, num_planned=4, budget=budget, num_parameters=1000)
    assert (e.overall.successes, e.overall.n, e.num_planned, e.coverage) == (1, 3, 4, 0.75)
    assert e.reward.mean == pytest.approx(1.4 / 3)
    assert (e.reward.n, e.reward.num_tasks) == (3, 2)
    assert e.reward_parts == pytest.approx({"right": 1 / 3, "short": 1.8 / 3})  # of the same three as the reward
    # pass@2 and pass^2: task a alone has two scored attempts, one of them a success
    assert [(p.k, p.at_least_one.mean, p.all.mean, p.left_out) for p in e.passes] == [(1, 0.25, 0.25, 0), (2, 1, 0, 1)]
    assert (e.tokens, e.mean_turns, e.seconds) == (Tokens(800, 80), 2.0, 12.0)  # what was lost was paid for
    assert e.cost == pytest.approx((800 * 1 + 80 * 5) / 1e6)
    assert e.cost_per_success == e.cost
    assert e.flops == 2 * 1000 * 880
    silent = [replace(each, messages=()) for each in episodes]  # nobody counted: what it cost is not known
    unknown = summarise("a/B-v0", "test", silent, budget=budget, num_parameters=1000)
    assert (unknown.cost, unknown.flops) == (None, None)
    assert e.failures == {"policy": 1, "infrastructure": 1}
    assert [(c.cause, c.n, c.first) for c in e.causes] == [("SandboxError", 2, "the container is gone")]
    json.dumps(e.as_json(), allow_nan=False)


def test_figures_recomputed_from_the_records_have_one_denominator(episode):
    # whatever mixture of failures and fractions: each figure equals the one counted here, over the same episodes
    rng = np.random.default_rng(0)
    for _ in range(50):
        kinds = [None, None, FailureKind.POLICY, FailureKind.TASK, FailureKind.INFRASTRUCTURE]
        episodes = [
            episode(f"test:{task}", float(rng.choice([0, 0.3, 1])), attempt=k, failure=kinds[rng.integers(5)])
            for task in range(rng.integers(1, 6))
            for k in range(rng.integers(1, 4))
        ]
        scored = [e for e in episodes if e.failure is None or e.failure.kind == "policy"]
        found = summarise("a/B-v0", "test", episodes).as_json()
        assert found["num_scored"] == found["success"]["n"] == found["reward"]["n"] == len(scored)
        assert found["coverage"] == len(scored) / len(episodes)
        assert found["success"]["successes"] == sum(e.failure is None and e.reward == 1 for e in scored)
        if scored:
            assert found["reward"]["mean"] == pytest.approx(sum(e.reward for e in scored) / len(scored))
        json.dumps(found, allow_nan=False)


def test_nothing_scored_is_null_and_no_number():
    found = summarise("a/B-v0", "test", [], num_planned=3).as_json()
    assert (found["success"]["rate"], found["reward"]["mean"], found["cost"]) == (None, None, None)
    assert found["verdict"] == "undecided"
    json.dumps(found, allow_nan=False)
    assert summarise("a/B-v0", "test", [], num_planned=3, budget=Budget(price_in=1.0, price_out=1.0)).cost == 0.0


def test_tasks_are_chosen_by_id_whatever_their_place(store):
    split = Moody.tasks.split("test")
    wanted = [split.id(8), split.id(5)]
    evaluation = play(Scripted(["yes"]), store, task_ids=wanted, attempts=2)
    assert (evaluation.num_scored, {e.task_id for e in store.episodes()}) == (4, set(wanted))


def test_an_unknown_task_names_the_nearest(store):
    known = Moody.tasks.split("test").id(4)
    with pytest.raises(ConfigError, match=f"did you mean '{known}'"):
        play(Scripted(["yes"]), store, task_ids=[known[:-1] + "?"])
    with pytest.raises(ConfigError, match="no split 'tset'; did you mean 'test'"):
        play(Scripted(["yes"]), store, task_ids=["tset:abc"])


def test_a_split_without_tasks_is_refused(register_env):
    class Empty(Moody):
        tasks = TaskSet({"test": []})

    with pytest.raises(ConfigError, match="split 'test' has no tasks"):
        run_sync(evaluate(register_env(Empty), builtin("nop"), store=None, run="x"))


def test_a_run_goes_on_with_more_tasks_and_attempts_and_refuses_fewer(store):
    play(Scripted(["yes"]), store, limit=6, attempts=2)
    assert play(Scripted(["yes"]), store, limit=10, attempts=3).num_played == 30
    with pytest.raises(ConfigError, match=r"holds 10 finished attempts that are not asked for now, such as attempt 2"):
        play(Scripted(["yes"]), store, limit=10, attempts=2)
    with pytest.raises(ConfigError, match="--limit, --attempts or --task ask for less"):
        play(Scripted(["yes"]), store, limit=4, attempts=3)


class Plain(AgentEnv):
    """What a run of last week was played in."""

    system = "Be brief."
    tasks = TaskSet({"test": [Task("Say yes."), Task("Say no.")]})
    rubric = Rubric(said=lambda outcome: 1.0)

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"split": "test"} | kwargs)

    @tool
    def look(self, where: str) -> str:
        """Look around."""
        return "nothing"


def changed(**attributes) -> type:
    return type("Plain", (Plain,), attributes)


@tool
def look(self, where: str, far: bool = False) -> str:
    """Look around."""
    return "nothing"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"system": "Be very brief."}, "the system message has changed .*it was 'Be brief.' and is 'Be very brief.'"),
        ({"opening": lambda self: f"Please: {self.task.prompt}"}, "the user message has changed"),
        ({"look": look}, "the tool look has changed"),
        ({"tasks": TaskSet({"test": [Task("Say yes!"), Task("Say no.")]})}, "the tasks have changed"),
    ],
)
def test_a_run_whose_prompt_tools_or_tasks_have_changed_is_not_gone_on_with(register_env, store, attributes, words):
    name = register_env(Plain)
    options = {"store": store, "run": "x", "attempts": 2}
    run_sync(evaluate(name, Scripted(["yes"]), limit=1, **options))
    run_sync(evaluate(name, Scripted(["yes"]), limit=2, **options))  # nothing has changed yet
    gymnasium.registry[name].entry_point = changed(**attributes)
    with pytest.raises(ConfigError, match=words):
        run_sync(evaluate(name, Scripted(["yes"]), limit=2, **options))


def test_a_tally_holds_what_has_come_in(store):
    tally, seen = Tally(), []

    def look(done: int, planned: int) -> None:
        seen.append((done, len(tally.episodes), dict(tally.failures)))

    play(Scripted(["yes"]), store, tally=tally, progress=look, concurrency=1)
    assert seen[0] == (0, 0, {})
    assert seen[4] == (4, 4, {"infrastructure": 3, "policy": 1})
    assert len(seen) == 11


def killed(episodes: int) -> dict:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, str(episodes)], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_trap_20_killed_at_every_write_nothing_is_lost_doubled_or_counted_otherwise():
    found = killed(6)
    assert found["sessions"] > 6 * 4  # several writes an episode
    assert (found["num_lost"], found["num_stored"]) == (0, 6)
    assert found["same_union"]
    assert found["same_figures"]


@pytest.mark.acceptance
def test_two_hundred_episodes_killed_at_every_write():
    found = killed(200)
    assert (found["num_lost"], found["num_stored"], found["same_union"], found["same_figures"]) == (0, 200, True, True)


def test_what_infrastructure_broke_is_played_again_when_the_run_goes_on(store, monkeypatch):
    assert play(Scripted(["yes"]), store).failures == {"infrastructure": 3, "policy": 1}
    monkeypatch.setattr(Moody, "is_down", False)
    second = play(Scripted(["no"]), store)  # who plays now says no
    assert (second.num_played, second.num_scored, second.overall.successes) == (10, 10, 6)
    assert second.failures == {"policy": 1}
    assert len(list(store.episodes(run="eval"))) == 10
