"""A chat as a policy: conversations with a real server on a real port, well behaved and not, and with any function."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agentgym import AgentEnv, Rubric, Task, TaskSet, assistant, call, tool
from agentgym.chat import ChatClient
from agentgym.errors import ConfigError, FailureKind
from agentgym.evaluation.run import choose_tasks
from agentgym.ledger import Episode, StopReason
from agentgym.loop import event_loop, run_sync
from agentgym.messages import raw_call
from agentgym.policies.compute import Computed, Majority
from agentgym.policies.http import TOOL_CALLS, ChatPolicy, from_function
from agentgym.rollout.driver import Driver, Slot
from agentgym.syntax import get_syntax


class Counter(AgentEnv):
    """Add 3 by calls, then say "done". The tool `double` is on offer from the second turn on."""

    system = "You count."
    tasks = TaskSet({"test": [Task("Reach 3.")]})
    rubric = Rubric(reached=lambda outcome: float(outcome.final == 3 and outcome.messages[-1]["content"] == "done"))
    max_turns = 8

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"split": "test"} | kwargs)

    def setup(self) -> None:
        self.total = 0

    def offered(self) -> list[str]:
        return ["add", "double"] if self.num_turns else ["add"]

    @tool
    def add(self, n: int) -> str:
        """Add a number."""
        self.total += n
        return f"total {self.total}"

    @tool
    def double(self) -> str:
        """Double the total."""
        self.total *= 2
        return f"total {self.total}"

    def final(self) -> int:
        return self.total


@pytest.fixture
def play(register_env) -> Callable[..., Episode]:
    name = register_env(Counter)
    task = Counter.tasks.split("test").id(0)

    def played(policy: ChatPolicy, retries: int = 0) -> Episode:
        async def whole() -> Episode:
            driver = Driver(name, policy, run="x", concurrency=1, retries=retries)
            try:
                (episode,) = await driver.collect([Slot(task, 0, 0, 0)])
            finally:
                await asyncio.to_thread(driver.close)
                await getattr(policy, "policy", policy).aclose()
            return episode

        return run_sync(whole())

    return played


class Server:
    """A chat server whose answers are `replies`, one per request: a message, or a function of the web request."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[union-attr]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        reply = self.replies.pop(0)
        if callable(reply):
            return await reply(request)
        finish = reply.pop("finish_reason", "stop")
        usage = {"prompt_tokens": 10 * len(self.bodies), "completion_tokens": 2}
        return web.json_response({"choices": [{"message": reply, "finish_reason": finish}], "usage": usage})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    run_sync(made.start())
    yield made
    run_sync(made.stop())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("agentgym.chat.WAIT_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def status(code: int, text: str = "no", **headers: str) -> Any:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=code, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    request.transport.close()  # type: ignore[union-attr]
    return web.Response()


async def slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(5)
    return web.Response()


async def torn(request: web.Request) -> web.StreamResponse:
    """Half of the answer that was announced."""
    response = web.StreamResponse(headers={"content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    request.transport.close()  # type: ignore[union-attr]
    return response


def add(n: Any, call_id: str = "a") -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call("add", n=n) | {"id": call_id}]}


def done(text: str = "done") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def client(server: Server, **settings: Any) -> ChatClient:
    return ChatClient(server.url, "m", **{"timeout_s": 2.0, "retries": 2, **settings})


def test_an_episode_of_native_calls_is_won_and_its_tokens_are_counted(server, play):
    server.replies = [add(1), add(2, "b"), done()]
    episode = play(ChatPolicy(client(server)))
    assert (episode.success, episode.stop_reason, len(episode.turns)) == (True, StopReason.ANSWERED, 3)
    replies = [m for m in episode.messages if m["role"] == "assistant"]
    assert [(m.get("prompt_tokens"), m["num_tokens"]) for m in replies] == [(10, 2), (20, 2), (30, 2)]
    offers = [[t["function"]["name"] for t in body["tools"]] for body in server.bodies]
    assert offers == [["add"], ["add", "double"], ["add", "double"]]
    assert [m["role"] for m in server.bodies[2]["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip
    assert [m["tool_call_id"] for m in server.bodies[2]["messages"] if m["role"] == "tool"] == ["a", "b"]
    seeds = [body["seed"] for body in server.bodies]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]


@pytest.mark.parametrize("name", [name for name in TOOL_CALLS if name != "native"])
def test_calls_spelt_in_text_go_out_and_come_back_as_text(server, play, name):
    syntax = get_syntax(name)
    last = "Final Answer: done" if name == "react" else "done"
    server.replies = [done(syntax.format(assistant("", call("add", n=3)))), done(last)]
    episode = play(ChatPolicy(client(server), tool_calls=name))
    assert episode.success
    for body in server.bodies:
        assert "tools" not in body
        assert all(set(m) == {"role", "content"} for m in body["messages"])
    roles = [m["role"] for m in server.bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]  # they alternate, as many templates want
    opening, told = server.bodies[1]["messages"][0]["content"], server.bodies[1]["messages"][-1]["content"]
    assert opening.startswith("You count.\n\nYou have these tools:")
    assert "total 3" in told
    assert "double" in told
    assert "double" not in opening


@pytest.mark.parametrize(
    "call_made",
    [
        raw_call("add", '{"n": '),
        raw_call("add", "[1]"),
        raw_call("add", '{"n": "many"}'),
        raw_call("ad d!", '{"n": 1}'),
        raw_call("", ""),
        raw_call("x" * 999, "\ud800"),
    ],
)
def test_a_wrong_call_costs_a_turn_and_the_conversation_stays_one_that_servers_take(server, play, call_made):
    server.replies = [{"role": "assistant", "content": "", "tool_calls": [call_made]}, add(3), done()]
    episode = play(ChatPolicy(client(server)))
    assert episode.success
    assert len(episode.turns) == 3
    assert episode.messages[3]["content"].startswith("Error: ")
    repeated = server.bodies[1]["messages"][2]["tool_calls"][0]["function"]
    assert isinstance(json.loads(repeated["arguments"]), dict)  # templates read it as JSON
    assert 1 <= len(repeated["name"]) <= 64
    assert repeated["name"].replace("_", "a").replace("-", "a").isalnum()


@pytest.mark.parametrize("name", TOOL_CALLS)
def test_a_conversation_that_is_handed_over_reads_as_if_one_had_had_it(server, play, name):
    """As those do who ask several times for one message: each asks with an actor of its own."""
    syntax = None if name == "native" else get_syntax(name)
    broken = raw_call("add", '{"n": ')
    said = [
        {"role": "assistant", "content": "", "tool_calls": [call_made]} if syntax is None else
        done(syntax.format(assistant("", call_made))) for call_made in (call("add", n=3), call("double"), broken)
    ]  # fmt: skip
    last = done("Final Answer: done" if name == "react" else "done")
    bodies = []
    for policy in (ChatPolicy(client(server), tool_calls=name), ChatPolicy(client(server), tool_calls=name)):
        server.replies, server.bodies = [*said, last], []
        episode = play(policy if not bodies else Computed(policy, Majority(1)))
        assert (episode.failure, len(episode.turns)) == (None, 4)
        bodies.append([body["messages"] for body in server.bodies])
    own, handed_over = bodies
    for one, other in zip(own[:3], handed_over[:3], strict=True):
        assert [m["role"] for m in one] == [m["role"] for m in other]
        calls = [[c["function"] for m in messages for c in m.get("tool_calls", ())] for messages in (one, other)]
        assert calls[0] == calls[1]
        texts = [[m["content"].partition("\nThe tools are now:")[0] for m in messages[1:]] for messages in (one, other)]
        assert texts[0] == texts[1]  # but for tools that came later, which are told at the start
    assert all("Error" in messages[3][-1]["content"] for messages in bodies)  # and a wrong call is no server's fault


@pytest.mark.parametrize(
    "fault",
    [
        status(429, Retry_After="0.01"), status(500), status(200, "<html>Bad gateway</html>"),
        status(200, '{"choices"'), status(200, "[]"), status(200, '{"choices": [{"message": {"content": 7}}]}'),
        cut, torn,
    ],
)  # fmt: skip
def test_a_fault_of_the_server_costs_the_model_nothing(server, play, fault):
    server.replies = [add(1), fault, add(2), fault, done()]
    episode = play(ChatPolicy(client(server)))
    assert (episode.success, len(episode.turns), len(server.bodies)) == (True, 3, 5)


@pytest.mark.parametrize("fault", [status(503), status(200, "<html>"), cut, torn, slow])
def test_a_server_that_stays_broken_is_our_failure_and_never_a_zero(server, play, fault):
    server.replies = [add(1)] + [fault] * 9
    episode = play(ChatPolicy(client(server, timeout_s=0.2 if fault is slow else 2.0, retries=1)))
    assert episode.failure is not None
    assert (episode.failure.kind, episode.failure.cause) == (FailureKind.INFRASTRUCTURE, "ChatError")
    assert not episode.counts
    assert len(server.bodies) == 3


def test_a_port_where_nobody_listens_is_our_failure(play):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        episode = play(ChatPolicy(ChatClient(f"http://127.0.0.1:{held.getsockname()[1]}/v1", "m", retries=1)))
    assert episode.failure is not None
    assert episode.failure.kind == FailureKind.INFRASTRUCTURE


def test_what_answers_with_no_http_at_all_is_our_failure(play):
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

    threading.Thread(target=talk, daemon=True).start()
    with listener:
        policy = ChatPolicy(ChatClient(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "m", retries=1))
        episode = play(policy)
    assert episode.failure is not None
    assert (episode.failure.kind, episode.failure.cause) == (FailureKind.INFRASTRUCTURE, "ChatError")


@pytest.mark.parametrize(("code", "hint"), [(401, "OPENAI_API_KEY"), (404, "'m' what it serves")])
def test_a_setting_that_no_retry_mends_ends_the_run(server, play, code, hint):
    server.replies = [status(code)]
    with pytest.raises(ConfigError, match=hint):
        play(ChatPolicy(client(server)))


def test_a_conversation_that_is_too_long_is_a_stop_reason(server, play):
    server.replies = [add(1), status(400, "This model's maximum context length is 4096 tokens")]
    episode = play(ChatPolicy(client(server)))
    assert (episode.stop_reason, episode.truncated, episode.failure) == (StopReason.CONTEXT, True, None)
    assert episode.counts


def test_an_answer_that_was_cut_ends_the_episode_and_no_call_is_run(server, play):
    server.replies = [add(1) | {"finish_reason": "length"}]
    episode = play(ChatPolicy(client(server)))
    assert (episode.stop_reason, episode.final) == (StopReason.MAX_TOKENS, 0)


def test_a_setting_of_null_is_not_sent(server, play):
    server.replies = [done()]
    play(ChatPolicy(client(server, extra={"seed": None, "max_tokens": None, "max_completion_tokens": 5})))
    (body,) = server.bodies
    assert ("seed" in body, "max_tokens" in body, body["max_completion_tokens"]) == (False, False, 5)


def test_an_unknown_way_to_call_tools_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'hermes'"):
        ChatPolicy(from_function(lambda messages: ""), tool_calls="hermess")


def test_functions_plain_and_async_are_given_what_they_are_named_after(play):
    def plain(messages, tools):
        assert tools[0]["function"]["name"] == "add"
        return assistant("", call("add", n=3)) if len(messages) == 2 else "done"

    async def asynchronous(messages, **rest):
        assert set(rest) == {"tools", "seed"}
        await asyncio.sleep(0)
        return assistant("", call("add", n=3)) if len(messages) == 2 else "done"

    assert play(ChatPolicy(from_function(plain))).success
    assert play(ChatPolicy(from_function(asynchronous))).success


def test_a_function_that_wants_something_else_is_refused_by_name():
    def agent(message):
        return ""

    with pytest.raises(ConfigError, match=r"agent\(\) wants 'message'; did you mean 'messages'\?"):
        from_function(agent)

    def by_place(messages, /):
        """Cannot be called by name."""

    with pytest.raises(ConfigError, match="does not say its parameters"):
        from_function(dict)
    with pytest.raises(ConfigError, match="by place only"):
        from_function(by_place)


class Hostile(str):
    """Raises when it is looked at."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def encode(self, *_: Any) -> bytes:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "rubbish",
    [

        None, 7, b"x", [], object(), float("nan"), {"role": "system", "content": "x"}, {"content": ["x"]},
        {"content": "", "tool_calls": "add"}, {"content": {"deep": 1}}, lambda: 1,
    ],
)  # fmt: skip
def test_whatever_else_a_function_returns_is_its_own_failure_and_counts(play, rubbish):
    episode = play(ChatPolicy(from_function(lambda messages: rubbish)))
    assert episode.failure is not None
    assert (episode.failure.kind, episode.counts, episode.success) == (FailureKind.POLICY, True, False)


@pytest.mark.parametrize("shape", ["text", "content", "role"])
def test_what_raises_when_it_is_looked_at_is_the_policys_failure_too(play, shape):
    hostile: Any = Hostile("x")
    episode = play(ChatPolicy(from_function(lambda messages: hostile if shape == "text" else {shape: hostile})))
    assert episode.failure is not None
    assert (episode.failure.kind, episode.counts) == (FailureKind.POLICY, True)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "done", "num_tokens": -1, "prompt_tokens": "many"},
        {"content": "done", "num_tokens": 10**400, "prompt_tokens": True},
        {"content": "\ud800\x00" * 10, "finish_reason": "because", "extra": object()},
        {"content": "", "tool_calls": [None, 3, {"function": {"name": 5, "arguments": object()}}]},
        "x" * 10_000_000,
    ],
)
def test_hostile_messages_and_counts_end_no_process(play, message, tmp_path):
    episode = play(ChatPolicy(from_function(lambda messages: message)))
    assert episode.counts
    assert all(type(m.get("num_tokens", 0)) is int for m in episode.messages)
    json.dumps(episode.messages).encode()


@pytest.mark.parametrize("stop", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_that_would_end_the_process_ends_its_episode(play, stop, is_async):
    def plain(messages):
        raise stop

    async def asynchronous(messages):
        raise stop

    episode = play(ChatPolicy(from_function(asynchronous if is_async else plain)))
    assert episode.failure is not None
    assert episode.failure.kind == FailureKind.POLICY
    assert event_loop().is_running()


def test_a_function_may_change_what_it_is_given_and_changes_nothing(play):
    def meddles(messages, tools):
        messages[0]["content"] = "nothing to do"
        messages[-1].get("tool_calls", [{}])[0]["id"] = "z"
        for offered in tools or ():
            offered["function"]["name"] = "zzz"
        return "done"

    episode = play(ChatPolicy(from_function(meddles)))
    assert episode.messages[0]["content"] != "nothing to do"
    assert "zzz" not in [offered["function"]["name"] for offered in episode.tools]


def test_a_function_that_never_returns_does_not_hold_up_the_end_of_the_process(tmp_path):
    (tmp_path / "stuck.py").write_text("import time\ndef says(messages):\n    time.sleep(3600)\n")
    command = ["eval", "agentgym/Door-v0", "--model", "stuck:says", "--limit", "2", "--max-time", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "agentgym.cli", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "coverage 0.0 % (0 of 2 scored)" in done.stdout


@pytest.mark.parametrize("error", [ConnectionError("its own server is down"), StopIteration()])
def test_what_a_function_raises_itself_is_no_zero_for_the_model(play, error):
    def broken(messages):
        raise error

    episode = play(ChatPolicy(from_function(broken)))
    assert episode.failure is not None
    assert episode.failure.kind == FailureKind.INFRASTRUCTURE


@pytest.fixture(scope="module")
def served(model_folder) -> Iterator[tuple[str, str]]:
    """A model folder, and the address of a real server that has it."""
    pytest.importorskip("fastapi")  # of transformers[serving]
    folder = model_folder("llama")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), "--continuous-batching"]
    process = subprocess.Popen(
        [*command, "--cb-num-blocks", "64"], env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield folder, f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.acceptance
def test_a_model_says_the_same_behind_a_real_server_as_in_process(served):
    """transformers serve, greedy: prompt, text and counts of tokens are those of our own engine on the same weights."""
    from agentgym.policies.local import load_policy

    folder, url = served
    task_ids = list(choose_tasks("agentgym/Lookup-v0", {"split": "test"}, 4))
    slots = [Slot(task_id, 0, group, 0) for group, task_id in enumerate(task_ids)]

    async def collected(policy: Any) -> list[Episode]:
        driver = Driver("agentgym/Lookup-v0", policy, run="x", env_kwargs={"split": "test"}, concurrency=4)
        try:
            return await driver.collect(slots)
        finally:
            await asyncio.to_thread(driver.close)

    client = ChatClient(url, folder, temperature=0.0, max_tokens=12, timeout_s=120.0)
    there = run_sync(collected(ChatPolicy(client, tool_calls="hermes")))
    run_sync(client.aclose())
    here = run_sync(collected(load_policy(folder, temperature=0.0, max_tokens=12)))
    assert [e.failure for e in there] == [None] * 4
    for ours, theirs in zip(here, there, strict=True):
        assert ours.ledger is not None
        replies = [m for m in theirs.messages if m["role"] == "assistant"]
        assert [m["content"] for m in replies] == [m["content"] for m in ours.messages if m["role"] == "assistant"]
        assert ours.stop_reason == theirs.stop_reason
        assert sum(m["num_tokens"] for m in replies) == ours.ledger.num_sampled
        first = next(iter(ours.ledger))
        assert replies[0]["prompt_tokens"] == len(first)  # the prompts are the same, to the token
