"""agentgym's half of learner_vs_trl.py's loss: the cases, the tensors that both sides read, and the comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentgym.engines.causal import CausalLM, load_model
from agentgym.learner.pack import Trajectory
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig
from agentgym.ledger import Ledger, Segment, Source

LOW, HIGH, BETA, LENGTH = 0.2, 0.28, 0.05, 64
LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4
STILL = 1e-30  # a learning rate that moves nothing: the gradient is what is looked at
ADVANTAGES = (1.3, -0.7, 0.4, -1.1, 0.0, 0.6)
DENOMINATORS: dict[str, dict[str, Any]] = {
    "grpo": {"denominator": "trajectories"},
    "dr_grpo": {"denominator": "constant", "denominator_length": LENGTH},
    "dapo": {"denominator": "tokens"},
    "cispo": {"denominator": "tokens"},
}
KLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({"beta": 0.0}, {}),
    "k3 x ratio": ({"beta": BETA}, {"kl": "k3", "kl_coef": BETA, "kl_unbiased": True}),
    "k3": ({"beta": BETA, "use_bias_correction_kl": False}, {"kl": "k3", "kl_coef": BETA}),
}
CISPO = "TRL: geometric mean of a sequence's ratios; agentgym: gspo has that, cispo's is their product"
RATIO = "TRL weighs a token's KL by its sequence's ratio, agentgym by its own"


@dataclass(frozen=True)
class Case:
    """One definition of the loss in both tongues; `why` it cannot be the same one, where it cannot."""

    loss: str
    kl: str
    trl: dict[str, Any]
    ours: dict[str, Any]
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.loss}, {self.kl}"


@dataclass(frozen=True)
class Compared:
    case: Case
    trl: float
    ours: float
    gradient_apart: float  # norm of the difference over that of TRL's

    @property
    def loss_apart(self) -> float:
        return abs(self.trl - self.ours)

    @property
    def agrees(self) -> bool:
        """Equal, or declared not to be."""
        is_equal = self.loss_apart <= LOSS_LIMIT and self.gradient_apart <= GRADIENT_LIMIT
        return is_equal or bool(self.case.why)

    def told(self) -> dict[str, Any]:
        return {"case": self.case.name, "trl": self.trl, "agentgym": self.ours, "loss_apart": self.loss_apart,
                "gradient_apart": self.gradient_apart, "why": self.case.why}  # fmt: skip


def cases() -> Iterator[Case]:
    for level in ("token", "sequence"):
        for loss, denominator in DENOMINATORS.items():
            for kl, (theirs, ours) in KLS.items():
                yield _case(loss, level, kl, theirs, denominator | ours)


def _case(loss: str, level: str, kl: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Case:
    trl = {"loss_type": loss, "importance_sampling_level": level, "epsilon": LOW, "epsilon_high": HIGH,
           "max_completion_length": LENGTH, **theirs}  # fmt: skip
    ours = {"objective": "ppo_clip", "clip_low": LOW, "clip_high": HIGH} | ours
    why = ""
    if loss == "cispo":  # TRL's bound is the ratio itself, and there is none from below
        trl["epsilon_high"] = 1 + HIGH
        ours |= {"objective": "cispo", "clip_low": 1.0}
    if level == "sequence":
        why = CISPO if loss == "cispo" else RATIO if kl == "k3 x ratio" else ""
        ours |= {"scope": "trajectory"} | ({} if loss == "cispo" else {"objective": "gspo"})
    named = f"{loss}, {level}" + (" (GSPO)" if (loss, level) == ("grpo", "sequence") else "")
    return Case(named, kl, trl, ours, why)


# -- tensors -----------------------------------------------------------------------------------------------------------


def write_inputs(folder: Path) -> None:
    """Ragged prompts and completions of two to four turns; recorded log-probs so far off the model's that ratios are
    clipped on both sides, by tokens and by sequences; reference log-probs; as TRL's loss wants them."""
    lm = CausalLM(load_model(str(folder / "small")).eval())
    chance = np.random.default_rng(0)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("prompt", "ids", "tool", "old", "ref")}
    for number in range(len(ADVANTAGES)):
        lengths = [tuple(chance.integers(3, 13, 2)) for _ in range(chance.integers(2, 5))]
        tool = np.concatenate([np.repeat([1, 0], pair) for pair in lengths])[: -lengths[-1][1]]
        prompt, ids = (chance.integers(3, lm.vocab_size, n) for n in (chance.integers(5, 18), len(tool)))
        own = _logp(lm, prompt, ids)
        shift = 0.35 * (-1) ** number * (number // 2)  # of the whole sequence
        for name, value in (("prompt", prompt), ("ids", ids), ("tool", tool),
                            ("old", np.minimum(own + chance.normal(shift, 0.3, len(ids)), 0)),
                            ("ref", np.minimum(own + chance.normal(0, 0.3, len(ids)), 0))):  # fmt: skip
            rows[name].append(value)
    mask = _filled([np.ones(len(ids), np.int64) for ids in rows["ids"]])
    tool_mask = _filled(rows["tool"])
    np.savez(
        folder / "inputs.npz", prompt_ids=_filled(rows["prompt"], left=True),
        prompt_mask=_filled([np.ones(len(ids), np.int64) for ids in rows["prompt"]], left=True),
        completion_ids=_filled(rows["ids"]), completion_mask=mask, tool_mask=tool_mask,
        advantages=np.array(ADVANTAGES, np.float32),
        old_per_token_logps=_filled(rows["old"]).astype(np.float32),
        ref_per_token_logps=_filled(rows["ref"]).astype(np.float32), num_items_in_batch=(mask * tool_mask).sum(),
    )  # fmt: skip


def _filled(rows: list[np.ndarray], *, left: bool = False) -> np.ndarray:
    width = max(map(len, rows))
    return np.stack([np.pad(r, (width - len(r), 0) if left else (0, width - len(r))) for r in rows])


@torch.no_grad()
def _logp(lm: CausalLM, prompt: np.ndarray, ids: np.ndarray) -> np.ndarray:
    whole = torch.from_numpy(np.concatenate([prompt, ids]))
    logp = lm.model(input_ids=whole[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logp.gather(-1, whole[len(prompt) :, None])[:, 0].numpy()


def trajectories(inputs: dict[str, np.ndarray]) -> list[Trajectory]:
    """TRL's tensors as ledgers: prompts and tools' answers observed, the rest sampled as recorded."""
    made = []
    for b, advantage in enumerate(inputs["advantages"]):
        real = inputs["completion_mask"][b] == 1
        ids, tool = inputs["completion_ids"][b][real], inputs["tool_mask"][b][real] == 1
        old, ref = (inputs[name][b][real] for name in ("old_per_token_logps", "ref_per_token_logps"))
        prompt = inputs["prompt_ids"][b][inputs["prompt_mask"][b] == 1]
        ledger, turn = Ledger([Segment(prompt, Source.OBSERVED, 0)]), -1
        edges = [0, *(np.flatnonzero(np.diff(tool)) + 1), len(ids)]
        for start, stop in pairwise(edges):
            span = slice(start, stop)
            turn += int(tool[start])
            if tool[start]:
                ledger.append(Segment(ids[span], Source.SAMPLED, turn, old[span], 0))
            else:
                ledger.append(Segment(ids[span], Source.OBSERVED, turn + 1))
        advantages = np.full(ledger.num_turns, advantage, np.float32)
        made.append(Trajectory(ledger, advantages, reference=ref[tool].astype(np.float32)))
    return made


# -- the comparison ----------------------------------------------------------------------------------------------------


def compare(folder: Path) -> list[Compared]:
    """Our loss and gradient on the same tensors, beside TRL's in FOLDER/trl.npz."""
    with np.load(folder / "inputs.npz") as file:
        batch = trajectories({name: file[name] for name in file.files})
    found = []
    with np.load(folder / "trl.npz") as trl:
        for case in cases():
            lm = CausalLM(load_model(str(folder / "small")).eval())
            learner = Learner(lm, OptimizerConfig(lr=STILL, clip_norm=1e30), total_steps=1)
            figures = learner.step(batch, ObjectiveConfig(**case.ours))
            square = of = 0.0
            for name, parameter in lm.model.named_parameters():
                theirs = trl[f"{case.name}|{name}"].astype(np.float64)
                gradient = np.zeros_like(theirs) if parameter.grad is None else parameter.grad.numpy()
                square += float(((gradient - theirs) ** 2).sum())
                of += float((theirs**2).sum())
            found.append(Compared(case, float(trl[f"{case.name}|loss"]), figures["loss"], (square / of) ** 0.5))
    return found
