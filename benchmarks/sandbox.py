"""What sandboxes cost: commands, starts, floods, clean-up and forks, beside the plain way in the same run.

Beside our own: the Docker SDK's `exec_run` and `containers.run`, and SWE-ReX (from the package index, in an environment
of its own, its server installed in an image beforehand; --without-swerex leaves it out). Alternating measurements, so
that both sides meet the same machine. Prints a table per question and writes results/sandbox.json.

example: python benchmarks/sandbox.py --only command,start --count 100
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import gzip
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from sandbox_peers import SweRex

from agentgym.loop import event_loop, run_sync
from agentgym.policies.builtin import Gold
from agentgym.registry import make
from agentgym.rollout.driver import Driver, Slot
from agentgym.sandbox import MIB, Limits, Pool, Sandbox, Spec, backend

HUMANEVAL = "[Hh]uman[Ee]val.jsonl.gz"
NUM_EPISODES = 256
PLAIN = "SDK containers.run + exec_run"
PLAIN_SETTINGS: dict[str, dict[str, Any]] = {PLAIN: {}, "the same without a network": {"network_mode": "none"}}
RESULTS = Path(__file__).parent / "results" / "sandbox.json"
BACKENDS = ("docker", "bubblewrap")


def seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def row(what: str, samples: list[float], must: str = "", beside: float | None = None) -> dict[str, Any]:
    """One line of a table, in milliseconds; `beside` is the median that it is compared with."""
    samples = sorted(samples)
    median, p95 = statistics.median(samples), samples[min(len(samples) - 1, int(0.95 * len(samples)))]
    return {
        "what": what, "median_ms": 1e3 * median, "p95_ms": 1e3 * p95, "n": len(samples), "must": must,
        "ratio": None if beside is None else beside / median,
    }  # fmt: skip


def commands(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A command in a warm sandbox, one after the other; the ways take turns, ten commands each."""
    docker = backend("docker")
    sandboxes = {name: Sandbox(backend(name)) for name in BACKENDS}
    client = docker.client  # type: ignore[attr-defined]
    plain = client.containers.run(docker.default_image(), ["sleep", "600"], detach=True, network_mode="none")  # type: ignore[attr-defined]
    rex = None if options.without_swerex else SweRex(docker)

    def each(act: Callable[[], Any]) -> Callable[[int], list[float]]:
        return lambda count: [seconds(act) for _ in range(count)]

    ways: dict[str, Callable[[int], list[float]]] = {
        f"agentgym {name}": each(lambda s=s: s.sync.exec(["/bin/true"])) for name, s in sandboxes.items()
    }
    ways["SDK exec_run"] = each(lambda: plain.exec_run(["/bin/true"]))
    samples: dict[str, list[float]] = {}
    try:
        if rex is not None:
            rex.start()
            ways |= {f"SWE-ReX {way}": lambda count, way=way: rex.take(way, count) for way in ("execute", "session")}
        for act in ways.values():
            act(3)
        for _ in range(max(1, options.count // 10)):
            for name, act in ways.items():
                samples.setdefault(name, []).extend(act(10))
    finally:
        plain.remove(force=True)
        for sandbox in sandboxes.values():
            sandbox.sync.close()
        if rex is not None:
            rex.close()
    sdk = statistics.median(samples["SDK exec_run"])
    must = {"agentgym docker": "<= 2.5 ms, >= 20x the SDK, ahead of SWE-ReX", "agentgym bubblewrap": "<= 2.5 ms"}
    return [row(name, taken, must.get(name, ""), sdk) for name, taken in samples.items()]


def starts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """From nothing to the first command's end; and the same from a warm pool."""
    docker = backend("docker")
    client, image = docker.client, docker.default_image()  # type: ignore[attr-defined]
    cold: dict[str, list[float]] = {name: [] for name in BACKENDS}
    bare: list[float] = []
    for _ in range(max(5, options.count // 5)):
        for name in BACKENDS:
            sandbox = Sandbox(backend(name))
            cold[name].append(seconds(lambda s=sandbox: s.sync.exec(["/bin/true"])))
            sandbox.sync.close()
        made: list[Any] = []

        def plain(made: list[Any] = made) -> None:
            made.append(client.containers.create(image, ["sleep", "600"], network_mode="none"))
            made[0].start()

        bare.append(seconds(plain))
        made[0].remove(force=True)
    rows = [row("SDK create + start, no command", bare)]
    base = statistics.median(bare)
    rows.append(row("agentgym docker, cold, with a command", cold["docker"], "<= 1.15x the SDK's", base))
    rows.append(row("agentgym bubblewrap, cold, with a command", cold["bubblewrap"], "<= 60 ms", base))
    for name in BACKENDS:
        with Pool(backend(name), warm=4) as pool:
            taken = []
            for _ in range(20):
                run_sync(pool.fill())
                sandbox = Sandbox(pool)
                taken.append(seconds(sandbox.sync.start))
                sandbox.sync.close()
        rows.append(row(f"agentgym {name}, from a warm pool", taken, "<= 10 ms"))
    return rows


def floods(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A gigabyte of output, and a gigabyte of file, of one command: what the caller's memory grows by."""
    rows = []
    for name in BACKENDS:
        limits = Limits(memory_bytes=4 << 30, disk_bytes=1200 * MIB, file_bytes=1100 * MIB)
        sandbox = Sandbox(backend(name), Spec(limits=limits))
        sandbox.sync.exec(["true"])
        for what, command in {
            "1 GB to standard output": "head -c 1000000000 /dev/zero",
            "1 GB to a file": "head -c 1000000000 /dev/zero > big; stat -c %s big",
        }.items():
            before, peak = psutil.Process().memory_info().rss, 0
            started = time.perf_counter()
            task = asyncio.run_coroutine_threadsafe(sandbox.exec(command, timeout_s=120), event_loop())
            while not task.done():
                peak = max(peak, psutil.Process().memory_info().rss)
                time.sleep(0.005)
            done = task.result()
            rows.append({
                "what": f"{name}: {what}", "seconds": time.perf_counter() - started, "grown_mib": (peak - before) / MIB,
                "truncated": done.truncated, "bytes": done.stdout_bytes, "exit_code": done.exit_code,
                "must": "< 50 MiB, flag exact",
            })  # fmt: skip
        sandbox.sync.close()
    return rows


HOLDER = """
import sys, time
from agentgym.sandbox import Limits, Sandbox, Spec, backend
sandboxes = [Sandbox(backend(sys.argv[1]), Spec(limits=Limits(memory_bytes=64 << 20))) for _ in range(16)]
for s in sandboxes: s.sync.start()
import asyncio
from agentgym.loop import event_loop
for s in sandboxes: asyncio.run_coroutine_threadsafe(s.exec("sleep 600", timeout_s=600), event_loop())
print("up", flush=True)
time.sleep(600)
"""


def killed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """kill -9 of the driver in the middle of sixteen busy sandboxes; then `reap`."""
    rows = []
    for name in BACKENDS:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, name], stdout=subprocess.PIPE)
        assert holder.stdout is not None  # noqa: S101
        if holder.stdout.readline() != b"up\n":
            raise RuntimeError("the sixteen sandboxes did not come up, see above")
        started = time.perf_counter()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        made = backend(name)
        while True:
            made.reap()
            left = [found for found in made.listed() if f":{holder.pid}:" in found.owner]
            if not left or time.perf_counter() - started > 30:
                break
            time.sleep(0.05)
        rows.append({"what": f"{name}: 16 sandboxes", "left": len(left), "seconds": time.perf_counter() - started,
                     "must": "0 left, <= 10 s"})  # fmt: skip
    return rows


def forks(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A copy of a sandbox with 10 MB in 1,000 files, continued twice."""
    rows = []
    for name in BACKENDS:
        sandbox = Sandbox(backend(name))
        sandbox.sync.upload({f"d{i % 10}/f{i}": os.urandom(10_000) for i in range(1000)})
        snapshots, restores, equal = [], [], True
        for _ in range(max(3, options.count // 20)):
            copies: list[Sandbox] = []
            snapshots.append(seconds(lambda c=copies, s=sandbox: c.append(copy.deepcopy(s))))
            copies.append(sandbox.fresh(snapshot=copies[0]._snapshot))
            restores += [seconds(c.sync.start) for c in copies]
            first, second = (c.sync.download(".") for c in copies)
            equal &= first == second == sandbox.sync.download(".")
            copies[0].sync.write("d0/f0", b"changed")
            equal &= copies[1].sync.read("d0/f0") == first["d0/f0"] == sandbox.sync.read("d0/f0")
            for made in copies:
                made.sync.close()
        sandbox.sync.close()
        rows += [row(f"{name}: snapshot", snapshots), row(f"{name}: restore, start included", restores)]
        rows[-1]["must"] = "equal, independent: " + ("yes" if equal else "NO")
    return rows


def episodes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """HumanEval's gold programs judged, each in a fresh sandbox, eight in flight; the ways take turns."""
    if options.data is None:
        print("  left out: it needs --data, or AGENTGYM_DATA")
        return []
    records = [
        json.loads(line) for line in gzip.decompress(next(options.data.rglob(HUMANEVAL)).read_bytes()).splitlines()
    ]
    client = backend("docker").client  # type: ignore[attr-defined]
    image = backend("docker").default_image()  # type: ignore[attr-defined]
    kwargs = {"layout": "humaneval", "data": str(options.data)}
    drivers = {
        f"agentgym {name}": Driver(
            "agentgym/Code-v0", Gold(), run="speed", env_kwargs={**kwargs, "sandbox": name}, concurrency=8
        )
        for name in BACKENDS
    }
    tasks = make("agentgym/Code-v0", **kwargs).unwrapped.tasks.split("test")

    def ours(driver: Driver) -> Callable[[list[int]], int]:
        def judge(chosen: list[int]) -> int:
            slots = [Slot(tasks.id(i % len(records)), attempt=i // len(records), group=i, seed=0) for i in chosen]
            return sum(episode.success for episode in run_sync(driver.collect(slots)))

        return judge

    def one(index: int, settings: dict[str, Any]) -> bool:
        record = records[index % len(records)]
        program = (
            f"{record['prompt']}{record['canonical_solution']}\n{record['test']}\ncheck({record['entry_point']})\n"
        )
        container = client.containers.run(image, ["sleep", "600"], detach=True, **settings)
        try:
            return container.exec_run(["python3", "-c", program]).exit_code == 0
        finally:
            container.remove(force=True)

    ways = {name: ours(driver) for name, driver in drivers.items()}
    taken, solved = Counter[str](), Counter[str]()
    with ThreadPoolExecutor(8) as threads:
        for name, settings in PLAIN_SETTINGS.items():
            ways[name] = lambda chosen, settings=settings: sum(threads.map(lambda i: one(i, settings), chosen))
        for first in range(0, NUM_EPISODES, 64):
            for name, judge in ways.items():
                started = time.perf_counter()
                solved[name] += judge(list(range(first, first + 64)))
                taken[name] += time.perf_counter() - started
    for driver in drivers.values():
        driver.close()
    must = {"agentgym docker": ">= 1.3x", "agentgym bubblewrap": ">= 5x"}
    return [
        {"what": name, "tasks_per_minute": 60 * NUM_EPISODES / taken[name], "solved": f"{solved[name]}/{NUM_EPISODES}",
         "times_plain": taken[PLAIN] / taken[name], "must": must.get(name, "")}
        for name in ways
    ]  # fmt: skip


QUESTIONS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "command": commands, "start": starts, "episodes": episodes, "flood": floods, "killed": killed, "fork": forks,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"with commas: {', '.join(QUESTIONS)}")
    parser.add_argument("--count", type=int, default=100, help="commands per way")
    parser.add_argument("--without-swerex", action="store_true", help="do not install and measure the peer")
    data = os.environ.get("AGENTGYM_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="holds HumanEval's file, for `episodes`")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name] or list(QUESTIONS)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and options.only else {}
    for name in chosen:
        print(f"\n{name}: {QUESTIONS[name].__doc__}")
        found[name] = QUESTIONS[name](options)
        for made in found[name]:
            print("  " + told(made))
    found["machine"] = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {RESULTS}")


def told(made: dict[str, Any]) -> str:
    if "median_ms" in made:
        ratio = "" if made["ratio"] is None else f"{made['ratio']:7.2f}x"
        cells = f"{made['median_ms']:9.2f} ms{made['p95_ms']:9.2f} p95 {made['n']:5d} {ratio:>9}"
    else:
        values = {key: value for key, value in made.items() if key not in ("what", "must")}
        cells = "  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return f"{made['what']:44}{cells}  {made['must']}"


if __name__ == "__main__":
    main()
