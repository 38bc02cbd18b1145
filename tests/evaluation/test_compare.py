"""Two runs beside one another: worked by hand, against scipy and statsmodels, and what must not be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agentgym.errors import FailureKind
from agentgym.evaluation.compare import by_place, compare, holm, mcnemar, mismatches, paired_difference
from agentgym.evaluation.intervals import wilson
from agentgym.rollout.store import Result

Attempts = dict[str, Sequence[float]]


def result(task: str, reward: float = 1.0, attempt: int = 0, **changes: Any) -> Result:
    made = Result("eval", 0, task, attempt, 7, "test", "agentgym/Door-v0", "v0", reward, "answered", None, "told")
    return made._replace(**changes)


def played(attempts: Attempts, **changes: Any) -> list[Result]:
    return [result(task, float(r), k, seed=k, **changes) for task, rs in attempts.items() for k, r in enumerate(rs)]


def compared(a: Attempts, b: Attempts) -> Any:
    [found] = compare(by_place(played(a)), by_place(played(b)))
    return found


def test_the_difference_of_rewards_is_that_of_a_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    ours, theirs = paired_difference([([x], [y]) for x, y in zip(a, b, strict=True)]), ttest_rel(b, a)
    low, high = theirs.confidence_interval(0.95)
    expected = [theirs.pvalue, low, high, (b - a).mean(), a.mean(), b.mean()]
    np.testing.assert_allclose([ours.p, ours.low, ours.high, ours.value, ours.a, ours.b], expected, rtol=0, atol=1e-9)


def test_attempts_are_averaged_within_their_task_before_tasks_are_compared():
    # means of a: 0.5 and 0.2; of b: 0.9 and 0.4; differences 0.4 and 0.2
    found = paired_difference([([0.4, 0.6], [0.9]), ([0.2], [0.3, 0.4, 0.5])])
    assert found.value == pytest.approx(0.3)
    # deviations 0.01 + 0.01, error sqrt(0.02 / 1 / 2) = 0.1, Student's quantile of one degree 12.7062: cut at 1
    assert (found.low, found.high) == (pytest.approx(0.3 - 1.27062, abs=1e-5), 1.0)


def test_twenty_tasks_that_never_differed_are_not_certain_never_to_differ():
    # one attempt lost and one won are counted besides: error sqrt(2 / 19 / 20), quantile 2.093024
    found = paired_difference([([1.0], [1.0])] * 20)
    assert (found.value, found.p) == (0.0, 1.0)
    assert found.high == -found.low == pytest.approx(2.093024 * math.sqrt(2 / 19 / 20), abs=1e-6)
    narrower = paired_difference([([1.0] * 4, [1.0] * 4)] * 20)
    assert narrower.high == pytest.approx(found.high / 4)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_differences_that_are_equal_but_for_rounding_are_not_certain(scale):
    # B = A + 0.1 on seven tasks: error sqrt(2 / 6 / 7), quantile 2.446912, as large as the largest value allows
    found = paired_difference([([scale * a / 10], [scale * (a / 10 + 0.1)]) for a in range(1, 8)])
    assert found.value == pytest.approx(0.1 * scale)
    largest = max(1.0, 0.8 * scale)
    half = 2.446912 * math.sqrt(2 / 6 / 7) * largest
    assert found.low == pytest.approx(0.1 * scale - half)
    assert found.p > 0.5


def test_the_power_is_that_of_statsmodels():
    from statsmodels.stats.power import normal_sample_size_one_tail

    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(40)
    ours = paired_difference([([x], [y]) for x, y in zip(a, b, strict=True)])
    theirs = normal_sample_size_one_tail(0.02, 0.8, 0.025, std_null=(b - a).std(ddof=1))
    assert ours.num_needed == math.ceil(theirs)


def test_mcnemar_is_that_of_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar as peer

    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    for lost, won in ((0, 5), (3, 3), (4, 17), (60, 80)):
        assert mcnemar(lost, won) == pytest.approx(peer([[9, lost], [won, 9]], exact=True).pvalue, abs=1e-9)


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    ps = np.random.default_rng(2).random(9) ** 3
    assert holm(ps.tolist()) == pytest.approx(multipletests(ps, method="holm")[1].tolist(), abs=1e-9)
    assert holm([]) == []


def test_one_attempt_per_task_is_tested_by_mcnemar_and_several_by_students_t():
    tasks = [f"test:{i}" for i in range(12)]
    a = {task: [i < 6] for i, task in enumerate(tasks)}
    b = {task: [i < 11] for i, task in enumerate(tasks)}  # five won, none lost: 2 / 2^5
    found = compared(a, b)
    assert (found.test, found.success.p) == ("exact McNemar", pytest.approx(2 / 32))
    assert (found.a, found.b) == (wilson(6, 12), wilson(11, 12))
    twice = compared({t: [*w] * 2 for t, w in a.items()}, {t: [*w] * 2 for t, w in b.items()})
    assert twice.test == "Student's t over tasks"
    assert twice.success.value == pytest.approx(5 / 12)


def test_only_a_version_is_cut_off_the_name_of_an_environment():
    names = ("my-vault", "my-vista", "my-vault-v2", "my-vault-v10", "lab/a-v1-v2")
    assert [name for name, _ in by_place(result("test:a", env_id=name) for name in names)] == [
        "my-vault", "my-vista", "lab/a-v1",
    ]  # fmt: skip


def test_what_does_not_count_leaves_the_pair_and_is_told_as_coverage():
    a, b = played({"test:a": [1, 0], "test:b": [1, 1]}), played({"test:a": [1, 1], "test:b": [0, 0], "test:c": [1]})
    for index in (2, 3):
        b[index] = b[index]._replace(failure=FailureKind.INFRASTRUCTURE)
    b[1] = b[1]._replace(failure=FailureKind.POLICY, reward=0.0)
    [found] = compare(by_place(a), by_place(b))
    assert (found.success.num_tasks, found.num_unpaired) == (1, 2)  # b has no scored attempt in B, c is not in A
    assert (found.coverage_a, found.coverage_b, found.a.n, found.b.n) == (1.0, 0.5, 2, 2)
    assert found.success.value == 0.0  # the model's own failure counts: 1/2 and 1/2
    assert found.verdict() == "undecided"


def test_the_tasks_that_changed_come_with_attempts_that_show_it():
    found = compared({"test:a": [1, 0, 1], "test:b": [0, 0, 0], "test:c": [1, 1, 1]},
                     {"test:a": [1, 0, 0], "test:b": [0, 1, 1], "test:c": [1, 1, 1]})  # fmt: skip
    assert [(flip.task_id, flip.shows_a[3], flip.shows_b[3]) for flip in found.flips] == [
        ("test:b", 0, 1),  # the larger change first: an attempt of A that failed, one of B that did not
        ("test:a", 0, 1),
    ]


def test_environments_and_splits_are_compared_apart_and_corrected_together():
    def run(rewards: Sequence[float]) -> list[Result]:
        more = [result(f"test:{i}", r, env_id="agentgym/Lookup-v0") for i, r in enumerate(rewards)]
        return [*played({f"test:{i}": [1.0] for i in range(10)}), *more]

    found = compare(by_place(run([0.0] * 10)), by_place(run([1.0] * 10)))
    assert [each.name for each in found] == ["agentgym/Door", "agentgym/Lookup"]
    assert [each.success.p for each in found] == [1.0, pytest.approx(2 / 1024)]
    assert [each.p_holm for each in found] == [1.0, pytest.approx(4 / 1024)]
    assert [each.verdict() for each in found] == ["no difference seen", "B is better"]


def test_episodes_and_what_their_columns_say_are_compared_alike(episode):
    pairs = [(f"test:{i}", float(i % 3 == 0), float(i % 2 == 0)) for i in range(20)]
    whole = [by_place(episode(task, rewards[side]) for task, *rewards in pairs) for side in (0, 1)]
    light = [by_place(result(task, rewards[side]) for task, *rewards in pairs) for side in (0, 1)]
    assert compare(*whole) == compare(*light)


def test_runs_of_the_same_experiment_differ_in_nothing():
    a = {"test:a": [1, 0], "test:b": [0, 1]}
    assert mismatches(by_place(played(a)), by_place(played({task: rs[::-1] for task, rs in a.items()}))) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b[:2], "1 tasks only in A, such as test:b"),
        (lambda b: [*b, result("test:c")], "1 tasks only in B, such as test:c"),
        (lambda b: [x._replace(env_id="agentgym/Door-v1") for x in b], "environment agentgym/Door-v0 (v0) in A"),
        (lambda b: [x._replace(env_version="v0.1") for x in b], "agentgym/Door-v0 (v0.1) in B"),
        (lambda b: [*b[:3], b[3]._replace(opening="other")], "1 tasks begin with another prompt, such as test:b"),
        (lambda b: [x._replace(seed=99, opening="other") for x in b], "2 tasks begin with another prompt"),
        (lambda b: [*b, result("val:a", split="val")], "agentgym/Door, split val: only in B"),
    ],
)
def test_tasks_versions_and_prompts_that_differ_are_named(change: Callable[[list[Result]], list[Result]], told: str):
    a = played({"test:a": [1, 0], "test:b": [0, 1]})
    [found] = mismatches(by_place(a), by_place(change(list(a))))
    assert told in found.text
    assert (found.keys is not None) == ("prompt" in told)


def test_a_prompt_may_depend_on_the_seed_and_an_episode_that_was_told_nothing_differs_from_none():
    from agentgym.evaluation.compare import UNTOLD

    a = [result("test:a", seed=s, opening=f"seed {s}", attempt=s) for s in (0, 1)]
    b = [result("test:a", seed=s, opening=f"seed {s}", attempt=s) for s in (1, 2)]
    assert mismatches(by_place(a), by_place(b)) == []
    broken = [a[0]._replace(opening=UNTOLD, failure=FailureKind.INFRASTRUCTURE), a[1]]
    assert mismatches(by_place(broken), by_place(a)) == []


@pytest.mark.parametrize(
    ("num_tasks", "attempts", "shift"), [(20, 1, 0.0), (50, 1, 0.8), (10, 4, 0.8), (50, 4, 0.8), (20, 16, 0.8)]
)
def test_the_interval_covers_the_true_difference(num_tasks, attempts, shift):
    # Rates of A ~ Beta(1, 1), log-odds of B higher by the shift. 95 % nominal, standard error 0.6 points.
    rng = np.random.default_rng(4)
    many = rng.beta(1, 1, 200_000)
    better = 1 / (1 + (1 - many) / many * math.exp(-shift))
    truth, covered = float((better - many).mean()), 0
    for _ in range(1500):
        tasks = rng.integers(len(many), size=num_tasks)
        wins = zip(rng.binomial(attempts, many[tasks]), rng.binomial(attempts, better[tasks]), strict=True)
        pairs = [tuple([1.0] * won + [0.0] * (attempts - won) for won in pair) for pair in wins]
        found = paired_difference(pairs)  # type: ignore[arg-type]
        covered += found.low <= truth <= found.high
    assert 0.92 < covered / 1500 <= 1.0


def test_nothing_in_common_is_told_as_nothing():
    assert compare(by_place(played({"test:a": [1]})), by_place(played({"test:a": [1]}, split="val"))) == []
    found = compared({"test:a": [1]}, {"test:b": [1]})
    assert (found.success.num_tasks, found.verdict()) == (0, "undecided")
    assert found.as_json()["success"]["value"] is None
    alone = compared({"test:a": [1]}, {"test:a": [0]})
    assert (alone.success.low, alone.success.high, alone.success.num_needed) == (-1.0, 1.0, None)


def test_a_replayed_verdict_is_compared_with_the_stored_one(episode):
    from agentgym.evaluation.score import Verdict, against_stored
    from agentgym.rewards import Score

    stored = [episode(f"test:{i}", reward=float(i < 5)) for i in range(10)]
    verdicts = [Verdict(e, Score(1.0, {})) for e in stored] + [Verdict(replace(stored[0], attempt=1), None, "lost")]
    [found] = against_stored(verdicts)
    assert (found.a, found.b) == (wilson(5, 10), wilson(10, 10))
    assert (len(found.flips), found.success.p) == (5, pytest.approx(2 / 32))
