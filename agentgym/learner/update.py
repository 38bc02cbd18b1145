"""One optimiser step: trajectories in, other weights and a few figures out.

Owns the optimisers, their schedule and the global sum over parts. Which trajectories, and how often, is loop.py's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agentgym.engines.causal import CausalLM
from agentgym.errors import ConfigError
from agentgym.learner.audit import AuditError
from agentgym.learner.head import logp_and_entropy
from agentgym.learner.objectives import Metrics, TokenBatch, drift, get_objective, ppo_clip, sft
from agentgym.learner.pack import Part, Trajectory, padded
from agentgym.learner.reduce import Denominator, denominator, masked_sum, per_trajectory


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Steps, rates and bounds of one optimiser."""

    lr: float = 5e-4
    """Learning rate of AdamW."""
    lr_final: float = 0.3
    """Where the rate ends, as a share of where it starts; it falls linearly."""
    warmup: int = 0
    """Steps over which the rate rises from 0."""
    muon_lr: float = 0.0
    """Learning rate of Muon on the hidden matrices; 0 leaves them to AdamW."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.95
    """AdamW's second decay."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    microbatch_tokens: int = 32_768
    """Cells (tokens and padding) that go through the model at once: the memory bound."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip_norm", "microbatch_tokens"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("lr_final", "warmup", "muon_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a decay lies from 0 to below 1")


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """What is maximised."""

    objective: Literal["ppo_clip", "reinforce"] = "ppo_clip"
    """Loss per token."""
    clip_low: float = 0.2
    """ppo_clip: the ratio counts down to 1 - this."""
    clip_high: float = 0.28
    """ppo_clip: the ratio counts up to 1 + this."""
    denominator: Denominator = "tokens"
    """What the summed loss is divided by, over the whole batch of a step."""


class Learner:
    """The weights being trained and their optimiser. `version` counts optimiser steps."""

    def __init__(self, lm: CausalLM, config: OptimizerConfig, *, total_steps: int) -> None:
        self.lm = lm
        self.config = config
        self.total_steps = max(1, total_steps)
        self.version = 0
        self._params = [p for p in lm.model.parameters() if p.requires_grad]
        self._masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in self._params]
        self._optimizers = _optimizers(lm, self._params, self._masters, config)
        self._rates = [[group["lr"] for group in o.param_groups] for o in self._optimizers]

    def step(
        self, trajectories: Sequence[Trajectory], config: ObjectiveConfig | None, *, temperature: float = 1.0
    ) -> dict[str, float]:
        """One optimiser step on all of `trajectories`; `config` None imitates written tokens.

        Turns without advantage are counted in the denominator but not put through the model. Returns means
        over the trained tokens, and the largest and mean difference between recorded and recomputed log-probs."""
        trainable = [t.num_trainable for t in trajectories]
        divisor = denominator(config.denominator if config else "tokens", trainable)
        kept = [i for i, t in enumerate(trajectories) if t.advantages.any()]
        used = [trajectories[i] for i in kept]
        counts = torch.tensor([trainable[i] for i in kept], dtype=torch.float32, device=self.lm.device)
        for group in (g for o in self._optimizers for g in o.param_groups):
            for p in group["params"]:
                p.grad = None
        sums: dict[str, Tensor] = {}
        worst = 0.0
        with self.lm.evaluating():
            for part in padded(used, max_tokens=self.config.microbatch_tokens):
                found = self._accumulate(part.to(self.lm.device), config, divisor, counts, temperature)
                worst = max(worst, float(found.pop("mismatch_max", 0.0)))
                for name, value in found.items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
        norm = self._apply() if sums else 0.0
        self.version += 1
        trained = float(sums.pop("tokens", torch.zeros(())))
        count = max(1.0, trained)
        figures = {name: float(value) / count for name, value in sums.items() if name != "loss"}
        figures |= {"loss": float(sums.get("loss", torch.zeros(()))) / divisor, "grad_norm": norm}
        return figures | {"tokens_trained": trained, "mismatch_max": worst}

    def _accumulate(
        self, part: Part, config: ObjectiveConfig | None, divisor: float, counts: Tensor, temperature: float
    ) -> dict[str, Tensor]:
        """Add one part's gradient; return sums over its tokens."""
        hidden = self.lm.hidden(part.ids, positions=None, mask=None)
        chosen = hidden.flatten(0, 1)[part.where]
        logp, entropy = logp_and_entropy(self.lm, chosen, part.targets, temperature)
        mask = torch.ones_like(part.targets, dtype=torch.bool)
        tokens = TokenBatch(logp, part.behaviour_logp, part.advantage, mask, part.turn_index, part.trajectory_index)
        loss, metrics = _loss(tokens, config)
        if config is not None and config.denominator == "trajectories":
            loss = per_trajectory(loss, part.trajectory_index, counts)
        total = masked_sum(loss, mask)
        (total / divisor).backward()
        metrics |= {"entropy": entropy, "tokens": mask.float(), "loss": loss.detach()}
        if config is not None:
            difference = (logp.detach() - part.behaviour_logp).abs()
            metrics |= drift(tokens) | {"mismatch_mean": difference}
            return {k: masked_sum(v, mask) for k, v in metrics.items()} | {"mismatch_max": difference.max()}
        return {k: masked_sum(v, mask) for k, v in metrics.items()}

    def _apply(self) -> float:
        """Clip, step, and (for low-precision weights) round the float32 masters into the model. -> gradient norm.

        Raises AuditError where the gradient is not finite: one such step would leave no weight that is a number."""
        for p, master in zip(self._params, self._masters, strict=True):
            if master is not p:
                master.grad = None if p.grad is None else p.grad.float()
                p.grad = None
        norm = nn.utils.clip_grad_norm_(self._masters, self.config.clip_norm)
        if not norm.isfinite():
            raise AuditError(
                f"the gradient is {float(norm)}: a weight is no number, or a ratio of probabilities overflowed. The "
                "weights are as they were; go on from the last checkpoint with a lower --lr."
            )
        scale = self._schedule()
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            optimizer.step()
        with torch.no_grad():
            for p, master in zip(self._params, self._masters, strict=True):
                if master is not p:
                    p.copy_(master)
        return float(norm)

    def _schedule(self) -> float:
        """Linear warm-up, then a linear fall to `lr_final` at the last step."""
        c = self.config
        if self.version < c.warmup:
            return (self.version + 1) / c.warmup
        done = (self.version - c.warmup) / max(1, self.total_steps - c.warmup)
        return 1 - (1 - c.lr_final) * min(1.0, done)

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-identical continuation needs, weights included."""
        return {
            "version": self.version,
            "weights": self.lm.model.state_dict(),
            "masters": [m if m is not p else None for p, m in zip(self._params, self._masters, strict=True)],
            "optimizers": [o.state_dict() for o in self._optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version = state["version"]
        self.lm.model.load_state_dict(state["weights"])
        with torch.no_grad():
            for master, saved in zip(self._masters, state["masters"], strict=True):
                if saved is not None:
                    master.copy_(saved)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _loss(tokens: TokenBatch, config: ObjectiveConfig | None) -> tuple[Tensor, Metrics]:
    if config is None:
        return sft(tokens)
    objective = get_objective(config.objective)
    if objective is ppo_clip:
        objective = partial(ppo_clip, clip_low=config.clip_low, clip_high=config.clip_high)
    return objective(tokens)


def _optimizers(
    lm: CausalLM, params: list[nn.Parameter], masters: list[Tensor], config: OptimizerConfig
) -> list[torch.optim.Optimizer]:
    """AdamW; with `muon_lr`, Muon on the hidden matrices (Jordan et al. 2024) and AdamW on the rest."""
    model = lm.model
    outside = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    hidden = [m for p, m in zip(params, masters, strict=True) if p.ndim == 2 and id(p) not in outside]
    is_hidden = {id(m) for m in hidden} if config.muon_lr > 0 else set()
    rest = [m for m in masters if id(m) not in is_hidden]
    betas = (config.beta1, config.beta2)
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.lr, betas=betas, weight_decay=config.weight_decay, foreach=True)
    ]
    if is_hidden:
        made.append(torch.optim.Muon(hidden, lr=config.muon_lr, momentum=0.95, weight_decay=config.weight_decay))
    return made
