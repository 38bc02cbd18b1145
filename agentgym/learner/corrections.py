"""What stale data and a KL anchor add to an objective: weights, masks, and a divergence per token.

Owns importance corrections and KL estimators: pure functions of a TokenBatch. Which of them goes with which objective
is composition.py's table."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from agentgym.learner.objectives import LOG_BOUND, Metrics, Scope, TokenBatch

Correction = Literal["auto", "none", "tis", "masked", "geometric", "negative"]
Estimator = Literal["none", "k1", "k2", "k3"]


def correction(
    tokens: TokenBatch, kind: Correction, anchor_logp: Tensor, scope: Scope, *, low: float, cap: float, weighs: bool
) -> tuple[Tensor, Metrics]:
    """A factor per token against data that other weights sampled, held constant. rho = p_anchor / p_behaviour of the
    token's span, in log space.

    tis        min(rho, cap): truncated importance sampling (Ionides 2008; Yao et al. 2025)
    masked     rho where low <= rho <= cap, else 0 (IcePop, Ling Team 2025)
    geometric  1 where the geometric mean of rho over the span lies in [low, cap], else 0
    negative   0 where A < 0 and that mean lies below low, else 1 (DeepSeek-V3.2, eq. 7-8: low = e^-delta)

    `weighs` False: the objective has its own ratio to the behaviour policy; `masked` is then 1 or 0. -> [N], metrics"""
    log_rho = (anchor_logp - tokens.behaviour_logp).detach()
    mean = kind in ("geometric", "negative")
    rho = tokens.over(log_rho, scope, mean=mean).clamp(-LOG_BOUND, LOG_BOUND).exp()
    inside = (rho >= low) & (rho <= cap)
    if kind == "tis":
        return rho.clamp(max=cap), {"correction_share": (rho > cap).float()}
    if kind == "negative":
        inside = (rho >= low) | (tokens.inside(tokens.advantage) >= 0)
    factor = inside.float()
    return (factor * rho if kind == "masked" and weighs else factor), {"correction_share": 1 - factor}


def kl(tokens: TokenBatch, kind: Estimator, reference_logp: Tensor, *, unbiased: bool = False) -> Tensor:
    """An estimate of KL(p || p_reference) per token, with r = log p_reference - log p (Schulman 2020, "Approximating KL
    divergence"): k1 = -r, k2 = r^2 / 2, k3 = e^r - 1 - r. [N]

    As a loss on tokens sampled from p, the gradient of k1 is zero on average, that of k2 is the gradient of
    KL(p || p_reference), and that of k3 that of KL(p_reference || p). `unbiased` multiplies by p / p_behaviour, through
    which the gradient goes too: then k1 and k3 have the gradient of KL(p || p_reference), for stale data as well
    (DeepSeek-V3.2, eq. 6)."""
    own = tokens.inside(tokens.logp)
    r = (tokens.inside(reference_logp) - own).clamp(-LOG_BOUND, LOG_BOUND)
    found = {"k1": -r, "k2": r.square() / 2, "k3": r.exp() - 1 - r}[kind]
    if unbiased:
        found = found * (own - tokens.inside(tokens.behaviour_logp)).clamp(-LOG_BOUND, LOG_BOUND).exp()
    return found


def drift(tokens: TokenBatch) -> Metrics:
    """How far the weights have moved from what sampled the tokens: k1 = -r and k3 = e^r - 1 - r per token with
    r = log p - log p_behaviour; both estimate KL(p_behaviour || p)."""
    r = (tokens.logp - tokens.behaviour_logp).detach().clamp(-LOG_BOUND, LOG_BOUND)
    return {"kl_k1": -r, "kl_k3": torch.exp(r) - 1 - r}
