"""The client for OpenAI-compatible servers, against a real server on a real port that behaves as servers do."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentgym import ConfigError, assistant, call, system, tool_result, user
from agentgym.chat import ChatClient, ChatError, speaking
from agentgym.errors import Failure, FailureKind
from agentgym.loop import run_sync

Behaviour = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]]


def said(text: str | None = "hello", finish: str = "stop", **message: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


class Server:
    """Answers request number n as `behaviour(n, body)` says; None there cuts the connection."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = lambda number, body: (200, {}, said())
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.in_flight = self.most_in_flight = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(self.headers)
                    outer.in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer.in_flight)
                try:
                    answer = outer.behaviour(number, body)
                finally:
                    with lock:
                        outer.in_flight -= 1
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, text = answer
                self.send_response(status)
                for name, value in ({"content-length": str(len(text))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("agentgym.chat.WAIT_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(client: ChatClient, *messages: Any, **kwargs: Any) -> Any:
    async def whole() -> Any:
        try:
            return await client(messages or [user("hi")], **kwargs)
        finally:
            await client.aclose()

    return run_sync(whole())


def test_a_conversation_goes_out_in_the_known_shape_and_the_answer_comes_back_as_a_message(server):
    client = ChatClient(server.url, "m", api_key="secret", temperature=0.5, max_tokens=9, extra={"top_p": 0.9})
    made = call("look", at=1)
    own = {**assistant("let me", made, reasoning="hm"), "num_tokens": 4, "finish_reason": "stop"}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    answer = ask(client, system("s"), user("u"), own, tool_result(made, "3"), tools=tools, seed=5)
    counts = {"num_tokens": 3, "prompt_tokens": 7}
    assert answer == {"role": "assistant", "content": "hello", "finish_reason": "stop", **counts}
    (body,) = server.bodies
    assert body["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "let me", "tool_calls": [made]},
        {"role": "tool", "content": "3", "tool_call_id": "call_0", "name": "look"},
    ]
    sent = {"model": "m", "temperature": 0.5, "max_tokens": 9, "top_p": 0.9, "seed": 5, "tools": tools}
    assert {k: body[k] for k in sent} == sent
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert (client.usage.requests, client.usage.prompt_tokens, client.usage.completion_tokens) == (1, 7, 3)


@pytest.mark.parametrize(
    ("spelt", "arguments", "call_id"),
    [
        ({"id": "x", "function": {"name": "f", "arguments": '{"a": 1'}}, '{"a": 1', "x"),
        ({"function": {"name": "f", "arguments": {"a": 1}}}, '{"a": 1}', "call_0"),
        ({"function": {"name": "f"}}, "{}", "call_0"),
    ],
)
def test_tool_calls_come_back_as_the_model_spelt_them(server, spelt, arguments, call_id):
    server.behaviour = lambda number, body: (200, {}, said(None, "tool_calls", tool_calls=[spelt]))
    (made,) = ask(ChatClient(server.url, "m"))["tool_calls"]
    assert (made["function"]["name"], made["function"]["arguments"], made["id"]) == ("f", arguments, call_id)


def test_parts_reasoning_and_cut_answers_are_read(server):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "\ud800b"}]
    server.behaviour = lambda number, body: (200, {}, said(parts, "length", reasoning_content="why"))  # type: ignore[arg-type]
    answer = ask(ChatClient(server.url, "m"))
    assert (answer["content"], answer["finish_reason"], answer["reasoning"]) == ("a�b", "length", "why")


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"retry-after": "0.05"}, b"slow down"),
        (429, {"retry-after": formatdate(time.time() + 1, usegmt=True)}, b"slow down"),
        (500, {}, b"oops"),
        (503, {"retry-after": "soon"}, b""),
        (200, {}, b"<html>not json</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"error": {"message": "overloaded"}}'),
        (200, {}, said(5)),  # type: ignore[arg-type]
        (200, {"content-length": "9999"}, said()),
        None,
    ],
    ids=["seconds", "date", "500", "503", "no-json", "no-choices", "error", "number", "cut-short", "hung-up"],
)
def test_a_fault_of_the_server_is_asked_again(server, fault):
    server.behaviour = lambda number, body: fault if number < 2 else (200, {}, said("at last"))
    client = ChatClient(server.url, "m", timeout_s=1)
    assert ask(client)["content"] == "at last"
    assert client.usage.retries == 2


def test_retry_after_is_waited_for(server):
    times: list[float] = []

    def behave(number: int, body: Any) -> Any:
        times.append(time.monotonic())
        return (429, {"retry-after": "0.4"}, b"") if number == 0 else (200, {}, said())

    server.behaviour = behave
    ask(ChatClient(server.url, "m"))
    assert times[1] - times[0] >= 0.39


def test_a_server_that_never_answers_well_is_our_failure_and_is_named_with_its_last_words(server):
    server.behaviour = lambda number, body: (502, {}, b"bad gateway here")
    with pytest.raises(ChatError, match=r"3 tries.*status 502: bad gateway here") as caught:
        ask(ChatClient(server.url, "m", retries=2, api_key="secret"))
    assert Failure.of(caught.value).kind == FailureKind.INFRASTRUCTURE
    assert len(server.bodies) == 3
    assert "secret" not in str(caught.value)


def test_nobody_there_and_a_server_that_is_too_slow(server):
    with pytest.raises(ChatError, match="gave no answer in 2 tries"):
        ask(ChatClient("http://127.0.0.1:9/v1", "m", retries=1))
    server.behaviour = lambda number, body: (time.sleep(1.0), (200, {}, said()))[1]
    with pytest.raises(ChatError, match=r"no answer within 0.2 s|Timeout"):
        ask(ChatClient(server.url, "m", retries=0, timeout_s=0.2))


@pytest.mark.parametrize(
    ("status", "text", "hint"),
    [
        (401, b"no key", "OPENAI_API_KEY"),
        (404, b"what", "what it serves"),
        (400, b"bad field", "bad field"),
        (302, b"", "302"),
    ],
)
def test_what_no_retry_mends_is_the_users_to_mend(server, status, text, hint):
    server.behaviour = lambda number, body: (status, {}, text)
    with pytest.raises(ConfigError, match=hint):
        ask(ChatClient(server.url, "m"))
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_text_that_is_refused_after_others_were_answered_is_one_request_s_failure(server, status):
    server.behaviour = lambda number, body: (status, {}, b"content filter") if number == 1 else (200, {}, said())
    client = ChatClient(server.url, "m")
    assert ask(client)["content"] == "hello"
    with pytest.raises(ChatError, match=rf"answers {status} to this request.*content filter"), speaking("the user"):
        ask(client)
    assert ask(client)["content"] == "hello"
    assert len(server.bodies) == 3  # none was asked again


def test_whose_chat_has_failed_is_said_and_what_kind_of_failure_it_is_stays():
    for kind in (ChatError, ConfigError):
        with pytest.raises(kind, match=r"^the judge: gone$"), speaking("the judge"):
            raise kind("gone")


def test_a_conversation_that_is_too_long_is_a_message_that_says_so(server):
    text = b'{"error": {"code": "context_length_exceeded", "message": "too long"}}'
    server.behaviour = lambda number, body: (400, {}, text)
    answer = ask(ChatClient(server.url, "m"))
    assert (answer["content"], answer["finish_reason"]) == ("", "context")


def test_no_more_requests_are_in_flight_than_allowed_from_any_loop(server):
    server.behaviour = lambda number, body: (time.sleep(0.05), (200, {}, said()))[1]
    client = ChatClient(server.url, "m", concurrency=3)

    async def many() -> None:
        await asyncio.gather(*(client([user(str(i))]) for i in range(12)))

    asyncio.run(many())  # a loop of the caller's own, twice
    asyncio.run(many())
    run_sync(client.aclose())
    assert server.most_in_flight == 3
    assert client.usage.requests == 24
    assert copy.deepcopy(client) is client


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"base_url": "localhost:1"}, "base_url"), ({"max_tokens": 0}, "max_tokens"), ({"concurrency": 0}, "concurrency")],
)
def test_settings_that_cannot_be_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        ChatClient(**({"base_url": "http://x/v1", "model": "m"} | settings))
    assert "secret" not in repr(ChatClient("http://x/v1", "m", api_key="secret"))
