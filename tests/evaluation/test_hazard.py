"""First errors, the curve they give, and what it says of the rate of errors."""

import math
from dataclasses import replace

import numpy as np
import pytest

from agentgym.errors import ConfigError, Failure, FailureKind
from agentgym.evaluation.hazard import hazard
from agentgym.evaluation.horizon import success_curve
from agentgym.evaluation.survival import FirstError, first_errors, gold_paths, kaplan_meier
from agentgym.ledger import Turn
from agentgym.loop import run_sync
from agentgym.messages import assistant, call
from agentgym.policies.builtin import Scripted, builtin
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot


def drawn(rates: np.ndarray, attempts: int, shape: float = 1.0, cap: int = 64, seed: int = 0) -> list[FirstError]:
    """Attempts of agents without an error after k steps with chance exp(-rate · k^shape), watched for `cap` steps."""
    waits = np.random.default_rng(seed).exponential(size=(len(rates), attempts)) / rates[:, None]
    steps = np.ceil(waits ** (1 / shape)).astype(int)
    return [FirstError(f"t{i}", int(min(k, cap)), bool(k <= cap)) for i, row in enumerate(steps) for k in row]


def curve_by_hand() -> list[FirstError]:
    """Six tasks of one attempt: errors at 2, 2 and 4; right through 3, 5 and 5."""
    steps = [(2, True), (2, True), (4, True), (3, False), (5, False), (5, False)]
    return [FirstError(f"t{i}", step, seen) for i, (step, seen) in enumerate(steps)]


def test_the_share_without_an_error_multiplies_over_those_at_risk():
    # at 2 six are at risk and two fail: 4/6; at 4 three are and one fails: 4/6 · 2/3
    survival = kaplan_meier(curve_by_hand())
    assert survival.share.tolist() == pytest.approx([1, 2 / 3, 2 / 3, 4 / 9, 4 / 9])
    # H50 between 3 and 4 in log k: 3 · (4/3)^((2/3 - 1/2) / (2/3 - 4/9))
    assert survival.horizon().value == pytest.approx(3 * (4 / 3) ** 0.75)
    assert survival.horizon(0.4).at_least
    assert survival.horizon(0.4).value == 5


def test_the_band_is_that_of_lifelines_and_of_scipy():
    lifelines = pytest.importorskip("lifelines")
    from scipy.stats import CensoredData, ecdf

    rng = np.random.default_rng(5)
    step, seen = rng.geometric(0.08, 120), rng.random(120) < 0.7
    survival = kaplan_meier(
        [FirstError(f"t{i}", int(k), bool(s)) for i, (k, s) in enumerate(zip(step, seen, strict=True))]
    )
    fitter = lifelines.KaplanMeierFitter().fit(step, seen)
    theirs = fitter.confidence_interval_survival_function_.reindex(survival.steps, method="ffill").to_numpy()
    alive = survival.share > 0
    assert survival.share == pytest.approx(fitter.predict(survival.steps).to_numpy(), abs=1e-9)
    assert survival.low[alive] == pytest.approx(theirs[alive, 0], abs=1e-9)
    assert survival.high[alive] == pytest.approx(theirs[alive, 1], abs=1e-9)
    sf = ecdf(CensoredData(uncensored=step[seen], right=step[~seen])).sf
    band = sf.confidence_interval(0.95, method="log-log")
    inside = (survival.share < 1) & alive
    assert survival.low[inside] == pytest.approx(band.low.evaluate(survival.steps)[inside], abs=1e-9)
    assert survival.high[inside] == pytest.approx(band.high.evaluate(survival.steps)[inside], abs=1e-9)


def test_attempts_that_only_repeat_each_other_widen_nothing():
    # every attempt twice or thrice: more attempts, and no more knowledge; Student's quantile of 6 tasks in both
    once, twice, thrice = (kaplan_meier(curve_by_hand() * k) for k in (1, 2, 3))
    assert thrice.share == pytest.approx(once.share)
    assert thrice.low == pytest.approx(twice.low)
    assert thrice.high == pytest.approx(twice.high)
    # log(-log S) spreads by the normal 1.959964 of one attempt per task, by 2.570582 · sqrt(6/5) of several
    spread = [np.log(np.log(s.low[3]) / np.log(s.share[3])) for s in (once, thrice)]
    assert spread[1] / spread[0] == pytest.approx(2.570582 * 1.2**0.5 / 1.959964, rel=1e-6)


def test_where_everybody_has_failed_the_band_is_still_a_band():
    survival = kaplan_meier([FirstError(f"t{i}", i + 1) for i in range(4)])
    assert survival.share.tolist() == pytest.approx([0.75, 0.5, 0.25, 0])
    assert survival.low[-1] == 0
    assert survival.high[-1] == pytest.approx(3.841459 / 7.841459)  # Wilson's of 0 in 4
    gone = kaplan_meier([FirstError("t0", 1), FirstError("t1", 1)])
    assert (gone.share.tolist(), gone.low.tolist(), gone.high.tolist()) == (
        [0],
        [0],
        [pytest.approx(3.841459 / 5.841459)],
    )
    assert gone.horizon().not_reached


def test_where_nobody_has_failed_the_band_is_no_certainty():
    # twenty tasks right through 8 steps, four attempts each: Wilson's of 20 in 20, and of 10 in 10 where half were over
    survival = kaplan_meier([FirstError(f"t{i // 4}", 8, seen=False) for i in range(80)])
    assert survival.steps.tolist() == [1, 7, 8]
    assert survival.low.tolist() == pytest.approx([20 / 23.841459] * 3)
    assert survival.high.tolist() == [1] * 3
    over = kaplan_meier([FirstError(f"t{i}", 8 if i % 2 else 4, seen=False) for i in range(20)])
    assert over.steps.tolist() == [1, 3, 4, 5, 7, 8]
    assert over.low.tolist() == pytest.approx([20 / 23.841459] * 3 + [10 / 13.841459] * 3)


def test_a_task_of_a_million_million_steps_costs_no_more_than_one_of_eight():
    # three of four fail at 10^12: H50 lies there, and the step before is still free of errors
    long = kaplan_meier([FirstError(f"t{i}", 10**12, seen=i < 3) for i in range(4)])
    assert long.steps.tolist() == [1, 10**12 - 1, 10**12]
    assert long.share.tolist() == pytest.approx([1, 1, 0.25])
    assert long.horizon().value == pytest.approx(10**12)
    assert long.as_json()["steps"][-1] == 10**12


def test_one_task_says_nothing_of_the_others_and_two_that_are_alike_little():
    attempts = [(step, step < 8) for step in (1, 2, 3, 5, 8, 8, 8, 8)]
    one = kaplan_meier([FirstError("a", *attempt) for attempt in attempts])
    assert (one.low.tolist(), one.high.tolist()) == ([0] * 8, [1] * 8)  # 6 and 7 stand beside 5 and 8
    right = kaplan_meier([FirstError("a", 8, seen=False)]).horizon()
    assert (right.low, right.high_at_least) == (0, True)
    # sixteen attempts are worth no more than sixteen: Greenwood's variance of 15 in 16, Student's quantile of 1 degree
    two = kaplan_meier([FirstError(task, *attempt) for task in "ab" for attempt in attempts])
    width = 12.706205 * 2**0.5 * (2 / 16 / 14) ** 0.5 / -math.log(14 / 16)
    assert two.high[0] == pytest.approx((14 / 16) ** math.exp(-width))


def test_no_first_error_time_at_all_is_refused():
    with pytest.raises(ConfigError, match="no attempt has a first-error time"):
        kaplan_meier([])


def test_an_attempt_comes_as_far_as_the_states_of_gold_it_passed_in_order(episode):
    path = {("test:a", 0): ["1", "2", "2", "3", "4", "4"]}  # the third step leads nowhere new; the sixth answers

    def found(*states: str, horizon: int = 5, reward: float = 0.0) -> tuple[int, bool]:
        played = episode("test:a", reward, horizon=horizon)
        object.__setattr__(played, "turns", tuple(Turn(0.0, state, 0.0, 0.0) for state in states))
        [error] = first_errors([played], path)
        return error.step, error.seen

    assert found("9") == (1, True)
    assert found("1", "9", "9") == (2, True)
    assert found("1", "9", "2", "9") == (3, True)  # a detour that returns is no error; what comes after it is
    assert found("1", "2", "2", "3", "9") == (5, True)
    assert found("1", "2", "2", "3", "4", "9") == (5, False)  # all five steps right, and then a wrong answer
    assert found("9", reward=1.0) == (5, False)  # another way, and a right one


def test_a_task_whose_failure_cannot_be_followed_is_left_out_with_its_successes(episode):
    played = [episode("test:a", horizon=3), episode("test:a", 0.0, attempt=1, horizon=3), episode("test:b", horizon=3)]
    assert first_errors(played, {}) == [FirstError("test:b", 3, seen=False)]


class Forgets:
    """Plays as gold for `turns` turns, then looks up the first key again and again."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def begin(self, env, *, seed):
        gold, world, script = builtin("gold").begin(env, seed=seed), env.unwrapped, Scripted([])

        async def act(observation):
            if world.num_turns < self.turns:
                return await gold.act(observation)
            return assistant("", call("lookup", key=world.task.data["keys"][0]))

        actor = script.begin(env, seed=seed)
        actor.act = act
        return actor


def test_the_first_wrong_look_up_is_found_in_a_recorded_episode():
    kwargs = {"horizon": 6, "split": "test"}
    env = make("agentgym/Lookup-v0", **kwargs)
    task = env.unwrapped.tasks.split("test").id(0)
    driver = Driver("agentgym/Lookup-v0", Forgets(4), run="x", env_kwargs=kwargs)
    episodes = run_sync(driver.collect([Slot(task, 0, 0, 7)]))
    driver.close()
    paths = run_sync(gold_paths("agentgym/Lookup-v0", episodes, kwargs))
    assert first_errors(episodes, paths) == [FirstError(task, 5)]


def test_a_constant_rate_of_errors_is_called_constant():
    found = hazard(drawn(np.full(40, 0.05), 8, seed=1))
    assert found.verdict == "constant"
    assert found.pooled is not None
    assert found.pooled.low < 1 < found.pooled.high


def test_tasks_that_differ_look_like_a_falling_hazard_and_are_told_apart_by_repeats():
    rates = np.exp(np.random.default_rng(2).normal(math.log(0.04), 1.3, 40))
    found = hazard(drawn(rates, 8, seed=2))
    assert found.verdict == "only a mixture"
    assert found.pooled is not None
    assert found.pooled.high < 0.85
    assert found.within is not None
    assert found.within.value == pytest.approx(1, abs=0.1)
    alone = hazard(drawn(np.repeat(rates, 8), 1, seed=2))  # as many attempts, each on a task of its own
    assert alone.within is None
    assert alone.verdict == "cannot tell"
    assert "several attempts" in alone.why


def test_a_hazard_that_falls_within_each_task_is_called_falling():
    found = hazard(drawn(np.full(40, 0.25), 8, shape=0.55, seed=3))
    assert found.verdict == "falling"
    assert found.within is not None
    assert found.within.value == pytest.approx(0.55, abs=0.1)


def test_a_hazard_that_rises_is_called_rising_with_and_without_repeats():
    assert hazard(drawn(np.full(40, 0.002), 8, shape=1.7, seed=4)).verdict == "rising"
    assert hazard(drawn(np.full(320, 0.002), 1, shape=1.7, seed=4)).verdict == "rising"


def test_the_pooled_shape_without_clusters_is_the_maximum_of_the_likelihood():
    # lifelines has the continuous law; interval-censored between k - 1 and k it is the discrete one
    lifelines = pytest.importorskip("lifelines")
    errors = drawn(np.full(300, 0.05), 1, shape=0.8, cap=1000, seed=6)
    step = np.array([e.step for e in errors], dtype=float)
    fitter = lifelines.WeibullFitter().fit_interval_censoring(np.maximum(step - 1, 1e-9), step)
    found = hazard(errors).pooled
    assert found is not None
    assert found.value == pytest.approx(fitter.rho_, abs=2e-3)


def test_too_few_errors_are_said_to_be_too_few():
    found = hazard([FirstError(f"t{i}", 8, seen=i < 3) for i in range(30)])
    assert found.verdict == "cannot tell"
    assert found.pooled is None
    assert found.why.startswith("3 errors on 30 tasks")
    assert hazard([]).verdict == "cannot tell"
    for step in (1, 4):  # nothing shows how the rate changes between steps
        same = hazard([FirstError(f"t{i}", step if i < 72 else 8, seen=i < 72) for i in range(80)])
        assert (same.verdict, same.pooled, same.within) == ("cannot tell", None, None)
    assert found.as_json()["within"] is None


def test_an_attempt_that_broke_before_its_first_turn_erred_at_the_first_step():
    kwargs = {"horizon": 6, "split": "test"}
    task = make("agentgym/Lookup-v0", **kwargs).unwrapped.tasks.split("test").id(0)
    driver = Driver("agentgym/Lookup-v0", Forgets(4), run="x", env_kwargs=kwargs)
    [episode] = run_sync(driver.collect([Slot(task, 0, 0, 7)]))
    driver.close()
    broken = replace(episode, attempt=1, turns=(), messages=(), failure=Failure(FailureKind.POLICY, "X", "broke"))
    paths = run_sync(gold_paths("agentgym/Lookup-v0", [episode, broken], kwargs))
    assert [error.step for error in first_errors([episode, broken], paths)] == [5, 1]


@pytest.mark.parametrize("horizon", [0, -1, "x", None, True, math.nan])
def test_a_horizon_that_is_none_has_no_first_error_and_no_place_on_the_curve(episode, horizon):
    played = [episode("test:a", horizon=horizon), episode("test:b", horizon=3)]
    assert first_errors(played, {}) == [FirstError("test:b", 3, seen=False)]
    assert [point.horizon for point in success_curve(played)] == [3]
