"""The main job over several seeds: does it learn in every one, and how far does the skill carry?

Runs `agentgym train ENV` once per seed with the environment's own settings, on held-out tasks from position
--eval-start of the test split on, and prints a row per seed. Every seed that was started is in the table.

example: python benchmarks/seeds.py agentgym/Lookup-v0 --seeds 10 11 12 13 14 --eval-start 50000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def run(env: str, seed: int, folder: Path, more: list[str]) -> dict[str, Any]:
    """One seed's summary; a folder that is there already is gone on with."""
    command = [sys.executable, "-m", "agentgym.cli", "train", env, "--output", str(folder)]
    resume = (folder / "config.toml").exists()
    command += ["--resume"] if resume else ["--seed", str(seed), *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "summary.json").read_text())


def row(s: dict[str, Any]) -> str:
    worst = min((p for p in s["by_horizon"] if p["trained"]), key=lambda p: p["after"]["rate"])
    h50, control = s["h50_after"], s["control"]
    cells = [
        f"{s['seed']:>4}",
        f"{100 * s['success_before']:5.1f} -> {100 * s['success_after']:5.1f} [{100 * s['ci_after'][0]:.1f}, "
        f"{100 * s['ci_after'][1]:.1f}]",
        f"{100 * s['greedy_before']:5.1f} -> {100 * s['greedy_after']:5.1f}",
        f"{100 * worst['after']['rate']:5.1f} (h {worst['horizon']})",
        f"{s['h50_before']['value']:.1f} -> {'>= ' if h50['at_least'] else ''}{h50['value']:.1f} "
        f"[{h50['low']:.1f}, {h50['high']:.1f}]",
        f"{100 * s['demonstrator']['rate']:.1f}",
        "-" if control is None else f"{100 * control['rate']:.1f} / {100 * control['greedy']['rate']:.1f}",
        f"{s['seconds_warm_start']:.0f} + {s['seconds_train']:.0f} / {s['seconds_total']:.0f}",
    ]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--eval-start", type=int, default=0, help="position of the first held-out task")
    parser.add_argument("--name", help="of the results file and the runs; the environment's without it")
    args, more = parser.parse_known_args()
    name = args.name or args.env.rpartition("/")[2]
    print(
        "seed | sampled, trained range, % | greedy | worst trained horizon | 50 % horizon | demonstrator | "
        "control sampled / greedy | s: warm start + RL / all"
    )
    summaries = []
    for seed in args.seeds:
        more_args = ["--eval-start", str(args.eval_start), *more]
        summaries.append(run(args.env, seed, Path("runs") / f"seeds-{name}" / str(seed), more_args))
        print(row(summaries[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"seeds-{name}.json"
    path.write_text(json.dumps({"settings": vars(args) | {"more": more}, "runs": summaries}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
