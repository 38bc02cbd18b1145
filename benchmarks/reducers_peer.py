"""Are pass@k, pass^k and clustered errors those of inspect_ai? Its reducers run in an environment of their own.

Prints the largest difference over drawn outcomes. example: python benchmarks/reducers_peer.py
"""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
from env_step_peers import Peer, python_of

from agentgym.evaluation.intervals import mean_interval, quantile
from agentgym.evaluation.passes import passes

INSPECT = Peer("inspect_ai", "", "inspect", ("inspect-ai==0.3.285",))
PROGRAM = """
import json, sys
from inspect_ai.scorer import SampleScore, Score, pass_at, pass_k, stderr

drawn = json.load(sys.stdin)
means = {}
for name, reducer in (("pass@k", pass_at), ("pass^k", pass_k)):
    for k in range(1, len(drawn[0]) + 1):
        reduced = [reducer(k)([Score(value=float(won)) for won in task]).as_float() for task in drawn]
        means[f"{name} {k}"] = sum(reduced) / len(reduced)
scores = [SampleScore(score=Score(value=float(won)), sample_id=f"{task}-{k}", sample_metadata={"task": task})
          for task, attempts in enumerate(drawn) for k, won in enumerate(attempts)]
means["clustered error"] = stderr(cluster="task")(scores)
print(json.dumps(means))
"""


def ours(drawn: list[list[bool]]) -> dict[str, float]:
    outcomes = {str(task): attempts for task, attempts in enumerate(drawn)}
    found = {f"pass@k {each.k}": each.at_least_one.mean for each in passes(outcomes)}
    found |= {f"pass^k {each.k}": each.all.mean for each in passes(outcomes)}
    interval = mean_interval(outcomes)
    found["clustered error"] = (interval.high - interval.mean) / quantile(0.95, len(drawn) - 1)
    return found


def main() -> int:
    rng = np.random.default_rng(0)
    worst: dict[str, float] = {}
    for tasks, attempts in ((40, 8), (7, 3), (200, 5)):
        drawn = (rng.random((tasks, attempts)) < rng.random((tasks, 1))).tolist()
        told = subprocess.run(
            [python_of(INSPECT), "-c", PROGRAM], input=json.dumps(drawn), capture_output=True, text=True, check=True
        )
        theirs, own = json.loads(told.stdout), ours(drawn)
        for name in theirs:
            worst[name.split()[0]] = max(worst.get(name.split()[0], 0.0), abs(own[name] - theirs[name]))
            if not math.isclose(own[name], theirs[name], rel_tol=0, abs_tol=1e-9):
                print(
                    f"{tasks} tasks x {attempts} attempts, {name}: agentgym {own[name]!r}, inspect_ai {theirs[name]!r}"
                )
    print(", ".join(f"{name} {value:.1e}" for name, value in worst.items()), "apart at most")
    return 0 if max(worst.values()) < 1e-9 else 1


if __name__ == "__main__":
    sys.exit(main())
