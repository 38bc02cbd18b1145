"""What the policy still sees: a rewrite opens a new row, no token trains twice, long episodes end by their turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agentgym import AgentEnv, Rubric, Task, TaskSet, tool
from agentgym.engines.base import Generation, Sampling
from agentgym.engines.causal import CausalLM
from agentgym.engines.local import LocalEngine
from agentgym.errors import ConfigError
from agentgym.ledger import Episode, Row, Source, StopReason
from agentgym.loop import run_sync
from agentgym.messages import Message, assistant, call, system, tool_result, user
from agentgym.policies.context import ASK, ELIDED, NOTES, Context, ContextConfig, elided, without_thought
from agentgym.policies.local import LocalPolicy, load_policy
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat, Transcript
from agentgym.rollout.driver import Driver, Slot
from agentgym.syntax import get_syntax

WINDOW = 4096
NUM_TURNS = 200
FULL, LAST, SUMMARISE = ContextConfig(), ContextConfig("last", 6), ContextConfig("summarise", 3)


class Reports(AgentEnv):
    """Says eighty tokens or so, turn after turn."""

    system = "You are careful."
    tasks = TaskSet({"train": [Task(f"Start at {i}.") for i in range(8)]})
    rubric = Rubric(said=lambda outcome: 1.0)
    max_turns, blocking = NUM_TURNS, False
    num_codes = 12

    def respond(self, message: Message) -> str:
        codes = self.np_random.integers(1000, 9999, self.num_codes)
        return f"Report {self.num_turns}: " + ", ".join(f"the code is {code}" for code in codes)


class Short(Reports):
    """The same, forty times, and less of it."""

    max_turns, num_codes = 40, 3


class Looks(Short):
    """With a tool."""

    @tool
    def look(self) -> str:
        """Look."""
        return "a light"


class Flood(Reports):
    """Says more than fits, in its third turn."""

    def respond(self, message: Message) -> str:
        return "a light " * (3000 if self.num_turns == 3 else 1)


class Tapped(LocalEngine):
    """An engine that keeps what it was asked and what it gave."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[list[int]] = []
        self.given: list[Generation] = []
        self.seeds: list[int] = []

    async def generate(self, session: int, ids: Any, sampling: Sampling) -> Generation:
        made = await super().generate(session, ids, sampling)
        self.asked.append(list(ids))
        self.given.append(made)
        self.seeds.append(sampling.seed)
        return made


@pytest.fixture(scope="module")
def lm(load: Callable[..., CausalLM]) -> CausalLM:
    made = load("llama")
    made.model.config.max_position_embeddings = WINDOW
    return made


def playing(lm: CausalLM, tokenizer: Any, context: ContextConfig, *, max_tokens: int = 60) -> LocalPolicy:
    """A policy whose replies are short and never cut: every second token stops them."""
    policy = LocalPolicy(Tapped(lm), Renderer(tokenizer), temperature=3.0, max_tokens=max_tokens, context=context)
    policy.sampling = replace(policy.sampling, stop_ids=tuple(range(0, len(tokenizer), 2)))
    return policy


def played(policy: LocalPolicy, env_id: str, count: int = 1) -> list[Episode]:
    driver = Driver(env_id, policy, run="train")
    slots = [Slot(Reports.tasks.split("train").id(i), 0, i, seed=i) for i in range(count)]
    try:
        episodes = run_sync(driver.collect(slots))
    finally:
        driver.close()
    assert [episode.failure for episode in episodes] == [None] * count
    return episodes


def check_rows(rows: list[Row], policy: LocalPolicy, forward: Callable[..., np.ndarray]) -> None:
    """Every token that the engine gave is in exactly one row, with the log-prob of the model's own forward pass."""
    engine: Any = policy.engine
    given = [i for made in engine.given for i in made.ids.tolist()]
    assert [i for row in rows for i in row.ids[row.sampled].tolist()] == given
    assert max(map(len, rows)) <= WINDOW
    for row in rows:
        at = np.flatnonzero(row.sampled)
        logp = forward(engine.lm, row.ids, policy.sampling.temperature)
        assert np.abs(logp[at - 1] - row.logprobs[at]).max() < 1e-4


# -- a long episode ----------------------------------------------------------------------------------------------------


def test_a_long_episode_fills_a_window_that_shows_everything(lm, tokenizer, register_env):
    [episode] = played(playing(lm, tokenizer, FULL), register_env(Reports))
    assert episode.stop_reason is StopReason.CONTEXT
    assert len(episode.turns) < NUM_TURNS / 2
    assert len(episode.ledger.rows()) == 1


@pytest.mark.parametrize("context", [LAST, SUMMARISE])
def test_trap_31_a_long_episode_ends_by_its_turns_and_each_sampled_token_is_in_one_row(
    lm, tokenizer, register_env, forward, context
):
    policy = playing(lm, tokenizer, context)
    [episode] = played(policy, register_env(Reports))
    assert episode.stop_reason is StopReason.MAX_TURNS
    assert len(episode.turns) == episode.ledger.num_turns == NUM_TURNS
    rows = episode.ledger.rows()
    assert 5 < len(rows) < NUM_TURNS / 5  # rewrites come in blocks
    check_rows(rows, policy, forward)
    told = [message["num_tokens"] for message in episode.messages if message["role"] == "assistant"]
    assert sum(told) == episode.ledger.num_sampled


@pytest.mark.parametrize("context", [LAST, replace(SUMMARISE, context_tokens=600)])
def test_the_same_seed_gives_the_same_ledgers(lm, tokenizer, register_env, context):
    runs = [played(playing(lm, tokenizer, context), register_env(Short), count=3) for _ in range(2)]
    assert [episode.ledger for episode in runs[0]] == [episode.ledger for episode in runs[1]]
    assert len(runs[0][0].ledger.rows()) > 2


@pytest.mark.parametrize("kind", ["chatml", "qwen3", "llama31", "mistral3+first", "gemma", "deepseek"])
@pytest.mark.parametrize("context", [ContextConfig("last", 2), ContextConfig("summarise", 2, 700)])
def test_every_template_goes_on_behind_a_rewrite(tokenizer_of, register_env, forward, kind, context):
    import torch
    import transformers

    tokenizer = tokenizer_of(kind)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=WINDOW, **shape)
    policy = playing(CausalLM(transformers.LlamaForCausalLM(config).eval()), tokenizer, context, max_tokens=30)
    [episode] = played(policy, register_env(Short))
    assert episode.stop_reason is StopReason.MAX_TURNS
    rows = episode.ledger.rows()
    assert len(rows) > 3
    check_rows(rows, policy, forward)
    assert "You are careful." in tokenizer.decode(rows[-1].ids)
    assert "Start at 0." in tokenizer.decode(rows[-1].ids)


@pytest.mark.parametrize("context", [FULL, LAST, SUMMARISE])
def test_an_observation_that_does_not_fit_ends_the_episode_whatever_the_context(lm, tokenizer, register_env, context):
    [episode] = played(playing(lm, tokenizer, context), register_env(Flood))
    assert (episode.stop_reason, len(episode.turns)) == (StopReason.CONTEXT, 4)
    assert episode.messages[-1]["finish_reason"] == "context"
    assert sum(m.get("num_tokens", 0) for m in episode.messages) == episode.ledger.num_sampled


@pytest.mark.parametrize(
    ("kind", "stop"),
    [("full", StopReason.CONTEXT), ("last", StopReason.CONTEXT), ("summarise", StopReason.MAX_TURNS)],
)
def test_a_budget_smaller_than_the_window_is_kept(lm, tokenizer, register_env, kind, stop):
    policy = playing(lm, tokenizer, ContextConfig(kind, context_tokens=500), max_tokens=40)
    [episode] = played(policy, register_env(Short))
    seen = [len(asked) + len(made.ids) for asked, made in zip(policy.engine.asked, policy.engine.given, strict=True)]
    assert 300 < max(seen) <= 500
    assert episode.stop_reason is stop  # forty replies do not fit, which `last` keeps


def test_a_reply_that_the_budget_cuts_ends_by_the_context_and_not_by_its_own_limit(lm, tokenizer, register_env):
    policy = playing(lm, tokenizer, ContextConfig(context_tokens=100), max_tokens=90)
    policy.sampling = replace(policy.sampling, stop_ids=())  # nothing stops it
    [episode] = played(policy, register_env(Short))
    (row,) = episode.ledger.rows()
    assert episode.stop_reason is StopReason.CONTEXT
    assert len(row) == 100
    assert episode.messages[-1]["num_tokens"] == int(row.sampled.sum()) < 90


# -- the last observations ---------------------------------------------------------------------------------------------


def test_between_n_and_2n_observations_are_visible(lm, tokenizer, register_env):
    policy = playing(lm, tokenizer, ContextConfig("last", 3))
    played(policy, register_env(Short))
    visible = [tokenizer.decode(asked).count("Report") for asked in policy.engine.asked]
    assert visible[:14] == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4, 5]
    newest = [tokenizer.decode(asked).rpartition("Report ")[2].partition(":")[0] for asked in policy.engine.asked]
    assert newest[1:] == [str(turn) for turn in range(1, 40)]  # whatever is left out, the newest is there


def test_replies_and_the_opening_stay_and_older_observations_are_elided():
    results = [tool_result(call("fn"), "a long result"), tool_result(call("fn"), "33")]
    later = [assistant("one"), *results, assistant("two"), user("a long answer"), assistant("three"), user("and so on")]
    left_out = [{**results[0], "content": ELIDED}, results[1]]  # "33" is shorter than what would stand for it
    assert elided(later, 3) == later
    assert elided(later, 2) == [later[0], *left_out, *later[3:]]
    assert elided(later, 1) == [later[0], *left_out, later[3], user(ELIDED), *later[5:]]
    assert elided(elided(later, 2), 1) == elided(later, 1)


def test_every_row_opens_with_the_opening_and_what_was_left_out(lm, tokenizer, register_env):
    policy = playing(lm, tokenizer, ContextConfig("last", 2))
    [episode] = played(policy, register_env(Short))
    rows = [tokenizer.decode(row.ids) for row in episode.ledger.rows()]
    opening = "<|system|>You are careful.<|end|><|user|>Start at 0.<|end|><|assistant|>"
    assert all(row.startswith(opening) for row in rows)
    # A row opens when a fifth observation comes: behind the replies of turns 0 to 4, 0 to 7, 0 to 10, …
    assert [row.count(ELIDED) for row in rows] == [3 * i for i in range(len(rows))]
    assert [int(row.turns[row.sampled].min()) for row in episode.ledger.rows()] == [0, *range(5, 40, 3)]


def test_near_the_budget_fewer_observations_are_left_than_asked_for(lm, tokenizer, register_env):
    policy = playing(lm, tokenizer, ContextConfig("last", 6, 420), max_tokens=40)  # six would be 500 tokens and more
    [episode] = played(policy, register_env(Reports))
    visible = [tokenizer.decode(asked).count("Report") for asked in policy.engine.asked]
    assert len(episode.turns) > 8
    assert max(visible) < 6
    assert all(visible[1:])
    assert episode.stop_reason is StopReason.CONTEXT  # the replies stay, until they fill it


# -- the policy's own notes --------------------------------------------------------------------------------------------


def test_notes_are_sampled_in_the_turn_that_needs_them_and_shown_from_there_on(lm, tokenizer, register_env):
    policy = playing(lm, tokenizer, ContextConfig("summarise", 2, 900))
    [episode] = played(policy, register_env(Short))

    def text(ids: Any) -> str:
        return policy.renderer.decode(tuple(ids.tolist()))

    segments = list(episode.ledger)
    first = next(i for i, segment in enumerate(segments) if segment.forks)
    request, notes, opened, reply = segments[first - 2 : first + 2]
    assert {segment.turn for segment in (request, notes, opened, reply)} == {notes.turn}
    assert [segment.source for segment in (request, notes, opened, reply)] == [
        Source.OBSERVED, Source.SAMPLED, Source.OBSERVED, Source.SAMPLED,
    ]  # fmt: skip
    assert f"<|user|>{ASK}<|end|><|assistant|>" in text(request.ids)
    opening = f"<|system|>You are careful.<|end|><|user|>Start at 0.\n\n{NOTES}{text(notes.ids[:-1]).strip()}<|end|>"
    assert text(opened.ids).startswith(opening)
    assert ASK not in text(opened.ids)
    assert [f"Report {notes.turn - i}:" in text(opened.ids) for i in range(3)] == [True, True, False]
    last = text(episode.ledger.rows()[-1].ids)
    assert last.count(NOTES) == 1  # the newest notes; they were written with the older ones in sight
    assert ASK not in "".join(message["content"] for message in episode.messages)  # the environment never heard of it


def test_no_two_requests_share_a_stream_notes_included(lm, tokenizer, register_env):
    policy = playing(lm, tokenizer, ContextConfig("summarise", 2, 900))
    [episode] = played(policy, register_env(Short))
    assert len(policy.engine.seeds) > 42 > len(episode.turns)
    assert len(set(policy.engine.seeds)) == len(policy.engine.seeds)


def test_notes_are_what_follows_a_thought():
    assert without_thought("<think>\nhm\n</think>\n\nthe code is 7404\n") == "the code is 7404"
    assert without_thought("the code is 7404") == "the code is 7404"
    assert without_thought("<think>cut off") == "<think>cut off"


# -- tools -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chatml", "qwen3", "gemma"])
@pytest.mark.parametrize("context", ["last", "summarise"])
def test_the_tools_that_are_on_offer_now_are_known_behind_a_rewrite(renderer_of, kind, context):
    def offer(name: str) -> list[dict]:
        return [{"type": "function", "function": {"name": name, "description": name, "parameters": {}}}]

    renderer = renderer_of(kind)
    chat = Transcript(renderer, get_syntax("hermes"), ChatFormat())
    kept = Context(ContextConfig(context, 1), chat, budget=1000, max_tokens=10)
    chat.observe({"messages": [system("s"), user("u")], "tools": offer("seek")}, 0)
    chat.reply(renderer.written("said"), stopped=True)
    chat.observe({"messages": [user("a long answer")], "tools": offer("find")}, 1)
    assert "seek" in renderer.decode(tuple(chat.ids))
    for turn in (2, 3):
        chat.reply(renderer.written("said"), stopped=True)
        chat.take(kept.rewritten(chat.look({"messages": [user("a long answer")], "tools": None}), "notes"), turn)
        text = renderer.decode(tuple(chat.ids))
        assert "find" in text
        assert "seek" not in text
        assert chat.ids == list(renderer.open(chat.messages, chat.tools))


def test_a_tool_stays_on_offer_through_every_row(lm, tokenizer, register_env):
    for context in (ContextConfig("last", 2), ContextConfig("summarise", 2, 900)):
        [episode] = played(playing(lm, tokenizer, context), register_env(Looks))
        rows = [tokenizer.decode(row.ids) for row in episode.ledger.rows()]
        assert len(rows) > 3
        assert all(row.count('"name": "look"') == 1 for row in rows)


# -- the knob ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"context": "first"}, "give one of full, last, summarise"),
        ({"context": "last", "context_keep": 0}, "the newest observation always stays"),
        ({"context_keep": 8}, "context full keeps all"),
        ({"context": "last", "context_tokens": 0}, "a budget is above 0"),
    ],
)
def test_a_context_that_cannot_be_kept_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ContextConfig(**given)


@pytest.mark.parametrize(
    ("context", "max_tokens", "sentence"),
    [
        (ContextConfig("last", context_tokens=5000), 60, "context_tokens=5000: the model's window has 4096"),
        (ContextConfig("last", context_tokens=60), 60, "60 tokens has no room for 1 x max_tokens=60"),
        (ContextConfig("summarise"), 2048, "4096 tokens has no room for 2 x max_tokens=2048"),
        (ContextConfig(context_tokens=50), 60, "50 tokens has no room"),
    ],
)
def test_a_budget_that_leaves_no_room_is_refused(lm, tokenizer, context, max_tokens, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LocalPolicy(LocalEngine(lm), Renderer(tokenizer), max_tokens=max_tokens, context=context)


def test_an_engine_that_does_not_say_its_window_needs_a_budget():
    assert FULL.budget(None, 60) is None
    assert ContextConfig("last", context_tokens=500).budget(None, 60) == 500
    with pytest.raises(ConfigError, match="give context_tokens"):
        LAST.budget(None, 60)


def test_another_temperature_keeps_the_context(lm, tokenizer):
    policy = LocalPolicy(LocalEngine(lm), Renderer(tokenizer), context=LAST)
    assert policy.at(0.0).context is LAST
    assert policy.at(0.0).budget == WINDOW


def test_a_model_folder_is_a_policy_with_a_context(model_folder):
    policy = load_policy(model_folder("llama"), context=SUMMARISE)
    assert policy.context is SUMMARISE
    assert policy.budget == 1024  # the window of that model
    assert load_policy(model_folder("llama")).budget is None
