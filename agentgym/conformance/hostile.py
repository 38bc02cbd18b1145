"""HOSTILE: what a model may write. Every environment answers it in kind; none falls over.

Owns the corpus. What a fair answer is, is faults.py's business."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agentgym.ledger import StopReason
from agentgym.messages import assistant, raw_call
from agentgym.spaces import Action

TOOL = "{tool}"  # stands for the name of a tool on offer


@dataclass(frozen=True)
class Hostile:
    """Something a model may write. Every call in it is wrong for every tool, so that each is answered by an error."""

    name: str
    action: Any  # text, or what a careless policy makes of an assistant message
    num_calls: int = 0
    stop_reason: StopReason | None = None  # how it must end the episode, where that is certain

    def aimed_at(self, tool: str) -> Action:
        """The action with the name of a real tool."""
        return json.loads(json.dumps(self.action).replace(TOOL, tool))


def _bad(name: str, *arguments: str, tool: str = TOOL) -> Hostile:
    calls = (raw_call(tool, text, f"call_{i}") for i, text in enumerate(arguments))
    return Hostile(name, assistant("", *calls), len(arguments))


HOSTILE: tuple[Hostile, ...] = (
    _bad("truncated arguments", '{"no_such_argument": '),
    _bad("double-encoded arguments", '"{\\"no_such_argument\\": 1}"'),
    _bad("a list for arguments", "[1, 2]"),
    _bad("a number for arguments", "7"),
    _bad("null for arguments", "null"),
    _bad("no arguments at all", ""),
    _bad("stray quotes", "'no_such_argument': '1'"),
    _bad("an argument too many", '{"no_such_argument": 1}'),
    _bad("nested without end", "[" * 100_000),
    _bad("NaN for arguments", "NaN"),
    _bad("a megabyte of arguments", '{"no_such_argument": "' + "x" * 1_000_000 + '"}'),
    _bad("lone surrogates in arguments", '{"no_such_argument": "\ud800"}'),
    _bad("an unknown tool", "{}", tool="no_such_tool"),
    _bad("an empty tool name", "{}", tool=""),
    _bad("a tool name of a megabyte", "{}", tool="x" * 1_000_000),
    _bad("a dunder for a tool", "{}", tool="__init__"),
    _bad("a method that is no tool", "{}", tool="final"),
    _bad("endless calls", *['{"no_such_argument": 1}'] * 2_000),
    Hostile("duplicate call ids", assistant("", *[raw_call("no_such_tool", "{}", "same")] * 3), 3),
    Hostile(
        "an object where text is due", {"role": "assistant", "content": "", "tool_calls": [7, {"function": None}]}, 2
    ),
    Hostile("arguments that are no text", {"tool_calls": [{"function": {"name": TOOL, "arguments": [1]}}]}, 1),
    Hostile("empty text", ""),
    Hostile("a refusal", "I'm sorry, but I cannot help with that."),
    Hostile("a megabyte of text", "x" * 1_000_001),
    Hostile("lone surrogates", "a\ud800b\udfff"),
    Hostile("control characters", "\x00\x07\x1b[2J\r\u202e"),
    Hostile("special tokens spelt out", "<|im_end|><|im_start|>system\n</s><s>[INST]<|endoftext|><tool_response>"),
    Hostile("a truncated call in text", '<tool_call>{"name": "' + TOOL + '", "argum'),
    Hostile("a nested call in text", '<tool_call><tool_call>{"name": "x"}</tool_call></tool_call>'),
    Hostile("a truncated xml call", "<function=" + TOOL + "><parameter=no_such_argument>1"),
    Hostile("an action without input", "Action: " + TOOL + "\nAction:\nAction Input"),
    Hostile("code that would run", "```tool\n__import__('os').abort()\n```"),
    Hostile("unclosed tags without end", "<tool_call>" * 50_000),
    Hostile("format strings", "{0.__class__} %s %n ${HOME} {{}}"),
    Hostile(
        "an answer that was cut",
        {"role": "assistant", "content": "4", "finish_reason": "length"},
        0,
        StopReason.MAX_TOKENS,
    ),
    Hostile("a full context", {"role": "assistant", "content": "", "finish_reason": "context"}, 0, StopReason.CONTEXT),
)
