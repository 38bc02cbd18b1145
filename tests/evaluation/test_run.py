import gymnasium
import pytest

from agentgym import register
from agentgym.env import AgentEnv
from agentgym.errors import ConfigError, FailureKind, InfrastructureError, PolicyError
from agentgym.evaluation.run import evaluate, summarise
from agentgym.loop import run_sync
from agentgym.messages import Message, assistant
from agentgym.policies.builtin import Scripted, builtin
from agentgym.rewards import Rubric
from agentgym.rollout.store import Store
from agentgym.tasks import Task, TaskSet


class Moody(AgentEnv):
    """Ten tasks, 0 to 9. The sandbox of the first three cannot be started; on the fourth the model's code dies."""

    tasks = TaskSet({"test": [Task(f"Say {i}.", str(i), metadata={"horizon": 1 + i % 2}) for i in range(10)]})
    rubric = Rubric(said=lambda outcome: float(outcome.messages[-1]["content"] == "yes"))

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"split": "test"} | kwargs)

    def setup(self) -> None:
        if int(self.task.answer) < 3:
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
    assert seen == [(6, 10), (7, 10), (8, 10), (9, 10), (10, 10)]
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
    with pytest.raises(ConfigError, match=f"{name} 0: give at least 1"):
        play(Scripted(["yes"]), None, **{name: 0})


def test_an_environment_that_speaks_no_messages_is_refused():
    with pytest.raises(ConfigError, match="CartPole-v1"):
        run_sync(evaluate("CartPole-v1", builtin("nop"), store=None, run="x"))


def test_the_sums_of_a_summary_are_those_of_its_episodes(episode):
    said: Message = assistant("yes")
    said["num_tokens"] = 4
    episodes = [
        episode("test:a"),
        episode("test:b", reward=0.5),
        episode("test:c", reward=0.0, failure=FailureKind.TASK),
    ]
    evaluation = summarise("a/B-v0", "test", episodes)
    assert (evaluation.mean_reward, evaluation.mean_turns, evaluation.sampled_tokens) == (0.75, 0.0, 0)
    assert evaluation.stop_reasons == {"answered": 2, "failed": 1}
    assert evaluation.as_json()["verdict"] == "undecided"  # 2 of 3
