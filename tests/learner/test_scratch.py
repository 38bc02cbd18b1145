"""A model and a tokenizer from nothing, and what a warm start teaches them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentgym import make
from agentgym.engines.causal import CausalLM
from agentgym.engines.local import LocalEngine
from agentgym.errors import AgentGymError, ConfigError
from agentgym.learner.checkpoint import weights_hash
from agentgym.learner.scratch import ScratchConfig, scratch_model, scratch_tokenizer
from agentgym.learner.warm_start import WarmStartConfig, warm_start
from agentgym.ledger import Episode, Ledger, Source
from agentgym.loop import run_sync
from agentgym.policies.builtin import builtin
from agentgym.policies.local import LocalPolicy
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat, written_ledger
from agentgym.rollout.driver import Driver, Slot
from agentgym.syntax import get_syntax

TEXTS = ["Start at 4821, say 17. Follow the links.", "4821 red", "17 blue", "a note: 17, 4821"] * 5
SMALL = ScratchConfig(vocabulary=400, width=32, layers=2, heads=2, window=512)


def test_numbers_are_cut_into_pairs_and_phrases_may_be_one_token():
    tokenizer = scratch_tokenizer(TEXTS, vocabulary=600)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("48217")] == ["48", "21", "7"]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("x4821")] == ["x", "48", "21"]
    assert len(tokenizer.encode(". Follow the links.")) == 1  # merged across its spaces


@pytest.mark.parametrize("text", ["naïve 你好 🙂\n\t", "", " ", "\x00\x7f", "<|end", "7" * 50])
def test_every_text_comes_back(text):
    tokenizer = scratch_tokenizer(TEXTS, vocabulary=400)
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone():
    tokenizer = scratch_tokenizer(TEXTS, vocabulary=400)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models = [CausalLM(scratch_model(tokenizer, SMALL, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    names = [weights_hash(lm) for lm in models]
    assert names[0] == names[1] != names[2]


def test_a_model_from_nothing_is_an_ordinary_one(tmp_path):
    tokenizer = scratch_tokenizer(TEXTS, vocabulary=400)
    model = scratch_model(tokenizer, SMALL, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([words.encode("Start at 17.")])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
    chat = [{"role": "user", "content": "Start at 17."}]
    assert words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|user|>Start at 17.<|end|><|assistant|>"
    )


@pytest.mark.parametrize(("width", "heads"), [(30, 4), (12, 4), (7, 1)])
def test_a_shape_whose_heads_do_not_fit_is_refused(width, heads):
    with pytest.raises(ConfigError, match=f"width {width} over {heads} heads"):
        ScratchConfig(width=width, heads=heads)


# -- warm start --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demonstrations() -> list[Episode]:
    with make("agentgym/Lookup-v0", horizon=[1, 2], split="demonstrations") as env:
        tasks = env.unwrapped.tasks.split("demonstrations").take(40)
    slots = [Slot(task_id, 0, i, i) for i, (task_id, _) in enumerate(tasks)]
    kwargs = {"horizon": [1, 2], "split": "demonstrations"}
    driver = Driver("agentgym/Lookup-v0", builtin("demonstrator"), run="demonstrations", env_kwargs=kwargs)
    try:
        return run_sync(driver.collect(slots))
    finally:
        driver.close()


@pytest.fixture(scope="module")
def speech(demonstrations) -> tuple[Renderer, list[Ledger]]:
    spell = get_syntax("hermes").format
    texts = [spell(m) if m["role"] == "assistant" else m["content"] for e in demonstrations for m in e.messages]
    renderer = Renderer(scratch_tokenizer(texts, vocabulary=400))
    chat = ChatFormat(tools="hidden")
    return renderer, [written_ledger(e.messages, renderer, chat, None) for e in demonstrations]


def test_a_demonstration_is_written_as_a_policy_would_have_seen_and_said_it(demonstrations, speech):
    renderer, ledgers = speech
    assert len(ledgers) == 40
    for episode, ledger in zip(demonstrations, ledgers, strict=True):
        (row,) = ledger.rows()
        shown = renderer.decode(tuple(row.ids.tolist()))
        spelt, messages = "", list(episode.messages)
        while messages[-1]["role"] != "assistant":  # the limit was hit: this was never answered
            messages.pop()
        for m in messages:
            text = get_syntax("hermes").format(m) if m["role"] == "assistant" else m["content"]
            spelt += f"<|{m['role']}|>{text}<|end|>"
        assert shown == spelt
        replies = sum(m["role"] == "assistant" for m in episode.messages)
        assert (row.ids[row.written] == renderer.stop_ids[0]).sum() == replies  # the stop token is learned
        assert [s.source for s in ledger] == [Source.OBSERVED, Source.WRITTEN] * replies
        assert ledger.num_turns == replies


def teach(speech: tuple[Renderer, list[Ledger]], seed: int, steps: int) -> tuple[CausalLM, list[float]]:
    renderer, ledgers = speech
    lm = CausalLM(scratch_model(renderer.tokenizer, SMALL, seed=0))
    losses: list[float] = []
    warm_start(lm, ledgers, WarmStartConfig(), seed=seed, steps=steps, progress=lambda _, loss: losses.append(loss))
    assert len(losses) == steps
    return lm, losses


def test_the_same_seed_gives_the_same_bits(speech):
    (one, losses), (two, same), (other, _) = (teach(speech, seed, 5) for seed in (3, 3, 4))
    assert (weights_hash(one), losses) == (weights_hash(two), same)
    assert weights_hash(one) != weights_hash(other)


def test_imitation_that_explodes_stops_before_the_weights_are_lost(speech):
    renderer, ledgers = speech
    lm = CausalLM(scratch_model(renderer.tokenizer, SMALL, seed=0))
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[7] = float("inf")
    with pytest.raises(AgentGymError, match="its gradient nan"):
        warm_start(lm, ledgers, WarmStartConfig(), seed=0, steps=3)
    finite = [bool(p.isfinite().all()) for name, p in lm.model.named_parameters() if "embed" not in name]
    assert all(finite)


def test_imitation_is_learned_and_what_was_learned_is_spoken(speech, demonstrations):
    lm, losses = teach(speech, 0, 100)
    assert losses[0] == pytest.approx(np.log(400), rel=0.1)  # nothing known yet
    assert losses[-1] < 0.4 * losses[0]
    policy = LocalPolicy(LocalEngine(lm), speech[0], chat=ChatFormat(tools="hidden"), temperature=0.0, max_tokens=40)
    slots = [Slot(e.task_id, 0, i, e.seed) for i, e in enumerate(demonstrations[:10])]
    kwargs = {"horizon": [1, 2], "split": "demonstrations"}
    driver = Driver("agentgym/Lookup-v0", policy, run="x", env_kwargs=kwargs)
    episodes = run_sync(driver.collect(slots))
    driver.close()
    calls = [c for e in episodes for m in e.messages for c in m.get("tool_calls", ())]
    assert len(calls) >= 5
    assert sum("error" not in c for c in calls) >= 0.5 * len(calls)  # before, none


@pytest.mark.parametrize("wrong", [{"warm_steps": -1}, {"warm_batch": 0}, {"demonstrations": 0}])
def test_a_warm_start_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="warm_steps must be at least 0"):
        WarmStartConfig(**wrong)


def test_an_episode_in_which_nothing_was_said_teaches_nothing(demonstrations, speech):
    from dataclasses import replace

    renderer, _ = speech
    silent = replace(demonstrations[0], messages=demonstrations[0].messages[:1])
    ledger = written_ledger(silent.messages, renderer, ChatFormat(tools="hidden"), None)
    assert (len(ledger), ledger.num_tokens) == (0, 0)
    question, reply, *_ = demonstrations[0].messages
    unanswered = replace(silent, messages=(question, reply, question))
    ledger = written_ledger(unanswered.messages, renderer, ChatFormat(tools="hidden"), None)
    assert [s.source for s in ledger] == [Source.OBSERVED, Source.WRITTEN]
