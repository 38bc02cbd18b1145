"""Which positions train, and that padding, order and forks change nothing. Positions by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentgym.errors import LedgerError
from agentgym.learner.pack import Trajectory, pack
from agentgym.learner.update import ObjectiveConfig
from agentgym.ledger import Ledger, Segment, Source

EOS = 1  # and what the models' configurations pad with


def observed(ids: list[int], turn: int = 0, *, forks: bool = False) -> Segment:
    return Segment(ids, Source.OBSERVED, turn, forks=forks)


def sampled(ids: list[int], turn: int = 0, logprob: float = -5.0, version: int = 0) -> Segment:
    return Segment(ids, Source.SAMPLED, turn, [logprob] * len(ids), version)


def whole(trajectories: list[Trajectory]) -> list[tuple[int, int, int, float]]:
    """(trajectory, turn, target, recorded log-prob) of every token that trains, in order."""
    parts = pack(trajectories, max_tokens=10_000)
    return sorted(
        (int(i), int(turn), int(target), float(logp))
        for part in parts
        for i, turn, target, logp in zip(
            part.trajectory_index, part.turn_index, part.targets, part.behaviour_logp, strict=True
        )
    )


def test_trap_9_each_target_is_predicted_from_the_position_before_it(trajectory):
    first = Ledger([observed([5, 6]), sampled([7, EOS]), observed([8], 1), sampled([9], 1, -2.0)])
    second = Ledger([observed([4]), sampled([3])])
    (part,) = pack([trajectory(first, [1.0, -1.0]), trajectory(second, 0.5)], max_tokens=10_000)
    assert part.ids.tolist() == [[5, 6, 7, EOS, 8, 9], [4, 3, 0, 0, 0, 0]]
    assert part.where.tolist() == [1, 2, 4, 6]  # before 7, before the stop token, before 9; and 6 + 0 before 3
    assert part.targets.tolist() == [7, EOS, 9, 3]
    assert part.behaviour_logp.tolist() == [-5.0, -5.0, -2.0, -5.0]
    assert part.advantage.tolist() == [1.0, 1.0, -1.0, 0.5]
    assert part.turn_index.tolist() == [0, 0, 1, 0]
    assert part.trajectory_index.tolist() == [0, 0, 0, 1]


def test_trap_7_padding_is_a_matter_of_length_and_never_of_an_id(trajectory):
    # Rows full of the id that also pads: observed, sampled, and as the last token.
    rows = [[observed([EOS, EOS]), sampled([EOS, 7, EOS, EOS])], [observed([EOS]), sampled([EOS])]]
    (part,) = pack([trajectory(Ledger(row)) for row in rows], max_tokens=10_000)
    assert part.where.tolist() == [1, 2, 3, 4, 6]
    assert part.targets.tolist() == [EOS, 7, EOS, EOS, EOS]


def test_trap_7_a_row_of_padding_ids_has_the_gradient_it_has_alone(load, trajectory, gradient, plain_gradient, apart):
    rows = [[observed([EOS, EOS]), sampled([EOS, 7, EOS, EOS])], [observed([EOS, 4]), sampled([EOS])]]
    trajectories = [trajectory(Ledger(row), a) for row, a in zip(rows, (1.0, -0.5), strict=True)]
    assert apart(gradient(load(), trajectories), plain_gradient(load(), trajectories)) < 1e-5


def test_trap_13_a_turn_without_an_advantage_is_left_out_and_still_counted(trajectory):
    ledger = Ledger([observed([5]), sampled([6, 7]), observed([8], 1), sampled([9], 1)])
    made = trajectory(ledger, [0.0, 1.0])
    assert made.num_trainable == 3
    (part,) = pack([made], max_tokens=10_000)
    assert part.targets.tolist() == [9]
    assert part.ids.tolist() == [[5, 6, 7, 8, 9]]
    (part,) = pack([trajectory(ledger, [1.0, 0.0])], max_tokens=10_000)
    assert part.ids.tolist() == [[5, 6, 7]]  # what comes behind the last token that trains is not needed
    assert pack([trajectory(ledger, 0.0)], max_tokens=10_000) == []


def test_trap_31_each_sampled_token_trains_once_whatever_was_forked(trajectory):
    ledger = Ledger(
        [
            observed([5]),
            sampled([6, 7]),
            observed([5, 6, 7, 8], 1, forks=True),  # observes what was sampled before
            sampled([9], 1),
            observed([5, 6, 7, 8, 9, 4], 2, forks=True),
            sampled([3, 2], 2),
        ]
    )
    assert whole([trajectory(ledger)]) == [
        (0, 0, 6, -5.0),
        (0, 0, 7, -5.0),
        (0, 1, 9, -5.0),
        (0, 2, 2, -5.0),
        (0, 2, 3, -5.0),
    ]
    assert trajectory(ledger).num_trainable == ledger.num_sampled == 5


def test_a_row_in_which_nothing_was_sampled_is_no_row(load, trajectory, gradient):
    # A fork that filled the context: the whole chat observed anew, and no room left for a reply.
    ledger = Ledger([observed([5]), sampled([6, 7]), observed(list(range(200)), 1, forks=True)])
    assert [part.ids.tolist() for part in pack([trajectory(ledger)], max_tokens=10)] == [[[5, 6, 7]]]
    assert float(gradient(load(), [trajectory(ledger)], microbatch_tokens=10).norm()) > 0


@pytest.mark.parametrize("limit", [1, 30, 60, 100, 10_000])
def test_a_part_keeps_to_its_limit_and_all_parts_hold_everything(random_ledger, trajectory, limit):
    trajectories = [trajectory(random_ledger(seed, turns=1 + seed % 4), seed + 1.0) for seed in range(30)]
    parts = pack(trajectories, max_tokens=limit)
    for part in parts:
        assert part.ids.numel() <= limit or len(part.ids) == 1
    found = [int(i) for part in parts for i in part.trajectory_index]
    assert sorted(found) == [i for i, t in enumerate(trajectories) for _ in range(t.num_trainable)]
    assert all(part.advantage.tolist() == (part.trajectory_index + 1).tolist() for part in parts)


def test_rows_of_very_different_lengths_do_not_share_a_part(trajectory):
    long, short = Ledger([observed([5] * 600), sampled([6])]), Ledger([observed([5]), sampled([6])])
    parts = pack([trajectory(short), trajectory(long), trajectory(short)], max_tokens=100_000)
    assert [tuple(part.ids.shape) for part in parts] == [(1, 601), (2, 2)]


def test_reinforcement_refuses_what_nobody_sampled(trajectory):
    ledger = Ledger([observed([5]), Segment([6, 7], Source.WRITTEN, 0), sampled([8])])
    with pytest.raises(LedgerError, match="2 written tokens in a reinforcement batch"):
        pack([trajectory(ledger)], max_tokens=100)
    assert [t for *_, t, _ in whole([trajectory(ledger, trains="written")])] == [6, 7]
    assert [t for *_, t, _ in whole([trajectory(ledger, trains="both")])] == [6, 7, 8]


def test_a_first_token_cannot_train(trajectory):
    with pytest.raises(LedgerError, match="nothing comes before it; open with an observation"):
        pack([trajectory(Ledger([sampled([6])]))], max_tokens=100)


# -- the same gradient, however it is packed ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_trap_33_padded_rows_in_any_order_have_the_gradients_of_each_alone(
    load, random_ledger, trajectory, gradient, plain_gradient, apart, kind, seed
):
    chance = np.random.default_rng(seed)
    made = [trajectory(random_ledger(i, turns=1 + i % 4, longest=9), float(chance.normal())) for i in range(12)]
    expected = plain_gradient(load(kind), made)
    for limit in (10_000, 200, 40, 1):
        order = chance.permutation(len(made))
        found = gradient(load(kind), [made[i] for i in order], microbatch_tokens=limit)
        assert apart(found, expected) < 1e-5


def test_trap_30_a_trajectory_in_many_rows_trains_as_it_does_in_one(load, trajectory, gradient, apart):
    turns = [([5, 6], [7, 8, 9]), ([10], [11]), ([12, 13, 14], [15, 16])]
    one, many, history = Ledger(), Ledger(), []
    for turn, (said, replied) in enumerate(turns):
        one.append(observed(said, turn))
        many.append(observed([*history, *said], turn, forks=turn > 0))  # the same context, in a row of its own
        for ledger in (one, many):
            ledger.append(sampled(replied, turn))
        history += said + replied
    other = Ledger([observed([20]), sampled([21, 22])])
    assert (len(one.rows()), len(many.rows())) == (1, 3)
    for config in (ObjectiveConfig(), ObjectiveConfig(denominator="trajectories"), ObjectiveConfig("reinforce")):
        batches = [[trajectory(ledger, [1.0, -0.5, 0.7]), trajectory(other, -1.0)] for ledger in (one, many)]
        assert apart(*(gradient(load(), batch, config) for batch in batches)) < 1e-5


def test_trap_9_only_positions_before_a_sampled_token_feel_the_loss(load, random_ledger, trajectory):
    from agentgym.engines.causal import CausalLM
    from agentgym.learner.update import Learner, OptimizerConfig

    felt: list[torch.Tensor] = []

    class Felt(CausalLM):
        """Keeps what the backbone gave, so that its gradient can be read."""

        def hidden(self, *args, **kwargs):
            made = super().hidden(*args, **kwargs)
            made.retain_grad()
            felt.append(made)
            return made

    lm, ledger = Felt(load().model), random_ledger(3, turns=4)
    Learner(lm, OptimizerConfig(lr=1e-30), total_steps=1).step([trajectory(ledger)], ObjectiveConfig("reinforce"))
    (row,) = ledger.rows()
    (hidden,) = felt
    touched = hidden.grad[0].abs().sum(-1) != 0
    assert touched[: len(row) - 1].tolist() == row.sampled[1:].tolist()


@pytest.mark.parametrize("objective", ["ppo_clip", "reinforce"])
@pytest.mark.parametrize("denominator", ["tokens", "trajectories"])
def test_trap_10_what_was_observed_is_no_target_on_any_loss_path(load, trajectory, gradient, objective, denominator):
    config = ObjectiveConfig(objective, denominator=denominator)

    def batch(last: list[int]) -> list[Trajectory]:
        other = Ledger([observed([4, 5, 6, 7, 8, 9]), sampled([3])])
        return [trajectory(Ledger([observed([5, 6]), sampled([7, 8]), observed(last, 1)])), trajectory(other, -1.0)]

    reference = gradient(load(), batch([9, 10]), config)
    for last in ([11, 12], [13, 14, 15], []):  # other labels behind the reply, more of them, none
        assert torch.equal(gradient(load(), batch(last), config), reference)


def test_trap_10_imitation_learns_no_observation(load, trajectory, gradient):
    def batch(last: list[int]) -> list[Trajectory]:
        ledger = Ledger([observed([5, 6]), Segment([7, 8], Source.WRITTEN, 0), observed(last, 1)])
        return [trajectory(ledger, trains="written")]

    assert torch.equal(gradient(load(), batch([9, 10]), None), gradient(load(), batch([11]), None))


def test_trap_11_what_was_observed_is_seen_by_what_follows(load, trajectory, gradient, apart):
    def batch(seen: int) -> list[Trajectory]:
        return [trajectory(Ledger([observed([5, seen, 6]), sampled([7, 8])]))]

    assert apart(gradient(load(), batch(9)), gradient(load(), batch(10))) > 0.01
