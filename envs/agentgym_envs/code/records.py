"""Records of public code benchmarks as tasks: HumanEval, MBPP (full and sanitised), CRUXEval, from files a user brings.

Owns the layouts and what of a record is shown. How a plan is run is judging.py's."""

from __future__ import annotations

import ast
from typing import Any

from agentgym import Task, assistant, call
from agentgym_envs.files import Layout, Record

TEST_S = 3.0  # CPU seconds of one test; on the clock five times as many
TOTAL_S = 90.0  # of all tests of a program, on the clock
HAND_IN = "Hand the program in with `submit`. Hidden tests decide, and they run once."


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


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "humaneval", humaneval, "humaneval/humaneval.jsonl.gz", "humaneval/humaneval.jsonl", "HumanEval.jsonl.gz"
        ),
        Layout("mbpp", mbpp, "mbpp/mbpp.jsonl.gz", "mbpp/mbpp.jsonl"),
        Layout("mbpp_sanitized", mbpp, "mbpp/sanitized.jsonl.gz", "mbpp/sanitized.jsonl", "mbpp/sanitized-mbpp.json"),
        Layout("cruxeval", cruxeval, "cruxeval/cruxeval.jsonl.gz", "cruxeval/cruxeval.jsonl"),
    )
}


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
