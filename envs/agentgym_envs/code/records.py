"""Records of public code benchmarks as tasks: HumanEval, MBPP (full and sanitised), CRUXEval, from files a user brings.

Owns the layouts, where their files are looked for, and what of a record is shown. How a plan is run is judging.py's."""

from __future__ import annotations

import ast
import gzip
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentgym import ConfigError, Task, TaskError, TaskSet, assistant, call

VARIABLE = "AGENTGYM_DATA"  # a folder that holds a folder per set
TEST_S = 3.0  # CPU seconds of one test; on the clock five times as many
TOTAL_S = 90.0  # of all tests of a program, on the clock
HAND_IN = "Hand the program in with `submit`. Hidden tests decide, and they run once."
Record = Mapping[str, Any]


def find(data: str | None, names: Sequence[str]) -> Path:
    """The file that `data` names, or one of `names` in that folder. Raises ConfigError saying where it looked."""
    given = data or os.environ.get(VARIABLE)
    if not given:
        raise ConfigError(f"no data: give data=PATH, a file or a folder that holds {names[0]}, or set {VARIABLE}")
    root = Path(given).expanduser()
    tried = [root, *(root / name for name in names), *(root / Path(name).name for name in names)]
    for path in tried:
        if path.is_file():
            return path
    raise ConfigError(f"no file {' or '.join(names)} in {root}; give data=PATH of the file itself")


def read(path: Path) -> Iterator[tuple[str, Record]]:
    """Where each record stands, and the record: JSON lines or one JSON array, also gzipped. Raises TaskError."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise TaskError(f"{path}: not JSON lines ({error})") from error
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


@lru_cache
def tasks(layout: str, path: str, stamp: float) -> TaskSet:
    """The task set of a file; `stamp` is when it was changed, so that one per content is kept. Raises TaskError."""
    splits: dict[str, list[Task]] = {}
    for place, record in read(Path(path)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the records' own programs are warned of
                split, task = LAYOUTS[layout].task(record)
        except (KeyError, TypeError, ValueError, SyntaxError, IndexError) as error:
            raise TaskError(f"{place}: no {layout} record ({type(error).__name__}: {error})") from error
        splits.setdefault(split, []).append(task)
    if not splits:
        raise TaskError(f"{path}: no records")
    return TaskSet(splits)


def load(layout: str, data: str | None) -> TaskSet:
    path = find(data, LAYOUTS[layout].names)
    return tasks(layout, str(path.resolve()), path.stat().st_mtime)


def plan(style: str, **more: Any) -> dict[str, Any]:
    """What a judge is told, but for the program; see judge/cases.py."""
    return {
        "style": style, "name": "solution", "prelude": "", "modules": {}, "remote": [], "trusted": "", "tests": "",
        "call": None, "test_s": TEST_S, "total_s": TOTAL_S, **more,
    }  # fmt: skip


def humaneval(record: Record) -> tuple[str, Task]:
    prompt, entry = record["prompt"], record["entry_point"]
    _require_asserts(record["test"])
    return "test", Task(
        prompt=f"Complete this program.\n\n```python\n{prompt.strip()}\n```\n\n{HAND_IN}",
        gold=_handed_in(prompt + record["canonical_solution"]),
        data=plan("asserts", prelude=prompt, trusted=prompt, remote=[entry], tests=record["test"], call="check"),
        metadata={"horizon": 1, "task_id": record["task_id"]},
    )


def mbpp(record: Record) -> tuple[str, Task]:
    code = _unix(record["code"])
    parts = [*record.get("test_imports", ()), record.get("test_setup_code") or "", *record["test_list"]]
    tests = _unix("\n".join(parts))
    _require_asserts(tests)
    asked, imports = _asked(code, tests)
    text = record.get("text") or record["prompt"]
    number = int(record["task_id"])
    return _mbpp_split(number), Task(
        prompt=f"{text.strip()}\n\nDefine {', '.join(f'`{line}`' for line in asked.values())}. {HAND_IN}",
        gold=_handed_in(code),
        data=plan("asserts", trusted=imports, remote=list(asked), tests=tests),
        metadata={"horizon": 1, "task_id": number},
    )


def cruxeval(record: Record) -> tuple[str, Task]:
    code = f"{_unix(record['code'])}\n\ndef _agentgym_output():\n    return f({record['input']})\n"
    return "test", Task(
        prompt=f"What does `f({record['input']})` return? Answer with a Python literal, nothing else.\n\n"
        f"```python\n{record['code'].strip()}\n```",
        answer=record["output"],
        gold=(assistant(record["output"]),),
        data=plan("output", source=code),
        metadata={"horizon": 1, "task_id": record["id"]},
    )


class Layout:
    """Where a benchmark's records are, and what makes a task of one."""

    def __init__(self, task: Callable[[Record], tuple[str, Task]], *names: str) -> None:
        self.task, self.names = task, names


LAYOUTS = {
    "humaneval": Layout(humaneval, "humaneval/humaneval.jsonl.gz", "humaneval/humaneval.jsonl", "HumanEval.jsonl.gz"),
    "mbpp": Layout(mbpp, "mbpp/mbpp.jsonl.gz", "mbpp/mbpp.jsonl"),
    "mbpp_sanitized": Layout(
        mbpp, "mbpp/sanitized.jsonl.gz", "mbpp/sanitized.jsonl", "mbpp/sanitized-mbpp.json"
    ),
    "cruxeval": Layout(cruxeval, "cruxeval/cruxeval.jsonl.gz", "cruxeval/cruxeval.jsonl"),
}  # fmt: skip


def _mbpp_split(number: int) -> str:
    """The authors' own: 1-10 for prompting, 11-510 test, 511-600 validation, the rest training."""
    ends = ((10, "demonstrations"), (510, "test"), (600, "validation"))
    return next((name for end, name in ends if number <= end), "train")


def _handed_in(code: str) -> tuple[Any, ...]:
    return (assistant("", call("submit", code=code)),)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _require_asserts(tests: str) -> None:
    if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(tests))):
        raise ValueError("the tests hold no assert statement")


def _asked(code: str, tests: str) -> tuple[dict[str, str], str]:
    """What the tests use of the reference: names that a program must define, with their first lines as the reference
    has them; and the reference's imports, of which tests use some without saying so."""
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    asked: dict[str, str] = {}
    imports = []
    for node in ast.parse(code).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(ast.unparse(node))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name in used:
            asked[node.name] = _first_line(node)
    if not asked:
        raise ValueError("the tests use nothing that the reference defines")
    return asked, "\n".join(imports)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if not isinstance(node, ast.ClassDef):
        return f"def {node.name}({ast.unparse(node.args)})"
    made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    return f"class {node.name}" + (f" with __init__({ast.unparse(made.args)})" if made else "")
