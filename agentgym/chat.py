"""Chat with a model: an async function from messages to a message, and the one client for servers that speak OpenAI's
chat completions. Simulated users, judges and policies over HTTP all take a `Chat`.

Owns requests, their retries and limits, and reading what a server says. What to ask is the caller's business."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from agentgym.errors import ConfigError, InfrastructureError
from agentgym.loop import at_home
from agentgym.messages import JSON, MAX_COUNT, Message, ToolCall, assistant, clean, raw_call

SENT = ("role", "content", "tool_calls", "tool_call_id", "name")  # of a message; the rest is our own record
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
WAIT_S, MAX_WAIT_S = 0.5, 60.0  # before the second try, doubled for each further one; and the most, also if asked for
MAX_BYTES = 32 << 20  # of one answer
OF_THE_TEXT = frozenset({400, 403, 413, 422})  # refusals that may be of one request, such as a content filter's
_ANSWERED: set[tuple[str, str]] = set()  # addresses and models that this process has had an answer of
CONTEXT_WORDS = ("context_length_exceeded", "maximum context length", "context window", "prompt is too long")


class ChatError(InfrastructureError):
    """The server gave no usable answer, however often it was asked; the message names it and its last words."""


class Chat(Protocol):
    """Whoever answers a conversation: the client below, or any async function."""

    def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, JSON]] | None = None, seed: int | None = None
    ) -> Awaitable[Message]: ...


@dataclass(slots=True)
class Usage:
    """What a client has cost so far."""

    requests: int = 0  # answered ones
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(eq=False)
class ChatClient:
    """A model behind `base_url` (".../v1"), asked over HTTP: `await client(messages)`.

    At most `concurrency` requests are in flight; each try has `timeout_s`. A refused connection, a time-out, status 429
    or 5xx and an answer that is none are tried again, `retries` times, after what `Retry-After` says or a wait that
    doubles. `api_key` is OPENAI_API_KEY where that is set and none is given; it is in no error and no record. `extra`
    is sent as it is (top_p, penalties, a server's own settings); a None there keeps a setting from being sent."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 1.0
    max_tokens: int = 1024
    timeout_s: float = 120.0
    retries: int = 5
    concurrency: int = 64
    extra: Mapping[str, JSON] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage, init=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base_url={self.base_url!r}: give the server's address, such as http://localhost:8000/v1"
            )
        for name in ("max_tokens", "timeout_s", "concurrency"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: it is above 0")
        self.api_key = (self.api_key or os.environ.get("OPENAI_API_KEY") or "").strip() or None
        self._url = f"{self.base_url.rstrip('/')}/chat/completions"
        self._seats = asyncio.Semaphore(self.concurrency)
        self._http: httpx.AsyncBaseTransport | None = None
        try:
            self._at = httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"base_url={self.base_url!r}: {error}") from None
        self._headers = httpx.Headers({"content-type": "application/json", "accept-encoding": "gzip, deflate"})
        if self.api_key:
            self._headers["authorization"] = f"Bearer {self.api_key}"
        self._jitter = random.Random()  # of waits only

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, JSON]] | None = None, seed: int | None = None
    ) -> Message:
        """The model's message; an empty one with finish_reason "context" where the conversation is too long for it.
        Raises ConfigError for what no retry mends (address, key, model, a refused request), ChatError for the rest,
        also for a refusal of one request by a server that has answered others."""
        body: dict[str, JSON] = {
            "model": self.model, "messages": [{k: m[k] for k in SENT if k in m} for m in messages],  # type: ignore[literal-required]
            "temperature": self.temperature, "max_tokens": self.max_tokens, "tools": list(tools or ()) or None,
            "seed": seed, **self.extra,
        }  # fmt: skip
        sent = {name: value for name, value in body.items() if value is not None}
        return await at_home(self._asked(json.dumps(sent).encode()))

    def __deepcopy__(self, memo: dict[int, Any]) -> ChatClient:
        return self  # a service that snapshots share

    async def aclose(self) -> None:
        """Close the connections; a later call opens new ones."""
        http, self._http = self._http, None
        if http is not None:
            await at_home(http.aclose())

    async def _asked(self, body: bytes) -> Message:
        last = "nothing"
        for attempt in range(self.retries + 1):
            if attempt:
                self.usage.retries += 1
            wait_s = min(MAX_WAIT_S, WAIT_S * 2**attempt) * self._jitter.uniform(0.5, 1.0)
            try:
                async with self._seats:
                    status, headers, said = await self._post(body)
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    try:
                        return self._counted(json.loads(said))
                    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
                        last = f"an answer that is none ({type(error).__name__}: {error}): {_short(said)}"
                elif status in RETRIED:
                    last = f"status {status}: {_short(said)}"
                    wait_s = max(wait_s, _asked_for(headers.get("retry-after")))
                else:
                    return self._refused(status, said)
            if attempt < self.retries:
                await asyncio.sleep(wait_s)
        raise ChatError(f"{self._url} gave no answer in {self.retries + 1} tries; the last time {last}")

    async def _post(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of one answer. Raises httpx.TransportError."""
        from aiohttp import ClientError  # noqa: PLC0415 - 150 ms

        if self._http is None:
            self._http = _transport(self.concurrency)
        request = httpx.Request("POST", self._at, headers=self._headers, content=body)
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._http.handle_async_request(request)
                try:
                    said = bytearray()
                    async for chunk in response.aiter_bytes():
                        said += chunk
                        if len(said) > MAX_BYTES:
                            raise httpx.ReadError(f"an answer of over {MAX_BYTES >> 20} MiB")
                    return response.status_code, response.headers, bytes(said)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx.ReadTimeout(f"no answer within {self.timeout_s} s") from None
        except ClientError as error:  # what the transport does not translate, such as an answer that is no HTTP
            raise httpx.RemoteProtocolError(f"{type(error).__name__}: {error}") from error

    def _counted(self, answer: Mapping[str, Any]) -> Message:
        message = read(answer)
        self.usage.requests += 1
        _ANSWERED.add((self._url, self.model))
        self.usage.prompt_tokens += message.get("prompt_tokens", 0)
        self.usage.completion_tokens += message.get("num_tokens", 0)
        return message

    def _refused(self, status: int, said: bytes) -> Message:
        text = said.decode("utf-8", "replace")
        if status in (400, 413, 422) and any(word in text.lower() for word in CONTEXT_WORDS):
            return {**assistant(""), "finish_reason": "context"}
        hint = {
            401: "give its key (api_key, or OPENAI_API_KEY)", 403: "the key may not use this model",
            404: f"see whether the address is right, and {self.model!r} what it serves",
        }.get(status, "it will not take this request")  # fmt: skip
        if status in OF_THE_TEXT and (self._url, self.model) in _ANSWERED:  # address, key and model were right before
            raise ChatError(f"{self._url} answers {status} to this request, not to others. It says: {_short(said)}")
        raise ConfigError(f"{self._url} answers {status}: {hint}. It says: {_short(said)}")


@contextmanager
def speaking(who: str) -> Iterator[None]:
    """Says in the errors of a chat who was asked: "the user: …", "the judge: …"."""
    try:
        yield
    except (ChatError, ConfigError) as error:
        kind = ChatError if isinstance(error, ChatError) else ConfigError
        raise kind(f"{who}: {error}") from error


def read(answer: Mapping[str, Any]) -> Message:
    """A chat completion as a message. Raises what indexing raises where it is none (KeyError, TypeError, ...)."""
    choice = answer["choices"][0]
    said = choice["message"]
    content = said.get("content") or ""
    if isinstance(content, list):  # parts
        content = "".join(part.get("text") or "" for part in content)
    if not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    reasoning = said.get("reasoning_content") or said.get("reasoning")
    calls = [_call(made, index) for index, made in enumerate(said.get("tool_calls") or ())]
    thought = clean(reasoning) if isinstance(reasoning, str) else None
    message = assistant(clean(content), *calls, reasoning=thought)
    message["finish_reason"] = "length" if choice.get("finish_reason") == "length" else "stop"
    used = answer.get("usage") or {}
    if type(tokens := used.get("completion_tokens")) is int and 0 <= tokens < MAX_COUNT:
        message["num_tokens"] = tokens
    if type(tokens := used.get("prompt_tokens")) is int and 0 <= tokens < MAX_COUNT:
        message["prompt_tokens"] = tokens
    return message


def _call(made: Mapping[str, Any], index: int) -> ToolCall:
    """As the model spelt it: servers differ in whether arguments are JSON text or an object, and some give no id."""
    function = made["function"]
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps({} if arguments is None else arguments)
    return raw_call(clean(str(function["name"])), clean(text), str(made.get("id") or f"call_{index}"))


def _transport(concurrency: int) -> httpx.AsyncBaseTransport:
    """httpx over aiohttp's connections: httpx's own pool asks every connection for every request, 20 times the work.
    Without httpx's client, which merges, redirects and hooks at twice the cost of a request."""
    from httpx_aiohttp import AiohttpTransport  # noqa: PLC0415 - 150 ms

    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency, keepalive_expiry=30.0)
    return AiohttpTransport(limits=limits)


def _asked_for(retry_after: str | None) -> float:
    """Seconds of a Retry-After header: a number, or a date (RFC 9110, 10.2.3); 0 for neither."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        parsed = email.utils.parsedate_tz(retry_after)
        seconds = email.utils.mktime_tz(parsed) - time.time() if parsed else 0.0
    return min(max(0.0, seconds), MAX_WAIT_S) if seconds == seconds else 0.0


def _short(said: bytes) -> str:
    return " ".join(said[:300].decode("utf-8", "replace").split())
