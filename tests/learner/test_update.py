"""One optimiser step: the right gradient, the right size, nothing lost in low precision, and resumed to the bit."""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from agentgym.engines.base import Sampling
from agentgym.engines.local import LocalEngine
from agentgym.errors import ConfigError
from agentgym.learner import head
from agentgym.learner.audit import mismatch
from agentgym.learner.head import logp_and_entropy
from agentgym.learner.objectives import TokenBatch, gspo, ppo_clip
from agentgym.learner.optimizer import Optimizer
from agentgym.learner.pack import pack
from agentgym.learner.update import Learner, NotFiniteError, ObjectiveConfig, OptimizerConfig
from agentgym.ledger import Ledger, Segment, Source
from agentgym.loop import run_sync

EVERY = [(o, d) for o in ("ppo_clip", "reinforce") for d in ("tokens", "trajectories")]


@pytest.fixture
def batch(random_ledger, trajectory):
    """Ten trajectories of uneven lengths, with advantages of both signs."""
    chance = np.random.default_rng(5)
    return [trajectory(random_ledger(i, turns=1 + i % 4), float(chance.normal())) for i in range(10)]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.lm.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a | b)


# -- the gradient ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "denominator"), EVERY)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_a_step_takes_the_gradient_of_the_formula(
    load, batch, gradient, plain_gradient, apart, objective, denominator, temperature
):
    found = gradient(
        load("qwen3"),
        batch,
        ObjectiveConfig(objective, correction="none", denominator=denominator),
        temperature=temperature,
    )
    expected = plain_gradient(
        load("qwen3"), batch, objective=objective, denominator=denominator, temperature=temperature
    )
    assert apart(found, expected) < 1e-5


@pytest.mark.parametrize(("objective", "denominator"), EVERY)
def test_trap_32_micro_batches_only_sum(load, random_ledger, trajectory, gradient, apart, objective, denominator):
    config = ObjectiveConfig(objective, correction="none", denominator=denominator)
    batch = [trajectory(random_ledger(i, turns=1 + i % 3, longest=8), 1.5 - i) for i in range(10)]
    whole = gradient(load(), batch, config)
    for limit, count in ((100_000, 1), (150, 2), (60, 4), (1, 10)):
        assert len(pack(batch, max_tokens=limit)) == count
        assert apart(gradient(load(), batch, config, microbatch_tokens=limit), whole) < 2e-6


def test_trap_44_groups_without_variance_keep_their_place_in_the_denominator(
    load, random_ledger, trajectory, gradient, apart
):
    taught = [trajectory(random_ledger(i), a) for i, a in enumerate((0.5, -0.5))]
    same_reward = [trajectory(random_ledger(i), 0.0) for i in range(2, 8)]
    alone, together = gradient(load(), taught), gradient(load(), taught + same_reward)
    tokens = [sum(t.ledger.num_sampled for t in part) for part in (taught, taught + same_reward)]
    assert tokens[1] > 3 * tokens[0]
    assert apart(together * tokens[1] / tokens[0], alone) < 1e-5
    config = ObjectiveConfig(denominator="trajectories")
    assert apart(gradient(load(), taught + same_reward, config) * 4, gradient(load(), taught, config)) < 1e-5


def test_trap_44_a_batch_that_teaches_nothing_moves_nothing(load, random_ledger, trajectory):
    learner = Learner(load(), OptimizerConfig(), total_steps=4)
    before = weights(learner)
    for nothing in ([], [trajectory(random_ledger(i), 0.0) for i in range(4)]):
        figures = learner.step(nothing, ObjectiveConfig())
        assert (figures["tokens_trained"], figures["grad_norm"], figures["loss"]) == (0.0, 0.0, 0.0)
    assert same(before, weights(learner))
    assert learner.version == 2  # the schedule goes on as planned


def test_a_turn_that_earned_something_and_said_nothing_trains_no_token(load, trajectory):
    # The context was full when its turn came: there is an observation, and no reply.
    ledger = Ledger(
        [
            Segment([5], Source.OBSERVED, 0),
            Segment([6], Source.SAMPLED, 0, [-1.0], 0),
            Segment([7], Source.OBSERVED, 1),
        ]
    )
    figures = Learner(load(), OptimizerConfig(), total_steps=1).step(
        [trajectory(ledger, [0.0, 1.0])], ObjectiveConfig()
    )
    assert (figures["tokens_trained"], figures["mismatch_max"]) == (0.0, 0.0)


def test_figures_are_means_over_the_tokens_that_trained(load, random_ledger, trajectory, forward):
    lm, ledger = load(), random_ledger(0)
    (row,) = ledger.rows()
    logp = forward(lm, row.ids)[row.sampled[1:]]
    r = logp - row.logprobs[row.sampled]
    figures = Learner(lm, OptimizerConfig(lr=1e-30), total_steps=1).step([trajectory(ledger, 0.5)], ObjectiveConfig())
    assert figures["tokens_trained"] == len(r)
    assert figures["mismatch_max"] == pytest.approx(np.abs(r).max(), abs=1e-4)
    assert figures["mismatch_mean"] == pytest.approx(np.abs(r).mean(), abs=1e-4)
    assert figures["kl_k1"] == pytest.approx(-r.mean(), abs=1e-4)
    assert figures["kl_k3"] == pytest.approx((np.exp(r) - 1 - r).mean(), rel=1e-4)
    assert figures["clip_fraction"] == pytest.approx((r > np.log(1.28)).mean())
    assert figures["loss"] == pytest.approx(-0.5 * np.minimum(np.exp(r), 1.28).mean(), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_trap_39_a_head_in_chunks_is_the_whole_head(
    load, random_ledger, trajectory, gradient, apart, monkeypatch, temperature
):
    made = [trajectory(random_ledger(i, turns=6), 1.0 - i) for i in range(4)]
    whole = gradient(load(), made, temperature=temperature)
    vocabulary = load().vocab_size
    for tokens in (1, 3, 64):
        monkeypatch.setattr(head, "CHUNK_CELLS", tokens * vocabulary + 1)
        assert apart(gradient(load(), made, temperature=temperature), whole) < 3e-6


def test_log_probs_and_entropy_of_a_head_in_chunks_are_those_of_the_softmax(load, monkeypatch):
    lm = load("qwen3")
    monkeypatch.setattr(head, "CHUNK_CELLS", 5 * lm.vocab_size)
    ids = torch.arange(2, 30)
    with torch.no_grad():
        hidden = lm.hidden(ids[None], positions=None, mask=None)[0]
        logp, entropy = logp_and_entropy(lm, hidden, ids, 0.7)
        exact = torch.log_softmax(lm.model(input_ids=ids[None]).logits[0].double() / 0.7, -1)
    torch.testing.assert_close(logp.double(), exact.gather(-1, ids[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-5, rtol=0)


# -- the model ---------------------------------------------------------------------------------------------------------


def test_trap_28_dropout_never_comes_between_engine_and_learner(load, converse, trajectory):
    lm = load("gpt2")  # it drops a tenth of everything in training mode
    ledger = run_sync(converse(LocalEngine(lm), 0, [5, 20], max_tokens=10))
    lm.model.train()
    figures = Learner(lm, OptimizerConfig(), total_steps=1).step([trajectory(ledger)], ObjectiveConfig())
    assert figures["mismatch_max"] < 1e-4


@pytest.mark.parametrize("mode", [True, False])
def test_trap_28_a_step_leaves_every_module_in_its_mode(load, batch, mode):
    lm = load()
    lm.model.train(mode)
    lm.model.model.layers[0].train(not mode)
    before = {name: module.training for name, module in lm.model.named_modules()}
    Learner(lm, OptimizerConfig(), total_steps=1).step(batch, ObjectiveConfig())
    assert {name: module.training for name, module in lm.model.named_modules()} == before


def test_frozen_weights_stay_and_the_others_move(load, batch):
    lm = load("qwen3")
    for p in lm.model.model.layers[0].parameters():
        p.requires_grad_(False)
    learner = Learner(lm, OptimizerConfig(), total_steps=1)
    before = weights(learner)
    learner.step(batch, ObjectiveConfig())
    moved = {name for name, p in weights(learner).items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("model.layers.0.")}


# -- low precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_trap_23_small_updates_add_up_in_float32_masters(load, batch, dtype):
    lm = load("llama", dtype)
    learner = Learner(lm, OptimizerConfig(lr=1e-6, lr_final=1.0), total_steps=6)
    start = weights(learner)
    masters = [m.clone() for m in learner.optimizer.masters]
    assert all(m.dtype is torch.float32 for m in masters)
    for _ in range(6):
        learner.step(batch, ObjectiveConfig())
        run_sync(_one_reply(lm))  # an engine on the same weights changes no type
    moved = [float((m != old).float().mean()) for m, old in zip(learner.optimizer.masters, masters, strict=True)]
    assert min(moved) > 0.9  # AdamW moves each weight by about the learning rate
    now = weights(learner)
    stuck = torch.cat([(now[name] == start[name]).flatten() for name in start]).float().mean()
    assert 0.5 < float(stuck) < 1.0  # most are still the same number in low precision, which is why masters are kept
    for p, master in zip(now.values(), learner.optimizer.masters, strict=True):
        assert p.dtype is getattr(torch, dtype)
        assert torch.equal(p, master.to(p.dtype))


async def _one_reply(lm: Any) -> None:
    engine = LocalEngine(lm)
    session = engine.open()
    await engine.generate(session, [5, 6, 7], Sampling(0, 3))
    engine.close(session)
    engine.shutdown()


def test_trap_23_float32_weights_are_their_own_masters(load):
    learner = Learner(load(), OptimizerConfig(), total_steps=1)
    assert all(m is p for m, p in zip(learner.optimizer.masters, learner.optimizer._params, strict=True))


# -- the optimiser -----------------------------------------------------------------------------------------------------


def test_the_rate_rises_then_falls_in_straight_lines(load, batch):
    learner = Learner(load(), OptimizerConfig(lr=1.0, lr_final=0.2, warmup=2), total_steps=6)
    rates = []
    for _ in range(8):
        rates.append(round(learner.optimizer.scale(learner.version), 6))
        learner.version += 1
    # 2 steps up, then from 1 towards 0.2 over the 4 that are left, and there it stays
    assert rates == [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]


def test_adamw_moves_a_weight_by_the_rate_at_first(load, batch):
    learner = Learner(load(), OptimizerConfig(lr=1e-3, clip_norm=1e9), total_steps=10)
    before = weights(learner)
    learner.step(batch, ObjectiveConfig())
    moved = torch.cat([(p - before[name]).abs().flatten() for name, p in weights(learner).items()])
    # Adam's first step is the rate times the gradient's sign
    assert float(moved.max()) <= 1.01e-3
    assert float(moved.median()) == pytest.approx(1e-3, rel=0.05)


def test_a_long_gradient_is_shortened_and_reported_as_it_was(load, batch):
    learner = Learner(load(), OptimizerConfig(lr=1e-30, clip_norm=0.01), total_steps=1)
    norm = learner.step(batch, ObjectiveConfig())["grad_norm"]
    shortened = torch.cat([p.grad.flatten() for p in learner.lm.model.parameters()]).norm()
    assert norm > 0.1
    assert float(shortened) == pytest.approx(0.01, rel=1e-3)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(load, batch):
    learner = Learner(load("qwen3"), OptimizerConfig(lr=1e-30, muon_lr=0.02), total_steps=1)
    before = weights(learner)
    learner.step(batch, ObjectiveConfig())
    moved = {name for name, p in weights(learner).items() if not torch.equal(p, before[name])}
    assert moved == {
        name for name, p in before.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    }


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"clip_norm": 0.0}, {"microbatch_tokens": 0}])
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*; it must be above 0"):
        OptimizerConfig(**wrong)


# -- broken numbers ----------------------------------------------------------------------------------------------------


def test_a_nan_in_the_weights_is_seen_and_stops_the_run(load, batch):
    lm = load()
    with torch.no_grad():
        lm.model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    learner = Learner(lm, OptimizerConfig(), total_steps=1)
    before, state = weights(learner), learner.optimizer.state_dict()
    with pytest.raises(NotFiniteError, match="the loss is nan and its gradient nan"):
        learner.step(batch, ObjectiveConfig())
    assert all(torch.equal(p.nan_to_num(9.0), before[n].nan_to_num(9.0)) for n, p in weights(learner).items())
    assert learner.version == 0
    assert [o["state"] for o in learner.optimizer.state_dict()["optimizers"]] == [
        o["state"] for o in state["optimizers"]
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_that_is_no_number_leaves_the_weights_alone(load, trajectory, dtype):
    # An advantage beyond float32's largest: its loss is infinite, whatever the ratio is.
    ledger = Ledger([Segment([5], Source.OBSERVED, 0), Segment([6], Source.SAMPLED, 0, [-5.0], 0)])
    learner = Learner(load("llama", dtype), OptimizerConfig(), total_steps=1)
    before, masters = weights(learner), [m.clone() for m in learner.optimizer.masters]
    with pytest.raises(NotFiniteError, match=r"its gradient (nan|inf).*weights are as they were"):
        learner.step([trajectory(ledger, float("inf"))], ObjectiveConfig())
    assert same(before, weights(learner))
    assert all(torch.equal(m, old) for m, old in zip(learner.optimizer.masters, masters, strict=True))


@pytest.mark.parametrize("scope", ["token", "turn", "trajectory"])
def test_trap_25_a_ratio_of_ten_thousand_tokens_neither_overflows_nor_poisons_the_gradient(scope):
    # A hundredth of a nat per token: the ratio of the whole is e^100, beyond float32.
    n = 10_000
    logp = torch.full((n,), -1.0, requires_grad=True)
    where = torch.zeros(n, dtype=torch.long)
    for advantage in (1.0, -1.0):
        mask = torch.ones(n, dtype=torch.bool)
        tokens = TokenBatch(logp, torch.full((n,), -1.01), torch.full((n,), advantage), mask, where, where)
        for objective in (ppo_clip, gspo) if scope != "token" else (ppo_clip,):
            loss, _ = objective(tokens, scope=scope)
            (slope,) = torch.autograd.grad(loss.sum(), logp)
            assert loss.isfinite().all()
            assert slope.isfinite().all()
    mean, _ = gspo(tokens, scope="trajectory", clip_high=9.0)
    assert mean[0].item() == pytest.approx(math.exp(0.01), rel=1e-4)  # the geometric mean of the ratios


@pytest.mark.parametrize("worst", [1.1e-3, math.nan, math.inf])
def test_a_mismatch_beyond_the_limit_stops_and_says_by_how_much(worst):
    assert re.match(r"engine and learner differ by .* nats on a token", mismatch({"mismatch_max": worst}, 1e-3))
    assert mismatch({"mismatch_max": 0.9e-3}, 1e-3) == ""


# -- resumed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trap_47_a_learner_goes_on_bit_for_bit(load, batch, dtype, muon_lr):
    settings = OptimizerConfig(lr=1e-3, warmup=3, muon_lr=muon_lr)

    def learner() -> Learner:
        return Learner(load("qwen3", dtype), settings, total_steps=4)

    uninterrupted = learner()
    for _ in range(4):
        uninterrupted.step(batch, ObjectiveConfig())
    first, second = learner(), learner()
    for _ in range(2):
        first.step(batch, ObjectiveConfig())
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first.step(batch, ObjectiveConfig())  # what happens after saving is not in the file
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.version == 2
    for _ in range(2):
        second.step(batch, ObjectiveConfig())
    assert same(weights(second), weights(uninterrupted))
    assert not same(weights(second), weights(learner()))


def test_the_same_steps_give_the_same_bits(load, batch):
    def trained() -> dict[str, torch.Tensor]:
        learner = Learner(load(), OptimizerConfig(), total_steps=3)
        for _ in range(3):
            learner.step(batch, ObjectiveConfig())
        return weights(learner)

    assert same(trained(), trained())


def test_what_is_rewarded_becomes_likelier_and_what_is_not_rarer(load, random_ledger, trajectory, forward):
    lm = load()
    good, bad = random_ledger(1), random_ledger(2)

    def likelihood(ledger: Ledger) -> float:
        (row,) = ledger.rows()
        return float(forward(lm, row.ids)[row.sampled[1:]].sum())

    before = likelihood(good), likelihood(bad)
    learner = Learner(lm, OptimizerConfig(lr=1e-3), total_steps=20)
    for _ in range(20):
        learner.step([trajectory(good, 1.0), trajectory(bad, -1.0)], ObjectiveConfig("reinforce", correction="none"))
    assert likelihood(good) > before[0] + 1
    assert likelihood(bad) < before[1] - 1


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_blocks_computed_again_give_the_same_gradient_and_keep_less(load, batch, kind):
    def gradient(**options: Any) -> tuple[torch.Tensor, int]:
        lm = load(kind)
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        learner = Learner(lm, OptimizerConfig(lr=1e-30, clip_norm=1e30, **options), total_steps=1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            learner.step(batch, ObjectiveConfig())
        assert not any(module.training for module in lm.model.modules())
        return torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]), kept

    (plain, much), (again, less) = gradient(), gradient(gradient_checkpointing=True)
    assert torch.equal(plain, again)
    assert less < much / 2


@pytest.mark.acceptance  # a minute of compilation, and a C++ compiler
def test_a_compiled_pass_takes_the_same_gradient(load, batch, gradient, apart):
    lm = load("qwen3")
    learner = Learner(lm, OptimizerConfig(lr=1e-30, clip_norm=1e30, compile=True), total_steps=1)
    learner.step(batch[:4], ObjectiveConfig())
    compiled = torch.cat([p.grad.flatten() for p in lm.model.parameters()])
    assert apart(compiled, gradient(load("qwen3"), batch[:4])) < 1e-5


def test_a_part_that_does_not_fit_says_what_would(model_folder, tmp_path):
    """A process with little memory: a small part fits, a large one does not."""
    script = f"""
import resource, numpy as np, torch
from agentgym.engines.causal import CausalLM, load_model
from agentgym.errors import AgentGymError
from agentgym.learner.pack import Trajectory
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig
from agentgym.ledger import Ledger, Segment, Source
torch.set_num_threads(1)
def batch(n):
    ledger = Ledger([Segment([5, 6], Source.OBSERVED, 0), Segment([7] * n, Source.SAMPLED, 0, [-5.0] * n, 0)])
    return [Trajectory(ledger, np.ones(1, np.float32))] * 40
learner = Learner(CausalLM(load_model({model_folder("llama")!r})), OptimizerConfig(), total_steps=9)
learner.step(batch(18), ObjectiveConfig())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), resource.RLIM_INFINITY))
before = [p.detach().clone() for p in learner.lm.model.parameters()]
try:
    learner.step(batch(998), ObjectiveConfig())
except AgentGymError as error:
    print(type(error).__name__, error)
assert all(torch.equal(p, old) for p, old in zip(learner.lm.model.parameters(), before))
learner.step(batch(18), ObjectiveConfig())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "OutOfMemoryError out of memory with a part of 32000 cells" in done.stdout
    assert "the largest that did had 800. --microbatch-tokens 800 bounds it; --gradient-checkpointing" in done.stdout


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [1.0, 0.8, 0.6, 0.4, 0.2]), ("constant", [1.0] * 5), ("cosine", [1.0, 0.8828, 0.6, 0.3172, 0.2])],
)
def test_schedules(load, schedule, expected):
    optimizer = Optimizer(load(), OptimizerConfig(lr_schedule=schedule, lr_final=0.2), total_steps=4)
    assert [round(optimizer.scale(version), 4) for version in range(5)] == expected
