"""What both halves of learner_vs_trl.py's step need: texts of a given length, the peak of memory, and a line for the
parent. Imports nothing that either environment may lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def filled(length_of: Callable[[str], int], length: int) -> str:
    """So many words as make `length` ids: a word more is an id more."""
    text = "a" + " a" * (length - length_of("a"))
    if length_of(text) != length:
        raise SystemExit(f"{length} ids cannot be made of words: {length_of('a')} are there with one")
    return text


def peak_kib() -> int:
    """The most memory this process has held. Not `ru_maxrss`, which begins with that of whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def say(word: str, told: dict[str, Any]) -> None:
    print(word, json.dumps(told), flush=True)
