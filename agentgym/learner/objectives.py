"""From advantages to a loss per token.

Owns the objectives: pure functions of a TokenBatch. What the denominator is, is reduce.py's business; where the
advantages come from, credit.py's. Short names are those of the formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agentgym.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokens that a loss may use; all fields [N]. What is outside `loss_mask` may hold anything, NaN included."""

    logp: Tensor  # float32, under the weights being trained; carries the gradient
    behaviour_logp: Tensor  # float32, under what sampled the token, temperature included
    advantage: Tensor  # float32
    loss_mask: Tensor  # bool
    turn_index: Tensor  # int64
    trajectory_index: Tensor  # int64

    def inside(self, values: Tensor) -> Tensor:
        """The values, and 0 outside `loss_mask`: before anything is computed of them, so that no gradient of what lies
        outside is 0 * NaN."""
        return torch.where(self.loss_mask, values, 0.0)


Metrics = dict[str, Tensor]  # each a sum over the tokens of loss_mask
Objective = Callable[..., tuple[Tensor, Metrics]]


def reinforce(tokens: TokenBatch) -> tuple[Tensor, Metrics]:
    """-A log p (Williams 1992). Right only for tokens sampled under the weights being trained."""
    return -tokens.inside(tokens.advantage) * tokens.inside(tokens.logp), {}


def ppo_clip(tokens: TokenBatch, *, clip_low: float = 0.2, clip_high: float = 0.28) -> tuple[Tensor, Metrics]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = p / p_behaviour as recorded (Schulman et al. 2017, eq. 7;
    two bounds: DAPO, Yu et al. 2025, eq. 10)."""
    ratio = tokens.inside(tokens.logp - tokens.behaviour_logp).exp()
    advantage = tokens.inside(tokens.advantage)
    free = ratio * advantage
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    is_clipped = (clipped < free).float()
    return -torch.minimum(free, clipped), {"clip_fraction": is_clipped.detach()}


def sft(tokens: TokenBatch) -> tuple[Tensor, Metrics]:
    """-log p: imitation of written tokens; advantage and behaviour are not read."""
    return -tokens.logp, {}


OBJECTIVES: dict[str, Objective] = {f.__name__: f for f in (ppo_clip, reinforce)}


def get_objective(name: str) -> Objective:
    """The reinforcement objective of that name. Raises ConfigError listing the names there are."""
    if name not in OBJECTIVES:
        raise ConfigError(f"no objective {name!r}; there are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def drift(tokens: TokenBatch) -> Metrics:
    """How far the weights have moved from what sampled the tokens: k1 = -r and k3 = e^r - 1 - r per token with
    r = log p - log p_behaviour (Schulman 2020, "Approximating KL divergence"); both estimate KL(behaviour || p)."""
    r = (tokens.logp - tokens.behaviour_logp).detach()
    return {"kl_k1": -r, "kl_k3": r.exp() - 1 - r}
