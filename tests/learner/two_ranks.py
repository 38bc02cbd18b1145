"""Run alone or by torchrun: gradients, steps and scores of a model on random ledgers; rank 0 saves what came."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from agentgym.engines.causal import CausalLM, load_model
from agentgym.learner.composition import ObjectiveConfig
from agentgym.learner.distributed import Ranks
from agentgym.learner.lora import LoraConfig, add_adapters, merged_weights
from agentgym.learner.objectives import OBJECTIVES
from agentgym.learner.pack import Trajectory
from agentgym.learner.update import Learner, OptimizerConfig
from agentgym.ledger import Ledger, Segment, Source


def batch() -> list[Trajectory]:
    chance, made = np.random.default_rng(0), []
    for index in range(11):
        ledger = Ledger()
        for turn in range(1 + index % 3):
            ledger.append(Segment(chance.integers(0, 300, chance.integers(2, 12)), Source.OBSERVED, turn))
            ids = chance.integers(0, 300, chance.integers(1, 12))
            ledger.append(Segment(ids, Source.SAMPLED, turn, -chance.uniform(4, 8, len(ids)), 0))
        proximal = -chance.uniform(4, 8, ledger.num_sampled).astype(np.float32)
        advantages = chance.normal(size=ledger.num_turns).astype(np.float32)
        made.append(Trajectory(ledger, advantages, group=index // 4, proximal=proximal))
    return made


def main(model: str, path: str) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ranks = Ranks.joined()

    def learner(**options: Any) -> Learner:
        options = {"lr": 1e-30, "clip_norm": 1e30, "microbatch_tokens": 60} | options
        return Learner(CausalLM(load_model(model)), OptimizerConfig(**options), total_steps=4, ranks=ranks)

    def gradient(made: Learner) -> torch.Tensor:
        return torch.cat([ranks.whole(p.grad).flatten() for p in made.lm.model.parameters()])

    found: dict[str, torch.Tensor] = {}
    for layout in ("padded", "packed", "tree"):
        made = learner(layout=layout)
        for name, objective in OBJECTIVES.items():
            for scope in objective.scopes:
                made.step(batch(), ObjectiveConfig(name, scope=scope))
                found[f"{layout} {name} {scope}"] = gradient(made)
        made.step(batch(), ObjectiveConfig(name, scope=scope))
        assert torch.equal(gradient(made), found[f"{layout} {name} {scope}"]), "the same step gave other bits"
    for denominator in ("trajectories", "groups"):
        made = learner()
        made.step(batch(), ObjectiveConfig(denominator=denominator))
        found[denominator] = gradient(made)
    made = learner(gradient_checkpointing=True)
    made.step(batch()[:1], ObjectiveConfig())  # fewer parts than ranks
    found["one part, checkpointed"] = gradient(made)
    lm = CausalLM(load_model(model))
    add_adapters(lm.model, LoraConfig(lora_rank=4), seed=0)
    adapted = Learner(lm, OptimizerConfig(lr=1e-2, microbatch_tokens=60), total_steps=4, ranks=ranks, anchored=True)
    for _ in range(2):
        adapted.step(batch(), ObjectiveConfig())
    merged = merged_weights(lm.model, ranks.whole(lm.model.state_dict()))
    found["adapters"] = torch.cat([merged[name].flatten() for name in sorted(merged)])
    found["anchor"] = torch.from_numpy(np.concatenate(adapted.score(batch(), reference=True)))
    for muon_lr in (0.0, 0.02):
        made = learner(lr=1e-3, clip_norm=1.0, muon_lr=muon_lr)
        for _ in range(2):
            figures = made.step(batch(), ObjectiveConfig())
        state = deepcopy(made.state_dict())
        again = learner(lr=1e-3, clip_norm=1.0, muon_lr=muon_lr)
        again.load_state_dict(state)
        for each in (made, again):
            each.step(batch(), ObjectiveConfig())
        weights = [
            torch.cat([ranks.whole(p.detach()).flatten() for p in x.lm.model.parameters()]) for x in (made, again)
        ]
        assert torch.equal(*weights), "a resumed learner is another one"
        if not muon_lr:  # Muon orthogonalises in bfloat16, where the order of sums shows
            found["weights"] = weights[0]
    found["figures"] = torch.tensor([figures[k] for k in sorted(figures) if not k.startswith("mismatch")])
    found["scores"] = torch.from_numpy(np.concatenate(learner().score(batch())))
    if ranks.leads:
        torch.save(found, path)
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
