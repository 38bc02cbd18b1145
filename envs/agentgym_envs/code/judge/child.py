"""The process in which the candidate's code lives: it is told what to call, and says what came of it.

Whatever it says is a claim of the candidate, and is believed in nothing but plain values. No test is ever in here."""

from __future__ import annotations

import builtins
import os
import sys

from agentgym_envs.code.judge import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ASKED, TOLD = 3, 4  # descriptors
MUTABLE = (list, dict, set, bytearray)
Module = type(sys)


class Objects:
    """Objects that stay here; the other side holds their numbers."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.numbers: dict[int, int] = {}

    def handle(self, value: Any) -> Any:
        number = self.numbers.setdefault(id(value), len(self.held))
        if number == len(self.held):
            self.held.append(value)
        return {"object": number}

    def encode(self, value: Any) -> Any:
        return codec.encode(value, self.handle)

    def decode(self, data: Any) -> Any:
        return codec.decode(data, self._find)

    def _find(self, data: Any) -> Any:
        if "object" in data:
            return self.held[data["object"]]
        module, name = data["name"]
        return getattr(sys.modules[module], name)


def load(request: dict[str, Any]) -> None:
    """Run the sources as modules, in order. A solution that is no program by itself goes on where its prelude ends."""
    for name, source in request["modules"].items():
        _module(name, compile(source, name, "exec"))
    name, prelude, source = request["name"], request["prelude"], request["source"]
    for index, letter in enumerate(name):
        if letter == ".":
            sys.modules.setdefault(name[:index], Module(name[:index]))
    try:
        code, before = compile(source, name, "exec"), _compiled(prelude, name)
    except SyntaxError:
        code, before = compile(prelude + source, name, "exec"), None
    _module(name, *([before] if before else []), code)


def _compiled(prelude: str, name: str) -> Any:
    try:
        return compile(prelude, name, "exec") if prelude else None
    except SyntaxError:
        return None


def _module(name: str, *codes: Any) -> None:
    module = sys.modules[name] = Module(name)
    for code in codes:
        exec(code, module.__dict__)


def perform(request: dict[str, Any], objects: Objects) -> dict[str, Any]:
    """One request. What it raises is the candidate's exception."""
    kind = request["do"]
    if kind == "load":
        load(request)
        return {"value": None}
    target = objects.decode(request["target"])
    if kind == "call":
        return call(target, request, objects)
    if kind == "get":
        return {"value": objects.encode(getattr(target, request["name"]))}
    if kind == "set":
        setattr(target, request["name"], objects.decode(request["value"]))
        return {"value": None}
    return {"value": objects.encode(OPERATIONS[kind](target, *map(objects.decode, request.get("given", ()))))}


OPERATIONS = {
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "item": lambda target, key: target[key],
    "put": lambda target, key, value: target.__setitem__(key, value),
}


def call(target: Any, request: dict[str, Any], objects: Objects) -> dict[str, Any]:
    """The result, and the arguments as the call has left them, where it changed them."""
    given = [objects.decode(item) for item in request["given"]]
    named = {name: objects.decode(item) for name, item in request["named"].items()}
    result = target(*given, **named)
    reply: dict[str, Any] = {"changed": {}}
    for index, value in enumerate(given):
        if type(value) in MUTABLE:
            after = objects.encode(value)
            if after != request["given"][index]:
                reply["changed"][str(index)] = after
            if value is result:
                reply["same"] = index
    if "same" not in reply:
        reply["value"] = objects.encode(result)
    return reply


def blame(error: BaseException) -> dict[str, Any]:
    """An exception as the nearest one that every Python has, and its text."""
    names = [cls.__name__ for cls in type(error).__mro__ if getattr(builtins, cls.__name__, None) is cls]
    try:
        text = str(error)[:1000]
    except BaseException:
        text = ""
    return {"raised": [names[0] if names else "Exception", text]}


def read(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(ASKED, count - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def main() -> None:
    objects = Objects()
    while True:
        request = codec.read_ask(codec.read_frame(read))
        try:
            reply = perform(request, objects)
        except BaseException as error:
            reply = blame(error)
        try:
            codec.write_frame(TOLD, codec.told_text(reply))
        except (ValueError, TypeError, RecursionError) as error:
            codec.write_frame(TOLD, codec.told_text(blame(error)))
