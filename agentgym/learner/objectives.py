"""From advantages to a loss per token.

Owns the objectives and what each needs: pure functions of a TokenBatch. What the denominator is, is reduce.py's
business; where the advantages come from, credit.py's; weights against stale data and the KL term, corrections.py's.
Short names are those of the formulas.

One convention holds for all: where the weights are still those that sampled, every objective at every scope has the
gradient of `reinforce`. A ratio of a whole turn or trajectory is a number that its tokens share, and the gradient of
each goes through its own probability (GSPO-token, Zheng et al. 2025, eq. 14): with one advantage per span that is the
gradient of the ratio of the span, and with several none is smeared over another's tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import ConfigError, nearest
from agentgym.learner.pack import Scope
from agentgym.plugins import function_at

SCOPES: tuple[Scope, ...] = ("token", "turn", "trajectory")
LOG_BOUND = 20.0  # of a log ratio: beyond it float32 has no use for the number (e^20 is 5e8), and no gradient is left


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokens that a loss may use; all fields [N]. What is outside `loss_mask` may hold anything, NaN included."""

    logp: Tensor  # float32, under the weights being trained; carries the gradient
    behaviour_logp: Tensor  # float32, under what sampled the token, temperature included
    advantage: Tensor  # float32
    loss_mask: Tensor  # bool
    turn_index: Tensor  # int64
    trajectory_index: Tensor  # int64
    proximal_logp: Tensor | None = None  # float32, under the weights at the start of the update
    reference_logp: Tensor | None = None  # float32, under the KL anchor

    def inside(self, values: Tensor) -> Tensor:
        """The values, and 0 outside `loss_mask`: before anything is computed of them, so that no gradient of what lies
        outside is 0 * NaN."""
        return torch.where(self.loss_mask, values, 0.0)

    def over(self, values: Tensor, scope: Scope, *, mean: bool = False) -> Tensor:
        """The sum (or mean) of the values over the token's span: itself, its turn, or its trajectory. [N] -> [N]"""
        values = self.inside(values)
        if scope == "token":
            return values
        turn = self.turn_index if scope == "turn" else torch.zeros_like(self.turn_index)
        _, span = torch.stack([self.trajectory_index, turn]).unique(dim=1, return_inverse=True)
        total = torch.zeros_like(values).index_add(0, span, values)
        if mean:
            total = total / torch.zeros_like(values).index_add(0, span, self.loss_mask.to(values)).clamp(min=1)
        return total[span]


Metrics = dict[str, Tensor]  # each a value per token; what lies outside loss_mask is not read


Objective = Callable[..., tuple[Tensor, Metrics]]
"""`(tokens, *, knobs) -> (loss per token [N], metrics)`; knobs are fields of ObjectiveConfig, taken by name."""


def needs(*fields: str, scopes: tuple[Scope, ...] = SCOPES, anchor: str = "none") -> Callable[[Objective], Objective]:
    """Declares what an objective cannot do without: optional fields of TokenBatch; the scopes its ratio may have; and
    the `anchor` of that ratio: behaviour, proximal, or none."""

    def declared(objective: Any) -> Any:
        objective.needs, objective.scopes, objective.anchor = fields, scopes, anchor
        return objective

    return declared


def ratio(tokens: TokenBatch, anchor_logp: Tensor, scope: Scope, *, mean: bool = False) -> Tensor:
    """p / p_anchor of each token's span, multiplied up (or as a geometric mean) in log space; the gradient goes through
    the token's own probability alone. [N]"""
    own = tokens.inside(tokens.logp)
    log_ratio = own - tokens.inside(anchor_logp)
    if scope != "token":
        log_ratio = tokens.over(log_ratio.detach(), scope, mean=mean) + own - own.detach()
    return log_ratio.clamp(-LOG_BOUND, LOG_BOUND).exp()


@needs(scopes=("token",))
def reinforce(tokens: TokenBatch) -> tuple[Tensor, Metrics]:
    """-A log p (Williams 1992). Right only for tokens sampled under the weights being trained, or with a correction."""
    return -tokens.inside(tokens.advantage) * tokens.inside(tokens.logp), {}


@needs(anchor="behaviour")
def ppo_clip(
    tokens: TokenBatch, *, scope: Scope = "token", clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 0
) -> tuple[Tensor, Metrics]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = p / p_behaviour as recorded (Schulman et al. 2017, eq. 7; two
    bounds: DAPO, Yu et al. 2025, eq. 10). With `dual_clip` c > 1, where A < 0 at most -c A (Ye et al. 2020, eq. 5)."""
    return _clipped(tokens, ratio(tokens, tokens.behaviour_logp, scope), clip_low, clip_high, dual_clip)


@needs(scopes=("turn", "trajectory"), anchor="behaviour")
def gspo(
    tokens: TokenBatch, *, scope: Scope = "trajectory", clip_low: float = 0.2, clip_high: float = 0.28
) -> tuple[Tensor, Metrics]:
    """`ppo_clip` with the geometric mean of the ratios of the span: s = (p / p_behaviour)^(1 / length) (GSPO, Zheng et
    al. 2025, eq. 7 and 14)."""
    return _clipped(tokens, ratio(tokens, tokens.behaviour_logp, scope, mean=True), clip_low, clip_high, 0)


@needs(anchor="behaviour")
def cispo(
    tokens: TokenBatch, *, scope: Scope = "token", clip_low: float = 0.2, clip_high: float = 0.28
) -> tuple[Tensor, Metrics]:
    """-clip(r, 1 - low, 1 + high) A log p, the clipped ratio held constant: no token loses its gradient (CISPO,
    MiniMax 2025, eq. 4-5; low 1 leaves the upper bound alone)."""
    held = ratio(tokens, tokens.behaviour_logp, scope).detach()
    weight = held.clamp(1 - clip_low, 1 + clip_high)
    loss = -weight * tokens.inside(tokens.advantage) * tokens.inside(tokens.logp)
    return loss, {"clip_fraction": (weight != held).float()}


@needs("proximal_logp", anchor="proximal")
def decoupled_ppo(
    tokens: TokenBatch, *, scope: Scope = "token", clip_low: float = 0.2, clip_high: float = 0.28
) -> tuple[Tensor, Metrics]:
    """`ppo_clip` against the weights at the start of the update, for data that older weights sampled (Hilton et al.
    2022; AReaL, Fu et al. 2025, eq. 5). Its factor p_proximal / p_behaviour is the correction's to give and to bound;
    with correction none it is left out, and what is left is PPO that takes stale data for fresh."""
    if tokens.proximal_logp is None:
        raise ConfigError("decoupled_ppo needs proximal_logp, the log-probs under the weights the update began with")
    return _clipped(tokens, ratio(tokens, tokens.proximal_logp, scope), clip_low, clip_high, 0)


def sft(tokens: TokenBatch) -> tuple[Tensor, Metrics]:
    """-log p: imitation of written tokens; advantage and behaviour are not read."""
    return -tokens.logp, {}


def _clipped(tokens: TokenBatch, r: Tensor, low: float, high: float, dual: float) -> tuple[Tensor, Metrics]:
    advantage = tokens.inside(tokens.advantage)
    free = r * advantage
    bounded = r.clamp(1 - low, 1 + high) * advantage
    metrics = {"clip_fraction": (bounded < free).float().detach()}
    gain = torch.minimum(free, bounded)
    if dual > 0:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual * advantage), gain)
    return -gain, metrics


OBJECTIVES: dict[str, Any] = {f.__name__: f for f in (ppo_clip, reinforce, gspo, cispo, decoupled_ppo)}  # type: ignore[attr-defined]


def get_objective(name: str) -> Objective:
    """The objective of that name, or the function at `module:function`. Raises ConfigError listing the names there are,
    or saying what is wrong with the function."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ":" not in name:
        known = ", ".join(OBJECTIVES)
        raise ConfigError(f"no objective {name!r}: there are {known}, and module:function{nearest(name, OBJECTIVES)}")
    return function_at(name)


def bound(objective: Objective, knobs: dict[str, Any]) -> Objective:
    """The objective with those of the knobs that its signature names. Raises ConfigError where it wants another."""
    wanted = [p for p in list(inspect.signature(objective).parameters.values())[1:] if p.kind is not p.VAR_KEYWORD]
    for p in wanted:
        if p.name not in knobs and p.default is p.empty:
            name = getattr(objective, "__name__", str(objective))
            raise ConfigError(f"objective {name} wants {p.name!r}, which is no setting{nearest(p.name, knobs)}")
    return partial(objective, **{p.name: knobs[p.name] for p in wanted if p.name in knobs})
