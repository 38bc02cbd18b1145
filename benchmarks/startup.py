"""What a fresh process costs: `import agentgym` beside `import gymnasium`, and `agentgym --help`.

The commands of one round alternate, so that a busy machine slows all of them alike; medians over the rounds.

example: python benchmarks/startup.py --rounds 11
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

RESULTS = Path(__file__).parent / "results" / "startup.json"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import gymnasium": [sys.executable, "-c", "import gymnasium"],
    "import agentgym": [sys.executable, "-c", "import agentgym"],
    "agentgym --help": [str(Path(sys.executable).with_name("agentgym")), "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(args.rounds + 1):  # the first round warms the file cache
        for name, command in COMMANDS.items():
            began = perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if number:
                seconds[name].append(perf_counter() - began)
    print(f"{'fresh process':<20}{'s (median)':>12}{'min':>9}{'max':>9}")
    for name, values in seconds.items():
        print(f"{name:<20}{statistics.median(values):>12.3f}{min(values):>9.3f}{max(values):>9.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"python": platform.python_version(), "seconds": seconds}, indent=1) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
