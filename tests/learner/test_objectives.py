"""Losses and their gradients against formulas written by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agentgym.errors import ConfigError
from agentgym.learner.corrections import drift
from agentgym.learner.objectives import TokenBatch, get_objective, ppo_clip, reinforce, sft
from agentgym.learner.reduce import masked_sum, weights

NAN = float("nan")


def tokens(
    logp: list[float], behaviour: list[float], advantage: list[float], mask: list[bool] | None = None
) -> TokenBatch:
    count = len(logp)
    return TokenBatch(
        torch.tensor(logp, requires_grad=True),
        torch.tensor(behaviour),
        torch.tensor(advantage),
        torch.tensor([True] * count if mask is None else mask),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, dtype=torch.long),
    )


def of_ratio(ratio: float, advantage: float) -> TokenBatch:
    return tokens([-1.0 + math.log(ratio)], [-1.0], [advantage])


def gradient(loss: Tensor, batch: TokenBatch) -> list[float]:
    (found,) = torch.autograd.grad(loss.sum(), batch.logp)
    return found.tolist()


# d/d logp of -min(r A, clip(r) A): r A where the unclipped term is the smaller one, else nothing.
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.0, -2.0, 2.0, 2.0, 0.0),
        (1.27, 2.0, -2.54, -2.54, 0.0),  # within the upper bound of 1.28
        (1.5, 2.0, -2.56, 0.0, 1.0),  # beyond it: 1.28 * 2, and no more push
        (1.5, -2.0, 3.0, 3.0, 0.0),  # what got likelier and is bad is pushed down with its full ratio
        (0.81, -2.0, 1.62, 1.62, 0.0),  # within the lower bound of 0.8
        (0.5, -2.0, 1.6, 0.0, 1.0),  # beyond it: 0.8 * 2
        (0.5, 2.0, -1.0, -1.0, 0.0),  # what got rarer and is good is pulled up
        (3.0, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_trap_36_ppo_clip_in_every_region_of_ratio_and_advantage(ratio, advantage, loss, slope, clipped):
    batch = of_ratio(ratio, advantage)
    found, metrics = ppo_clip(batch)
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert gradient(found, batch) == pytest.approx([slope], abs=1e-6)
    assert metrics["clip_fraction"].tolist() == [clipped]


def test_the_bounds_of_the_clip_are_arguments():
    for low, high, bound in ((0.1, 0.5, 1.5), (0.1, 0.1, 1.1)):
        assert ppo_clip(of_ratio(2.0, 1.0), clip_low=low, clip_high=high)[0].item() == pytest.approx(-bound)
    assert ppo_clip(of_ratio(0.2, -1.0), clip_low=0.4)[0].item() == pytest.approx(0.6)


def test_trap_26_a_ratio_is_taken_to_what_was_recorded():
    batch = tokens([-0.5, -2.0], [-1.0, -1.0], [1.0, 1.0])
    assert ppo_clip(batch, clip_high=9.0)[0].tolist() == pytest.approx([-math.exp(0.5), -math.exp(-1.0)])


@pytest.mark.parametrize("advantage", [2.0, 0.0, -3.0])
def test_trap_36_reinforce_pushes_with_the_advantage_alone(advantage):
    batch = tokens([-1.5], [-9.0], [advantage])
    loss, _ = reinforce(batch)
    assert loss.tolist() == [1.5 * advantage]
    assert gradient(loss, batch) == [-advantage]


def test_imitation_reads_neither_advantage_nor_behaviour():
    batch = tokens([-1.5, -0.5], [NAN, NAN], [NAN, NAN])
    loss, _ = sft(batch)
    assert loss.tolist() == [1.5, 0.5]
    assert gradient(loss, batch) == [-1.0, -1.0]


@pytest.mark.parametrize("objective", [ppo_clip, reinforce, sft])
@pytest.mark.parametrize("field", ["logp", "behaviour_logp", "advantage"])
@pytest.mark.parametrize("poison", [NAN, 1e4, -1e4, math.inf, -math.inf])
def test_trap_14_what_lies_outside_the_mask_changes_neither_loss_nor_metrics_nor_gradient(objective, field, poison):
    def figures(value: float) -> tuple[list[float], ...]:
        batch = tokens([-1.0, -2.0, -0.5], [-1.2, -2.0, -0.9], [1.0, 1.0, -1.0], [True, False, True])
        changed = getattr(batch, field).detach().clone()
        changed[1] = value
        batch = replace(batch, **{field: changed.requires_grad_(field == "logp")})
        loss, metrics = objective(batch)
        total = masked_sum(loss, batch.loss_mask)
        sums = [float(masked_sum(v, batch.loss_mask)) for v in (metrics | drift(batch)).values()]
        return [total.item()], sums, gradient(total, batch)

    assert figures(poison) == figures(-1.5)
    assert figures(poison)[2][1] == 0.0


def test_drift_is_two_estimates_of_how_far_the_weights_have_moved():
    found = drift(tokens([-1.0, -1.5], [-1.0, -1.0], [0.0, 0.0]))
    assert found["kl_k1"].tolist() == [0.0, 0.5]
    assert found["kl_k3"].tolist() == pytest.approx([0.0, math.exp(-0.5) - 1 + 0.5])
    assert not found["kl_k3"].requires_grad


def test_trap_35_both_estimates_of_drift_are_the_divergence_on_average():
    # Three tokens, so that the expectation under what sampled them is a sum of three.
    behaviour, now = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.5, 0.3, 0.2])
    exact = float((behaviour * (behaviour / now).log()).sum())
    found = drift(tokens(now.log().tolist(), behaviour.log().tolist(), [0.0] * 3))
    for name in ("kl_k1", "kl_k3"):
        assert float((behaviour * found[name]).sum()) == pytest.approx(exact, abs=1e-6)


def test_an_unknown_objective_lists_those_there_are():
    with pytest.raises(ConfigError, match="no objective 'sft': there are ppo_clip, reinforce, gspo, cispo"):
        get_objective("sft")


# -- denominators ------------------------------------------------------------------------------------------------------


def test_denominators_count_all_that_was_planned_to_train():
    assert weights("tokens", [3, 0, 5]).divisor == 8.0
    assert weights("trajectories", [3, 0, 5]).divisor == 3.0
    assert weights("groups", [3, 0, 5], [4, 4, 9]).divisor == 2.0
    assert weights("constant", [3, 0, 5], length=10).divisor == 30.0
    for kind in ("tokens", "trajectories", "groups"):
        assert weights(kind, [], []).divisor == 1.0
    assert weights("tokens", [0]).divisor == 1.0


def test_whoever_is_counted_weighs_the_same_whatever_it_said():
    assert weights("tokens", [1, 4]).share is None
    assert weights("constant", [1, 4], length=9).share is None
    assert weights("trajectories", [1, 4, 0]).share.tolist() == [1.0, 0.25, 1.0]
    assert weights("groups", [1, 4, 2, 0], [7, 7, 3, 5]).share.tolist() == pytest.approx([0.2, 0.2, 0.5, 1.0])


def test_a_masked_sum_does_not_read_what_it_leaves_out():
    assert float(masked_sum(torch.tensor([1.0, NAN, math.inf, 2.0]), torch.tensor([True, False, False, True]))) == 3.0
