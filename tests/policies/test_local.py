"""From observation to message and ledger: what trains is what was sampled."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agentgym import AgentEnv, Rubric, Task, TaskSet, tool
from agentgym.engines.base import Generation, Sampling
from agentgym.engines.local import LocalEngine
from agentgym.errors import ConfigError
from agentgym.learner.pack import pack
from agentgym.ledger import Episode, Ledger, Row, Source, StopReason
from agentgym.loop import run_sync
from agentgym.messages import Message, assistant, call, system, tool_result, user
from agentgym.policies.local import LocalPolicy, load_policy
from agentgym.policies.render import Renderer
from agentgym.policies.transcript import ChatFormat, Transcript
from agentgym.rollout.driver import Driver, Slot
from agentgym.syntax import get_syntax


class Echo(AgentEnv):
    """Says what it hears, four times."""

    tasks = TaskSet({"train": [Task(f"Say {i}.") for i in range(8)]})
    rubric = Rubric(said=lambda outcome: float(len(outcome.messages[-1]["content"]) % 2))
    max_turns, blocking = 4, False

    def respond(self, message: Message) -> str:
        return message["content"]

    @tool
    def look(self) -> str:
        """Look."""
        return "a light"


class Tapped(LocalEngine):
    """An engine that also keeps a copy of all that it was given and gave."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[int, list[list[int]]] = {}
        self.given: dict[int, list[Generation]] = {}

    async def generate(self, session: int, ids: Any, sampling: Sampling) -> Generation:
        made = await super().generate(session, ids, sampling)
        self.asked.setdefault(session, []).append(list(ids))
        self.given.setdefault(session, []).append(made)
        return made


def rollout(policy: LocalPolicy, env_id: str, count: int = 8, **kwargs: Any) -> list[Episode]:
    slots = [Slot(Echo.tasks.split("train").id(i % 8), i // 8, i % 8, seed=i) for i in range(count)]
    driver = Driver(env_id, policy, run="train", env_kwargs=kwargs)
    try:
        episodes = run_sync(driver.collect(slots))
    finally:
        driver.close()
    assert [e.failure for e in episodes] == [None] * count
    return episodes


def sampled(row: Row) -> list[int]:
    return row.ids[row.sampled].tolist()


def test_trap_1_what_trains_is_what_was_sampled_whatever_the_ids_decode_to(load, tokenizer, register_env, trajectory):
    engine, renderer = Tapped(load("llama")), Renderer(tokenizer)
    policy = LocalPolicy(engine, renderer, temperature=3.0, max_tokens=60)
    policy.sampling = replace(policy.sampling, stop_ids=tuple(range(0, len(tokenizer), 12)))  # so that few are cut
    episodes = rollout(policy, register_env(Echo), count=24)
    drifting = 0
    for session, episode in enumerate(episodes):
        given = [i for made in engine.given[session] for i in made.ids.tolist()]
        logprobs = np.concatenate([made.logprobs for made in engine.given[session]])
        (row,) = episode.ledger.rows()
        assert sampled(row) == given
        for asked in engine.asked[session]:
            assert row.ids[: len(asked)].tolist() == asked  # and each was sampled after what the row says came before
        assert row.logprobs[row.sampled].tobytes() == logprobs.tobytes()
        (part,) = pack([trajectory(episode.ledger)], max_tokens=10_000)
        assert part.targets.tolist() == given  # to the learner's last step
        assert part.ids.flatten()[part.where + 1].tolist() == given
        for made in engine.given[session]:
            text = renderer.decode(tuple(made.ids.tolist()))
            drifting += tokenizer.encode(text, add_special_tokens=False) != made.ids.tolist()
    assert sum(len(e.turns) for e in episodes) > 60
    assert drifting > 40  # of these replies, decoding and encoding again would have trained other ids


def test_trap_13_a_reply_that_was_cut_has_one_mask_and_trains(load, tokenizer, register_env, trajectory):
    policy = LocalPolicy(LocalEngine(load("llama")), Renderer(tokenizer), max_tokens=7)
    episodes = [e for e in rollout(policy, register_env(Echo), count=24) if e.stop_reason is StopReason.MAX_TOKENS]
    assert len(episodes) > 10
    for episode in episodes:
        assert episode.truncated
        assert episode.messages[-1]["finish_reason"] == "length"
        made = trajectory(episode.ledger)
        told = sum(m.get("num_tokens", 0) for m in episode.messages)
        (part,) = pack([made], max_tokens=10_000)
        assert told == episode.ledger.num_sampled == made.num_trainable == len(part.targets)
        assert episode.ledger.rows()[0].sampled[-7:].all()  # the cut reply, to its last token


def test_a_history_that_fills_the_context_ends_the_episode_without_a_token(load, tokenizer, register_env):
    engine = LocalEngine(load("llama"), max_context=60)
    episodes = rollout(LocalPolicy(engine, Renderer(tokenizer), max_tokens=12), register_env(Echo), count=24)
    full = [e for e in episodes if e.stop_reason is StopReason.CONTEXT]
    assert len(full) > 5
    assert all(e.truncated and e.messages[-1]["finish_reason"] == "context" for e in full)
    silent = [e for e in full if e.messages[-1]["num_tokens"] == 0]
    assert silent  # what the environment said left no room for a reply
    assert all(list(e.ledger)[-1].source is Source.OBSERVED for e in silent)


def test_no_two_requests_of_a_run_share_a_stream(load, tokenizer, register_env):
    policy = LocalPolicy(LocalEngine(load("llama")), Renderer(tokenizer), max_tokens=12)
    episodes = rollout(policy, register_env(Echo), count=40)
    replies = [s.ids.tobytes() for e in episodes for s in e.ledger if s.source is Source.SAMPLED and len(s) == 12]
    assert len(replies) > 30
    assert len(set(replies)) == len(replies)


def test_another_temperature_is_another_policy_of_the_same_model(load, tokenizer, register_env):
    policy = LocalPolicy(LocalEngine(load("llama")), Renderer(tokenizer), max_tokens=12)
    greedy = rollout(policy.at(0.0), register_env(Echo), count=16)
    first, second = greedy[:8], greedy[8:]
    assert [e.ledger for e in first] == [e.ledger for e in second]  # greedy: seeds do not matter
    assert policy.at(0.0).engine is policy.engine
    assert policy.at(0.0).sampling.max_tokens == 12
    assert policy.sampling.temperature == 1.0


# -- tools ------------------------------------------------------------------------------------------------------------


def transcript(renderer: Renderer, chat: ChatFormat | None = None) -> Transcript:
    chat = chat or ChatFormat()
    return Transcript(renderer, get_syntax(chat.syntax), chat)


TOOLS = [{"type": "function", "function": {"name": "fn", "description": "Look it up.", "parameters": {}}}]
OTHER = [{"type": "function", "function": {"name": "gn", "description": "Or not.", "parameters": {}}}]


def test_tools_are_told_once_in_the_template_or_in_words_or_not_at_all(renderer_of):
    def told(kind: str, chat: ChatFormat, *messages: Message) -> str:
        made = transcript(renderer_of(kind), chat)
        made.observe({"messages": list(messages), "tools": TOOLS}, 0)
        return renderer_of(kind).decode(tuple(made.ids))

    assert told("qwen3", ChatFormat(), user("u")).count("Look it up.") == 1
    assert "To call one" not in told("qwen3", ChatFormat(), user("u"))
    for messages in ([user("u")], [system("s"), user("u")]):
        text = told("chatml", ChatFormat(), *messages)
        assert text.count("Look it up.") == text.count("To call one") == text.count("<|im_start|>system") == 1
    assert "Look it up." not in told("qwen3", ChatFormat(tools="hidden"), user("u"))
    assert "Look it up." not in told("chatml", ChatFormat(tools="hidden"), user("u"))


@pytest.mark.parametrize("kind", ["chatml", "qwen3"])
def test_tools_that_change_are_told_in_text_which_only_appends(renderer_of, kind):
    made = transcript(renderer_of(kind))
    made.observe({"messages": [user("u")], "tools": TOOLS}, 0)
    made.reply(renderer_of(kind).written("fn"), stopped=True)
    before = list(made.ids)
    (segment,) = made.observe({"messages": [user("v")], "tools": OTHER}, 1)
    assert made.ids[: len(before)] == before
    assert "Or not." in renderer_of(kind).decode(tuple(segment.ids.tolist()))


@pytest.mark.parametrize("fault", ["ignored", "refused"])
def test_a_template_that_shows_no_tool_results_hears_them_from_the_user(tokenizer_of, fault):
    import copy

    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    refusal = (
        "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}{%- endif %}"
    )
    tokenizer.chat_template = (
        "{%- for m in messages if m.role != 'tool' %}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    if fault == "refused":
        tokenizer.chat_template = tokenizer.chat_template.replace(" if m.role != 'tool' %}", " %}" + refusal)
    renderer = Renderer(tokenizer)
    made = transcript(renderer, ChatFormat(tools="hidden"))
    made.observe({"messages": [user("u")], "tools": None}, 0)
    made.reply(renderer.written("fn"), stopped=True)
    results = [tool_result(call("fn"), "7404"), tool_result(call("fn"), "33"), user("and?")]
    (segment,) = made.observe({"messages": results, "tools": None}, 1)
    assert renderer.decode(tuple(segment.ids.tolist())) == (
        "\n<|im_start|>user\n<tool_response>\n7404\n</tool_response>\n<tool_response>\n33\n</tool_response>\nand?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


# -- how a model speaks -----------------------------------------------------------------------------------------------


def test_how_a_model_speaks_is_kept_beside_it(tmp_path):
    assert ChatFormat.load(str(tmp_path)) == ChatFormat()
    ChatFormat("react", "hidden").save(tmp_path)
    assert ChatFormat.load(str(tmp_path)) == ChatFormat("react", "hidden")


@pytest.mark.parametrize("text", ["{", "[]", '{"syntax": 1, "colour": 2}', "null", '"hermes"'])
def test_a_chat_format_that_cannot_be_read_is_one_sentence(tmp_path, text):
    (tmp_path / "agentgym.json").write_text(text)
    with pytest.raises(ConfigError, match=f"{tmp_path}/agentgym.json is not a chat format: .*Delete it or write"):
        ChatFormat.load(str(tmp_path))


def test_a_model_folder_is_a_policy(model_folder, register_env):
    policy = load_policy(model_folder("qwen3"), temperature=0.5, max_tokens=9)
    episode, *_ = rollout(policy, register_env(Echo))
    assert 0 < episode.ledger.num_sampled <= 4 * 9
    assert json.dumps(episode.messages)


def test_what_is_written_reads_as_what_was_sampled(renderer_of):
    # The same words, once sampled by a policy and once shown to it: the same ids, under another name.
    for kind in ("scratch", "chatml", "llama3"):
        renderer = renderer_of(kind)
        shown, said = transcript(renderer), transcript(renderer)
        ledger = Ledger()
        for made in (shown, said):
            made.observe({"messages": [user("u")], "tools": None}, 0)
        (written,) = shown.write("fn", 0)
        said.reply(renderer.written("fn"), stopped=True)
        for made in (shown, said):
            made.observe({"messages": [user("v")], "tools": None}, 1)
        assert shown.ids == said.ids
        assert written.source is Source.WRITTEN
        ledger.append(written)
        assert ledger.num_sampled == 0
        assert said.messages[1] == assistant("fn")
