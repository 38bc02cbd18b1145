"""The engine against the model itself: same log-probs, same ids, whoever shares the batch and whatever happens."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import LlamaConfig, LlamaForCausalLM

from agentgym.engines.base import Generation, Sampling
from agentgym.engines.causal import CausalLM
from agentgym.engines.local import CHUNK_MIN, LocalEngine
from agentgym.errors import ConfigError
from agentgym.learner.update import Learner, ObjectiveConfig, OptimizerConfig
from agentgym.ledger import Ledger, Source
from agentgym.loop import run_sync

OBSERVED = [7, 3, CHUNK_MIN + 16, 1, 90]  # fed token by token, and by chunk
PATIENCE_S = 20.0  # what nothing here takes; a request that never ends fails instead of hanging


def gathered(*coroutines: Any) -> list[Any]:
    """Run them side by side; exceptions are results."""

    async def together() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*coroutines, return_exceptions=True), PATIENCE_S)

    return run_sync(together())


async def one(engine: LocalEngine, ids: Any, sampling: Sampling) -> Generation:
    session = engine.open()
    try:
        return await engine.generate(session, ids, sampling)
    finally:
        engine.close(session)


def ids_of(ledger: Ledger) -> list[int]:
    return np.concatenate([s.ids for s in ledger]).tolist()


def errors(ledger: Ledger, logp: np.ndarray, version: int | None = None) -> np.ndarray:
    """Recorded minus recomputed, at the sampled tokens (of a version)."""
    (row,) = ledger.rows()
    chosen = row.sampled[1:] & ((row.versions[1:] == version) | (version is None))
    return np.abs(row.logprobs[1:] - logp)[chosen]


def same(a: Generation, b: Generation) -> bool:
    return a.ids.tobytes() == b.ids.tobytes() and a.logprobs.tobytes() == b.logprobs.tobytes()


# -- log-probs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_trap_18_engine_and_learner_agree_at_every_temperature(load, converse, trajectory, kind, temperature):
    lm = load(kind)
    engine = LocalEngine(lm)
    ledgers = gathered(*(converse(engine, seed, OBSERVED, temperature=temperature) for seed in range(6)))
    assert sum(ledger.num_sampled for ledger in ledgers) > 250
    figures = Learner(lm, OptimizerConfig(), total_steps=1).step(
        [trajectory(ledger) for ledger in ledgers], ObjectiveConfig(), temperature=temperature
    )
    assert figures["mismatch_mean"] <= 5e-6
    assert figures["mismatch_max"] <= 1e-4


def test_trap_18_a_forgotten_temperature_shows_in_the_mismatch(load, converse, trajectory):
    lm = load("llama")
    ledger = run_sync(converse(LocalEngine(lm), 0, OBSERVED, temperature=1.3))
    figures = Learner(lm, OptimizerConfig(), total_steps=1).step([trajectory(ledger)], ObjectiveConfig())
    assert figures["mismatch_mean"] > 0.1


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_trap_20_after_new_weights_are_pushed_nothing_old_is_used(load, converse, forward, kind):
    old, lm = load(kind), load(kind)
    engine = LocalEngine(lm)

    async def update(turn: int) -> None:
        if turn == 2:
            with torch.no_grad():
                for p in lm.model.parameters():
                    p.mul_(1.1)
            await engine.push(1)

    ledger = run_sync(converse(engine, 0, OBSERVED, between=update))
    ids = ids_of(ledger)
    assert errors(ledger, forward(old, ids), version=0).max() <= 1e-4
    assert errors(ledger, forward(lm, ids), version=1).max() <= 1e-4
    assert {s.version for s in ledger if s.source is Source.SAMPLED} == {0, 1}
    assert np.abs(forward(lm, ids) - forward(old, ids)).mean() > 0.1  # stale keys would have shown


def test_trap_21_a_push_in_mid_request_splits_its_tokens_by_version(load, forward):
    lm = load("llama")
    engine = LocalEngine(lm, in_step=False)

    async def pushed() -> Generation:
        busy = [one(engine, [5, 6, 7], Sampling(i, 4 + i)) for i in range(4)]  # ends of others let the push in
        long = asyncio.ensure_future(one(engine, [8, 9], Sampling(9, 300)))
        await asyncio.gather(*busy)
        await engine.push(3)
        return await long

    (made,) = gathered(pushed())
    (old, _, edge), (new, start, end) = made.spans()
    assert (old, new, start, end) == (0, 3, edge, 300)
    # the weights are the same ones, so what was computed anew continues exactly
    logp = forward(lm, [8, 9, *made.ids])[1:]
    assert np.abs(logp - made.logprobs).max() <= 1e-4


def test_a_version_never_goes_backwards(load):
    engine = LocalEngine(load())
    run_sync(engine.push(2))
    with pytest.raises(ConfigError, match="version 1 after 2"):
        run_sync(engine.push(1))


def test_a_rewritten_history_is_cut_back_to_what_is_still_true(load, forward):
    lm = load("qwen3")
    engine = LocalEngine(lm)

    async def rewritten() -> list[tuple[list[int], Generation]]:
        session, made = engine.open(), []
        for ids in ([5] * 40 + [6] * 10, [5] * 40 + [7] * 3, [5] * 4, [8] + [5] * 50, [8] + [5] * 50):
            made.append((ids, await engine.generate(session, ids, Sampling(3, 6))))
        return made

    ((*_, before, last),) = gathered(rewritten())
    for ids, generation in (before, last):
        logp = forward(lm, [*ids, *generation.ids])[len(ids) - 1 :]
        assert np.abs(logp - generation.logprobs).max() <= 1e-4
    assert before[1].ids.tolist() == last[1].ids.tolist()


def test_a_history_longer_than_one_chunk_is_fed_in_several(converse, forward):
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192, initializer_range=0.3,
    )  # fmt: skip
    lm = CausalLM(LlamaForCausalLM(shape).eval())
    ledgers = gathered(*(converse(LocalEngine(lm), seed, [5000 + seed, 30], max_tokens=4) for seed in range(2)))
    for ledger in ledgers:
        assert errors(ledger, forward(lm, ids_of(ledger))).max() <= 1e-4


def test_learned_positions_work_as_rotary_ones_do(load, converse, forward):
    lm = load("gpt2")
    ledger = run_sync(converse(LocalEngine(lm), 0, [5, 25, 1], max_tokens=6))
    assert errors(ledger, forward(lm, ids_of(ledger))).max() <= 1e-4


def test_episodes_that_come_and_go_never_see_one_anothers_cache(load, converse, forward):
    lm = load("qwen3")
    engine = LocalEngine(lm, in_step=False)
    chance = random.Random(0)

    async def late(seed: int, pause_s: float, observed: list[int]) -> Ledger:
        await asyncio.sleep(pause_s)
        return await converse(engine, seed, observed, max_tokens=1 + seed % 9)

    plans = [[chance.choice([1, 2, 30, 60]) for _ in range(chance.randrange(1, 6))] for _ in range(40)]
    ledgers = gathered(*(late(seed, chance.random() / 4, plan) for seed, plan in enumerate(plans)))
    assert max(errors(ledger, forward(lm, ids_of(ledger))).max() for ledger in ledgers) <= 1e-4


# -- sampling ---------------------------------------------------------------------------------------------------------


def fixed_logits(vocabulary: int) -> tuple[CausalLM, np.ndarray]:
    """A model whose every token has the same embedding: whatever came before, the same distribution comes next."""
    torch.manual_seed(4)
    shape = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = model.get_input_embeddings().weight[0]
        logits = model(input_ids=torch.tensor([[0, 1, 2]])).logits[0]
    torch.testing.assert_close(logits[0], logits[2])
    return CausalLM(model), logits[0].double().numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature):
    lm, logits = fixed_logits(10)
    engine = LocalEngine(lm)
    made = gathered(*(one(engine, [0], Sampling(seed, 40, temperature)) for seed in range(250)))
    counts = np.bincount(np.concatenate([g.ids for g in made]), minlength=10)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum() * counts.sum()
    assert counts.sum() == 10_000
    assert expected.min() > 5  # so that the statistic is chi-square's, with 9 degrees of freedom
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-4, 9)


def test_greedy_takes_the_likeliest_token_with_certainty(load):
    lm = load("qwen3")
    ids = [5, 6, 7, 8]
    (made,) = gathered(one(LocalEngine(lm), ids, Sampling(0, 30, temperature=0.0)))
    for at, token in enumerate(made.ids.tolist()):
        with torch.no_grad():
            assert token == int(
                lm.model(input_ids=torch.tensor([[*ids, *made.ids[:at].tolist()]])).logits[0, -1].argmax()
            )
    assert made.logprobs.tolist() == [0.0] * 30


def test_the_same_request_gives_the_same_ids_alone_and_among_others(load):
    lm = load("llama")
    asked = ([9, 8, 7], Sampling(77, 40))
    (alone,) = gathered(one(LocalEngine(lm), *asked))
    crowd = LocalEngine(lm)
    chance = np.random.default_rng(0)
    others = [(chance.integers(0, 300, n).tolist(), Sampling(n, 3 * n, 0.5 + n / 10)) for n in range(1, 21)]
    among, *_ = gathered(one(crowd, *asked), *(one(crowd, *other) for other in others))
    assert among.ids.tolist() == alone.ids.tolist()
    assert np.abs(among.logprobs - alone.logprobs).max() <= 1e-4


def test_other_seeds_draw_other_tokens(load):
    engine = LocalEngine(load())
    made = gathered(*(one(engine, [9, 8, 7], Sampling(seed, 20)) for seed in range(50)))
    assert len({g.ids.tobytes() for g in made}) == 50


def test_trap_17_requests_side_by_side_keep_their_own_limits(load):
    engine = LocalEngine(load())
    limits = [1, 2, 3, 5, 8, 13, 21]
    made = gathered(*(one(engine, [9, 8, 7], Sampling(4, n, temperature=0.0 if n == 5 else 1.0)) for n in limits))
    assert [len(g.ids) for g in made] == limits
    assert {g.finish_reason for g in made} == {"length"}
    assert [bool(g.logprobs.any()) for g in made] == [True, True, True, False, True, True, True]  # the greedy one: 0.0
    for g in made:  # of the same seed, so that each is the beginning of the longest
        if len(g.ids) != 5:
            assert g.ids.tolist() == made[-1].ids[: len(g.ids)].tolist()


def test_trap_17_what_a_request_asks_for_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling(0).max_tokens = 2  # type: ignore[misc]


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}])
def test_a_request_that_cannot_be_sampled_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Sampling(0, **wrong)


# -- why a reply ends -------------------------------------------------------------------------------------------------


def test_a_stop_token_ends_a_reply_and_is_its_last_id(load):
    engine = LocalEngine(load())
    (free,) = gathered(one(engine, [5, 6], Sampling(1, 30)))
    stop = int(free.ids[11])
    first = free.ids.tolist().index(stop)
    (made,) = gathered(one(engine, [5, 6], Sampling(1, 30, stop_ids=(2, stop))))
    assert made.ids.tolist() == free.ids[: first + 1].tolist()
    assert (made.finish_reason, len(made.logprobs)) == ("stop", first + 1)


def test_a_full_context_ends_a_reply_and_then_refuses_to_begin_one(load):
    engine = LocalEngine(load(), max_context=20)
    (made,) = gathered(one(engine, [5] * 15, Sampling(1, 30)))
    assert (len(made.ids), made.finish_reason) == (5, "context")
    (none,) = gathered(one(engine, [5] * 20, Sampling(1, 30)))
    assert (len(none.ids), none.finish_reason) == (0, "context")


def test_a_limit_far_above_the_context_costs_no_memory(load):
    (made,) = gathered(one(LocalEngine(load()), [5] * 1000, Sampling(1, max_tokens=10**12)))
    assert (len(made.ids), made.finish_reason) == (24, "context")


# -- many at once -----------------------------------------------------------------------------------------------------


def test_trap_12_a_reply_interrupted_at_every_token_is_the_uninterrupted_one(load):
    lm = load("qwen3")
    (alone,) = gathered(one(LocalEngine(lm), [9] * 30, Sampling(5, 24)))
    engine = LocalEngine(lm, in_step=False)
    (among, *others) = gathered(
        one(engine, [9] * 30, Sampling(5, 24)), *(one(engine, [n], Sampling(n, n)) for n in range(1, 24))
    )
    assert [len(g.ids) for g in others] == list(range(1, 24))  # at each of its tokens, somebody's reply ended
    assert among.ids.tolist() == alone.ids.tolist()
    assert np.abs(among.logprobs - alone.logprobs).max() <= 1e-4
    assert among.spans() == alone.spans() == [(0, 0, 24)]


def test_trap_42_arrival_decides_no_bit(load, converse):
    torch.set_num_threads(2)  # with one thread a row's place in a small batch happens not to matter
    try:
        torch.manual_seed(1)
        shape = LlamaConfig(
            vocab_size=300, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            initializer_range=0.2,
        )  # fmt: skip
        lm = CausalLM(LlamaForCausalLM(shape).eval())

        def played(pauses: list[float]) -> list[tuple]:
            engine = LocalEngine(lm)

            async def two_episodes(worker: int) -> tuple:
                async def pause(_: int) -> None:
                    await asyncio.sleep(pauses[worker])

                first = engine.open()
                await engine.generate(first, [worker + 3], Sampling(worker, 3))
                await pause(0)  # the environment's last word
                second = asyncio.ensure_future(converse(engine, 50 + worker, [4, 30, 2], between=pause, max_tokens=20))
                await asyncio.sleep(0)  # it has opened its session
                engine.close(first)
                return (await second).fingerprint()

            return gathered(*map(two_episodes, range(7)))

        rising = [0.004 * worker for worker in range(7)]
        assert played(rising) == played(rising[::-1])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("length", [480, 900])
def test_what_an_engine_did_before_decides_no_bit(load, length):
    # A cache that has grown has other shapes than a fresh one: a resumed run must not notice.
    lm = load("qwen3")
    asked = ([9] * 20, Sampling(5, 290))
    fresh, grown = LocalEngine(lm), LocalEngine(lm)
    gathered(one(grown, [3] * length, Sampling(0, 2)))
    (a,), (b,) = gathered(one(fresh, *asked)), gathered(one(grown, *asked))
    assert same(a, b)


def test_out_of_step_everybody_is_served_without_waiting_for_the_slowest(load, converse, forward):
    lm = load("llama")
    engine = LocalEngine(lm, in_step=False)
    finished: list[int] = []

    async def played(seed: int, pause_s: float) -> Ledger:
        async def think(_: int) -> None:
            await asyncio.sleep(pause_s)

        ledger = await converse(engine, seed, [4, 30, 2], between=think)
        finished.append(seed)
        return ledger

    ledgers = gathered(*(played(seed, 0.15 if seed == 0 else 0.0) for seed in range(12)))
    assert finished[-1] == 0
    assert all([s.source for s in ledger] == [Source.OBSERVED, Source.SAMPLED] * 3 for ledger in ledgers)
    assert max(errors(ledger, forward(lm, ids_of(ledger))).max() for ledger in ledgers) <= 1e-4


def test_in_step_nobody_is_answered_before_everybody_has_asked(load):
    engine = LocalEngine(load())

    async def waiting() -> tuple[bool, bool]:
        quick, slow = engine.open(), engine.open()
        asked = asyncio.ensure_future(engine.generate(quick, [5], Sampling(0, 1)))
        await asyncio.sleep(0.1)
        early = asked.done()
        engine.close(slow)
        await asked
        return early, asked.done()

    assert gathered(waiting()) == [(False, True)]


def test_a_session_closed_in_mid_request_ends_it_and_disturbs_nobody(load):
    lm = load()
    (alone,) = gathered(one(LocalEngine(lm), [5], Sampling(0, 400)))
    engine = LocalEngine(lm)

    async def closing() -> tuple[Generation, bool]:
        stays, goes = engine.open(), engine.open()
        kept = asyncio.ensure_future(engine.generate(stays, [5], Sampling(0, 400)))
        dropped = asyncio.ensure_future(engine.generate(goes, [6], Sampling(1, 400)))
        await asyncio.sleep(0.02)
        engine.close(goes)
        await asyncio.wait([dropped])
        return await kept, dropped.cancelled()

    ((made, cancelled),) = gathered(closing())
    assert cancelled
    assert made.ids.tolist() == alone.ids.tolist()


def test_weights_can_be_pushed_when_the_last_request_was_dropped(load):
    # The close comes just when the engine, with one request left, waits for the push.
    engine = LocalEngine(load(), in_step=False)

    async def raced() -> int:
        a, b = engine.open(), engine.open()
        long = asyncio.ensure_future(engine.generate(a, [5], Sampling(0, 900)))

        async def short() -> None:
            await engine.generate(b, [6], Sampling(1, 20))
            engine.close(a)

        ended = asyncio.ensure_future(short())
        await asyncio.sleep(0.01)
        await engine.push(1)
        await ended
        await asyncio.wait([long])
        await engine.push(2)
        return engine.version

    assert gathered(raced()) == [2]


@pytest.mark.parametrize(
    ("ids", "fault"),
    [([], "0 ids"), ([[5, 6], [7, 8]], r"shape \(2, 2\)"), ([5, 99_999], "99999"), ([5, -1], "-1")],
)
def test_ids_that_are_no_history_are_refused_and_hurt_only_their_own_request(load, ids, fault):
    engine = LocalEngine(load())
    wrong, right = gathered(one(engine, ids, Sampling(0, 4)), one(engine, [5], Sampling(0, 4)))
    assert isinstance(wrong, ConfigError)
    with pytest.raises(ConfigError, match=fault):
        raise wrong
    assert len(right.ids) == 4


def test_a_session_answers_one_request_at_a_time(load):
    engine = LocalEngine(load())

    async def twice() -> tuple[Any, ...]:
        session = engine.open()
        asked = [engine.generate(session, [5], Sampling(seed, 40)) for seed in range(2)]
        return tuple(await asyncio.gather(*asked, return_exceptions=True))

    ((first, second),) = gathered(twice())
    assert len(first.ids) == 40
    assert "is still answering" in str(second)


def test_a_session_that_is_not_open_is_refused(load):
    engine = LocalEngine(load())
    session = engine.open()

    async def late() -> None:
        engine.close(session)
        await engine.generate(session, [5], Sampling(0))

    with pytest.raises(ConfigError, match=f"session {session} is not open"):
        run_sync(late())


# -- the model --------------------------------------------------------------------------------------------------------


def test_trap_28_generation_leaves_the_model_as_it_was(load):
    lm = load("qwen3")
    lm.model.train()
    lm.model.model.layers[1].eval()  # a part that its owner froze
    lm.model.lm_head.weight.requires_grad_(False)

    def snapshot() -> tuple:
        modules = {name: module.training for name, module in lm.model.named_modules()}
        weights = {name: (p.dtype, p.requires_grad, p.grad) for name, p in lm.model.named_parameters()}
        return modules, weights, lm.model.config.to_dict(), torch.is_grad_enabled(), torch.get_rng_state().tolist()

    before = snapshot()
    gathered(one(LocalEngine(lm), [5] * 40, Sampling(0, 8)))
    assert snapshot() == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_trap_23_low_precision_weights_keep_their_type(load, converse, dtype):
    lm = load("llama", dtype)
    weights = {name: p.clone() for name, p in lm.model.named_parameters()}
    ledger = run_sync(converse(LocalEngine(lm), 0, OBSERVED))
    assert np.isfinite(np.concatenate([s.logprobs for s in ledger if s.logprobs is not None])).all()
    for name, p in lm.model.named_parameters():
        assert p.dtype is getattr(torch, dtype)
        assert torch.equal(p, weights[name])


# -- a cut distribution ------------------------------------------------------------------------------------------------


def test_trap_19_what_is_sampled_from_a_cut_distribution_has_its_log_probs():
    """Ten tokens: the fewest likeliest that have 0.7 together, with the probabilities they have among themselves; two
    requests side by side are cut each in its own way."""
    lm, logits = fixed_logits(10)
    p = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(p[order].cumsum(), 0.7)) + 1]
    assert 1 < len(kept) < 10
    engine = LocalEngine(lm)
    requests = [Sampling(seed, 40, top_p=0.7 if seed % 2 else 1.0) for seed in range(200)]
    made = gathered(*(one(engine, [0], sampling) for sampling in requests))
    cut, whole = made[1::2], made[::2]
    ids, logp = (np.concatenate([getattr(g, name) for g in cut]) for name in ("ids", "logprobs"))
    assert set(ids.tolist()) == set(kept.tolist())
    share = p / p[kept].sum()
    assert np.abs(logp - np.log(share[ids])).max() < 1e-5
    counts, expected = np.bincount(ids, minlength=10)[kept], share[kept] * len(ids)
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-4, len(kept) - 1)
    # E[p' / p] under what was drawn is one, for any p' over the same support
    assert np.mean(np.exp(np.log(1 / len(kept)) - logp)) == pytest.approx(1.0, abs=0.05)
    assert len(set(np.concatenate([g.ids for g in whole]).tolist())) == 10
