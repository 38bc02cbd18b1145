"""Every objective, scope, credit and layout takes the same gradient as one row after the other with the formulas
written out; micro-batches and ranks only sum."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentgym.errors import ConfigError
from agentgym.learner import head
from agentgym.learner.attention import inputs, prepare
from agentgym.learner.composition import ObjectiveConfig
from agentgym.learner.credit import CREDITS, Outcomes, get_credit
from agentgym.learner.objectives import OBJECTIVES
from agentgym.learner.pack import Trajectory, pack
from agentgym.learner.update import Learner, OptimizerConfig
from agentgym.ledger import Ledger, Segment, Source

LAYOUTS = ("padded", "packed", "tree")
LEGAL = [(name, scope) for name, f in OBJECTIVES.items() for scope in f.scopes]
TOLERANCE = 1e-5  # relative, float32


def settings(name: str, scope: str, **more: Any) -> ObjectiveConfig:
    return ObjectiveConfig(name, scope=scope, clip_low=0.3, clip_high=0.4, **more)


def rescored(lm: Any, ledgers: list[Ledger], chance: np.random.Generator, noise: float = 0.1) -> list[Ledger]:
    """The same with the model's own log-probs and some noise: as weights sampled them that have moved a little."""
    plain = [Trajectory(ledger, np.zeros(ledger.num_turns, np.float32)) for ledger in ledgers]
    made = []
    for ledger, logp in zip(ledgers, Learner(lm, OptimizerConfig(), total_steps=1).score(plain), strict=True):
        recorded, other, at = np.minimum(logp + noise * chance.normal(size=len(logp)), 0), Ledger(), 0
        for s in ledger:
            if s.source is Source.SAMPLED:
                s = Segment(s.ids, s.source, s.turn, recorded[at : at + len(s)], s.version, forks=s.forks)
                at += len(s)
            other.append(s)
        made.append(other)
    return made


def sampled_logps(ledger: Ledger) -> np.ndarray:
    return np.concatenate([row.logprobs[row.sampled] for row in ledger.rows()])


@pytest.fixture(scope="module")
def ledgers(load) -> list[Ledger]:
    """Three groups of four: shared prompts, turns of uneven lengths, two of them with forks that re-observe."""
    chance, made = np.random.default_rng(11), []
    for index in range(12):
        prompt = np.random.default_rng(index // 4).integers(0, 300, 9)
        ledger = Ledger([Segment(prompt, Source.OBSERVED, 0)])
        history = list(prompt)
        for turn in range(1 + index % 4):
            ids = chance.integers(0, 300, chance.integers(1, 7))
            ledger.append(Segment(ids, Source.SAMPLED, turn, -chance.uniform(4.5, 7.0, len(ids)), 0))
            seen = chance.integers(0, 300, 3)
            history += [*ids, *seen]
            forks = index in (5, 7) and turn == 1
            ledger.append(Segment(history if forks else seen, Source.OBSERVED, turn + 1, forks=forks))
        made.append(ledger)
    return rescored(load("qwen3"), made, chance)


@pytest.fixture(scope="module")
def batch_of(ledgers):
    """Credit -> trajectories with its advantages, and log-probs for the proximal and the reference policy."""

    def made(credit: str) -> list[Trajectory]:
        owner = [i for i, ledger in enumerate(ledgers) for _ in range(ledger.num_turns)]
        rewards = torch.tensor([float(i % 3 == 0) + 0.1 * (i % 2) for i in range(len(ledgers))])
        ends = torch.tensor([i + 1 == len(owner) or owner[i + 1] != who for i, who in enumerate(owner)])
        outcomes = Outcomes(
            rewards,
            rewards,
            torch.tensor([i // 4 for i in range(len(ledgers))]),
            torch.ones(len(ledgers), dtype=torch.bool),
            torch.tensor(owner),
            torch.where(ends, rewards[torch.tensor(owner)], 0.0),
            torch.tensor([(turn * 7 + who) % 3 for turn, who in enumerate(owner)]),
        )
        advantages = get_credit(credit)(outcomes, 0.9).numpy()
        chance = np.random.default_rng(3)
        return [
            Trajectory(
                ledger,
                advantages[torch.tensor(owner).numpy() == i],
                group=i // 4,
                proximal=(sampled_logps(ledger) + 0.05 * chance.normal(size=ledger.num_sampled)).astype(np.float32),
                reference=(sampled_logps(ledger) + 0.3 * chance.normal(size=ledger.num_sampled)).astype(np.float32),
            )
            for i, ledger in enumerate(ledgers)
        ]

    return made


@pytest.fixture(scope="module")
def taken(load):
    """The gradient of one step, flat."""
    lm = load("qwen3")

    def gradient(batch: list[Trajectory], config: ObjectiveConfig | None, **options: Any) -> torch.Tensor:
        options = {"microbatch_tokens": 100_000, "temperature": 1.0} | options
        temperature = options.pop("temperature")
        learner = Learner(lm, OptimizerConfig(lr=1e-30, clip_norm=1e30, **options), total_steps=1)
        learner.step(batch, config, temperature=temperature)
        return torch.cat([p.grad.flatten() for p in lm.model.parameters()]).clone()

    gradient.lm = lm
    return gradient


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert float(b.norm()) > 1e-4
    return float((a - b).norm() / b.norm())


# -- the slow way ------------------------------------------------------------------------------------------------------


def by_hand(lm: Any, batch: list[Trajectory], config: ObjectiveConfig, temperature: float = 1.0) -> torch.Tensor:
    """One row after the other through the model's own forward pass; each token's weight in the gradient of its log-prob
    from the formulas, number by number."""
    lm.model.zero_grad()
    total = sum(t.ledger.num_sampled for t in batch)
    for t in batch:
        logps, spans = [], []
        for row in t.ledger.rows():
            ids = torch.tensor(row.ids[None].astype(np.int64))
            logits = lm.model(input_ids=ids).logits[0] / temperature
            for at in np.flatnonzero(row.sampled):
                logps.append(torch.log_softmax(logits[at - 1], -1)[ids[0, at]])
                spans.append((int(row.turns[at]), float(row.logprobs[at])))
        loss = torch.zeros(())
        for i, logp in enumerate(logps):
            turn, behaviour = spans[i]
            same = {
                "token": [i],
                "turn": [j for j, (other, _) in enumerate(spans) if other == turn],
                "trajectory": list(range(len(spans))),
            }[config.over]
            anchors = t.proximal if config.anchor == "proximal" else [b for _, b in spans]
            log_ratio = sum(logps[j].item() - float(anchors[j]) for j in same)
            ratio = math.exp(max(-20.0, min(20.0, log_ratio / len(same) if config.objective == "gspo" else log_ratio)))
            loss = loss + slope(config, ratio, float(t.advantages[turn])) * logp * factor(
                config, t, i, logps, behaviour
            )
        (loss / total).backward()
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()]).clone()


def slope(config: ObjectiveConfig, ratio: float, advantage: float) -> float:
    """d loss / d logp of one token, derived by hand."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    if config.objective == "reinforce":
        return -advantage
    if config.objective == "cispo":
        return -advantage * min(max(ratio, low), high)
    is_held = ratio > high if advantage > 0 else ratio < low  # pushed far enough: no gradient is left
    return 0.0 if is_held or abs(math.log(ratio)) == 20 else -ratio * advantage


def factor(config: ObjectiveConfig, t: Trajectory, i: int, logps: list, behaviour: float) -> float:
    """Truncated importance weight of one token, where the objective has no ratio to what sampled."""
    if config.corrects != "tis":
        return 1.0
    anchor = float(t.proximal[i]) if config.anchor == "proximal" else logps[i].item()
    return min(math.exp(anchor - behaviour), config.correction_cap)


@pytest.mark.parametrize(("name", "scope"), LEGAL)
@pytest.mark.parametrize("credit", ["leave_one_out", "same_state"])
def test_a_step_takes_the_gradient_that_the_formulas_give_by_hand(batch_of, taken, name, scope, credit):
    batch, config = batch_of(credit), settings(name, scope)
    assert apart(taken(batch, config, temperature=0.8), by_hand(taken.lm, batch, config, 0.8)) < TOLERANCE


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", list(CREDITS))
@pytest.mark.parametrize(("name", "scope"), LEGAL)
def test_trap_33_padded_packed_tree_and_one_by_one_are_one_gradient(batch_of, taken, name, scope, credit):
    batch, config = batch_of(credit), settings(name, scope)
    alone = taken(batch, config, microbatch_tokens=1)
    for layout in LAYOUTS:
        assert apart(taken(batch, config, layout=layout), alone) < TOLERANCE


EXTRAS = {
    "kl k2": {"kl": "k2", "kl_coef": 0.1},
    "kl k3 unbiased": {"kl": "k3", "kl_coef": 0.1, "kl_unbiased": True},
    "entropy": {"entropy_coef": 0.05},
    "masked by turn": {
        "correction": "masked",
        "correction_scope": "turn",
        "correction_low": 0.2,
        "correction_cap": 4.0,
    },
    "geometric by trajectory": {"correction": "geometric", "correction_scope": "trajectory", "correction_low": 0.97},
    "negative by trajectory": {"correction": "negative", "correction_scope": "trajectory", "correction_low": 1.0},
    "of trajectories": {"denominator": "trajectories"},
    "of groups": {"denominator": "groups"},
    "of a constant": {"denominator": "constant", "denominator_length": 40},
}


@pytest.mark.parametrize("extra", list(EXTRAS))
@pytest.mark.parametrize(("name", "scope"), [("ppo_clip", "turn"), ("gspo", "trajectory"), ("reinforce", "token")])
def test_trap_33_layouts_agree_whatever_is_added(batch_of, taken, name, scope, extra):
    batch, config = batch_of("gigpo"), settings(name, scope, **EXTRAS[extra])
    alone = taken(batch, config, microbatch_tokens=1)
    for layout in LAYOUTS:
        assert apart(taken(batch, config, layout=layout), alone) < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trap_33_the_order_of_the_batch_decides_nothing(batch_of, taken, layout):
    batch, config = batch_of("grpo"), ObjectiveConfig()
    shuffled = [batch[i] for i in np.random.default_rng(1).permutation(len(batch))]
    assert apart(taken(shuffled, config, layout=layout), taken(batch, config, layout=layout)) < TOLERANCE


def test_trap_34_a_tree_holds_what_rows_share_once_and_branches_apart(batch_of):
    batch = batch_of("leave_one_out")
    (tree,) = pack(batch, layout="tree", max_tokens=100_000)
    (chains,) = pack(batch, layout="packed", max_tokens=100_000)
    prompts = 3 * 9
    assert chains.num_cells - tree.num_cells >= (12 - 3) * 9  # each of three prompts once, and not four times
    assert tree.num_cells > prompts
    sees = inputs(tree, "tree")["mask"][0, 0]
    at = {int(i): int(p) for i, p in enumerate(tree.positions[0])}
    for i in range(tree.num_cells):
        assert int(sees[i].sum()) == at[i] + 1  # all before it in its row, itself, and nobody else
    assert sorted(tree.targets.tolist()) == sorted(chains.targets.tolist())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_trap_33_every_kind_of_model_keeps_rows_apart(load, batch_of, kind, layout):
    lm, batch = load(kind), batch_of("leave_one_out")

    def gradient(layout: str, cells: int) -> torch.Tensor:
        config = OptimizerConfig(lr=1e-30, clip_norm=1e30, layout=layout, microbatch_tokens=cells)
        Learner(lm, config, total_steps=1).step(batch, ObjectiveConfig())
        return torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]).clone()

    assert apart(gradient(layout, 100_000), gradient("padded", 1)) < TOLERANCE


def test_a_model_that_cannot_keep_rows_apart_is_refused_by_name(load):
    lm = load("llama")
    whole = lm.hidden
    lm.hidden = lambda ids, *, positions, mask, cache=None: whole(ids, positions=None, mask=None)  # reads no mask
    with pytest.raises(ConfigError, match=r"model type 'llama' does not keep rows apart in a tree line.*layout padded"):
        prepare(lm, "tree")
    prepare(lm, "padded")


# -- micro-batches and ranks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("denominator", ["tokens", "trajectories", "groups", "constant"])
def test_trap_32_one_two_or_four_micro_batches_are_one_gradient(batch_of, taken, layout, denominator):
    length = {"denominator_length": 30} if denominator == "constant" else {}
    batch = batch_of("leave_one_out")
    config = ObjectiveConfig(denominator=denominator, **length)
    whole = taken(batch, config, layout=layout)
    seen = set()
    for cells in (300, 120, 60, 40):
        seen.add(len(pack(batch, layout=layout, max_tokens=cells)))
        assert apart(taken(batch, config, layout=layout, microbatch_tokens=cells), whole) < TOLERANCE
        assert torch.equal(*(taken(batch, config, layout=layout, microbatch_tokens=cells) for _ in range(2)))
    assert max(seen) >= 4


# -- what is observed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1 << 25, 5 * 341])
def test_trap_10_nothing_observed_is_ever_a_label(load, batch_of, monkeypatch, layout, chunk):
    """The gradient at the last hidden states is zero wherever the next token was observed, and only there."""
    monkeypatch.setattr(head, "CHUNK_CELLS", chunk)
    lm, batch = load("qwen3"), batch_of("leave_one_out")
    seen: list[tuple[torch.Tensor, Any]] = []
    whole = lm.hidden

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = whole(*args, **kwargs)
        found.retain_grad()
        seen.append((found, args[0]))
        return found

    learner = Learner(lm, OptimizerConfig(lr=1e-30, layout=layout), total_steps=1)
    lm.hidden = watched
    learner.step(batch, ObjectiveConfig("reinforce", correction="none", entropy_coef=0.1))
    parts = pack(batch, layout=layout, max_tokens=4096, reach="all")
    assert len(seen) == len(parts)
    for (found, _), part in zip(seen, parts, strict=True):
        moved = found.grad.flatten(0, 1).abs().sum(-1) > 0
        expected = torch.zeros_like(moved)
        expected[part.where] = True
        assert torch.equal(moved, expected)


def test_trap_10_what_is_observed_behind_the_last_reply_moves_no_bit(batch_of, taken):
    batch, config = batch_of("leave_one_out"), ObjectiveConfig()
    changed = []
    for t in batch:
        *before, last = list(t.ledger)
        assert last.source is Source.OBSERVED
        other = Segment((last.ids + 1) % 300, Source.OBSERVED, last.turn, forks=last.forks)
        changed.append(Trajectory(Ledger([*before, other]), t.advantages, group=t.group))
    for layout in LAYOUTS:
        assert torch.equal(taken(changed, config, layout=layout), taken(batch, config, layout=layout))


def test_trap_11_what_is_observed_before_a_reply_is_seen(batch_of, taken):
    batch, config = batch_of("leave_one_out"), ObjectiveConfig()
    first, *rest = list(batch[0].ledger)
    other = Ledger([Segment((first.ids + 1) % 300, Source.OBSERVED, 0), *rest])
    changed = [replace(batch[0], ledger=other), *batch[1:]]
    assert apart(taken(changed, config), taken(batch, config)) > 1e-3


# -- forks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("denominator", ["tokens", "trajectories", "groups"])
@pytest.mark.parametrize(("name", "scope"), LEGAL)
def test_trap_37_a_trajectory_split_into_rows_is_the_trajectory(taken, ledgers, name, scope, denominator, layout):
    """A fork that re-observes exactly what was there changes no probability: so it must change nothing at all."""
    chance = np.random.default_rng(2)
    merged, split = [], []
    for ledger in [ledger for i, ledger in enumerate(ledgers) if i % 4 == 3][:2]:
        segments, history = [], []
        for s in ledger:
            ids = s.ids if not s.forks else s.ids[len(history) :]
            segments.append((ids, s))
            history += list(ids)
        plain, forked, past = Ledger(), Ledger(), []
        for at, (ids, s) in enumerate(segments):
            common = {"turn": s.turn, "logprobs": s.logprobs, "version": s.version}
            plain.append(Segment(ids, s.source, **common))
            past += list(ids)
            if s.source is Source.OBSERVED and at:
                forked.append(Segment(past, s.source, s.turn, forks=True))
            else:
                forked.append(Segment(ids, s.source, **common))
        advantages = chance.normal(size=plain.num_turns).astype(np.float32)
        proximal = (sampled_logps(plain) + 0.05 * chance.normal(size=plain.num_sampled)).astype(np.float32)
        merged.append(Trajectory(plain, advantages, group=len(merged), proximal=proximal))
        split.append(Trajectory(forked, advantages, group=len(split), proximal=proximal))
        assert len(forked.rows()) > len(plain.rows()) == 1
    config = settings(name, scope, denominator=denominator)
    assert apart(taken(split, config, layout=layout), taken(merged, config, layout=layout)) < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trap_37_a_turn_that_a_fork_left_in_two_rows_has_one_ratio(taken, layout):
    """As where a policy writes notes, its context is rewritten, and it answers: one turn, two rows."""
    chance, made = np.random.default_rng(4), []
    for _ in range(6):
        ledger = Ledger([Segment(chance.integers(0, 300, 30), Source.OBSERVED, 0)])
        for forks in (False, True):
            if forks:
                ledger.append(Segment(chance.integers(0, 300, 20), Source.OBSERVED, 0, forks=True))
            ids = chance.integers(0, 300, 6)
            ledger.append(Segment(ids, Source.SAMPLED, 0, -chance.uniform(4, 8, 6), 0))
        made.append(ledger)
    ledgers = rescored(taken.lm, made, chance, noise=0.05)
    batch = [Trajectory(ledger, chance.normal(size=1).astype(np.float32)) for ledger in ledgers]
    for more in ({"objective": "gspo"}, {"correction": "masked", "correction_scope": "turn"}):
        config = ObjectiveConfig(**{"scope": "turn", **more})
        alone = taken(batch, config, layout=layout, microbatch_tokens=1)
        assert apart(alone, taken(batch, config, layout=layout)) < TOLERANCE


# -- on fresh data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", ["leave_one_out", "gigpo"])
def test_trap_37_on_fresh_data_every_objective_and_scope_is_reinforce(batch_of, taken, credit):
    batch = batch_of(credit)
    ledgers = rescored(taken.lm, [t.ledger for t in batch], np.random.default_rng(0), noise=0.0)
    fresh = [
        Trajectory(ledger, t.advantages, group=t.group, proximal=sampled_logps(ledger))
        for ledger, t in zip(ledgers, batch, strict=True)
    ]
    plain = taken(fresh, ObjectiveConfig("reinforce", correction="none"))
    for (name, scope), correction in product(LEGAL, ("none", "masked", "geometric")):
        config = settings(name, scope, correction=correction, correction_scope=scope)
        assert apart(taken(fresh, config), plain) < 1e-4


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_the_models_own_log_probs_in_the_order_of_the_ledger(load, forward, batch_of, layout):
    lm, batch = load("qwen3"), batch_of("leave_one_out")
    learner = Learner(lm, OptimizerConfig(layout=layout, microbatch_tokens=90), total_steps=1)
    for t, found in zip(batch, learner.score(batch), strict=True):
        own = np.concatenate([forward(lm, row.ids)[row.sampled[1:]] for row in t.ledger.rows()])
        assert np.abs(found - own).max() < 2e-5


# -- two processes -----------------------------------------------------------------------------------------------------


def test_trap_32_two_ranks_are_one(model_folder, tmp_path):
    """Gradients, steps, scores and resumed states of two processes over gloo, against one."""
    script = str(Path(__file__).with_name("two_ranks.py"))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = [
        subprocess.Popen(
            [sys.executable, *how, script, model_folder("qwen3"), str(tmp_path / name)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, how in (("one", []), ("two", torchrun))
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert len(one) > 3 * len(LEGAL)
    for key, value in one.items():
        assert apart(two[key], value) < TOLERANCE, key
