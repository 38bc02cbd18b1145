"""Probes and formulas that speak of models no test can train."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agentgym.engines.causal import CausalLM
from agentgym.learner.probe import input_retrieval
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason


def episode(task: int, ledger: Ledger) -> Episode:
    return Episode(
        run="train", update=0, task_id=f"train:{task}", attempt=0, seed=0, split="train", group=task, env_id="a/B-v0",
        env_version="v0", messages=(), turns=(), reward=0.0, reward_parts={}, terminated=True, truncated=False,
        stop_reason=StopReason.ANSWERED, ledger=ledger,
    )  # fmt: skip


def spoken(prompt: list[int], reply: list[int]) -> Ledger:
    said = Segment(reply, Source.SAMPLED, 0, [-1.0] * len(reply), 0)
    return Ledger([Segment(prompt, Source.OBSERVED, 0), said, Segment([9], Source.OBSERVED, 1)])


@pytest.fixture
def echo(load, trajectory) -> CausalLM:
    """A model that has learned to repeat the prompt's last token."""
    lm = load("llama")
    chance = np.random.default_rng(0)
    learner = Learner(lm, OptimizerConfig(lr=3e-3, clip_norm=1e9), total_steps=150)
    for _ in range(150):
        prompts = chance.integers(10, 40, (16, 3))
        batch = [trajectory(spoken(list(p), [int(p[-1])]), 1.0) for p in prompts]
        learner.step(batch, ObjectiveConfig("reinforce", correction="none"))
    return lm


def test_trap_50_replies_that_ignore_their_prompts_are_seen_though_entropy_is_as_it_was(echo):
    prompts = [[3, 4, 10 + i] for i in range(8)]
    learner = Learner(echo, OptimizerConfig(), total_steps=1)
    listening = [episode(i, spoken(p, [p[-1]])) for i, p in enumerate(prompts)]
    found = input_retrieval(learner, listening, temperature=1.0)
    assert found["input_retrieval"] >= 0.75 > found["input_retrieval_chance"] == 1 / 8
    template = [episode(i, spoken(p, [77])) for i, p in enumerate(prompts)]
    assert input_retrieval(learner, template, temperature=1.0)["input_retrieval"] == pytest.approx(1 / 8)
    assert input_retrieval(learner, template[:1], temperature=1.0) == {}
    deaf = load_deaf(echo)
    ties = input_retrieval(Learner(deaf, OptimizerConfig(), total_steps=1), listening, temperature=1.0)
    assert ties["input_retrieval"] == pytest.approx(1 / 8)  # where all prompts are alike, each gets its share


def load_deaf(lm: CausalLM) -> CausalLM:
    with torch.no_grad():
        for p in lm.model.parameters():
            p.zero_()
    return lm


def test_trap_51_flops_of_two_shapes_by_hand():
    path = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    gpu = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = gpu
    spec.loader.exec_module(gpu)
    # 0.6B: a block has 2 x 1024 x (2048 + 1024) of attention and 3 x 1024 x 3072 of MLP, 28 blocks, and the embedding
    parameters = 28 * (2 * 1024 * 3072 + 3 * 1024 * 3072) + 151_936 * 1024
    small, large = gpu.QWEN3["0.6B"], gpu.QWEN3["4B"]
    assert gpu.flops_per_token(small, 16_384) == 6 * parameters + 6 * 28 * 2048 * 16_384
    published = [(small, 2_048, False, 4.3), (small, 16_384, False, 9.2), (small, 65_536, True, 24.9)]
    published += [(large, 4_096, False, 27.8), (large, 16_384, False, 38.6), (large, 16_384, True, 30.6)]
    for shape, length, lora, giga in published:
        assert gpu.flops_per_token(shape, length, lora=lora) / 1e9 == pytest.approx(giga, rel=0.02)
    assert gpu.mfu(small, 11_900, 16_384) == pytest.approx(11_900 * 9.2e9 / 989e12, rel=0.01)
