"""Adapters: nothing at first, trained alone, an anchor without a copy, and a model that others open."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agentgym.learner.checkpoint import Checkpoints, weights_hash
from agentgym.learner.lora import LoraConfig, add_adapters, is_adapted
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig

IDS = torch.arange(2, 40)[None]


@pytest.fixture
def adapted(load):
    def made(kind: str = "qwen3", dtype: str = "float32", seed: int = 0):
        lm = load(kind, dtype)
        add_adapters(lm.model, LoraConfig(lora_rank=4), seed=seed)
        return lm

    return made


@pytest.fixture
def batch(random_ledger, trajectory):
    return [trajectory(random_ledger(i), 1.0 - i) for i in range(4)]


def logits(lm) -> torch.Tensor:
    with torch.no_grad():
        return lm.model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_adapters_change_nothing_at_first_and_then_they_alone_train(load, adapted, batch, kind):
    lm, plain = adapted(kind), load(kind)
    assert torch.equal(logits(lm), logits(plain))
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    learner = Learner(lm, OptimizerConfig(lr=1e-2), total_steps=2)
    for _ in range(2):  # what stands behind a zero has no gradient at the first step
        learner.step(batch, ObjectiveConfig())
    moved = {name for name, p in lm.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert not any("lm_head" in name for name in moved)
    assert not torch.allclose(logits(lm), logits(plain), atol=1e-3)


def test_the_same_seed_gives_the_same_adapters(adapted):
    assert weights_hash(adapted(seed=3)) == weights_hash(adapted(seed=3)) != weights_hash(adapted(seed=4))


def test_the_anchor_is_the_model_without_its_adapters(load, adapted, batch):
    lm = adapted()
    learner = Learner(lm, OptimizerConfig(lr=1e-2), total_steps=3, anchored=True)
    for _ in range(3):
        learner.step(batch, ObjectiveConfig())
    assert learner.reference is None  # no copy
    plain = Learner(load("qwen3"), OptimizerConfig(), total_steps=1).score(batch)
    anchored, now = learner.score(batch, reference=True), learner.score(batch)
    for a, b, c in zip(anchored, plain, now, strict=True):
        assert np.array_equal(a, b)
        assert np.abs(c - b).max() > 1e-3


def test_a_checkpoint_holds_a_whole_model_that_others_open(adapted, batch, tmp_path):
    lm = adapted()
    learner = Learner(lm, OptimizerConfig(lr=1e-2), total_steps=3)
    for _ in range(3):
        learner.step(batch, ObjectiveConfig())
    before = weights_hash(lm)
    path = Checkpoints(tmp_path).save(learner, 3, {})
    assert weights_hash(lm) == before
    opened = AutoModelForCausalLM.from_pretrained(path / "model")
    assert not is_adapted(opened)
    assert torch.allclose(opened(input_ids=IDS).logits, logits(lm), atol=1e-4)


def test_trap_47_a_learner_of_adapters_goes_on_bit_for_bit(adapted, batch, tmp_path):
    def learner() -> Learner:
        return Learner(adapted("qwen3", "bfloat16"), OptimizerConfig(lr=1e-2), total_steps=4)

    whole, first, second = learner(), learner(), learner()
    for _ in range(4):
        whole.step(batch, ObjectiveConfig())
    for _ in range(2):
        first.step(batch, ObjectiveConfig())
    Checkpoints(tmp_path).save(first, 2, {})
    Checkpoints(tmp_path).load(second)
    for _ in range(2):
        second.step(batch, ObjectiveConfig())
    assert weights_hash(second.lm) == weights_hash(whole.lm) != weights_hash(first.lm)
