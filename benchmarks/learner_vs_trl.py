"""The learner beside TRL's GRPOTrainer: the same loss to the last digits, and what a multi-turn step costs.

First the loss. One small Qwen3 model, the same prompts, completions of several turns with tools' answers among them,
advantages, recorded and reference log-probs go to TRL's own `_compute_loss` and to one step of `Learner`; loss and
gradient are compared, and where the definitions differ the table says how. Then the step: a group of attempts at one
task, turns of sampled and observed tokens, one optimiser step, float32, the same lengths and threads on both sides;
rounds alternate, so that a busy machine slows all alike. TRL and what it needs are installed at first use, in an
environment of their own.

example: python benchmarks/learner_vs_trl.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import psutil
from env_step_peers import Peer, python_of
from learner_vs_trl_loss import Compared, cases, compare, write_inputs
from rich.console import Console
from rich.table import Table
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from transformers.utils import logging

import agentgym

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "learner_vs_trl.json"
TRL = Peer("TRL", "", "trl", ("trl>=1.16", f"torch=={version('torch').partition('+')[0]}"))
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
CHAT = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OURS, BATCH = "agentgym", "TRL, one batch"
VARIANTS = {BATCH: "batch", "TRL, gradient checkpointing (its default)": "checkpointing", "TRL, row by row": "rows"}
BUSY = 0.1  # of the cores: what waits for a second thread then waits for others
AIMS = {"whole step": ("step_s", 3.0), "update": ("update_s", 2.0), "peak memory": ("peak_kib", 2.0)}


@dataclass
class Side:
    """A process that takes one training step per line on its stdin, and what its steps took."""

    name: str
    process: subprocess.Popen[str]
    versions: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)

    def told(self, word: str) -> dict[str, Any]:
        """What the process says next under that word. Raises RuntimeError where it died."""
        while line := self.process.stdout.readline():  # type: ignore[union-attr]  # a pipe
            if line.startswith(word):
                return json.loads(line.removeprefix(word))
        raise RuntimeError(f"{self.name} ended with {self.process.wait()}; its errors are above")

    def step(self) -> dict[str, float]:
        self.process.stdin.write("step\n")  # type: ignore[union-attr]  # a pipe
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.told("STEP")

    def median(self, name: str) -> float:
        return statistics.median(step[name] for step in self.steps)

    def shown(self, name: str) -> str:
        values = [step[name] for step in self.steps]
        return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def prepare(folder: Path, work: dict[str, Any]) -> None:
    """The two models with their tokenizer, the loss's inputs, and what both sides agree on."""
    lines = [line for path in sorted(Path(agentgym.__file__).parent.rglob("*.py")) for line in path.open()]
    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(lines, vocab_size=4096, special_tokens=special, show_progress=False)
    named = {"pad_token": special[0], "eos_token": special[2], "additional_special_tokens": special[1:2]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **named)
    tokenizer.chat_template = CHAT
    common = {"tie_word_embeddings": True, "max_position_embeddings": 8192, "bos_token_id": None}
    common |= {"vocab_size": 4096, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shapes = {
        "tiny": Qwen3Config(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
                            num_key_value_heads=4, head_dim=32, **common),
        "small": Qwen3Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, head_dim=16, initializer_range=0.3, **common),
    }  # fmt: skip
    for name, shape in shapes.items():
        set_seed(0)
        Qwen3ForCausalLM(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    agreed = {"cases": [{"name": case.name, "trl": case.trl} for case in cases()], "step": work}
    (folder / "work.json").write_text(json.dumps(agreed))


def started(folder: Path, name: str) -> Side:
    environment = os.environ | QUIET
    if name == OURS:
        command = [sys.executable, HERE / "learner_vs_trl_step.py", folder]
    else:
        command = [python_of(TRL), HERE / "learner_vs_trl_peer.py", "step", folder, VARIANTS[name]]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        list(map(str, command)), stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
    )
    return Side(name, process)


def measured(folder: Path, names: list[str], rounds: int) -> tuple[list[Side], float]:
    """`rounds` steps of each side in turn, after one that warms up; and how busy others kept the machine meanwhile, as
    a share of its cores."""
    sides = [started(folder, name) for name in names]
    try:
        for side in sides:
            side.versions = side.told("READY")["versions"]
        began, before_s = perf_counter(), others_s(sides)
        for number in range(rounds + 1):
            for side in sides:
                taken = side.step()
                if number:
                    side.steps.append(taken)
                print(f"round {number}, {side.name}: {taken['step_s']:.1f} s", flush=True)
        busy = (others_s(sides) - before_s) / (perf_counter() - began) / (os.cpu_count() or 1)
    finally:
        for side in sides:
            side.process.kill()
    return sides, max(0.0, busy)


def others_s(sides: list[Side]) -> float:
    """Seconds that the cores have worked so far for somebody else than the two sides."""
    cores = psutil.cpu_times()
    ours = [psutil.Process(side.process.pid).cpu_times() for side in sides]
    return cores.user + cores.nice + cores.system - sum(own.user + own.system for own in ours)


def refuse_unlike(sides: list[Side]) -> None:
    """Raises RuntimeError where two sides did not do the same work."""
    seen = {(step["cells"], step["trained"], step["sampled"]) for side in sides for step in side.steps}
    if len(seen) != 1:
        raise RuntimeError(f"unlike work (cells, tokens trained, tokens sampled): {sorted(seen)}")


def show_losses(console: Console, found: list[Compared]) -> None:
    table = Table(title="the same tensors through both losses, float32", title_justify="left")
    for name in ("loss", "KL", "TRL", "agentgym", "loss apart", "gradient apart", ""):
        table.add_column(name, justify="left" if name in ("loss", "KL", "") else "right", no_wrap=name != "")
    for one in found:
        verdict = one.case.why or ("equal" if one.agrees else "[bold red]NOT EQUAL[/]")
        table.add_row(one.case.loss, one.case.kl, f"{one.trl:.6f}", f"{one.ours:.6f}", f"{one.loss_apart:.1e}",
                      f"{one.gradient_apart:.1e}", verdict)  # fmt: skip
    console.print(table)


def show_steps(console: Console, sides: list[Side], work: dict[str, Any]) -> dict[str, dict[str, float]]:
    """-> how many times ours is better, per peer and aim."""
    table = Table(
        title=f"{work['group_size']} attempts, {work['turns']} turns x ({work['sampled']} sampled + {work['observed']} "
        f"observed), prompt {work['prompt']}, Qwen3 4.2 M float32, {work['threads']} threads, medians of "
        f"{len(sides[0].steps)} [min, max]",
        title_justify="left",
    )
    for name in ("", "step s", "generation s", "update s", "sampled tok/s", "updated tok/s", "peak MiB"):
        table.add_column(name, justify="right" if name else "left")
    for side in sides:
        table.add_row(
            side.name, side.shown("step_s"), side.shown("rollout_s"), side.shown("update_s"),
            f"{side.median('sampled') / side.median('rollout_s'):,.0f}",
            f"{side.median('cells') / side.median('update_s'):,.0f}", f"{side.median('peak_kib') / 1024:,.0f}",
        )  # fmt: skip
    console.print(table)
    ours = sides[0]
    ratios = {
        side.name: {aim: side.median(field) / ours.median(field) for aim, (field, _) in AIMS.items()}
        for side in sides[1:]
    }
    for name, ratio in ratios.items():
        told = [f"{aim} {value:.2f}x" + _verdict(value, AIMS[aim][1], name) for aim, value in ratio.items()]
        console.print(f"against {name}: " + "; ".join(told), highlight=False)
    return ratios


def _verdict(value: float, aim: float, name: str) -> str:
    if name != BATCH:
        return ""
    return f" (aim {aim:g}x: {'reached' if value >= aim else '[bold red]missed[/]'})"


def record(found: list[Compared], sides: list[Side], ratios: dict[str, Any], work: dict[str, Any]) -> None:
    cpu = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text())
    told = {
        "machine": {
            "cpu": cpu and cpu[1],
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "load": os.getloadavg(),
        },
        "python": platform.python_version(),
        "versions": {side.name: side.versions for side in sides},
        "work": work,
        "losses": [one.told() for one in found],
        "steps": {side.name: side.steps for side in sides},
        "ratios": ratios,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written to {RESULTS}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--microbatch-tokens", type=int, default=2048, help="agentgym's memory bound")
    parser.add_argument("--only", choices=("loss", "step"), help="leave out the other half")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 4 turns x (32 + 32) against one TRL")
    args = parser.parse_args()
    work = {"threads": args.threads, "group_size": 8, "turns": 8, "sampled": 128, "observed": 64, "prompt": 256,
            "lr": 1e-5, "microbatch_tokens": args.microbatch_tokens}  # fmt: skip
    if args.quick:
        args.rounds = 2
        work |= {"turns": 4, "sampled": 32, "observed": 32}
    work["steps"] = args.rounds + 1
    names = [OURS, BATCH] if args.quick else [OURS, *VARIANTS]
    logging.disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 150)
    found: list[Compared] = []
    with TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, work)
        if args.only != "step":
            write_inputs(folder)
            peer = [python_of(TRL), HERE / "learner_vs_trl_peer.py", "loss", folder]
            subprocess.run(list(map(str, peer)), env=os.environ | QUIET, check=True)
            found = compare(folder)
            show_losses(console, found)
        if args.only == "loss":
            return int(not all(one.agrees for one in found))
        sides, busy = measured(folder, names, args.rounds)
    refuse_unlike(sides)
    ratios = show_steps(console, sides, work)
    if busy > BUSY:
        console.print(f"[bold]others kept {busy:.0%} of the machine busy: no verdict; measure again on a quiet one[/]")
    if args.only is None and not args.quick:
        record(found, sides, ratios, work | {"busy_share": busy})
    reached = all(ratios[BATCH][aim] >= least for aim, (_, least) in AIMS.items())
    return int(not reached or not all(one.agrees for one in found))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the sides are processes of their own: end them too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
