"""The wire's format: frames of two big-endian 32-bit numbers (request id, length) and a bencoded dictionary.

Python >= 3.8, standard library only: it runs at both ends, and one of them is inside a sandbox."""

import struct

HEAD = struct.Struct("!II")
MAX_FRAME = 16 << 20


def encode(value):
    """Bencode: integers, bytes (text as UTF-8, lone surrogates as the bytes they stand for), lists, dictionaries."""
    if isinstance(value, bool) or value is None:
        value = int(bool(value))
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, (bytes, bytearray)):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, dict):
        return b"d" + b"".join(encode(key) + encode(value[key]) for key in value) + b"e"
    return b"l" + b"".join(map(encode, value)) + b"e"


def decode(data, at=0):
    """The value that begins at `at`, and where it ends. Raises ValueError or IndexError for anything else."""
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        items, at = [], at + 1
        while data[at] != 101:
            item, at = decode(data, at)
            items.append(item)
        return (items if kind == b"l" else {k.decode(): v for k, v in zip(items[::2], items[1::2])}), at + 1
    colon = data.index(b":", at)
    end = colon + 1 + int(data[at:colon])
    if end > len(data):
        raise ValueError("cut")
    return bytes(data[colon + 1 : end]), end
