"""One optimiser step: trajectories in, other weights and a few figures out.

Owns the passes over a batch's parts and the global sum over them. The optimisers are optimizer.py's; which
trajectories, and how often, is loop.py's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from agentgym.engines.causal import CausalLM
from agentgym.errors import AgentGymError, ConfigError
from agentgym.learner import attention
from agentgym.learner.composition import ObjectiveConfig, loss
from agentgym.learner.corrections import drift
from agentgym.learner.distributed import ALONE, Ranks
from agentgym.learner.head import logp_and_entropy
from agentgym.learner.lora import adapters_off, is_adapted
from agentgym.learner.objectives import TokenBatch, sft
from agentgym.learner.optimizer import Optimizer, OptimizerConfig
from agentgym.learner.pack import Layout, Part, Reach, Scope, Trajectory, pack
from agentgym.learner.reduce import Weights, masked_sum, weights
from agentgym.ledger import FloatArray

__all__ = ["Learner", "NotFiniteError", "ObjectiveConfig", "OptimizerConfig", "OutOfMemoryError"]


class NotFiniteError(AgentGymError):
    """A loss or gradient is NaN or infinite; the weights are as they were."""


class OutOfMemoryError(AgentGymError):
    """A part does not fit."""


class Scorer(nn.Module):
    """A part through the model and its head, as one module: sharded weights are gathered once per pass."""

    def __init__(self, lm: CausalLM) -> None:
        super().__init__()
        self.model = lm.model
        self.lm = lm

    def forward(
        self, part: Part, extra: dict[str, Any], temperature: float, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor]:
        """-> log p [N] and entropy [N] of the part's tokens, float32."""
        hidden = self.lm.hidden(part.ids, positions=part.positions, **extra)
        chosen = hidden.flatten(0, 1)[part.where]
        return logp_and_entropy(self.lm, chosen, part.targets, temperature, entropy_grad=entropy_grad)


class Learner:
    """The weights being trained and their optimiser. `version` counts optimiser steps.

    With several ranks all of them call the same methods with the same trajectories, and each computes its share.
    `anchored` keeps the weights as they are now: what a KL term is measured from. Adapters are measured from the
    weights they adapt, which costs no copy. `compute_dtype` is what sharded float32 weights compute in."""

    def __init__(
        self,
        lm: CausalLM,
        config: OptimizerConfig,
        *,
        total_steps: int,
        ranks: Ranks = ALONE,
        anchored: bool = False,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.lm = lm
        self.config = config
        self.ranks = ranks
        self.version = 0
        self.layout: Layout = config.resolved_layout(lm.device)
        keeps = anchored and not is_adapted(lm.model)
        self.reference = CausalLM(deepcopy(lm.model).requires_grad_(False).eval()) if keeps else None
        self._most_cells = 0  # of a part that fitted
        for each in (lm, self.reference):
            if each is not None:
                attention.prepare(each, self.layout)
        self._scorer = Scorer(lm)
        self._checkpointed = _checkpointing(lm) if config.gradient_checkpointing else []
        ranks.shard(self._scorer, _layers(lm), compute_dtype or lm.model.dtype)
        if config.compile:
            self._scorer.compile(dynamic=True)
        self.optimizer = Optimizer(lm, config, total_steps=total_steps, ranks=ranks)

    # -- a step ------------------------------------------------------------------------------------------------------

    def step(
        self, trajectories: Sequence[Trajectory], config: ObjectiveConfig | None, *, temperature: float = 1.0
    ) -> dict[str, float]:
        """One optimiser step on all of `trajectories`; `config` None imitates written tokens.

        What has nothing to teach is counted in the denominator but not put through the model. Returns means over the
        trained tokens, and how far recorded and recomputed log-probs lie apart. Raises NotFiniteError, with weights
        and optimiser as they were, and OutOfMemoryError naming what would fit."""
        weight = weights(
            config.denominator if config else "tokens",
            [t.num_trainable for t in trajectories],
            [t.group for t in trajectories],
            length=config.denominator_length if config else 0,
        )
        if weight.share is not None:
            weight = replace(weight, share=weight.share.to(self.lm.device))
        self.optimizer.clear()
        parts = self._parts(trajectories, *((config.reach, config.together) if config else ("turns", "token")))
        sums, apart = self._accumulate(parts, config, weight, temperature)
        sums = self.ranks.total(sums)
        norm = 0.0
        if sums:
            total = sums.get("loss", 0.0)
            norm = self.optimizer.apply(self.version) if np.isfinite(total) else float("nan")
            if not np.isfinite(norm):
                raise NotFiniteError(
                    f"the loss is {total:.4g} and its gradient {norm:.4g}: a weight is no number, or a ratio of "
                    "probabilities overflowed. The weights are as they were."
                )
        self.version += 1
        trained = sums.pop("tokens", 0.0)
        figures = {name: value / max(1.0, trained) for name, value in sums.items() if name != "loss"}
        figures |= {"loss": sums.get("loss", 0.0) / weight.divisor, "grad_norm": norm, "tokens_trained": trained}
        return figures | _spread(np.concatenate([a for a in self.ranks.gather(apart)]))

    def _parts(self, trajectories: Sequence[Trajectory], reach: Reach, together: Scope = "token") -> list[Part]:
        on_gpu = self.lm.device.type != "cpu"
        cells = self.config.microbatch_tokens
        if self.layout != "padded" and not on_gpu:
            cells = min(cells, attention.DENSE_TOKENS)
        multiple = attention.GPU_MULTIPLE if on_gpu and self.layout != "padded" else 1
        return pack(
            trajectories, layout=self.layout, max_tokens=cells, reach=reach, together=together, multiple=multiple
        )

    def _accumulate(
        self, parts: list[Part], config: ObjectiveConfig | None, weight: Weights, temperature: float
    ) -> tuple[dict[str, float], FloatArray]:
        """Add the gradients of this rank's parts -> sums over their tokens, and each one's |recorded - recomputed|."""
        sums: dict[str, Tensor] = {}
        apart: list[Tensor] = []
        mine = self.ranks.share(parts)
        idle = -(-len(parts) // self.ranks.size) - len(mine)  # sharded weights are gathered by all, or by none
        with self._training():
            for at, part in enumerate([*mine, *parts[:idle]]):
                part = part.to(self.lm.device)
                with self._told(part):
                    metrics, mismatch = self._gradient(part, config, weight, temperature, at < len(mine))
                if at < len(mine):
                    apart.append(mismatch)
                    for name, value in metrics.items():
                        sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
        far = torch.cat(apart).cpu().numpy() if apart else np.zeros(0, np.float32)
        return {name: float(value) for name, value in sums.items()}, far

    def _gradient(
        self, part: Part, config: ObjectiveConfig | None, weight: Weights, temperature: float, counts: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        bonus = config is not None and config.entropy_coef > 0
        logp, entropy = self._scorer(part, attention.inputs(part, self.layout, self.lm.model.dtype), temperature, bonus)
        mask = torch.ones_like(part.targets, dtype=torch.bool)
        tokens = TokenBatch(
            logp, part.behaviour_logp, part.advantage, mask, part.turn_index, part.trajectory_index,
            part.proximal_logp, part.reference_logp,
        )  # fmt: skip
        lost, metrics = sft(tokens) if config is None else loss(tokens, entropy, config)
        if weight.share is not None:
            lost = lost * weight.share[part.trajectory_index]
        total = masked_sum(lost, mask)
        (total / weight.divisor * (self.ranks.size * counts)).backward()  # FSDP takes the mean over the ranks
        metrics = metrics | {"entropy": entropy.detach(), "tokens": mask.float(), "loss": lost.detach()}
        if config is not None:
            metrics |= drift(tokens)
        mismatch = (logp.detach() - part.behaviour_logp).abs() if config is not None else logp.detach()[:0]
        return {k: masked_sum(v, mask) for k, v in metrics.items()}, mismatch

    # -- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self, trajectories: Sequence[Trajectory], *, temperature: float = 1.0, reference: bool = False
    ) -> list[FloatArray]:
        """Log-probs of each trajectory's trainable tokens, under the weights as they are or under the anchor."""
        scorer: Any = self._scorer if not reference or self.reference is None else Scorer(self.reference)
        found = [np.zeros(t.num_trainable, np.float32) for t in trajectories]
        parts = self._parts(trajectories, "all")
        mine = self.ranks.share(parts)
        idle = -(-len(parts) // self.ranks.size) - len(mine)
        with self.lm.evaluating(), adapters_off(self.lm.model, reference and self.reference is None):
            for part in [*mine, *parts[:idle]]:
                part = part.to(self.lm.device)
                logp, _ = scorer(part, attention.inputs(part, self.layout, self.lm.model.dtype), temperature)
                placed = (part.trajectory_index, part.token_index, logp)
                for t, i, value in zip(*(tensor.tolist() for tensor in placed), strict=True):
                    found[t][i] = value
        if self.ranks.size > 1:
            found = [np.sum(each, axis=0) for each in zip(*self.ranks.gather(found), strict=True)]
        return found

    # -- state -------------------------------------------------------------------------------------------------------

    def publish(self, lm: CausalLM) -> None:
        """Copy the weights into another copy of the model, such as an engine's own."""
        if lm.model is self.lm.model:
            return
        with torch.no_grad():
            for theirs, ours in zip(lm.model.parameters(), self.lm.model.parameters(), strict=True):
                theirs.copy_(self.ranks.whole(ours.detach()))

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-identical continuation needs, weights included; whole tensors, whatever the ranks."""
        return {
            "version": self.version,
            "weights": self.ranks.whole(self.lm.model.state_dict()),
            "reference": None if self.reference is None else self.reference.model.state_dict(),
            **self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version = state["version"]
        ours = self.lm.model.state_dict()
        self.lm.model.load_state_dict(
            {k: self.ranks.shard_like(v, ours[k]) if k in ours else v for k, v in state["weights"].items()}
        )
        if self.reference is not None:
            self.reference.model.load_state_dict(state["reference"])
        self.optimizer.load_state_dict(state)

    # -- memory ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _training(self) -> Iterator[None]:
        """As when sampling, without dropout; blocks that are computed again in the backward pass know it."""
        with self.lm.evaluating():
            for layer in self._checkpointed:
                layer.training = True
            try:
                yield
            finally:
                for layer in self._checkpointed:
                    layer.training = False

    @contextmanager
    def _told(self, part: Part) -> Iterator[None]:
        """Says what would fit, where the part does not."""
        try:
            yield
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            fits = f"the largest that did had {self._most_cells}" if self._most_cells else "none has fitted yet"
            raise OutOfMemoryError(
                f"out of memory with a part of {part.num_cells} cells (tokens and padding); {fits}. "
                f"--microbatch-tokens {self._most_cells or part.num_cells // 2} bounds it; --gradient-checkpointing, "
                "--lora-rank, a smaller --context-tokens or a lower --dtype need less per cell."
            ) from error
        self._most_cells = max(self._most_cells, part.num_cells)


def _layers(lm: CausalLM) -> list[nn.Module]:
    """The model's blocks, as it names them itself."""
    return [m for m in lm.model.modules() if isinstance(m, GradientCheckpointingLayer)]


def _checkpointing(lm: CausalLM) -> list[nn.Module]:
    """The blocks that will be computed again in the backward pass rather than kept."""
    if not lm.model.supports_gradient_checkpointing or not _layers(lm):
        raise ConfigError(
            f"model type {lm.model.config.model_type!r} has no gradient checkpointing; leave --gradient-checkpointing "
            "out and bound memory by --microbatch-tokens"
        )
    enable = getattr(lm.model, "activation_checkpointing_enable", None) or lm.model.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the name changed with transformers 5.20
    for layer in _layers(
        lm
    ):  # they are told that they train, and some drop of themselves what a child would have dropped
        for name in ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    return _layers(lm)


def _spread(apart: FloatArray) -> dict[str, float]:
    """How far recorded and recomputed log-probs lie apart, in nats."""
    if not len(apart):
        return {"mismatch_mean": 0.0, "mismatch_p99": 0.0, "mismatch_max": 0.0}
    return {
        "mismatch_mean": float(apart.mean(dtype=np.float64)),
        "mismatch_p99": float(np.quantile(apart, 0.99)),
        "mismatch_max": float(apart.max()),
    }
