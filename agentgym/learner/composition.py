"""What is maximised: one objective, one credit, a correction, a KL term and an entropy bonus, put together.

Owns the knobs and the one table that says which combinations are refused, and why; everything else is legal. The
formulas are objectives.py's and corrections.py's."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from agentgym.errors import ConfigError
from agentgym.learner.corrections import Correction, Estimator, correction, kl
from agentgym.learner.objectives import OBJECTIVES, SCOPES, Metrics, Objective, Scope, TokenBatch, bound, get_objective
from agentgym.learner.pack import Reach
from agentgym.learner.reduce import Denominator


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """What is maximised."""

    objective: str = "ppo_clip"
    """Loss per token: ppo_clip, reinforce, gspo, cispo, decoupled_ppo, or a function of yours as module:function."""
    scope: Literal["auto", "token", "turn", "trajectory"] = "auto"
    """What a ratio of probabilities is taken over; auto is the objective's own."""
    clip_low: float = 0.2
    """The ratio counts down to 1 - this."""
    clip_high: float = 0.28
    """The ratio counts up to 1 + this."""
    dual_clip: float = 0.0
    """ppo_clip: a negative advantage counts at most this often, such as 3; 0 for no such bound."""
    correction: Correction = "auto"
    """Against stale data: none, tis, masked, geometric, negative; auto is tis where the objective has no ratio to the
    policy that sampled, else none."""
    correction_scope: Scope = "token"
    """What the correction's ratio is taken over."""
    correction_low: float = 0.5
    """masked, geometric, negative: the least ratio that is kept."""
    correction_cap: float = 2.0
    """tis: the largest weight; masked, geometric: the largest ratio that is kept."""
    kl: Estimator = "none"
    """Estimate of the divergence from the weights that training began with: k1, k2 or k3."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence is counted."""
    kl_coef: float = 0.0
    """Its weight."""
    kl_unbiased: bool = False
    """In the loss: weigh it by the ratio to what sampled, so that its gradient is that of the divergence."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    denominator: Denominator = "tokens"
    """What the summed loss is divided by, over the whole batch of a step: tokens, trajectories, groups or constant."""
    denominator_length: int = 0
    """constant: tokens per trajectory that are divided by."""

    def __post_init__(self) -> None:
        for reason in refused(self):
            raise ConfigError(reason)
        made = bound(self.function, asdict(self) | {"scope": self.over})
        if self.objective not in OBJECTIVES:
            _tried(made, self.objective)

    @property
    def function(self) -> Any:
        return get_objective(self.objective)

    @property
    def over(self) -> Scope:
        """The scope, resolved: the objective's first where it is auto."""
        return _declared(self.function, "scopes", SCOPES)[0] if self.scope == "auto" else self.scope

    @property
    def corrects(self) -> Correction:
        """The correction, resolved."""
        if self.correction != "auto":
            return self.correction
        return "none" if self.anchor == "behaviour" else "tis"

    @property
    def anchor(self) -> str:
        return _declared(self.function, "anchor", "behaviour")

    @property
    def needs_proximal(self) -> bool:
        return "proximal_logp" in _declared(self.function, "needs", ())

    @property
    def needs_reference(self) -> bool:
        return self.kl != "none" or "reference_logp" in _declared(self.function, "needs", ())

    @property
    def reach(self) -> Reach:
        """Which tokens must go through the model: those of turns with an advantage; of trajectories with one, whose
        ratio is taken over all of them; or all."""
        if self.entropy_coef or (self.kl != "none" and self.kl_in == "loss"):
            return "all"
        return "trajectories" if self.together == "trajectory" else "turns"

    @property
    def together(self) -> Scope:
        """What must go through the model together, since a ratio is taken over all of it."""
        spans = {self.over, self.correction_scope if self.corrects != "none" else "token"}
        return next(scope for scope in reversed(SCOPES) if scope in spans)


Rule = tuple[Callable[[ObjectiveConfig], bool], str]
RULES: tuple[Rule, ...] = (
    (
        lambda c: c.over not in _declared(c.function, "scopes", SCOPES),
        "objective {objective} has no scope {scope}: reinforce has no ratio, and gspo of single tokens is ppo_clip",
    ),
    (
        lambda c: c.correction == "tis" and c.anchor == "behaviour",
        "correction tis with {objective}: its ratio is taken to the policy that sampled already, and a weight would "
        "count it twice; take masked, geometric or negative, or the objective decoupled_ppo or reinforce",
    ),
    (
        lambda c: c.kl == "k1" and c.kl_in == "loss" and not c.kl_unbiased,
        "kl k1 in the loss has a gradient of zero on average; count it in the reward, take k2, or add kl_unbiased",
    ),
    (
        lambda c: c.kl == "k2" and c.kl_unbiased,
        "kl_unbiased with k2: k2 has the divergence's gradient as it is, and weighed it has another's; take k1 or k3",
    ),
    (
        lambda c: c.kl in ("k2", "k3") and c.kl_in == "reward",
        "kl {kl} in the reward: of what the policy draws, k1 alone has the divergence's gradient; take k1, or count "
        "{kl} in the loss",
    ),
    (lambda c: c.kl_unbiased and c.kl_in == "reward", "kl_unbiased is for kl_in loss; in the reward k1 is unbiased"),
    (lambda c: (c.kl == "none") != (c.kl_coef == 0), "kl {kl} with kl_coef {kl_coef}: set both, or neither"),
    (
        lambda c: c.dual_clip != 0 and (c.objective != "ppo_clip" or c.dual_clip <= 1),
        "dual_clip {dual_clip} with {objective}: it is ppo_clip's, and above 1",
    ),
    (
        lambda c: (c.denominator == "constant") != (c.denominator_length > 0),
        "denominator {denominator} with denominator_length {denominator_length}: the constant one needs the tokens per "
        "trajectory, the others have no such length",
    ),
    (lambda c: not 0 <= c.clip_low <= 1, "clip_low is {clip_low}; a ratio counts down to 1 - clip_low, give 0 to 1"),
    (lambda c: not 0 <= c.clip_high < math.inf, "clip_high is {clip_high}; it must be at least 0"),
    (
        lambda c: not 0 <= c.correction_low <= 1 <= c.correction_cap < math.inf,
        "correction_low {correction_low} and correction_cap {correction_cap}: a ratio of 1 must lie between them",
    ),
    (
        lambda c: not (0 <= c.kl_coef < math.inf and 0 <= c.entropy_coef < math.inf),
        "kl_coef {kl_coef}, entropy_coef {entropy_coef}: weights are at least 0",
    ),
)


def refused(config: ObjectiveConfig) -> list[str]:
    """Why this combination is refused, one sentence per broken rule; empty for a legal one. Raises ConfigError for an
    objective that does not exist."""
    facts = asdict(config) | {"scope": config.over}
    return [reason.format(**facts) for is_broken, reason in RULES if is_broken(config)]


def combinations() -> list[dict[str, str]]:
    """Every objective at every scope with every correction: `refused` says why not, and is empty where it is legal."""
    plain = ObjectiveConfig()
    rows = []
    for name, scope, kind in product(OBJECTIVES, SCOPES, get_args(Correction)[1:]):
        made = copy(plain)
        for field, value in {"objective": name, "scope": scope, "correction": kind}.items():
            object.__setattr__(made, field, value)  # past the check that would raise
        rows.append({"objective": name, "scope": scope, "correction": kind, "refused": "; ".join(refused(made))})
    return rows


def loss(tokens: TokenBatch, entropy: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Metrics]:
    """Loss per token [N] and metrics per token; `entropy` [N] in nats, with its gradient where it has a bonus."""
    objective: Objective = bound(config.function, asdict(config) | {"scope": config.over})
    lost, metrics = objective(tokens)
    if config.corrects != "none":
        anchor = tokens.proximal_logp if config.anchor == "proximal" else None
        anchor = tokens.logp if anchor is None else anchor
        factor, found = correction(
            tokens, config.corrects, anchor.detach(), config.correction_scope,
            low=config.correction_low, cap=config.correction_cap, weighs=config.anchor != "behaviour",
        )  # fmt: skip
        lost, metrics = lost * factor, metrics | found
    if config.kl != "none" and tokens.reference_logp is not None:
        divergence = kl(tokens, config.kl, tokens.reference_logp, unbiased=config.kl_unbiased)
        metrics = metrics | {"kl_reference": divergence.detach()}
        if config.kl_in == "loss":
            lost = lost + config.kl_coef * divergence
    if config.entropy_coef:
        lost = lost - config.entropy_coef * tokens.inside(entropy)
    return lost, metrics


def _tried(objective: Objective, name: str) -> None:
    """Raises ConfigError where a user's function does not give a loss per token for a batch of three."""
    some, places = torch.full((3,), -1.0), torch.zeros(3, dtype=torch.long)
    logp = some.clone().requires_grad_()
    try:
        lost, metrics = objective(TokenBatch(logp, some, some, places == 0, places, places, some, some))
        shapes = [tuple(each.shape) for each in (lost, *dict(metrics).values())]
    except Exception as error:  # whatever somebody else's code raises
        raise ConfigError(
            f"objective {name} fails on a batch of three tokens: {type(error).__name__}: {error}"
        ) from error
    if set(shapes) != {(3,)}:
        raise ConfigError(
            f"objective {name} gives shapes {shapes} for three tokens; give a loss and metrics per token, [3] each"
        )


def _declared(function: Any, what: str, otherwise: Any) -> Any:
    """What an objective declares by `needs`; a plain function of the user's declares nothing."""
    return getattr(function, what, otherwise)
