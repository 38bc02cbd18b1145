"""Plain values between the trusted process and the candidate's: JSON with tags, no code in it.

Owns the encoding. An object that is no plain value stays where it lives, and `handle` says what stands for it. Modules
that a program may never need are imported when a value of theirs is met: starting up is most of a verdict's time."""

from __future__ import annotations

import marshal
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Handle = Callable[[Any], Any]

HEAD = struct.Struct(">I")
MAX_FRAME = 32 << 20  # bytes of one message
MAX_DEPTH = 150
MAX_INT_BITS = 1 << 20
SMALL = 1 << 53  # above it other readers of JSON lose digits; here it is where hexadecimal begins
TYPES = {
    t.__name__: t
    for t in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, object, type, range, bytearray)
}
LIBRARY = {
    "collections": ("deque", "Counter", "OrderedDict", "defaultdict"),
    "datetime": ("datetime", "date", "time", "timedelta"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
}
MODULES = {name: module for module, names in LIBRARY.items() for name in names}


def encode(value: Any, handle: Handle, depth: int = 0) -> Any:
    """A value as what JSON can write; `handle` makes it of an object that is none of the plain ones. ValueError."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -SMALL < value < SMALL else {"int": _hex(value)}
    if kind is float:
        return value if value - value == 0 else {"float": repr(value)}

    def inner(item: Any) -> Any:
        return encode(item, handle, depth + 1)

    if kind is list:
        return [inner(item) for item in value]
    maker = _ENCODERS.get(kind)
    if maker is not None:
        return {kind.__name__: maker(value, inner)}
    if MODULES.get(kind.__name__) == kind.__module__:
        return {kind.__name__: _parts(value, inner)}
    if kind is type and TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    for base in _BASES:  # of a class of the program's own: what it is a kind of
        if isinstance(value, base):
            return inner(base(value))
    return handle(value)


def decode(data: Any, handle: Handle) -> Any:
    """The value that was encoded. Raises ValueError, TypeError, … for what nobody encodes."""
    if isinstance(data, list):
        return [decode(item, handle) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("not one tag")
    ((tag, body),) = data.items()

    def inner(item: Any) -> Any:
        return decode(item, handle)

    if tag in _DECODERS:
        return _DECODERS[tag](body, inner)
    return _of_parts(tag, body, inner) if tag in MODULES else handle(data)


def _hex(value: int) -> str:
    if value.bit_length() > MAX_INT_BITS:
        raise ValueError("an integer of more than %d bits" % MAX_INT_BITS)
    return hex(value)


def _items(value: Any, inner: Handle) -> Any:
    return [inner(item) for item in value]


def _pairs(value: Any, inner: Handle) -> Any:
    return [[inner(key), inner(item)] for key, item in value.items()]


def _dict(body: Any, inner: Handle) -> Any:
    return {inner(key): inner(item) for key, item in body}


def _parts(value: Any, inner: Handle) -> Any:
    """What makes an equal value of a type of LIBRARY."""
    name = type(value).__name__
    if name == "deque":
        return [_items(value, inner), value.maxlen]
    if name in ("Counter", "OrderedDict", "defaultdict"):
        return _pairs(value, inner)
    if name == "Fraction":
        return [_hex(value.numerator), _hex(value.denominator)]
    if name == "timedelta":
        return [value.days, value.seconds, value.microseconds]
    return str(value) if name == "Decimal" else value.isoformat()


def _of_parts(name: str, body: Any, inner: Handle) -> Any:
    kind = getattr(__import__(MODULES[name]), name)
    if name == "deque":
        return kind(_items(body[0], inner), body[1])
    if name in ("Counter", "OrderedDict"):
        return kind(_dict(body, inner))
    if name == "defaultdict":
        return kind(None, _dict(body, inner))
    if name == "Fraction":
        return kind(int(body[0], 16), int(body[1], 16))
    if name == "timedelta":
        return kind(*map(int, body))
    return kind(str(body)) if name == "Decimal" else kind.fromisoformat(body)


_ENCODERS = {
    tuple: _items,
    set: _items,
    frozenset: _items,
    dict: _pairs,
    bytes: lambda v, _: v.hex(),
    bytearray: lambda v, _: v.hex(),
    complex: lambda v, _: [repr(v.real), repr(v.imag)],
    range: lambda v, _: [v.start, v.stop, v.step],
    slice: lambda v, inner: _items((v.start, v.stop, v.step), inner),
    type(Ellipsis): lambda v, _: 0,
}
_DECODERS = {
    "int": lambda b, _: int(b, 16),
    "float": lambda b, _: float(b),
    "tuple": lambda b, inner: tuple(_items(b, inner)),
    "set": lambda b, inner: set(_items(b, inner)),
    "frozenset": lambda b, inner: frozenset(_items(b, inner)),
    "dict": _dict,
    "bytes": lambda b, _: bytes.fromhex(b),
    "bytearray": lambda b, _: bytearray.fromhex(b),
    "complex": lambda b, _: complex(float(b[0]), float(b[1])),
    "range": lambda b, _: range(*b),
    "slice": lambda b, inner: slice(*_items(b, inner)),
    "ellipsis": lambda b, _: Ellipsis,
    "type": lambda b, _: TYPES[b],
}
_BASES: tuple[Any, ...] = (int, float, complex, str, bytes, tuple, list, dict, set, frozenset)


class _Settings:
    """What the C half of `json` wants to know. Importing the rest of it takes longer than a small program's run."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = float


def _json_halves() -> Any:
    """(value -> text, text -> value)"""
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner  # noqa: PLC0415 - CPython's own

        encoder = make_encoder({}, None, encode_basestring_ascii, None, ": ", ", ", False, False, False)  # type: ignore[arg-type]
        scanner = make_scanner(_Settings)  # type: ignore[arg-type]
        "".join(encoder([{"a": 1.5}], 0))
        return lambda value: "".join(encoder(value, 0)), lambda text: scanner(text, 0)[0]
    except (ImportError, TypeError):
        import json  # noqa: PLC0415 - as above

        return json.dumps, json.loads


dumps, loads = _json_halves()


def write_frame(fd: int, data: bytes) -> None:
    if len(data) > MAX_FRAME:
        raise ValueError("a message of more than %d bytes" % MAX_FRAME)
    data = HEAD.pack(len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def read_frame(read: Callable[[int], bytes]) -> bytes:
    """The next message; `read(n)` gives exactly n bytes, or raises."""
    (size,) = HEAD.unpack(read(HEAD.size))
    if size > MAX_FRAME:
        raise ValueError("a message of more than %d bytes" % MAX_FRAME)
    return read(size)


def ask_text(message: Any) -> bytes:
    """What the trusted side says: the other may believe it, so it need not be read with care."""
    return marshal.dumps(message)


def read_ask(data: bytes) -> Any:
    return marshal.loads(data)


def told_text(message: Any) -> bytes:
    """What the candidate's side says. It is read as JSON, which cannot hold anything but data."""
    return dumps(message).encode("ascii")


def read_told(data: bytes) -> dict[str, Any]:
    """Raises ValueError where it is no JSON object."""
    try:
        message = loads(data.decode("ascii"))
    except StopIteration:
        raise ValueError("no JSON") from None
    if not isinstance(message, dict):
        raise ValueError("no JSON object")
    return message
