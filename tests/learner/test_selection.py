"""Who trains, on what reward, and which groups: worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agentgym.errors import ConfigError, Failure, FailureKind
from agentgym.learner.selection import Selected, SelectionConfig, has_signal, select
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn


def episode(group: int, reward: float, replies: tuple[int, ...] = (2,), **more) -> Episode:
    """One turn per entry of `replies`, of so many sampled tokens; the reward comes at the end."""
    ledger = Ledger()
    for turn, count in enumerate(replies):
        ledger.append(Segment([2, 3], Source.OBSERVED, turn))
        ledger.append(Segment(range(5, 5 + count), Source.SAMPLED, turn, [-1.0] * count, 0))
    gained = [0.0] * (len(replies) - 1) + [reward]
    fields = {
        "run": "train", "update": 0, "task_id": f"train:{group}", "attempt": 0, "seed": 0, "split": "train",
        "group": group, "env_id": "a/B-v0", "env_version": "v0", "messages": (),
        "turns": tuple(Turn(g, f"s{i}") for i, g in enumerate(gained)), "reward": reward, "reward_parts": {},
        "terminated": True, "truncated": False, "stop_reason": StopReason.ANSWERED, "ledger": ledger,
    }  # fmt: skip
    return Episode(**(fields | more))


def advantages(found: Selected) -> list[list[float] | None]:
    return [None if t is None else [round(float(a), 4) for a in t.advantages] for t in found.trajectories]


def test_trap_43_masked_stops_neither_train_nor_vote():
    cut = {"stop_reason": StopReason.MAX_TOKENS, "truncated": True}
    batch = [episode(0, 1.0), episode(0, 0.0), episode(0, 0.0, **cut), episode(1, 0.0, **cut), episode(1, 1.0)]
    kept = select(batch, "leave_one_out", SelectionConfig())
    assert advantages(kept) == [[1.0], [-0.5], [-0.5], [-1.0], [1.0]]
    masked = select(batch, "leave_one_out", SelectionConfig(masked_stops=(StopReason.MAX_TOKENS,)))
    without = select([e for e in batch if not e.truncated], "leave_one_out", SelectionConfig())
    assert advantages(masked) == [[1.0], [-1.0], None, None, [0.0]]
    assert [a for a in advantages(masked) if a is not None] == advantages(without)


def test_trap_43_every_stop_reason_can_be_masked_and_none_is_by_itself():
    for stop in StopReason:
        other = StopReason.ENDED if stop is StopReason.ANSWERED else StopReason.ANSWERED
        batch = [episode(0, 1.0, stop_reason=stop), episode(0, 0.0, stop_reason=other)]
        assert advantages(select(batch, "leave_one_out", SelectionConfig())) == [[1.0], [-1.0]]
        assert advantages(select(batch, "leave_one_out", SelectionConfig(masked_stops=(stop,)))) == [None, [0.0]]


def test_an_overlong_episode_pays_for_what_it_says_beyond():
    # limit 10, cache 4: free up to 6, then a quarter per token, 1 from 10 on
    config = SelectionConfig(overlong_limit=10, overlong_cache=4)
    batch = [episode(0, 1.0, (6,)), episode(0, 1.0, (7,)), episode(0, 1.0, (4, 4)), episode(0, 1.0, (30,))]
    # rewards 1, 0.75, 0.5, 0; their mean is 0.5625
    assert advantages(select(batch, "outcome_mean", config)) == [[0.4375], [0.1875], [-0.0625] * 2, [-0.5625]]
    assert advantages(select(batch, "outcome_mean", SelectionConfig())) == [[0.0], [0.0], [0.0, 0.0], [0.0]]


def test_groups_that_teach_most_are_kept_and_the_others_still_count():
    rewards = {0: (1.0, 0.0), 1: (0.6, 0.4), 2: (1.0, 1.0), 3: (0.9, 0.0)}
    batch = [episode(g, r) for g, both in rewards.items() for r in both]
    found = select(batch, "outcome_mean", SelectionConfig(keep="variance", keep_share=0.5))
    assert advantages(found) == [[0.5], [-0.5], [0.0], [0.0], [0.0], [0.0], [0.45], [-0.45]]
    assert (found.num_groups, found.num_filtered) == (4, 2)
    # standard deviations 0.7071, 0.1414, 0, 0.6364
    assert found.reward_std == pytest.approx(0.37125, abs=1e-4)
    learnable = select(batch, "outcome_mean", SelectionConfig(keep="learnability", keep_share=0.25))
    assert advantages(learnable) == [[0.5], [-0.5]] + [[0.0]] * 6  # one of two succeeded in group 0 alone
    uncounted = select(batch, "outcome_mean", SelectionConfig(keep="variance", count_filtered=False))
    assert [a is None for a in advantages(uncounted)] == [False, False, True, True, True, True, False, False]


def test_which_groups_teach_is_read_off_what_the_environment_gave():
    # A penalty on all of them makes nobody's success less of one.
    config = SelectionConfig(keep="learnability", keep_share=0.5, overlong_limit=200, overlong_cache=199)
    batch = [episode(0, 1.0), episode(0, 1.0), episode(1, 1.0), episode(1, 0.0)]
    assert [t is not None and bool(t.advantages.any()) for t in select(batch, "outcome_mean", config).trajectories] == [
        False, False, True, True,
    ]  # fmt: skip


def test_a_policys_own_failure_counts_and_a_broken_group_is_left_out():
    policy, ours = (Failure(kind, "Error", "why") for kind in (FailureKind.POLICY, FailureKind.INFRASTRUCTURE))
    batch = [episode(0, 1.0), episode(0, 0.0, failure=policy), episode(1, 1.0), episode(1, 0.0, failure=ours)]
    assert advantages(select(batch, "leave_one_out", SelectionConfig())) == [[1.0], [-1.0], None, None]


def test_advantages_are_scaled_over_the_tokens_of_their_environment():
    batch = [episode(0, 1.0, (1,)), episode(0, 0.0, (3,)), episode(1, 4.0, (2,), env_id="c/D-v0")]
    batch.append(episode(1, 0.0, (2,), env_id="c/D-v0"))
    config = SelectionConfig(advantage_scale="task")
    # 1 over one token, -1 over three; 4 and -4 over two each: both have a root mean square of their own size
    assert advantages(select(batch, "leave_one_out", config)) == [[1.0], [-1.0], [1.0], [-1.0]]
    three = [episode(0, 1.0, (1,)), episode(0, 0.0, (1,)), episode(0, 0.0, (2,))]
    # 1, -0.5, -0.5: (1 + 0.25 + 2 * 0.25) / 4 = 0.4375
    found = advantages(select(three, "leave_one_out", config))
    assert [a[0] for a in found if a] == pytest.approx([1 / 0.4375**0.5, *[-0.5 / 0.4375**0.5] * 2], abs=1e-4)


def test_the_divergence_is_taken_off_the_turn_that_earned_it():
    batch = [episode(0, 1.0, (1, 1)), episode(0, 1.0, (1, 1))]
    less = [np.array([0.1, 0.3], np.float32), np.array([0.0, 0.0], np.float32)]
    # from the start 0.6 and 1.0; the second turn of the first still has 0.7 before it
    found = select(batch, "leave_one_out", SelectionConfig(), divergence=less)
    assert advantages(found) == [[-0.4, -0.3], [0.4, 0.4]]


def test_a_reward_beyond_its_turns_came_with_the_last_of_them():
    batch = [episode(0, 1.0, (1, 1), turns=(Turn(0.25), Turn(0.25))), episode(0, 0.0, (1, 1))]
    assert advantages(select(batch, "leave_one_out", SelectionConfig(), discount=0.5)) == [[0.625, 0.75], [-0.625] * 2]


def test_signal_is_a_difference_among_those_that_count():
    ours = Failure(FailureKind.INFRASTRUCTURE, "Error", "why")
    assert has_signal([episode(0, 1.0), episode(0, 0.0)])
    assert not has_signal([episode(0, 1.0), episode(0, 1.0)])
    assert not has_signal([episode(0, 1.0), episode(0, 0.0, failure=ours)])


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"keep_share": 0.0}, "keep_share is 0.0"),
        ({"keep_share": 1.5}, "keep_share is 1.5"),
        ({"overlong_cache": 5}, "overlong_cache is 5 and overlong_limit 0"),
        ({"resample": -1}, "resample is -1"),
        ({"masked_stops": ("max_token",)}, "masked_stops 'max_token' is no stop reason; did you mean 'max_tokens'"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(wrong, fault):
    with pytest.raises(ConfigError, match=fault):
        SelectionConfig(**wrong)
