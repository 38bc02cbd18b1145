"""Acceptance runs on real benchmark data: the library's own environments, verifiers and sandboxes do the work.

One function per run, in acceptance_runs/; each counts whatever records lie under --data and judges properties only.

example: python benchmarks/acceptance.py --data ../shared/data --only 5,6,7 --workers 8 --backend bubblewrap
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import acceptance_runs
from acceptance_runs.base import RUNS, Row, Setup, row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets, each in its own folder")
    parser.add_argument("--only", default="", help="numbers of runs, with commas; all without it")
    parser.add_argument("--workers", type=int, default=8, help="episodes in flight")
    parser.add_argument("--backend", default="docker", help="sandboxes: docker or bubblewrap")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder")
    for module in pkgutil.iter_modules(acceptance_runs.__path__):
        importlib.import_module(f"acceptance_runs.{module.name}")
    chosen = [int(no) for no in args.only.split(",") if no.strip()] or sorted(RUNS)
    for no in chosen:
        if no not in RUNS:
            parser.error(f"--only {no}: there are runs {', '.join(map(str, sorted(RUNS)))}")
    setup = Setup(args.data.resolve(), args.workers, args.backend)
    print(_line("no", "run", "records", "skipped", "seconds", "", "expected | observed"))
    rows = []
    for no in chosen:
        rows.append(row(no, setup))
        print(_told(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"runs": [made.as_json() for made in rows]}, indent=1) + "\n")
    return 0 if all(made.passed for made in rows) else 1


def _line(*cells: object) -> str:
    no, name, records, skipped, seconds, passed, rest = map(str, cells)
    return f"{no:>3} {name:<22}{records:>8}{skipped:>9}{seconds:>9}  {passed:<7}{rest}"


def _told(made: Row) -> str:
    lines = [
        _line(made.no, made.name, made.records, sum(made.skipped.values()), f"{made.seconds:.1f}",
              "passed" if made.passed else "FAILED", f"expected {made.expected}")
    ]  # fmt: skip
    lines += [f"{'':60}observed {made.observed}"]
    lines += [f"{'':60}skipped {count}: {reason}" for reason, count in made.skipped.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
