"""Do published claims about credit, stale data, faults and curricula hold here? Tiny models, several seeds, intervals.

Each section is a few dozen ordinary runs of `agentgym train` from one warm-started model per seed, and a list of claims
with a verdict: shown or refuted where the 95 % interval over seeds (Student's t) of the difference lies on one side of
zero, undecided where it does not. Whatever comes out is written down. The same command goes on where it was stopped.

credit      credit x objective x horizon; turn-level credit against outcome at the longest horizon
staleness   batches four updates old: naive PPO against decoupled, TIS, and PPO on the recorded log-probs
curriculum  growing horizons against the longest alone and all at once, at equal numbers of sampled tokens
faults      one episode in ten lost to infrastructure: is the estimate of the reward still the same?
second      the credits again in another environment

example: nice python -u benchmarks/learning.py --sections staleness faults --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import agentgym_envs.lookup
import learning_faults

from agentgym.cli.ablate import compared, planned
from agentgym.cli.ablate_runs import Cell, Switch, run_cells
from agentgym.cli.ablate_table import markdown, mean_interval
from agentgym.cli.versions import versions

RESULTS = Path(__file__).parent / "results" / "learning.json"
LOOKUP, SECOND = "agentgym/Lookup-v0", "agentgym/Arithmetic-v0"
SETTINGS = Path(agentgym_envs.lookup.__file__).with_name("train.toml")
LONG, SHORT, FAR = 12, 4, 24  # look-ups; the warm start has seen 1 to 6
CREDITS = ("leave_one_out", "grpo", "rebn", "same_state", "gigpo")
OBJECTIVES = ("ppo_clip", "gspo", "cispo")
CALM = "--alarm-reward-std 0 --alarm-entropy 0 --alarm-gradient 0"  # a run that dies is a result, and stays in its mean
SMALL = f"--warm-steps 0 --control-steps 0 --groups 8 --eval-limit 80 {CALM}"
STALE = {
    "fresh": "--staleness 0",
    "recorded": "--staleness 4 --objective ppo_clip",
    "naive": "--staleness 4 --objective decoupled_ppo --correction none",
    "decoupled": "--staleness 4 --objective decoupled_ppo --correction tis",
    "TIS": "--staleness 4 --objective reinforce --correction tis",
}
BUDGET = 60_000  # sampled tokens of a curriculum's run
STEPS = " ".join(str(h) for h in range(4, FAR + 1, 4))
GROWING = f"--horizon {STEPS} --curriculum-start 4 --curriculum-step 4"
CURRICULA = {  # updates at first, settings
    "longest alone": (16, f"--horizon {FAR}"),
    "all at once": (36, f"--horizon {STEPS}"),
    "when mastered": (36, f"{GROWING} --curriculum success --curriculum-success 0.5"),
    "every 4 updates": (36, f"{GROWING} --curriculum updates --curriculum-every 4"),
}


# -- runs --------------------------------------------------------------------------------------------------------------


def switch(name: str, flags: str) -> Switch:
    return Switch(name, tuple(shlex.split(flags)))


def trained(
    name: str, env: str, switches: Sequence[Switch], args: argparse.Namespace, shared: str
) -> tuple[dict[str, Any], list[Cell]]:
    """The runs of a section -> their report, which is also printed, and the finished ones."""
    cells = planned(env, switches, args.seeds, args.runs / name, shlex.split(shared))
    failed = run_cells(cells, jobs=args.jobs)
    report = compared(cells, failed)
    print(f"\n{markdown(report)}", flush=True)
    return report, [cell for cell in cells if cell.state == "finished"]


def started(env: str, args: argparse.Namespace, warm: str = "") -> str:
    """One warm-started model per seed -> the flag that names it."""
    name = f"start-{env.rpartition('/')[2]}"
    cells = planned(env, [switch(name, f"--updates 0 --control-steps 0 --eval-limit 4 {warm}")], args.seeds, args.runs)
    if failed := run_cells(cells, jobs=args.jobs):
        sys.exit(f"a warm start failed: {failed}")
    return f"--model {args.runs / name}/seed-{{seed}}/model {SMALL}"


def after(cells: Sequence[Cell]) -> Callable[[str], dict[int, float]]:
    """Of a switch: seed -> success after training, in points."""
    return lambda name: {c.seed: 100 * (c.summary or {})["success_after"] for c in cells if c.switch.name == name}


# -- claims ------------------------------------------------------------------------------------------------------------


def mean_of(found: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Seed -> mean, over the seeds that all have."""
    return {seed: fmean(each[seed] for each in found) for seed in found[0] if all(seed in each for each in found)}


def claim(
    text: str, ours: Mapping[int, float], other: Mapping[int, float], source: str = "", *, same: float | None = None
) -> dict[str, Any]:
    """`ours` above `other`, paired by seed, in points; with `same`, within so many points of it."""
    interval = mean_interval([ours[seed] - other[seed] for seed in ours if seed in other])
    made = {"claim": text, "source": source, "difference": interval, "same": same, "verdict": "undecided"}
    if interval is None or interval["low"] is None:
        return made
    low, high = interval["low"], interval["high"]
    if same is None:
        made["verdict"] = "shown" if low > 0 else "refuted" if high < 0 else "undecided"
    else:
        made["verdict"] = "shown" if -same < low and high < same else "refuted" if low > 0 or high < 0 else "undecided"
    return made


def told(claims: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| claim | difference, points | seeds | verdict |", "|---|---|---|---|"]
    for each in claims:
        d = each["difference"] or {"mean": float("nan"), "low": None, "n": 0}
        ends = "" if d["low"] is None else f" [{d['low']:+.1f}, {d['high']:+.1f}]"
        source = f" ({each['source']})" if each["source"] else ""
        lines.append(f"| {each['claim']}{source} | {d['mean']:+.1f}{ends} | {d['n']} | {each['verdict']} |")
    return "\n".join(lines)


# -- sections ----------------------------------------------------------------------------------------------------------


def credit(args: argparse.Namespace) -> dict[str, Any]:
    model = started(LOOKUP, args)
    names = {(c, o, LONG): f"{c} {o} {LONG}" for c, o in itertools.product(CREDITS, OBJECTIVES)}
    names |= {(c, "ppo_clip", SHORT): f"{c} ppo_clip {SHORT}" for c in CREDITS}
    switches = [
        switch(name, f"--credit {c} --objective {o} --horizon {h} --test-horizon {h}")
        for (c, o, h), name in names.items()
    ]
    report, cells = trained("credit", LOOKUP, switches, args, f"{model} --updates 15")
    of = after(cells)

    def over(c: str = "", o: str = "") -> dict[int, float]:
        """At the longest horizon, the mean over what is not named."""
        return mean_of(
            [of(name) for (c_, o_, h), name in names.items() if h == LONG and c in ("", c_) and o in ("", o_)]
        )

    def gain(c: str, other: str, h: int) -> dict[int, float]:
        ours, theirs = of(names[c, "ppo_clip", h]), of(names[other, "ppo_clip", h])
        return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}

    claims = [
        claim(f"horizon {LONG}: same_state above leave_one_out", over("same_state"), over("leave_one_out")),
        claim(f"horizon {LONG}: gigpo above grpo", over("gigpo"), over("grpo"), "GiGPO, Feng et al. 2025"),
        claim(f"same_state gains more at {LONG} than at {SHORT}, ppo_clip",
              gain("same_state", "leave_one_out", LONG), gain("same_state", "leave_one_out", SHORT)),
        claim("grpo's standard deviation costs: leave_one_out above grpo", over("leave_one_out"), over("grpo"),
              "LOOP 2025: 71.3 against 61.9"),
        claim("rebn above grpo", over("rebn"), over("grpo"), "GEM, Liu et al. 2025"),
        claim("gspo above ppo_clip", over(o="gspo"), over(o="ppo_clip"), "GSPO, Zheng et al. 2025"),
        claim("cispo above ppo_clip", over(o="cispo"), over(o="ppo_clip"), "ScaleRL 2025"),
    ]  # fmt: skip
    return {"report": report, "claims": claims}


def staleness(args: argparse.Namespace) -> dict[str, Any]:
    model = started(LOOKUP, args)
    shared = f"{model} --horizon 6 --test-horizon 6 --credit leave_one_out --updates 24"
    report, cells = trained("staleness", LOOKUP, [switch(*each) for each in STALE.items()], args, shared)
    of = after(cells)
    claims = [
        claim("staleness 4: decoupled above naive", of("decoupled"), of("naive"), "AReaL, Fu et al. 2025"),
        claim("staleness 4: TIS above naive", of("TIS"), of("naive"), "Yao et al. 2025"),
        claim("staleness 4: PPO on recorded log-probs above naive", of("recorded"), of("naive")),
        claim("staleness 4: decoupled above PPO on recorded log-probs", of("decoupled"), of("recorded")),
        claim("naive at staleness 4 costs: fresh above naive", of("fresh"), of("naive")),
        claim("decoupled at staleness 4 costs at most 5 points", of("decoupled"), of("fresh"), same=5.0),
    ]
    return {"report": report, "claims": claims}


def curriculum(args: argparse.Namespace) -> dict[str, Any]:
    """What each run could do when it had sampled BUDGET tokens: its checkpoint of that moment is evaluated. At a
    constant rate a run's first updates do not depend on how many follow, so one that was too short is run again."""
    model = started(LOOKUP, args)
    shared = (
        f"{model} --test-horizon {FAR} --eval-limit 4 --credit leave_one_out --lr-schedule constant "
        "--checkpoint-every 1"
    )
    runs = []
    for name, (updates, flags) in CURRICULA.items():
        seeds, label = args.seeds, name
        while seeds:
            length = f"--updates {updates} --keep-checkpoints {max(99, updates)}"
            longer = [switch(label, f"{flags} {length}")]
            cells = planned(LOOKUP, longer, seeds, args.runs / "curriculum", shlex.split(shared))
            if failed := run_cells(cells, jobs=args.jobs):
                sys.exit(f"a run failed: {failed}")
            enough = [cell for cell in cells if sum(spent(cell)) >= BUDGET]
            runs += [{"switch": name, "seed": cell.seed, **at_budget(cell)} for cell in enough]
            seeds = [cell.seed for cell in cells if cell not in enough]
            updates *= 2
            label = f"{name}, {updates} updates"
    rows, of = [], {}
    for name in CURRICULA:
        members = [run for run in runs if run["switch"] == name]
        of[name] = {run["seed"]: 100 * run["success"]["rate"] for run in members}
        means = {key: mean_interval([run[key] for run in members]) for key in ("tokens", "updates")}
        rows.append({"switch": name, "success": mean_interval([*of[name].values()]), **means})
    print(f"| horizons | success at {FAR} | sampled tokens | updates |\n|---|---|---|---|")
    for row in rows:
        s = row["success"]
        print(f"| {row['switch']} | {s['mean']:.1f} [{max(0, s['low'] or 0):.1f}, {min(100, s['high'] or 100):.1f}] | "
              f"{row['tokens']['mean']:,.0f} | {row['updates']['mean']:.1f} |", flush=True)  # fmt: skip
    grown = f"at equal tokens, horizon {FAR}:"
    claims = [
        claim(f"{grown} growing when mastered above the longest alone", of["when mastered"], of["longest alone"],
              "h1 2025; AgentGym-RL 2025"),
        claim(f"{grown} growing when mastered above all at once", of["when mastered"], of["all at once"], "h1 2025"),
        claim(f"{grown} growing by updates above the longest alone", of["every 4 updates"], of["longest alone"],
              "AgentGym-RL 2025"),
        claim(f"{grown} growing when mastered above growing by updates", of["when mastered"], of["every 4 updates"]),
        claim(f"{grown} all at once above the longest alone", of["all at once"], of["longest alone"]),
    ]  # fmt: skip
    return {"rows": rows, "runs": runs, "claims": claims}


def spent(cell: Cell) -> list[int]:
    """Sampled tokens per update."""
    lines = (cell.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["tokens_sampled"] for line in lines]


def at_budget(cell: Cell) -> dict[str, Any]:
    """Success at the longest horizon of the first checkpoint with BUDGET sampled tokens behind it; the others are
    removed."""
    tokens = list(itertools.accumulate(spent(cell)))
    updates = next(i for i, total in enumerate(tokens, 1) if total >= BUDGET)
    folder = cell.folder / "at-budget"
    if not (folder / "summary.json").is_file():
        model = cell.folder / "checkpoints" / f"update-{updates:06}" / "model"
        command = [sys.executable, "-m", "agentgym.cli", "eval", LOOKUP, "--horizon", str(FAR), "--limit", "80"]
        command += ["--max-tokens", "24", "--model", str(model), "--output", str(folder)]
        command += ["--resume"] if (folder / "config.toml").is_file() else []
        with (cell.folder / "at-budget.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
    success = json.loads((folder / "summary.json").read_text())["success"]
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    return {"updates": updates, "tokens": tokens[updates - 1], "success": success}


def faults(args: argparse.Namespace) -> dict[str, Any]:
    model = started(LOOKUP, args)
    found = learning_faults.estimates(args.seeds)
    claims = learning_faults.claims(found, claim)
    shared = f"--config {SETTINGS} {model} --horizon 6 --test-horizon 6 --credit leave_one_out --updates 15"
    reports, runs = [], []
    for env, name in ((LOOKUP, "no faults"), (learning_faults.ENV, "faults")):
        report, cells = trained("faults", env, [switch(name, "")], args, shared)
        reports.append(report)
        runs.append(after(cells)(name))
    claims.append(claim("training with 10 % faults, retried, ends within 5 points", runs[1], runs[0], same=5.0))
    return {"estimates": found, "reports": reports, "claims": claims}


def second(args: argparse.Namespace) -> dict[str, Any]:
    model = started(SECOND, args)
    switches = [switch(c, f"--credit {c}") for c in CREDITS]
    shared = f"{model} --horizon 5 --test-horizon 5 --updates 15"
    report, cells = trained("second", SECOND, switches, args, shared)
    of = after(cells)
    claims = [
        claim("Arithmetic, 5 terms: same_state above leave_one_out", of("same_state"), of("leave_one_out")),
        claim("Arithmetic, 5 terms: gigpo above grpo", of("gigpo"), of("grpo"), "GiGPO, Feng et al. 2025"),
    ]
    return {"report": report, "claims": claims}


SECTIONS = {f.__name__: f for f in (staleness, curriculum, faults, credit, second)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    here = str(Path(__file__).parent)  # where runs find the environment with faults
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    known = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for name in args.sections:
        print(f"\n== {name}", flush=True)
        known[name] = SECTIONS[name](args) | {"seeds": args.seeds, "versions": versions(), "machine": machine()}
        args.results.parent.mkdir(exist_ok=True)
        args.results.write_text(json.dumps(known, indent=1) + "\n")
    print(f"\n{told([each for name in SECTIONS if name in known for each in known[name]['claims']])}")
    print(f"\nwritten to {args.results}")


def machine() -> dict[str, Any]:
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()}


if __name__ == "__main__":
    main()
