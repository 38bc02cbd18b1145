"""How a tool call is spelt inside text: hermes, xml, react, code; and structured, where it is not.

Owns parsing (of whatever a model wrote: it never raises, and takes linear time), formatting, and the instructions for
the model. Which tools exist and what their arguments must be is tools.py's business. Parsing what `format` wrote of a
well-formed message gives that message back, as long as its text does not itself spell a call."""

from __future__ import annotations

import ast
import json
import keyword
from collections.abc import Mapping, Sequence
from typing import Protocol

from agentgym.errors import ConfigError, nearest
from agentgym.messages import JSON, Message, ToolCall, assistant, raw_call

MAX_CODE_CHARS = 20_000  # of one fenced call: Python's parser is not meant for hostile megabytes


class Syntax(Protocol):
    """One way to spell calls in text."""

    name: str

    def parse(self, text: str) -> Message:
        """The assistant message a text means. Text around calls stays content; a call that cannot be read carries an
        error, which the environment answers."""
        ...

    def format(self, message: Message) -> str:
        """An assistant message as text."""
        ...

    def instructions(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        """What to tell a model about the tools on offer and how to call them; empty where there are none."""
        ...

    def reply(self, message: Message) -> str:
        """A message of the environment as text."""
        ...


class Hermes:
    """`<tool_call>\\n{"name": "lookup", "arguments": {"key": 33}}\\n</tool_call>`, as Hermes and Qwen write it."""

    name = "hermes"

    def parse(self, text: str) -> Message:
        around, bodies = _blocks(text, "<tool_call>", "</tool_call>")
        return assistant(around, *(self._call(index, *body) for index, body in enumerate(bodies)))

    def _call(self, index: int, body: str, is_closed: bool) -> ToolCall:
        call_id = f"call_{index}"
        if not is_closed:
            return raw_call("", body, call_id, "the call is cut off: </tool_call> is missing")
        try:
            call = json.loads(body)
        except (ValueError, RecursionError) as error:
            return raw_call("", body, call_id, f"the call is not valid JSON ({_first_line(error)})")
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or set(call) - {"name", "arguments"}:
            return raw_call("", body, call_id, 'a call is one JSON object {"name": …, "arguments": {…}}')
        return raw_call(call["name"], _dumps(call.get("arguments", {})), call_id)

    def format(self, message: Message) -> str:
        blocks = []
        for call in message.get("tool_calls") or ():
            name, arguments = _dumps(call["function"]["name"]), call["function"]["arguments"]
            if "tool_call>" in arguments:
                arguments = arguments.replace("<", "\\u003c")  # inside a JSON string: the same text, and no tag
            blocks.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
        return _joined(message["content"], *blocks)

    def instructions(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        example = '<tool_call>\n{"name": "tool", "arguments": {"argument": "value"}}\n</tool_call>'
        return _instructions(tools, f"To call one, write its name and arguments as JSON between tags:\n{example}")

    def reply(self, message: Message) -> str:
        return _tagged(message)


class Xml:
    """`<function=lookup>` holding `<parameter=key>33</parameter>`, within `<tool_call>` tags, as Qwen3-Coder writes it.

    A value that is JSON means that JSON (33 is a number, "33" in quotes a text); any other text means itself."""

    name = "xml"

    def parse(self, text: str) -> Message:
        around, bodies = _blocks(text, "<function=", "</function>")
        around = _joined(*(part.strip() for part in around.replace("</tool_call>", "<tool_call>").split("<tool_call>")))
        return assistant(around, *(self._call(index, *body) for index, body in enumerate(bodies)))

    def _call(self, index: int, body: str, is_closed: bool) -> ToolCall:
        call_id = f"call_{index}"
        name, opened, inside = body.partition(">")
        if not is_closed or not opened:
            return raw_call(name if opened else "", body, call_id, "the call is cut off: </function> is missing")
        between, parameters = _blocks(inside, "<parameter=", "</parameter>")
        arguments: dict[str, JSON] = {}
        for parameter, parameter_closed in parameters:
            key, opened, value = parameter.partition(">")
            if not opened or not parameter_closed:
                return raw_call(name, inside, call_id, "a parameter is cut off: </parameter> is missing")
            arguments[key] = _value(value.removeprefix("\n").removesuffix("\n"))
        if between:
            return raw_call(
                name, inside, call_id, "text between the parameters; write <parameter=name>value</parameter>"
            )
        return raw_call(name, _dumps(arguments), call_id)

    def format(self, message: Message) -> str:
        blocks = []
        for call in message.get("tool_calls") or ():
            name, arguments = call["function"]["name"], _arguments(call)
            if arguments is None:
                lines = [call["function"]["arguments"]]
            else:
                lines = [f"<parameter={key}>\n{self._spelt(value)}\n</parameter>" for key, value in arguments.items()]
            blocks.append("\n".join(["<tool_call>", f"<function={name}>", *lines, "</function>", "</tool_call>"]))
        return _joined(message["content"], *blocks)

    @staticmethod
    def _spelt(value: JSON) -> str:
        means_itself = isinstance(value, str) and _value(value) == value
        if means_itself and not any(tag in value for tag in ("parameter", "function", "tool_call")):
            return value
        return _dumps(value).replace("<", "\\u003c")

    def instructions(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        example = "<tool_call>\n<function=tool>\n<parameter=argument>\nvalue\n</parameter>\n</function>\n</tool_call>"
        return _instructions(tools, f"To call one, write:\n{example}")

    def reply(self, message: Message) -> str:
        return _tagged(message)


class React:
    """`Action: lookup` and `Action Input: {"key": 33}` on lines of their own; `Final Answer:` before the answer.

    Text before a final answer becomes the message's reasoning."""

    name = "react"
    _HEADS = ("Action:", "Action Input:", "Observation:", "Final Answer:")

    def parse(self, text: str) -> Message:
        sections = self._sections(text)
        if not any(head == "Action:" for head, _ in sections):
            before, found, answer = text.partition("Final Answer:")
            if not found:
                return assistant(text.strip())
            return assistant(answer.strip(), reasoning=before.strip() or None)
        around: list[str] = []
        calls: list[ToolCall] = []
        for position, (head, body) in enumerate(sections):
            if head == "Action:":
                after, given = sections[position + 1] if position + 1 < len(sections) else ("", "")
                is_complete = after == "Action Input:"
                error = None if is_complete else "the line `Action Input: {…}` is missing after the Action"
                calls.append(raw_call(body, given if is_complete else "", f"call_{len(calls)}", error))
            elif head != "Action Input:":
                around.append(_joined(f"{head} {body}".strip()))
        return assistant(_joined(*around), *calls)

    def _sections(self, text: str) -> list[tuple[str, str]]:
        """(head, text up to the next head), the head being empty for what comes first."""
        sections: list[tuple[str, list[str]]] = [("", [])]
        for line in text.split("\n"):
            head = next((head for head in self._HEADS if line.startswith(head)), None)
            if head is not None:
                sections.append((head, []))
                line = line[len(head) :]
            sections[-1][1].append(line)
        return [(head, "\n".join(lines).strip()) for head, lines in sections]

    def format(self, message: Message) -> str:
        calls = message.get("tool_calls") or ()
        if not calls:
            return _joined(message.get("reasoning") or "", f"Final Answer: {message['content']}")
        lines = [f"Action: {c['function']['name']}\nAction Input: {c['function']['arguments']}" for c in calls]
        return _joined(message["content"], *lines)

    def instructions(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        example = 'Action: tool\nAction Input: {"argument": "value"}'
        return _instructions(
            tools, f"To call one, write two lines:\n{example}\nTo answer, write:\nFinal Answer: answer"
        )

    def reply(self, message: Message) -> str:
        return f"Observation: {message['content']}" if message["role"] == "tool" else message["content"]


class Code:
    """Python calls of literals in a block fenced by "```tool" and "```": `lookup(key=33)`. Read, never run."""

    name = "code"
    _OPEN, _CLOSE = "```tool\n", "```"

    def parse(self, text: str) -> Message:
        around, bodies = _blocks(text, self._OPEN, self._CLOSE)
        calls: list[ToolCall] = []
        for body, is_closed in bodies:
            calls += self._calls(body.strip(), is_closed, len(calls))
        return assistant(around, *calls)

    def _calls(self, body: str, is_closed: bool, first: int) -> list[ToolCall]:
        if not is_closed:
            return [raw_call("", body, f"call_{first}", "the block is cut off: ``` is missing")]
        if len(body) > MAX_CODE_CHARS:
            return [raw_call("", body, f"call_{first}", f"the block is longer than {MAX_CODE_CHARS:,} characters")]
        try:
            statements = ast.parse(body).body
            return [self._call(statement, f"call_{first + i}") for i, statement in enumerate(statements)]
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            return [raw_call("", body, f"call_{first}", f"the block is not `tool(name=value)` ({_first_line(error)})")]

    @staticmethod
    def _call(statement: ast.stmt, call_id: str) -> ToolCall:
        match statement:
            case ast.Expr(ast.Call(ast.Name(name), [], keywords)):
                arguments: dict[str, JSON] = {}
                for given in keywords:
                    value = ast.literal_eval(given.value)
                    arguments |= value if given.arg is None else {given.arg: value}
                return raw_call(name, _dumps(arguments), call_id)
            case ast.Expr(ast.Call(ast.Name(name))):
                raise ValueError(f"{name}: name every argument, as in {name}(argument=value)")
        raise ValueError("only calls of tools with literal arguments")

    def format(self, message: Message) -> str:
        blocks = []
        for call in message.get("tool_calls") or ():
            arguments = _arguments(call)
            inside = call["function"]["arguments"] if arguments is None else _python_arguments(arguments)
            blocks.append(f"{self._OPEN}{call['function']['name']}({inside})\n{self._CLOSE}")
        return _joined(message["content"], *blocks)

    def instructions(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        example = f'{self._OPEN}tool(argument="value")\n{self._CLOSE}'
        return _instructions(tools, f"To call one, write a block with one call, its arguments by name:\n{example}")

    def reply(self, message: Message) -> str:
        return f"```output\n{message['content']}\n```" if message["role"] == "tool" else message["content"]


class Structured:
    """Calls travel beside the text, as in OpenAI's chat format: text means itself and never spells a call."""

    name = "structured"

    def parse(self, text: str) -> Message:
        return assistant(text)

    def format(self, message: Message) -> str:
        return message["content"]

    def instructions(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        return ""

    def reply(self, message: Message) -> str:
        return message["content"]


SYNTAXES: Mapping[str, Syntax] = {
    syntax.name: syntax for syntax in (Hermes(), Xml(), React(), Code(), Structured())
}  # fmt: skip


def get_syntax(name: str) -> Syntax:
    """The syntax of that name. Raises ConfigError naming the nearest."""
    if name not in SYNTAXES:
        raise ConfigError(f"no tool-call syntax {name!r}{nearest(name, SYNTAXES)} There are {', '.join(SYNTAXES)}")
    return SYNTAXES[name]


def _blocks(text: str, opening: str, closing: str) -> tuple[str, list[tuple[str, bool]]]:
    """The text outside the blocks, and each block's inside with whether it was closed. One pass: linear time."""
    around: list[str] = []
    bodies: list[tuple[str, bool]] = []
    at = 0
    while (start := text.find(opening, at)) != -1:
        around.append(text[at:start])
        end = text.find(closing, start + len(opening))
        bodies.append((text[start + len(opening) : end if end != -1 else len(text)], end != -1))
        at = end + len(closing) if end != -1 else len(text)
    around.append(text[at:])
    return _joined(*(part.strip() for part in around)), bodies


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _dumps(value: JSON) -> str:
    """JSON text as `messages.call` writes it. Raises TypeError or ValueError for what is no JSON."""
    return json.dumps(value, ensure_ascii=False)


def _value(text: str) -> JSON:
    """What an untyped text means: JSON where it is finite JSON, else itself."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value


def _arguments(call: ToolCall) -> dict[str, JSON] | None:
    """A call's arguments; None where they are not a JSON object."""
    try:
        arguments = json.loads(call["function"]["arguments"])
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def _python_arguments(arguments: Mapping[str, JSON]) -> str:
    named = {key: value for key, value in arguments.items() if key.isidentifier() and not keyword.iskeyword(key)}
    spelt = [f"{key}={value!r}" for key, value in named.items()]
    if len(named) < len(arguments):
        spelt.append(f"**{ {key: value for key, value in arguments.items() if key not in named}!r}")
    return ", ".join(spelt).replace("```", "\\x60\\x60\\x60")


def _instructions(tools: Sequence[Mapping[str, JSON]], how: str) -> str:
    if not tools:
        return ""
    offered = "\n".join(_dumps(tool["function"]) for tool in tools)
    return f"You have these tools:\n{offered}\n{how}\nA message without a call is your answer."


def _tagged(message: Message) -> str:
    if message["role"] != "tool":
        return message["content"]
    return f"<tool_response>\n{message['content']}\n</tool_response>"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200]
