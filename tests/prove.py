"""`make prove`: the equalities on which the learner rests, and the table trap -> tests -> result.

A plug-in for pytest: `pytest -p prove` with this folder on the path keeps the tests of test_exact.py, those named
`test_trap_<N>_…` outside tests/envs and tests/acceptance, and prints what became of each trap."""

from __future__ import annotations

import re
from collections import Counter

import pytest

TRAPS = {
    1: "re-tokenisation drift", 2: "a template rewrites history", 3: "the suffix behind the end of turn",
    4: "a prefix checked by length", 5: "a tool's result encoded alone", 6: "wrong ids from a server that streams",
    7: "end-of-turn tokens and padding", 8: "the order of parallel results", 9: "off by one: logits, labels, mask",
    10: "observed tokens get a gradient", 11: "the loss mask used for attention", 12: "a mask not extended on resume",
    13: "two masks that disagree", 14: "masked log-probs poison the loss", 15: "NaN taken for on-policy",
    16: "the wrong entry of a server's log-probs", 17: "limits shared by requests", 18: "temperature forgotten",
    19: "truncated support", 20: "a stale prefix cache", 21: "one version for a mixed trajectory",
    22: "CUDA graphs replayed with stale buffers", 23: "updates lost in low precision", 24: "a head in low precision",
    25: "a sequence ratio that explodes", 26: "a ratio to oneself", 27: "equal seeds, equal rollouts",
    28: "generation changes the model's mode", 29: "groups: length, std, one member", 30: "turns vote more than once",
    31: "forked rows train twice", 32: "normalised per part or rank", 33: "packed rows leak", 34: "trees at forks",
    35: "what a KL estimate's gradient is", 36: "weights, dual clip, sign table", 37: "scopes that change with rows",
    38: "GAE across observations", 39: "a head in chunks", 40: "our failures counted as zero",
    41: "survivors preferred", 42: "synchronous differs from asynchronous", 43: "what a stop reason earns",
    44: "filters and denominators", 45: "retries in a group", 46: "staleness after a resume",
    47: "state missing from a resume", 48: "state left by an episode", 49: "verifiers in the agent's reach",
    50: "outputs that ignore the input", 51: "FLOPs that cannot be compared",
}  # fmt: skip
NOT_HERE = {
    6: "engines behind a server are not part of the product yet",
    16: "engines behind a server are not part of the product yet",
    22: "the engine replays no CUDA graphs",
    38: "there is no critic yet, so nothing is bootstrapped",
    49: "in make test: the attacks of tests/envs and tests/sandboxes",
}
NEEDS_GPU = (
    "backward pass of packed rows through torch's variable-length kernel",
    "backward pass of trees through FlexAttention",
)
NAME = re.compile(r"test_trap_(\d+)_")
ELSEWHERE = ("tests/envs/", "tests/acceptance/")
found: dict[int, Counter[str]] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def proves(item: pytest.Item) -> bool:
        if item.nodeid.startswith(ELSEWHERE):
            return item.name.startswith("test_trap_48")
        return "test_exact.py" in item.nodeid or NAME.match(item.name) is not None

    dropped = [item for item in items if not proves(item)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if proves(item)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    trap = NAME.search(report.location[2])
    if trap and (report.when == "call" or not report.passed):
        found.setdefault(int(trap[1]), Counter())[report.outcome] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    say = terminalreporter.write_line
    say("")
    say("trap                                             tests   result")
    for number, name in TRAPS.items():
        counts = found.get(number)
        if counts is None:
            result = f"not run here: {NOT_HERE.get(number, 'NO TEST')}"
        else:
            result = "proven" if set(counts) == {"passed"} else ", ".join(f"{n} {what}" for what, n in counts.items())
        say(f"{number:>3}  {name:<42} {sum((counts or {}).values()):>6}   {result}")
    for name in NEEDS_GPU:
        say(f"     not run here: {name}; benchmarks/gpu.py --tables T0 proves it on a GPU")
