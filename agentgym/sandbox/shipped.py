"""Python modules that are sent into a sandbox, where nothing of agentgym is.

Owns their form on the way: each as its text and as the code that this Python made of it, since compiling takes as long
as a small command. The interpreter inside runs the code where it is of the same version, else the text."""

from __future__ import annotations

import marshal
from functools import cache
from importlib.resources import files
from importlib.util import MAGIC_NUMBER
from typing import Any

Shipped = list[tuple[str, str, bytes, bytes]]  # name, text, code, the number of the Pythons that can read the code
VERSION = 2  # of marshal: every Python reads it
# Makes modules of `S`, a Shipped, in a program that has imported marshal and sys.
LOADER = """v=sys.modules['_frozen_importlib_external'].MAGIC_NUMBER
for n,s,c,w in S:
 m=sys.modules[n]=type(sys)(n)
 exec(marshal.loads(c) if v==w else compile(s,n,'exec'),m.__dict__)
"""


@cache
def shipped(package: str, names: tuple[str, ...]) -> Shipped:
    """Modules of a package in the order in which they can be run, the packages above them as empty ones."""
    parts = package.split(".")
    texts = {".".join(parts[:count]): "" for count in range(1, len(parts) + 1)}
    texts |= {f"{package}.{name}": (files(package) / f"{name}.py").read_text("utf-8") for name in names}
    return [(name, text, marshal.dumps(compile(text, name, "exec")), MAGIC_NUMBER) for name, text in texts.items()]


def packed(value: Any) -> bytes:
    """Plain data as bytes that `marshal.loads` of any Python reads."""
    return marshal.dumps(value, VERSION)
