"""The figures of an update, worked out by hand."""

from __future__ import annotations

import pytest

from agentgym.errors import Failure, FailureKind
from agentgym.learner.audit import AuditError, audit
from agentgym.learner.selection import Selected
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn


def episode(
    group: int,
    reward: float,
    replies: list[int],
    *,
    failure: FailureKind | None = None,
    version: int = 3,
    horizon: int | None = None,
    first_id: int = 5,
) -> Episode:
    """One turn per entry of `replies`, of so many sampled ids after two observed ones."""
    ledger = Ledger()
    for turn, count in enumerate(replies):
        ledger.append(Segment([2, 3], Source.OBSERVED, turn))
        ledger.append(Segment(range(first_id, first_id + count), Source.SAMPLED, turn, [-1.0] * count, version))
    return Episode(
        run="train", update=0, task_id=f"train:{group}", attempt=0, seed=0, split="train", group=group,
        env_id="a/B-v0", env_version="v0", messages=(), turns=tuple(Turn(0.0) for _ in replies), reward=reward,
        reward_parts={}, terminated=True, truncated=False,
        stop_reason=StopReason.FAILED if failure else StopReason.ANSWERED, ledger=ledger,
        failure=None if failure is None else Failure(failure, "Error", "why"),
        metadata={} if horizon is None else {"horizon": horizon},
    )  # fmt: skip


def chosen(trajectories: list) -> Selected:
    return Selected(trajectories, num_groups=4, num_filtered=1, reward_std=0.25)


def test_rates_and_lengths_are_of_those_that_count(trajectory):
    lost = FailureKind.INFRASTRUCTURE
    episodes = [
        episode(0, 1.0, [4, 4], horizon=1),
        episode(0, 0.0, [2], horizon=1),
        episode(1, 0.5, [1, 1, 1], horizon=2),
        episode(1, 0.0, [3], failure=FailureKind.POLICY, horizon=2),
        episode(2, 0.0, [9] * 9, failure=lost, horizon=2),
    ]
    found = audit(episodes, chosen([None] * 5), version=3, trained=0)
    assert (found["reward_mean"], found["success"], found["coverage"]) == (1.5 / 4, 1 / 4, 4 / 5)
    assert found["by_horizon"] == {"1": 0.5, "2": 0.0}
    assert (found["turns_mean"], found["turns_won"], found["turns_lost"]) == (7 / 4, 2.0, 5 / 3)
    assert found["stop_reasons"] == {"answered": 3, "failed": 2}
    assert found["failures"] == {"infrastructure": 1, "policy": 1}
    # 8 + 2 + 3 + 3 + 81 sampled, and 2 observed in each of 2 + 1 + 3 + 1 + 9 turns
    assert found["tokens_sampled"] == 97
    assert found["policy_token_share"] == 97 / (97 + 2 * 16)


def test_trap_31_a_token_that_trained_twice_or_never_stops_the_run(trajectory):
    episodes = [episode(0, 1.0, [4, 2]), episode(0, 0.0, [3])]
    taught = [trajectory(episodes[0].ledger, [1.0, 0.0]), trajectory(episodes[1].ledger, -1.0)]
    audit(episodes, chosen(taught), version=3, trained=7)
    for trained in (6, 8, 14, 0):
        with pytest.raises(AuditError, match=f"{trained} tokens trained, 7 sampled with an advantage"):
            audit(episodes, chosen(taught), version=3, trained=trained)


def test_trap_44_the_share_of_groups_that_teach_nothing_is_told(trajectory):
    def share(*groups: list[float | None]) -> float:
        lost = FailureKind.INFRASTRUCTURE
        episodes = [
            episode(g, r or 0.0, [1], failure=lost if r is None else None)
            for g, rewards in enumerate(groups)
            for r in rewards
        ]
        return audit(episodes, chosen([None] * len(episodes)), version=3, trained=0)["zero_variance_share"]

    assert share([1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.3, 0.3]) == 3 / 4
    assert share([1.0, 0.0], [0.0, 0.2]) == 0.0
    # a lost member is no reward of zero: its group is not one that differs, but one that is left out
    assert share([1.0, 1.0, None], [0.0, 1.0]) == 0.0
    assert share([1.0, 0.0, None], [1.0, 1.0]) == 1.0


def test_trap_46_staleness_is_counted_per_sampled_span():
    episodes = [episode(0, 1.0, [1, 1], version=5), episode(0, 0.0, [1], version=3)]
    assert audit(episodes, chosen([None, None]), version=5, trained=0)["staleness"] == {"0": 2, "2": 1}


def test_trap_27_episodes_that_repeat_one_another_are_seen():
    episodes = [episode(0, 1.0, [4]), episode(0, 1.0, [4]), episode(0, 0.0, [4], first_id=9), episode(1, 1.0, [4])]
    assert audit(episodes, chosen([None] * 4), version=3, trained=0)["duplicate_share"] == 1 / 4


def test_an_update_without_episodes_has_figures_too():
    found = audit([], chosen([]), version=0, trained=0)
    assert (found["episodes"], found["reward_mean"], found["coverage"], found["staleness"]) == (0, 0.0, 0.0, {})
