"""What an evaluation costs beside the model: ours and two peers' against a server that answers at once.

256 episodes of four turns with tool calls, 64 in flight: CPU of the client per episode (that of N episodes less that
of one, ledger and store included) and start-up (one episode). Then 500 episodes at once against a server whose delays
are lognormal (median 0.2 s, 99th percentile 3 s): wall clock from the first request to the last, over the ideal, which
is the largest sum of one episode's delays. The server is a process of its own; rounds alternate between the clients.

example: python benchmarks/eval_overhead.py --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Any

from eval_overhead_peers import CLIENTS, Client

RESULTS = Path(__file__).parent / "results" / "eval_overhead.json"
TURNS = 4
MEDIAN_S, P99_S = 0.2, 3.0
AIM_CPU_MS, AIM_START_S, AIM_RATIO = 3.0, 1.5, 1.05


def delay_s(prompt: str, turn: int) -> float:
    """The same for every client: drawn by the task's prompt and the turn."""
    drawn = int.from_bytes(hashlib.sha256(f"{prompt}/{turn}".encode()).digest()[:8], "little") / 2**64
    sigma = math.log(P99_S / MEDIAN_S) / NormalDist().inv_cdf(0.99)
    return MEDIAN_S * math.exp(sigma * NormalDist().inv_cdf(min(max(drawn, 1e-12), 1 - 1e-12)))


def serve(port: int, delayed: bool) -> None:
    """A chat server: three tool calls, then an answer. GET /span says when it was first and last busy, and forgets."""
    from aiohttp import web  # noqa: PLC0415  for the server's process only

    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"n": 1}'}}
    span: dict[str, Any] = {"first": None, "last": None, "requests": 0, "busy": 0, "most": 0}
    fresh = dict(span)

    async def chat(request: web.Request) -> web.Response:
        span["first"] = span["first"] or time.monotonic()
        span["requests"] += 1
        span["busy"] += 1
        span["most"] = max(span["most"], span["busy"])
        messages = (await request.json())["messages"]
        turn = sum(message["role"] == "assistant" for message in messages)
        if delayed:
            prompt = next(m["content"] for m in messages if m["role"] == "user")
            await asyncio.sleep(delay_s(prompt if isinstance(prompt, str) else prompt[0]["text"], turn))
        said: dict[str, Any] = {"role": "assistant", "content": "done" if turn == TURNS - 1 else None}
        if turn < TURNS - 1:
            said["tool_calls"] = [call | {"id": f"c{turn}"}]
        choice = {"index": 0, "message": said, "finish_reason": "stop" if turn == TURNS - 1 else "tool_calls"}
        span["last"], span["busy"] = time.monotonic(), span["busy"] - 1
        return web.json_response({
            "id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        })  # fmt: skip

    async def told(_: web.Request) -> web.Response:
        answer = web.json_response(span)
        span.update(fresh)
        return answer

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/span", told)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: None)


def run(client: Client, port: int, n: int, at_once: int, folder: Path) -> dict[str, float]:
    """One run of a client in a process of its own. Raises RuntimeError with what it said where it fails."""
    environment = os.environ | {
        "PYTHONPATH": str(folder), "STUB_BASE_URL": f"http://127.0.0.1:{port}/v1", "STUB_API_KEY": "x",
        "OPENAI_API_KEY": "x", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    out = tempfile.mkdtemp(dir=folder)
    command = client.arguments(url=f"{url}/v1", n=n, at_once=at_once, out=f"{out}/run")
    urllib.request.urlopen(f"{url}/span").read()
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None  # noqa: S101 - a pipe
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    span = json.loads(urllib.request.urlopen(f"{url}/span").read())
    if process.returncode or span["requests"] != n * TURNS:
        raise RuntimeError(
            f"{client.name}: exit {process.returncode}, {span['requests']} requests, not {n * TURNS}: {said[-2000:]}"
        )
    return {
        "cpu_s": used.ru_utime + used.ru_stime, "wall_s": wall_s, "span_s": span["last"] - span["first"],
        "most_in_flight": span["most"], "rss_mib": used.ru_maxrss / 1024,
    }  # fmt: skip


def started(delayed: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A server in its own process, and its port."""
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(port), *(["--delayed"] if delayed else [])])
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/span").read()
            return process, port
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise RuntimeError("the stub server does not start")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def overhead(clients: list[Client], port: int, rounds: int, episodes: int, folder: Path) -> dict[str, Any]:
    """CPU per episode, start-up and memory of each client."""
    found: dict[str, dict[str, list[float]]] = {
        client.name: {"cpu_ms_per_episode": [], "start_s": [], "span_s": [], "rss_mib": []} for client in clients
    }
    for number in range(rounds + 1):  # the first round warms up
        for client in clients:
            one, many = run(client, port, 1, 64, folder), run(client, port, episodes, 64, folder)
            if number:
                row = found[client.name]
                row["cpu_ms_per_episode"].append(1e3 * (many["cpu_s"] - one["cpu_s"]) / (episodes - 1))
                row["start_s"].append(one["wall_s"])
                row["span_s"].append(many["span_s"])
                row["rss_mib"].append(many["rss_mib"])
    return {name: {what: spread(values) for what, values in row.items()} for name, row in found.items()}


def concurrent(clients: list[Client], port: int, rounds: int, episodes: int, folder: Path) -> dict[str, Any]:
    """Wall clock over the ideal with every episode in flight."""
    ideal_s = max(sum(delay_s(f"Add up {i}.", turn) for turn in range(TURNS)) for i in range(episodes))
    found: dict[str, dict[str, list[float]]] = {c.name: {"ratio": [], "cpu_s": [], "in_flight": []} for c in clients}
    for _ in range(rounds):
        for client in clients:
            took = run(client, port, episodes, episodes, folder)
            found[client.name]["ratio"].append(took["span_s"] / ideal_s)
            found[client.name]["cpu_s"].append(took["cpu_s"])
            found[client.name]["in_flight"].append(took["most_in_flight"])
    rows = {name: {what: spread(values) for what, values in row.items()} for name, row in found.items()}
    return {"ideal_s": ideal_s, "clients": rows}


def table(found: dict[str, Any]) -> str:
    lines = [f"{'client':<30}{'CPU ms/episode':>24}{'start-up s':>12}{'MiB':>6}{'500 at once / ideal':>24}"]
    for name, row in found["overhead"].items():
        cpu, late = row["cpu_ms_per_episode"], found["concurrent"]["clients"].get(name, {}).get("ratio")
        shown = f"{cpu['median']:.2f} [{cpu['low']:.2f}, {cpu['high']:.2f}]"
        ratio = f"{late['median']:.3f} [{late['low']:.3f}, {late['high']:.3f}]" if late else "–"
        lines.append(
            f"{name:<30}{shown:>24}{row['start_s']['median']:>12.2f}{row['rss_mib']['median']:>6.0f}{ratio:>24}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--late-rounds", type=int, default=3, help="of the 500 at once")
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--only", nargs="*", default=[], help="clients whose names begin so")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--delayed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.delayed)
        return 0
    clients = [client for client in CLIENTS if not args.only or client.name.startswith(tuple(args.only))]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for client in clients:
            client.install()
            (folder / client.module).write_text(client.code)
        found: dict[str, Any] = {}
        for what, measure, rounds, count in (
            ("overhead", overhead, args.rounds, args.episodes), ("concurrent", concurrent, args.late_rounds, 500),
        ):  # fmt: skip
            server, port = started(delayed=what == "concurrent")
            try:
                found[what] = measure(clients, port, rounds, count, folder) if rounds else {"clients": {}}
            finally:
                server.terminate()
                server.wait()
    print(table(found))
    ours = found["overhead"].get("agentgym eval")
    kept = True
    if ours:
        late = found["concurrent"]["clients"].get("agentgym eval", {}).get("ratio", {"median": 0.0})
        kept = (
            ours["cpu_ms_per_episode"]["median"] <= AIM_CPU_MS and ours["start_s"]["median"] < AIM_START_S
            and late["median"] <= AIM_RATIO
        )  # fmt: skip
        print(f"aims (<= {AIM_CPU_MS} ms, < {AIM_START_S} s, <= {AIM_RATIO}): {'kept' if kept else 'missed'}")
    about = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "python": platform.python_version()}
    packages = {name: version(name) for name in ("agentgym", "httpx", "aiohttp")}
    RESULTS.write_text(json.dumps({**found, **about, "packages": packages, "turns": TURNS}, indent=1) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
