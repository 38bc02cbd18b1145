"""Advantages worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, tensor

from agentgym.errors import ConfigError
from agentgym.learner.credit import CREDITS, Outcomes, get_credit, grpo, leave_one_out, maxrl, outcome_mean, same_state

NAN = float("nan")
ALONE = [leave_one_out, outcome_mean, grpo, maxrl]


def floats(numbers: list[float]) -> Tensor:
    return tensor(numbers, dtype=torch.float32)


def outcomes(
    rewards: list[float],
    owner: list[int],
    state: list[int] | None = None,
    *,
    groups: list[int] | None = None,
    valid: list[bool] | None = None,
    turn_rewards: list[float] | None = None,
) -> Outcomes:
    """Trajectories whose reward comes at their last turn, unless it is said otherwise."""
    count = len(rewards)
    last = [i + 1 == len(owner) or owner[i + 1] != who for i, who in enumerate(owner)]
    at_the_end = [rewards[who] if ends else 0.0 for who, ends in zip(owner, last, strict=True)]
    return Outcomes(
        floats(rewards),
        floats(rewards),
        tensor(groups or [0] * count),
        tensor([True] * count if valid is None else valid),
        tensor(owner, dtype=torch.long),
        floats(at_the_end if turn_rewards is None else turn_rewards),
        tensor([-1] * len(owner) if state is None else state, dtype=torch.long),
    )


def per_turn(name: str, made: Outcomes, discount: float = 1.0) -> list[float]:
    return [round(value, 4) for value in get_credit(name)(made, discount).tolist()]


def values(
    credit, rewards: list[float], groups: list[int] | None = None, valid: list[bool] | None = None
) -> list[float]:
    count = len(rewards)
    made = credit(floats(rewards), tensor(groups or [0] * count), tensor([True] * count if valid is None else valid))
    assert made.dtype is torch.float32
    return [round(value, 4) for value in made.tolist()]


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (leave_one_out, [1.0, -0.3333, -0.3333, -0.3333]),  # 1 - 0, and 0 - 1/3
        (outcome_mean, [0.75, -0.25, -0.25, -0.25]),  # the mean is 1/4
        (grpo, [1.5, -0.5, -0.5, -0.5]),  # the squares sum to 0.75, over 3 is 0.25, whose root is 0.5
    ],
)
def test_trap_29_one_of_four_won(credit, expected):
    assert values(credit, [1, 0, 0, 0]) == expected


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (leave_one_out, [1.0, 0.0, -0.5, -0.5]),  # of three: 1 - 0, and 0 - (1 + 0) / 2
        (outcome_mean, [0.6667, 0.0, -0.3333, -0.3333]),
        (grpo, [1.1547, 0.0, -0.5774, -0.5774]),  # squares 4/9 + 1/9 + 1/9 = 2/3, over 2 is 1/3; 2/3 * sqrt(3)
    ],
)
@pytest.mark.parametrize("lost", [0.0, 1.0, 100.0, NAN])
def test_trap_40_a_lost_member_neither_trains_nor_votes(credit, expected, lost):
    assert values(credit, [1, lost, 0, 0], valid=[True, False, True, True]) == expected


@pytest.mark.parametrize("credit", ALONE)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 0.7, 1e-7, 1e7, -0.3])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 10])
def test_trap_29_a_group_without_variance_gets_exactly_zero(credit, reward, size):
    # In float32, 0.1 added up ten times and divided by ten is not 0.1.
    made = credit(tensor([reward] * size), torch.zeros(size, dtype=torch.long), torch.ones(size, dtype=torch.bool))
    assert made.tolist() == [0.0] * size


@pytest.mark.parametrize("credit", ALONE)
def test_trap_29_a_group_of_one_gets_nothing_and_not_its_raw_reward(credit):
    assert values(credit, [1.0], groups=[7]) == [0.0]
    assert values(credit, [1.0, 0.0, 1.0], groups=[7, 8, 8])[0] == 0.0
    assert values(credit, [1.0, 0.0], valid=[True, False]) == [0.0, 0.0]  # alone because the other one is lost
    assert values(credit, [1.0, 0.0], valid=[False, False]) == [0.0, 0.0]


@pytest.mark.parametrize("credit", ALONE)
def test_groups_are_told_apart_by_any_labels_in_any_order(credit):
    rewards = [1.0, 0.2, 0.0, 0.4, 0.0, 0.9]
    mixed = values(credit, rewards, groups=[10**12, -3, 10**12, -3, 10**12, -3])
    assert mixed[0::2] == values(credit, rewards[0::2])
    assert mixed[1::2] == values(credit, rewards[1::2])


def test_trap_29_standard_deviations_have_n_minus_1_in_the_denominator():
    assert values(grpo, [1, 0]) == [0.7071, -0.7071]  # centred 0.5; 2 * 0.25 / 1 = 0.5, whose root is 0.7071
    assert values(grpo, [0.001, 0]) == [0.7071, -0.7071]  # what a standard deviation does to hardly any difference
    assert values(leave_one_out, [0.001, 0]) == [0.001, -0.001]


@pytest.mark.parametrize("credit", ALONE)
def test_a_groups_advantages_sum_to_zero(credit):
    chance = torch.Generator().manual_seed(0)
    made = credit(torch.rand(9, generator=chance), torch.zeros(9, dtype=torch.long), torch.ones(9, dtype=torch.bool))
    assert abs(float(made.sum())) < 1e-5


# -- per turn ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["leave_one_out", "grpo", "outcome_mean"])
def test_trap_30_many_turns_or_rows_give_a_trajectory_no_heavier_vote(name):
    # One that won in one turn, three that lost in nine turns each.
    owner = [0] + [1] * 9 + [2] * 9 + [3] * 9
    made = per_turn(name, outcomes([1, 0, 0, 0], owner))
    (credit,) = (f for f in ALONE if f.__name__ == name)
    alone = values(credit, [1, 0, 0, 0])
    assert made == [alone[0]] + [alone[1]] * 27


def turns(
    rewards: list[float], owner: list[int], state: list[int], *, groups: list[int] | None = None, valid=None
) -> list[float]:
    made: Tensor = same_state(outcomes(rewards, owner, state, groups=groups, valid=valid), 1.0)
    return [round(value, 4) for value in made.tolist()]


def test_a_turn_is_compared_with_those_who_stood_in_the_same_state():
    # All start in 0. The winner and one loser come to 1, the other loser to 2, where nobody else is.
    assert turns([1, 0, 0], [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 2]) == [1.0, 1.0, -0.5, -1.0, -0.5, 0.0]


def test_behind_an_irrecoverable_error_nobody_is_blamed():
    assert turns([1, 0, 0], [0, 0, 1, 1, 2, 2], [0, 1, 0, 9, 0, 9]) == [1.0, 0.0, -0.5, 0.0, -0.5, 0.0]


def test_who_returns_to_a_state_votes_once():
    # The loser stands in 0 three times: the winner is still compared with one other, and not with three.
    assert turns([1, 0, 0.5], [0, 1, 1, 1, 2], [0, 0, 0, 0, 0]) == [0.75, -0.75, -0.75, -0.75, 0.0]


def test_a_state_without_a_name_and_a_lost_trajectory_earn_nothing():
    assert turns([1, 0], [0, 0, 1, 1], [0, -1, 0, -1]) == [1.0, 0.0, -1.0, 0.0]
    assert turns([1, 0, 0], [0, 1, 2], [0, 0, 0], valid=[True, True, False]) == [1.0, -1.0, 0.0]


def test_states_of_two_groups_are_two_states():
    assert turns([1, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 0], groups=[5, 5, 6, 6]) == [1.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", list(CREDITS))
def test_trap_29_one_sum_added_up_in_several_ways_is_no_variance(name):
    # 0.7 in seven turns, in one and in two: float32 sums that differ in the last digit
    gained = [0.1] * 7 + [0.7] + [0.2, 0.5]
    made = outcomes([0.7] * 3, [0] * 7 + [1] + [2] * 2, turn_rewards=gained)
    found = per_turn(name, made)
    assert max(map(abs, found)) < 3  # rebn sees that turns differ, and nobody sees a million
    if name != "rebn":
        assert set(found) == {0.0}


def test_scales_are_those_of_what_the_environment_gave():
    # All failed; a divergence of next to nothing was taken off: nothing to divide by, and next to nothing is left.
    made = replace(outcomes([-1e-4, -3e-4], [0, 1]), judged=floats([0.0, 0.0]))
    for name in ("grpo", "maxrl"):
        assert [round(v, 6) for v in get_credit(name)(made, 1.0).tolist()] == [1e-4, -1e-4]


def test_discounts_batch_norms_and_ratios_of_success_by_hand():
    # One won after two turns, one lost after one: from the start 0.5 and 0, at the last turn 1.
    made = outcomes([1, 0], [0, 0, 1])
    assert per_turn("outcome_mean", made, 0.5) == [0.25, 0.75, -0.25]
    assert per_turn("leave_one_out", made, 0.5) == [0.5, 1.0, -0.5]
    assert per_turn("maxrl", made) == [1.0, 1.0, -1.0]  # (1 - 1/2) / (1/2)
    assert per_turn("grpo", made) == [0.7071, 0.7071, -0.7071]
    assert per_turn("rebn", made) == [1.0, 1.0, -1.0]  # each trajectory weighs a half: mean 1/2, deviation 1/2
    assert per_turn("gigpo", outcomes([1, 0], [0, 0, 1], [0, 1, 0]), 0.5) == [0.75, 0.5, -0.75]  # 0.5 + 0.25, 0.5 + 0
    assert per_turn("rebn", outcomes([1, 1], [0, 1])) == [0.0, 0.0]


@pytest.mark.parametrize("name", list(CREDITS))
def test_where_everything_is_lost_nothing_is_taught(name):
    made = outcomes([1.0, 0.0], [0, 0, 1], [0, 1, 0], valid=[False, False])
    assert per_turn(name, made) == [0.0, 0.0, 0.0]


def test_an_unknown_credit_lists_those_there_are():
    with pytest.raises(ConfigError, match="no credit 'loo': there are outcome_mean, leave_one_out, grpo"):
        get_credit("loo")
