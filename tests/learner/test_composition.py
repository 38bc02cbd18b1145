"""Objectives beyond PPO, corrections, KL and entropy: against formulas by hand and by enumeration; what is refused."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from agentgym.errors import ConfigError
from agentgym.learner.composition import RULES, ObjectiveConfig, loss, refused
from agentgym.learner.corrections import correction, kl
from agentgym.learner.credit import CREDITS
from agentgym.learner.objectives import OBJECTIVES, TokenBatch, cispo, decoupled_ppo, gspo, needs, ppo_clip

NAN = float("nan")


def tokens(
    logp: list[float],
    behaviour: list[float],
    advantage: list[float],
    *,
    turns: list[int] | None = None,
    owners: list[int] | None = None,
    mask: list[bool] | None = None,
    **more: list[float],
) -> TokenBatch:
    n = len(logp)
    return TokenBatch(
        torch.tensor(logp, requires_grad=True),
        torch.tensor(behaviour),
        torch.tensor(advantage),
        torch.tensor([True] * n if mask is None else mask),
        torch.tensor([0] * n if turns is None else turns),
        torch.tensor([0] * n if owners is None else owners),
        **{f"{name}_logp": torch.tensor(values) for name, values in more.items()},
    )


def slopes(lost: Tensor, batch: TokenBatch) -> list[float]:
    (found,) = torch.autograd.grad(lost.sum(), batch.logp)
    return [round(v, 5) for v in found.tolist()]


# -- each objective, by hand -------------------------------------------------------------------------------------------


# (ratio, A) -> slope of the loss in log p. gspo and decoupled_ppo hold as ppo_clip does; cispo never holds, but bounds
# the weight; the bounds are 0.8 and 1.28.
SIGNS = [(1.0, 1.0), (1.0, -1.0), (1.5, 1.0), (1.5, -1.0), (0.5, 1.0), (0.5, -1.0), (1.2, 0.0)]
CLIPPED = [-1.0, 1.0, 0.0, 1.5, -0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (lambda b: ppo_clip(b), CLIPPED),
        (lambda b: gspo(b, scope="turn"), CLIPPED),
        (lambda b: decoupled_ppo(b), CLIPPED),
        (lambda b: cispo(b), [-1.0, 1.0, -1.28, 1.28, -0.8, 0.8, 0.0]),
        # the ratio of 1.5 with A < 0 is beyond 1.4 times: at most 1.4 A, and held
        (lambda b: ppo_clip(b, dual_clip=1.4), [-1.0, 1.0, 0.0, 0.0, -0.5, 0.0, 0.0]),
    ],
)
def test_trap_36_the_sign_table_of_each_objective(objective, expected):
    found = []
    for ratio, advantage in SIGNS:
        anchor = -1.0 - math.log(ratio)
        batch = tokens([-1.0], [anchor], [advantage], proximal=[anchor])
        found += slopes(objective(batch)[0], batch)
    assert found == pytest.approx(expected, abs=1e-5)


def test_trap_36_weights_are_held_constant():
    batch = tokens([-1.0, -2.0], [-1.1, -2.3], [1.0, -1.0])
    lost, _ = cispo(batch, clip_high=9.0, clip_low=1.0)
    assert slopes(lost, batch) == [round(-math.exp(0.1), 5), round(math.exp(0.3), 5)]  # r A, and no d r
    config = ObjectiveConfig("reinforce", correction="tis", correction_cap=1.2)
    lost, _ = loss(batch, torch.zeros(2), config)
    assert slopes(lost, batch) == [round(-math.exp(0.1), 5), 1.2]  # e^0.3 is 1.35


def test_a_ratio_of_a_turn_is_that_of_its_tokens_together():
    # Turn 0 of the first: 0.1 + 0.2; turn 1: -0.3; the second trajectory's turn 0: 0.05.
    batch = tokens(
        [-1.0, -1.0, -1.0, -1.0],
        [-1.1, -1.2, -0.7, -1.05],
        [1.0, 1.0, 1.0, 1.0],
        turns=[0, 0, 1, 0],
        owners=[0, 0, 0, 1],
    )
    free = {"clip_low": 1.0, "clip_high": 99.0}

    def ratios(f: Any, scope: str) -> list[float]:
        return [round(-v, 4) for v in f(batch, scope=scope, **free)[0].tolist()]

    e = math.exp
    assert ratios(ppo_clip, "token") == [round(e(x), 4) for x in (0.1, 0.2, -0.3, 0.05)]
    assert ratios(ppo_clip, "turn") == [round(e(x), 4) for x in (0.3, 0.3, -0.3, 0.05)]
    assert ratios(ppo_clip, "trajectory") == [round(e(x), 4) for x in (0.0, 0.0, 0.0, 0.05)]
    assert ratios(gspo, "turn") == [round(e(x), 4) for x in (0.15, 0.15, -0.3, 0.05)]
    assert ratios(gspo, "trajectory") == [round(e(x), 4) for x in (0.0, 0.0, 0.0, 0.05)]


def test_gspo_has_the_gradient_of_its_sequence_ratio():
    """-min(s A, clip(s) A) once per sequence, s = exp(mean log ratio), straight from the paper."""
    behaviour, advantage = torch.tensor([-1.1, -1.3, -0.8]), 0.7
    batch = tokens([-1.0, -1.2, -0.9], behaviour.tolist(), [advantage] * 3)
    ours = slopes(gspo(batch, scope="trajectory")[0] / 3, batch)
    logp = batch.logp.detach().clone().requires_grad_()
    s = (logp - behaviour).mean().exp()
    (exact,) = torch.autograd.grad(-torch.minimum(s * advantage, s.clamp(0.8, 1.28) * advantage), logp)
    assert ours == pytest.approx(exact.tolist(), abs=1e-5)


# -- corrections -------------------------------------------------------------------------------------------------------


def factors(kind: str, scope: str = "token", *, weighs: bool = True, advantage: float = 1.0) -> list[float]:
    batch = tokens(
        [-1.0] * 4, [-1.0 - x for x in (0.1, 0.9, -0.9, 0.0)], [advantage] * 4, turns=[0, 0, 1, 1], owners=[0, 0, 0, 0]
    )
    found, metrics = correction(batch, kind, batch.logp, scope, low=0.5, cap=2.0, weighs=weighs)
    assert not found.requires_grad
    assert metrics["correction_share"].shape == (4,)
    return [round(v, 4) for v in found.tolist()]


def test_corrections_by_hand():
    e = math.exp
    assert factors("tis") == [round(e(0.1), 4), 2.0, round(e(-0.9), 4), 1.0]  # e^0.9 is 2.46
    assert factors("masked") == [round(e(0.1), 4), 0.0, 0.0, 1.0]  # and e^-0.9 is 0.41
    assert factors("masked", weighs=False) == [1.0, 0.0, 0.0, 1.0]
    assert factors("tis", "turn") == [2.0, 2.0, round(e(-0.9), 4), round(e(-0.9), 4)]  # e^1.0 and e^-0.9
    assert factors("geometric", "turn") == [1.0, 1.0, 1.0, 1.0]  # e^0.5 and e^-0.45
    assert factors("geometric") == [1.0, 0.0, 0.0, 1.0]
    assert factors("geometric", "trajectory") == [1.0] * 4  # e^0.025
    assert factors("masked", "trajectory") == [round(e(0.1), 4)] * 4


def test_negatives_that_have_drifted_are_masked_and_nothing_else_is():
    assert factors("negative", advantage=1.0) == [1.0] * 4
    assert factors("negative", advantage=-1.0) == [1.0, 1.0, 0.0, 1.0]  # e^-0.9 lies below 0.5, e^0.9 is welcome
    assert factors("negative", "turn", advantage=-1.0) == [1.0, 1.0, 1.0, 1.0]  # e^-0.45 does not


def test_trap_19_a_truncated_weight_is_right_on_average_where_the_cap_is_not_met():
    """Ten tokens: the expectation of A p / p_behaviour under what sampled is that of A under p."""
    chance = torch.Generator().manual_seed(0)
    now, behaviour = (torch.rand(10, generator=chance).softmax(-1) for _ in range(2))
    advantage = torch.randn(10, generator=chance)
    batch = tokens(now.log().tolist(), behaviour.log().tolist(), advantage.tolist())
    factor, _ = correction(batch, "tis", batch.logp, "token", low=0.5, cap=9.0, weighs=True)
    assert float((behaviour * factor).sum()) == pytest.approx(1.0, abs=1e-6)
    assert float((behaviour * factor * advantage).sum()) == pytest.approx(float((now * advantage).sum()), abs=1e-6)


# -- KL, by enumeration ------------------------------------------------------------------------------------------------


def expected_slope(kind: str, *, unbiased: bool, stale: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Over a vocabulary of three: the expected gradient of the estimate as a loss, and the gradients of KL(p || q) and
    KL(q || p), all in the logits of p."""
    logits = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    logp = logits.log_softmax(-1)
    behaviour = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log() if stale else logp.detach()
    everything = torch.ones(3, dtype=torch.bool)
    nothing = torch.zeros(3, dtype=torch.long)
    batch = TokenBatch(logp, behaviour, torch.zeros(3), everything, nothing, nothing)
    estimate = (behaviour.exp() * kl(batch, kind, reference, unbiased=unbiased)).sum()
    exact = (logp.exp() * (logp - reference)).sum()
    other = (reference.exp() * (reference - logp)).sum()
    return tuple(torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (estimate, exact, other))  # type: ignore[return-value]


def test_trap_35_each_estimate_as_a_loss_has_the_gradient_that_is_claimed():
    k1, exact, other = expected_slope("k1", unbiased=False)
    assert k1.abs().max() < 1e-12
    assert torch.allclose(expected_slope("k2", unbiased=False)[0], exact)
    assert torch.allclose(expected_slope("k3", unbiased=False)[0], other)
    assert not torch.allclose(exact, other, atol=1e-2)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_trap_35_weighed_by_the_ratio_the_gradient_is_the_divergences_on_stale_data_too(kind, stale):
    found, exact, _ = expected_slope(kind, unbiased=True, stale=stale)
    assert torch.allclose(found, exact, atol=1e-12)


def test_trap_35_in_the_reward_k1_has_the_divergences_gradient():
    """-E[k1 grad log p] is -grad KL: what reinforcement climbs when k1 is taken off the reward."""
    logits = torch.tensor([0.3, -0.5, 0.9], requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3]).log()
    logp = logits.log_softmax(-1)
    k1 = (logp - reference).detach()
    (climbed,) = torch.autograd.grad((logp.exp().detach() * k1 * logp).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits)
    assert torch.allclose(climbed, exact, atol=1e-6)


def test_values_of_the_three_estimates():
    batch = tokens([-1.0], [-1.0], [0.0])
    r = 0.4  # log q - log p
    found = [kl(batch, kind, torch.tensor([-0.6])).item() for kind in ("k1", "k2", "k3")]
    assert found == pytest.approx([-r, r * r / 2, math.exp(r) - 1 - r])


# -- put together ------------------------------------------------------------------------------------------------------


def test_a_bonus_and_a_divergence_are_added_with_their_weights():
    batch = tokens([-1.0], [-1.0], [2.0], reference=[-0.6])
    lost, metrics = loss(batch, torch.tensor([0.5]), ObjectiveConfig(kl="k2", kl_coef=0.1, entropy_coef=0.01))
    assert lost.item() == pytest.approx(-2.0 + 0.1 * 0.08 - 0.01 * 0.5)
    assert metrics["kl_reference"].item() == pytest.approx(0.08)
    in_reward = ObjectiveConfig(kl="k1", kl_in="reward", kl_coef=0.1)
    assert loss(batch, torch.tensor([0.5]), in_reward)[0].item() == -2.0  # it was taken off before credit


@pytest.mark.parametrize("field", ["logp", "behaviour_logp", "advantage", "proximal_logp", "reference_logp"])
@pytest.mark.parametrize("poison", [NAN, 1e4, -1e4, math.inf, -math.inf])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_trap_14_masked_numbers_reach_no_loss_no_metric_and_no_gradient(name, field, poison):
    from dataclasses import replace

    def figures(value: float) -> tuple:
        batch = tokens(
            [-1.0, -2.0, -0.5], [-1.2, -2.0, -0.9], [1.0, 1.0, -1.0], mask=[True, False, True], turns=[0, 0, 0],
            proximal=[-1.1, -2.0, -0.7], reference=[-1.3, -2.0, -0.4],
        )  # fmt: skip
        changed = getattr(batch, field).detach().clone()
        changed[1] = value
        batch = replace(batch, **{field: changed.requires_grad_(field == "logp")})
        config = ObjectiveConfig(
            name, correction="geometric", correction_scope="turn", kl="k3", kl_coef=0.1, kl_unbiased=True
        )
        lost, metrics = loss(batch, torch.zeros(3), config)
        total = torch.where(batch.loss_mask, lost, 0.0).sum()
        inside = [float(torch.where(batch.loss_mask, v, 0.0).sum()) for v in metrics.values()]
        return total.item(), inside, slopes(total, batch)

    assert figures(poison) == figures(-1.5)
    assert figures(poison)[2][1] == 0.0


# -- the table ---------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"objective": "gspo", "scope": "token"}, "objective gspo has no scope token"),
    ({"objective": "reinforce", "scope": "turn"}, "objective reinforce has no scope turn"),
    ({"correction": "tis"}, "its ratio is taken to the policy that sampled already"),
    ({"objective": "gspo", "correction": "tis"}, "a weight would count it twice"),
    ({"kl": "k1", "kl_coef": 0.1}, "gradient of zero on average"),
    ({"kl": "k2", "kl_coef": 0.1, "kl_unbiased": True}, "kl_unbiased with k2"),
    ({"kl": "k3", "kl_coef": 0.1, "kl_in": "reward"}, "kl k3 in the reward"),
    ({"kl": "k1", "kl_coef": 0.1, "kl_in": "reward", "kl_unbiased": True}, "kl_unbiased is for kl_in loss"),
    ({"kl": "k2"}, "kl k2 with kl_coef 0.0"),
    ({"kl_coef": 0.1}, "kl none with kl_coef 0.1"),
    ({"objective": "cispo", "dual_clip": 3.0}, "dual_clip 3.0 with cispo"),
    ({"dual_clip": 0.5}, "dual_clip 0.5 with ppo_clip"),
    ({"denominator": "constant"}, "needs the tokens per trajectory"),
    ({"denominator_length": 5}, "denominator tokens with denominator_length 5"),
    ({"clip_low": 1.5}, "clip_low is 1.5"),
    ({"clip_high": -0.1}, "clip_high is -0.1"),
    ({"correction_cap": 0.5}, "a ratio of 1 must lie between them"),
    ({"entropy_coef": -1.0}, "weights are at least 0"),
    ({"objective": "luck"}, "no objective 'luck': there are ppo_clip, reinforce, gspo"),
    ({"objective": "cisp"}, "did you mean 'cispo'"),
    ({"objective": "no.such.module:f"}, "No module named 'no'"),
    ({"objective": "math:nothing"}, "has no attribute 'nothing'"),
    ({"objective": "math:pi"}, "is float and no function"),
]


@pytest.mark.parametrize(("choice", "reason"), REFUSED)
def test_what_is_refused_says_why(choice, reason):
    with pytest.raises(ConfigError, match=reason.replace("(", r"\(")):
        ObjectiveConfig(**choice)


def test_every_rule_of_the_table_is_broken_by_somebody():
    broken = set()
    for choice, _ in REFUSED:
        made = object.__new__(ObjectiveConfig)
        plain = ObjectiveConfig()
        for name in ObjectiveConfig.__dataclass_fields__:
            object.__setattr__(made, name, choice.get(name, getattr(plain, name)))
        if made.objective in OBJECTIVES:
            broken |= {i for i, (is_broken, _) in enumerate(RULES) if is_broken(made)}
    assert broken == set(range(len(RULES)))


def test_every_other_combination_is_legal():
    made = 0
    kinds = ("none", "tis", "masked", "geometric", "negative")
    for (name, f), kind, by in product(OBJECTIVES.items(), kinds, ("token", "turn", "trajectory")):
        for scope in f.scopes:
            if kind != "tis" or f.anchor != "behaviour":
                assert refused(ObjectiveConfig(name, scope=scope, correction=kind, correction_scope=by)) == []
                made += 1
    assert made == 3 * (4 * (3 + 2 + 3) + 5 * (1 + 3))
    assert len(CREDITS) == 8


# -- one of your own ---------------------------------------------------------------------------------------------------


def squared(batch: TokenBatch, *, clip_high: float) -> tuple[Tensor, dict[str, Tensor]]:
    """A user's: nothing but a function."""
    return clip_high * batch.inside(batch.logp).square(), {"mine": batch.advantage}


@needs("reference_logp", scopes=("turn",))
def towards(batch: TokenBatch, *, scope: str) -> tuple[Tensor, dict[str, Tensor]]:
    assert scope == "turn"
    return batch.logp - batch.reference_logp, {}


def wants_more(batch: TokenBatch, *, clip_hihg: float) -> tuple[Tensor, dict[str, Tensor]]:
    raise AssertionError("never called")


def test_a_function_of_ones_own_takes_the_knobs_it_names(monkeypatch):
    import sys
    import types

    module = types.ModuleType("mine")
    module.squared, module.towards, module.wants_more = squared, towards, wants_more
    monkeypatch.setitem(sys.modules, "mine", module)
    batch = tokens([-2.0], [-2.0], [5.0], reference=[-1.0])
    lost, metrics = loss(batch, torch.zeros(1), ObjectiveConfig("mine:squared", clip_high=0.5))
    assert (lost.item(), metrics["mine"].item()) == (2.0, 5.0)
    config = ObjectiveConfig("mine:towards")
    assert (config.over, config.needs_reference, config.needs_proximal) == ("turn", True, False)
    assert loss(batch, torch.zeros(1), config)[0].item() == -1.0
    with pytest.raises(
        ConfigError, match="objective wants_more wants 'clip_hihg', which is no setting; did you mean 'clip_high'"
    ):
        ObjectiveConfig("mine:wants_more")
    with pytest.raises(ConfigError, match="has no scope token"):
        ObjectiveConfig("mine:towards", scope="token")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return tokens.logp.sum(), {}", "gives shapes [()] for three tokens"),
        ("return tokens.logp, {'x': tokens.logp.mean()}", "gives shapes [(3,), ()]"),
        ("return tokens.logp", "too many values to unpack"),
        ("return {}['missing'], {}", "KeyError: 'missing'"),
        ("return tokens.logp[:2], {}", "gives shapes [(2,)]"),
    ],
)
def test_a_function_that_gives_no_loss_per_token_is_refused_at_once(monkeypatch, body, said):
    import sys
    import types

    module = types.ModuleType("theirs")
    exec(f"def wrong(tokens):\n    {body}", module.__dict__)
    monkeypatch.setitem(sys.modules, "theirs", module)
    with pytest.raises(ConfigError, match="theirs:wrong") as caught:
        ObjectiveConfig("theirs:wrong")
    assert said in str(caught.value)
