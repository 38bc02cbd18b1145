"""Chat messages and tool calls, in the shape everybody knows (OpenAI's chat format), as plain JSON dicts.

Owns the types, the constructors, `clean`: the border where hostile text becomes text that can be stored, and `safe`,
where it becomes text that can be shown.
How a call is spelt inside text is syntax.py's business."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NotRequired, TypedDict

JSON = Any  # dict, list, str, int, float, bool or None, nested
MAX_COUNT = 1 << 40  # of tokens in one message: what is above is no count
Role = Literal["system", "user", "assistant", "tool"]
_UNSEEN = re.compile(  # line ends and tabs are seen
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]|\r(?!\n)"
)


class FunctionCall(TypedDict):
    name: str
    arguments: str  # JSON text, exactly as the model wrote it


class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall
    error: NotRequired[str]  # set by a syntax that could not read the call: the tool message says it


class Message(TypedDict):
    """One chat message. The last four keys occur in a policy's own (assistant) messages only."""

    role: Role
    content: str
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    finish_reason: NotRequired[Literal["stop", "length", "context"]]  # why the model stopped writing
    num_tokens: NotRequired[int]  # tokens the policy sampled for this message
    prompt_tokens: NotRequired[int]  # tokens that were read for it, where a server counts them


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str = "", *calls: ToolCall, reasoning: str | None = None) -> Message:
    """The policy's message; without a call it is the answer."""
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = list(calls)
    if reasoning is not None:
        message["reasoning"] = reasoning
    return message


def call(tool: str, /, **arguments: JSON) -> ToolCall:
    """A well-formed call: `call("lookup", key=33)`. For an id other than call_0, see `raw_call`."""
    return raw_call(tool, json.dumps(arguments, ensure_ascii=False))


def raw_call(name: str, arguments: str, call_id: str = "call_0", error: str | None = None) -> ToolCall:
    """A call as the model spelt it, well-formed or not."""
    made: ToolCall = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    if error is not None:
        made["error"] = error
    return made


def tool_result(call: ToolCall, content: str) -> Message:
    """The environment's reply to one call, carrying the call's id and the tool's name."""
    return {"role": "tool", "content": content, "tool_call_id": call["id"], "name": call["function"]["name"]}


def clean(text: str) -> str:
    """Text with lone surrogates replaced by U+FFFD, so that it can be stored, hashed and encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def safe(text: str) -> str:
    """What somebody else wrote, without the characters that would drive a terminal, or that nobody would see."""
    return _UNSEEN.sub(lambda found: f"‹U+{ord(found[0]):04X}›", text)


def canonical(value: JSON) -> str:
    """One JSON text per value (sorted keys, no spaces): what content hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def transcript(messages: Iterable[Message]) -> str:
    """The conversation as a person reads it: role, text and calls, one block per message."""
    blocks = []
    for message in messages:
        lines = [f"[{message['role']}] {message['content']}".rstrip()]
        if reasoning := message.get("reasoning"):
            lines.insert(1, f"  (thinks) {reasoning}")
        lines += [
            f"  -> {c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls") or ()
        ]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)
