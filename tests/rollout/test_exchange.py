"""Recorded runs come in and go out: nothing is lost on the way, and what is no episode is named."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from agentgym.errors import ConfigError, Failure, FailureKind, TaskError
from agentgym.ledger import Episode, Ledger, Segment, Source, StopReason, Turn
from agentgym.messages import assistant, call, raw_call, system, tool_result, user
from agentgym.rollout import exchange

FORMS = ("openai", "atif", "parquet")
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}


def ledger() -> Ledger:
    """Two turns, the second sampled under two versions, after a fork."""
    return Ledger(
        [
            Segment([5, 6, 7], Source.OBSERVED, 0),
            Segment([8, 9], Source.SAMPLED, 0, [-0.5, -1e-7], 3),
            Segment([5, 7, 7, 7], Source.OBSERVED, 1, forks=True),
            Segment([1], Source.SAMPLED, 1, [-2.25], 3),
            Segment([2, 0], Source.SAMPLED, 1, [-0.125, -3.0], 4),
        ]
    )


def episode(**other) -> Episode:
    looked = {**assistant("", call("look", at="Ünï\nくさ")), "finish_reason": "stop", "num_tokens": 2}
    said = {**assistant("It is red.", reasoning="hm"), "finish_reason": "length", "num_tokens": 3, "prompt_tokens": 9}
    made = Episode(
        run="eval", update=2, task_id="test:abc", attempt=1, seed=2**62, split="test", group=4, env_id="a/B-v0",
        env_version="v0", messages=(system("Be brief."), user("Look."), looked, tool_result(call("look"), "red"), said),
        turns=(Turn(0.0, "k", 0.5, 0.25), Turn(0.75)), reward=0.75, reward_parts={"right": 0.75}, terminated=False,
        truncated=True, stop_reason=StopReason.MAX_TOKENS, ledger=ledger(), final={"seen": [1, None]},
        grants={"network": True}, metadata={"horizon": 2}, tools=(TOOL,),
    )  # fmt: skip
    return replace(made, **other)


def same(one: Episode, other: Episode) -> bool:
    return one == other and one.ledger == other.ledger


FAILED = episode(
    attempt=2, ledger=None, tools=(), failure=Failure(FailureKind.INFRASTRUCTURE, "ChatError", "gone"),
    stop_reason=StopReason.FAILED, messages=(), turns=(), final=None,
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_episode_is_read_back_as_it_was_and_exported_again_byte_for_byte(form: str, tmp_path: Path):
    episodes = [
        episode(),
        FAILED,
        episode(attempt=3, messages=(tool_result(call("look"), "first"), *episode().messages)),
    ]
    assert exchange.write(tmp_path / "one", episodes, form) == len(episodes)
    back = list(exchange.read(tmp_path / "one"))
    assert all(map(same, episodes, back))
    assert len(back) == len(episodes)
    exchange.write(tmp_path / "two", back, form)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


ROLES = ["system", "user", "assistant", "tool"]
ARGUMENTS = ['{"a": 1}', '{"a":1}', "{", "[1]", '"x"', "", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\u0041"}', "null"]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(ROLES), st.text(max_size=9), st.sampled_from(ARGUMENTS)),
        min_size=1, max_size=9,
    )
)  # fmt: skip
def test_any_conversation_survives_hostile_arguments_and_odd_orders_included(form: str, tmp_path_factory, told):
    messages = []
    for number, (role, text, arguments) in enumerate(told):
        text = text.replace("\x00", "") if form == "parquet" else text
        if role == "assistant":
            made = raw_call("look", arguments, f"call_{number}", "unreadable" if arguments == "{" else None)
            messages.append(assistant(text, made, made) if number % 2 else assistant(text, made))
        elif role == "tool":
            messages.append(tool_result(raw_call("look", "", f"call_{number - 1}"), text))
        else:
            messages.append({"role": role, "content": text})
    path = tmp_path_factory.mktemp("made") / "file"
    given_ = episode(messages=tuple(messages), ledger=None)
    exchange.write(path, [given_], form)
    assert [list(e.messages) for e in exchange.read(path)] == [messages]


def test_openai_lines_hold_openais_keys_and_no_others(tmp_path: Path):
    exchange.write(tmp_path / "file", [episode()], "openai")
    line = json.loads((tmp_path / "file").read_text())
    assert set(line) == {"messages", "tools", "reward", "agentgym"}
    assert {key for message in line["messages"] for key in message} == {
        "role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content",
    }  # fmt: skip
    assert line["tools"] == [TOOL]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Call(Strict):
    tool_call_id: str
    function_name: str
    arguments: dict
    extra: dict | None = None


class Result(Strict):
    source_call_id: str | None = None
    content: str
    extra: dict | None = None


class Observation(Strict):
    results: list[Result]


class Metrics(Strict):
    prompt_tokens: int
    completion_tokens: int
    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    logprobs: list[float] | None = None
    extra: dict | None = None


class Step(Strict):
    step_id: int
    source: str
    message: str
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    observation: Observation | None = None
    metrics: Metrics | None = None
    extra: dict | None = None


class Agent(Strict):
    name: str
    version: str
    tool_definitions: list[dict] | None = None


class Totals(Strict):
    total_steps: int
    total_completion_tokens: int | None = None
    extra: dict | None = None


class Trajectory(Strict):
    """The fields of Harbor's models (its 0.24, ATIF-v1.8) that are written here."""

    schema_version: str
    session_id: str
    agent: Agent
    steps: list[Step]
    final_metrics: Totals
    extra: dict


def test_an_atif_trajectory_has_the_published_fields_and_its_tokens(tmp_path: Path):
    exchange.write(tmp_path / "file", [episode()], "atif")
    made = Trajectory.model_validate_json((tmp_path / "file").read_text())
    assert made.schema_version == "ATIF-v1.8"
    assert [(s.step_id, s.source) for s in made.steps] == [(1, "system"), (2, "user"), (3, "agent"), (4, "agent")]
    assert made.steps[2].observation is not None
    assert made.steps[2].observation.results == [Result(source_call_id="call_0", content="red")]
    assert made.agent.tool_definitions == [TOOL]
    first, second = (step.metrics for step in made.steps[2:])
    assert first is not None
    assert second is not None
    assert (first.prompt_token_ids, first.completion_token_ids) == ([5, 6, 7], [8, 9])
    assert (second.prompt_token_ids, second.completion_token_ids) == ([5, 7, 7, 7], [1, 2, 0])
    assert second.logprobs == [-2.25, -0.125, -3.0]


def test_a_conversation_from_elsewhere_has_no_tokens_and_counts_its_attempts(tmp_path: Path):
    lines = [
        {"id": "t1", "messages": [{"role": "developer", "content": "Be brief."},
                                  {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                                  {"role": "assistant", "content": None, "tool_calls": [
                                      {"id": "x", "function": {"name": "f", "arguments": {"a": [1]}}}]},
                                  {"role": "function", "name": "f", "content": "Error: no"},
                                  {"role": "assistant", "content": "Hi.", "reasoning_content": "hm"}], "reward": 1},
        {"id": "t1", "messages": [{"role": "user", "content": "Hi"}]},
        {"schema_version": "ATIF-v1.2", "session_id": "s", "agent": {"name": "x", "version": "1"}, "steps": [
            {"step_id": 1, "source": "user", "message": "Go"},
            {"step_id": 2, "source": "agent", "message": "", "tool_calls": [
                {"tool_call_id": "c", "function_name": "f", "arguments": {}}],
             "observation": {"results": [{"source_call_id": "c", "content": "ok"}]}}]},
    ]  # fmt: skip
    path = tmp_path / "own.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    first, second, third = exchange.read(path)
    assert (first.task_id, first.attempt, second.attempt, third.task_id) == ("t1", 0, 1, "s")
    assert [m["role"] for m in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert first.messages[2] == assistant("", raw_call("f", '{"a": [1]}', "x"))
    assert (first.reward, [t.reward for t in first.turns], first.ledger) == (1.0, [0.0, 1.0], None)
    assert third.messages == (
        user("Go"),
        assistant("", raw_call("f", "{}", "c")),
        {**tool_result(call("f"), "ok"), "tool_call_id": "c"},
    )


def counted(num_tokens: Any) -> str:
    """A line of ours whose reply says how many tokens it has."""
    return json.dumps({"messages": [assistant("Hi")], "agentgym": {"messages": {"0": {"num_tokens": num_tokens}}}})


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "it is [1]; give an object"),
        ("7", "it is 7; give an object"),
        ('{"messages": 7}', "TypeError"),
        ('{"messages": [{"content": "x"}]}', "'role'"),
        ('{"messages": [{"role": "robot"}]}', "role 'robot'"),
        ('{"messages": [{"role": "user", "content": {"a": 1}}]}', "dict, not text"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "'function'"),
        ('{"messages": [], "agentgym": {"attempt": -1}}', "attempt is -1"),
        ('{"messages": [], "agentgym": {"seed": 1e300}}', "seed is 1e"),
        ('{"messages": [], "agentgym": {"stop_reason": "bored"}}', "'bored'"),
        ('{"messages": [], "agentgym": {"ledger": "eJw="}}', "error"),
        ('{"messages": [], "reward": "much"}', "could not convert"),
        ('{"messages": [], "reward": NaN}', "no finite number"),
        ('{"messages": [], "reward": 1' + "0" * 400 + "}", "OverflowError"),
        ('{"messages": [], "tools": [1]}', "TypeError"),
        ('{"messages": [], "agentgym": {"reward_parts": "x"}}', "reward_parts is 'x'"),
        ('{"messages": [], "agentgym": {"split": {}}}', "split is {}"),
        ('{"messages": [], "agentgym": {"turns": [[1, 2, 3, 4]]}}', "state_key is 2"),
        (counted("many"), "num_tokens is a count, not 'many'"),
        (counted(-5000), "num_tokens is a count, not -5000"),
        (counted(1 << 40), "num_tokens is a count, not 1099511627776"),
        ("[" * 100_000, "RecursionError"),
        ('{"steps": [{"source": "agent"}], "agent": {}}', "'message'"),
    ],
)
def test_a_line_that_is_no_episode_is_named_and_the_others_go_on(line: str, named: str, tmp_path: Path):
    path = tmp_path / "mixed.jsonl"
    good = json.dumps({"messages": [user("Hi")]})
    path.write_text(f"{good}\n{line}\n{good}\n")
    left_out: list[str] = []
    assert len(list(exchange.read(path, None, left_out))) == 2
    assert len(left_out) == 1
    assert left_out[0].startswith(f"{path}, record 2: no episode")
    assert named in left_out[0]
    with pytest.raises(TaskError, match="record 2: no episode"):
        list(exchange.read(path))


def test_lone_surrogates_in_arguments_ids_and_final_states_come_back(tmp_path: Path):
    line = {"id": "\ud800", "messages": [assistant("", raw_call("f", '{"a": "\\ud800"}', ""))]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    (read,) = exchange.read(tmp_path / "own.jsonl")
    assert read.task_id == "\ufffd"
    assert read.messages[0]["tool_calls"][0]["id"] == ""
    given_ = replace(read, final={"said": "\ud800"})
    for form in FORMS:
        exchange.write(tmp_path / form, [given_], form)
        assert list(exchange.read(tmp_path / form)) == [given_]


def test_a_byte_order_mark_and_lines_of_windows_are_read(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"messages": []}\r\n' * 2)
    assert len(list(exchange.read(path))) == 2
    path.write_bytes(b"\xef\xbb\xbf" + b'[{"messages": []}]')
    assert len(list(exchange.read(path))) == 1


def test_only_a_file_is_replaced(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no file that could be replaced"):
        exchange.write(tmp_path / "pipe", [episode()], "openai")


def test_broken_files_and_unknown_formats_are_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="no file"):
        list(exchange.read(tmp_path / "none"))
    path = tmp_path / "file"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(TaskError, match="no Parquet"):
        list(exchange.read(path))
    path.write_bytes(gzip.compress(b"x" * 999)[:-9])
    with pytest.raises(TaskError, match="cannot be read"):
        list(exchange.read(path))
    with pytest.raises(ConfigError, match="did you mean 'atif'"):
        list(exchange.read(path, "atiff"))
    with pytest.raises(ConfigError, match="'nowhere:read': No module named 'nowhere'"):
        list(exchange.read(path, "nowhere:read"))
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        exchange.write(path, [], "parket")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("before")

    def broken():
        yield episode()
        raise KeyboardInterrupt

    for form in FORMS:
        with pytest.raises(KeyboardInterrupt):
            exchange.write(path, broken(), form)
        assert path.read_text() == "before"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_parquet_is_typed_for_others(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    exchange.write(tmp_path / "file.parquet", [episode()], "parquet")
    row = parquet.read_table(tmp_path / "file.parquet").to_pylist()[0]
    assert row["messages"][2]["tool_calls"][0]["function"]["name"] == "look"
    assert (row["reward"], row["task_id"], row["stop_reason"]) == (0.75, "test:abc", "max_tokens")
    assert np.isclose(row["attempt"], 1)


def test_a_foreign_parquet_row_that_is_no_episode_is_named_and_the_others_go_on(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    said = [{"role": "user", "content": "Hi"}]
    rows = [{"messages": said, "tools": None}, {"messages": said, "tools": "{"}, {"messages": said, "tools": "[]"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    left_out: list[str] = []
    assert len(list(exchange.read(tmp_path / "own.parquet", None, left_out))) == 2
    assert "record 2: no episode (JSONDecodeError" in left_out[0]
