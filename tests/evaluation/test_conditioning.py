"""Wrong steps are planted where they are said to be, and what follows them is measured."""

import pytest

from agentgym.errors import ConfigError
from agentgym.evaluation.conditioning import Planted, conditioned, conditioning, spoken
from agentgym.loop import run_sync
from agentgym.messages import assistant, call
from agentgym.policies.builtin import builtin
from agentgym.policies.compute import Majority
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot
from agentgym.rollout.store import Store

SHARES = (0.0, 0.25, 0.5)


class Influenced:
    """Looks up what gold looks up, unless it reads a look-up of its own twice: then the chain's first key again."""

    def begin(self, env, *, seed):
        return _Influenced(env)


class _Influenced:
    ledger = None

    def __init__(self, env):
        self.env, self.seen = env, []

    async def act(self, observation):
        self.seen.append(observation)
        own = [spoken(m) for m in observation["messages"] if m["role"] == "assistant"]
        if len(set(own)) < len(own):
            return assistant("", call("lookup", key=self.env.unwrapped.task.data["keys"][0]))
        return self.env.unwrapped.gold()

    async def close(self): ...


def played(share: float, history: int = 8, env_id: str = "agentgym/Lookup-v0") -> tuple[list, list]:
    """Messages of one planted episode and the states after its turns."""
    kwargs = {"horizon": history + 1, "split": "test", "max_turns": history + 1}
    env = make(env_id, **kwargs)
    task = env.unwrapped.tasks.split("test").id(0)
    driver = Driver(env_id, Planted(builtin("gold"), share, history), run="x", env_kwargs=kwargs)
    [episode] = run_sync(driver.collect([Slot(task, 0, 0, 5)]))
    driver.close()
    assert episode.failure is None
    return [spoken(m) for m in episode.messages if m["role"] == "assistant"], [t.state_key for t in episode.turns]


def test_as_many_steps_are_wrong_as_asked_for_and_the_last_is_right():
    clean, path = played(0.0)
    assert len(set(clean)) == 9
    for share, num_wrong in ((0.25, 2), (0.5, 4)):
        said, states = played(share)
        assert len(said) == 9
        assert said[0] == clean[0]
        # gold goes on where it was: eight steps, the wrong ones of which repeat earlier ones
        right = [i for i, state in enumerate(states[:8]) if state == path[len(set(said[: i + 1])) - 1]]
        assert len(set(said[:8])) == 8 - num_wrong
        assert right[-1] == 7
        assert said[8] not in said[:8]


def test_the_wrong_steps_of_a_smaller_share_are_wrong_in_a_larger_one_too():
    def wrong(share: float) -> set[int]:
        said, _ = played(share)
        return {i for i in range(8) if said[i] in said[:i]}

    assert len(wrong(0.25)) == 2
    assert wrong(0.25) < wrong(0.5)


def test_the_policy_reads_the_whole_history_as_its_own_words_and_nothing_else():
    actor = Influenced()
    kept = []

    class Watched(Influenced):
        def begin(self, env, *, seed):
            kept.append(actor.begin(env, seed=seed))
            return kept[-1]

    kwargs = {"horizon": 5, "split": "test", "max_turns": 5}
    env = make("agentgym/Lookup-v0", **kwargs)
    task = env.unwrapped.tasks.split("test").id(0)
    driver = Driver("agentgym/Lookup-v0", Planted(Watched(), 0.25, 4), run="x", env_kwargs=kwargs)
    run_sync(driver.collect([Slot(task, 0, 0, 5)]))
    driver.close()
    [observation] = kept[0].seen
    roles = [m["role"] for m in observation["messages"]]
    assert [role for role in roles if role != "system"] == ["user", *["assistant", "tool"] * 4]
    assert observation["tools"][0]["function"]["name"] == "lookup"


def test_a_policy_that_follows_its_own_errors_is_found_out_and_gold_is_not(run_path):
    with Store(run_path) as store:
        given = {"store": store, "history": 8, "shares": SHARES, "limit": 12}
        led = run_sync(conditioning("agentgym/Lookup-v0", Influenced(), run="led", **given))
        gold = run_sync(conditioning("agentgym/Lookup-v0", builtin("gold"), run="itself", **given))
        before = store.runs()
        again = run_sync(conditioning("agentgym/Lookup-v0", Influenced(), run="led", **given))
        assert again == led
        assert store.runs() == before  # resuming plays nothing twice
    assert [rate.rate for rate in led.accuracy] == [1, 0, 0]
    assert led.verdict == "errors breed errors"
    assert led.slope.mean == pytest.approx(-2)  # least squares through (0, 1), (0.25, 0), (0.5, 0)
    assert [rate.rate for rate in gold.accuracy] == [1, 1, 1]
    assert gold.verdict == "none seen"
    # 12 of 12: Wilson reaches down to 12 / (12 + 3.841459); two such rates half the history apart
    assert gold.slope.low == pytest.approx(-2 * (1 - 12 / 15.841459))


def test_more_replies_per_message_are_the_policys_own_and_not_the_historys(run_path):
    with Store(run_path) as store:
        given = {"store": store, "history": 4, "shares": SHARES, "limit": 4}
        alone = run_sync(conditioning("agentgym/Lookup-v0", Influenced(), run="one", **given))
        voted = run_sync(conditioning("agentgym/Lookup-v0", Influenced(), run="two", plan=Majority(2), **given))
    assert voted == alone


def test_an_answer_in_place_of_a_step_is_wrong_though_it_changes_nothing(run_path):
    with Store(run_path) as store:
        found = run_sync(
            conditioning("agentgym/Service-v0", builtin("nop"), store=store, run="x", history=4, shares=SHARES, limit=4)
        )
    assert [rate.successes for rate in found.accuracy] == [0, 0, 0]


def test_the_slope_is_the_mean_of_the_slopes_of_tasks():
    # slopes of (1, 1, 0), (1, 0, 0), (1, 1, 1) over shares 0, 0.25, 0.5: -2, -2, 0
    found = conditioned({"a": [True, True, False], "b": [True, False, False], "c": [True] * 3}, SHARES, 8)
    assert found.slope.mean == pytest.approx(-4 / 3)
    # Student, 2 degrees of freedom: 4.302653 · sd(-2, -2, 0) / sqrt 3
    assert found.slope.high == pytest.approx(-4 / 3 + 4.302653 * (4 / 3) ** 0.5 / 3**0.5)
    assert found.verdict == "cannot tell"  # three tasks are too few for a verdict


def test_few_tasks_or_equal_slopes_do_not_make_certainty():
    alike = [True, True, False, False]
    two = conditioned({"a": alike, "b": alike}, (0, 0.1, 0.25, 0.5), 20)
    assert two.verdict == "cannot tell"
    twelve = conditioned({str(i): alike for i in range(12)}, (0, 0.1, 0.25, 0.5), 20)
    # least squares through (0, 1), (0.1, 1), (0.25, 0), (0.5, 0): -0.325 / 0.141875; Wilson of 12 of 12, as above
    assert twelve.slope.mean == pytest.approx(-0.325 / 0.141875)
    assert twelve.slope.high - twelve.slope.mean == pytest.approx(2 * (1 - 12 / 15.841459))
    assert twelve.verdict == "errors breed errors"


def test_a_task_without_every_share_is_left_out_and_none_at_all_is_refused():
    found = conditioned({"a": [True, True, False], "b": [True, False], "c": [True] * 3}, SHARES, 8)
    assert found.slope.num_tasks == 2
    with pytest.raises(ConfigError, match="nothing to compare"):
        conditioned({"a": [True, False]}, SHARES, 8)


def test_more_than_half_or_too_short_a_history_cannot_be_planted():
    for share, history in ((0.6, 8), (0.5, 3), (-0.1, 8)):
        with pytest.raises(ConfigError, match="plant 0 to 50 %"):
            Planted(builtin("gold"), share, history)
