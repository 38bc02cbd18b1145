"""What the learner does on one GPU: whole training steps, layouts, the head, the longest context.

    python benchmarks/gpu.py                       # ten minutes on one H200; without a GPU the same at toy size
    python benchmarks/gpu.py --tables T5 T7

Random weights of Qwen3 shapes, nothing is downloaded. Every figure stands beside its baseline from the same run and the
line it should beat (published figures, named per table). A step is the whole of it: log-probs, loss, backward pass,
clipping and AdamW with float32 masters. tok/s counts the tokens of the rows, padding not; MFU is
(6 parameters + 6 layers heads head_width length) x tokens / s over 989 TFLOP/s (4 parameters for LoRA), head included,
attention halved for causality."""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3Config

from agentgym.engines.causal import CausalLM
from agentgym.errors import AgentGymError
from agentgym.learner import head
from agentgym.learner.composition import ObjectiveConfig
from agentgym.learner.lora import LoraConfig, add_adapters
from agentgym.learner.pack import Trajectory
from agentgym.learner.update import Learner, OptimizerConfig
from agentgym.ledger import Ledger, Segment, Source

PEAK_FLOPS = 989e12  # dense bf16 of an H100 or H200, by its datasheet
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
SCALE = 1 if HAS_GPU else 32  # lengths are divided by this
console = Console()


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int = 151_936
    head_width: int = 128
    tied: bool = True

    def model(self) -> CausalLM:
        config = Qwen3Config(
            hidden_size=self.hidden, num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, intermediate_size=self.mlp, vocab_size=self.vocabulary,
            head_dim=self.head_width, tie_word_embeddings=self.tied, max_position_embeddings=1 << 20,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(DEVICE):
            return CausalLM(AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval())


TOY = Shape(64, 2, 4, 2, 128, vocabulary=2_000, head_width=16)
QWEN3 = {
    "0.6B": Shape(1024, 28, 16, 8, 3072),
    "1.7B": Shape(2048, 28, 16, 8, 6144),
    "4B": Shape(2560, 36, 32, 8, 9728),
}
SHAPES = QWEN3 if HAS_GPU else dict.fromkeys(QWEN3, TOY)


# -- batches -----------------------------------------------------------------------------------------------------------


def trajectory(
    lengths: Sequence[tuple[int, int]], chance: np.random.Generator, vocabulary: int, **options: Any
) -> Trajectory:
    """A ledger of (observed, sampled) lengths per turn, with an advantage of random sign."""
    ledger = Ledger()
    for turn, (observed, sampled) in enumerate(lengths):
        first = options.get("prompt") if turn == 0 else None
        ledger.append(
            Segment(chance.integers(0, vocabulary, observed) if first is None else first, Source.OBSERVED, turn)
        )
        ids = chance.integers(0, vocabulary, sampled)
        ledger.append(Segment(ids, Source.SAMPLED, turn, np.full(sampled, -np.log(vocabulary)), 0))
    return Trajectory(ledger, np.full(len(lengths), chance.choice([-1.0, 1.0]), np.float32))


def even(count: int, length: int, vocabulary: int) -> list[Trajectory]:
    """Rows of one length, half of it sampled, in eight turns."""
    chance = np.random.default_rng(0)
    return [trajectory([(length // 16, length // 16)] * 8, chance, vocabulary) for _ in range(count)]


def agentic(groups: int, vocabulary: int, cap: int = 16_384) -> list[Trajectory]:
    """The mix: groups of 8 with a prompt of their own; turns geometric (mean 6), replies lognormal (mean 150),
    observations lognormal (mean 250), cut at the cap."""
    chance, made = np.random.default_rng(0), []
    for _ in range(groups):
        prompt = chance.integers(0, vocabulary, max(4, int(chance.lognormal(np.log(250) - 0.32, 0.8)) // SCALE))
        for _ in range(8):
            lengths, total = [], 0
            for turn in range(int(chance.geometric(1 / 6))):
                seen, said = (max(1, int(chance.lognormal(np.log(mean) - 0.32, 0.8)) // SCALE) for mean in (250, 150))
                seen = len(prompt) if turn == 0 else seen
                if total + seen + said > cap // SCALE and lengths:
                    break
                lengths.append((seen, said))
                total += seen + said
            made.append(trajectory(lengths, chance, vocabulary, prompt=prompt))
    return made


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    seconds: float
    spread: tuple[float, float]
    peak_bytes: int
    tokens: int
    trained: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def measure(work: Callable[[], Any], tokens: int, trained: int, *, repeats: int = 3, warm_up: int = 2) -> Measured:
    """Median seconds of `work` after a warm-up, and the peak of memory within."""
    times = []
    for i in range(warm_up + repeats):
        if HAS_GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = perf_counter()
        work()
        if HAS_GPU:
            torch.cuda.synchronize()
        if i >= warm_up:
            times.append(perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if HAS_GPU else 0
    return Measured(median(times), (min(times), max(times)), peak, tokens, trained)


def step(shape: Shape, batch: list[Trajectory], *, lora: int = 0, whole_head: bool = False, **options: Any) -> Measured:
    """One optimiser step of a fresh model on the batch."""
    free()
    cells, head.CHUNK_CELLS = head.CHUNK_CELLS, 1 << 62 if whole_head else head.CHUNK_CELLS
    try:
        lm = shape.model()
        if lora:
            add_adapters(lm.model, LoraConfig(lora), seed=0)
        learner = Learner(lm, OptimizerConfig(lr=1e-6, **options), total_steps=100)
        tokens = sum(t.ledger.num_tokens for t in batch)
        trained = sum(t.ledger.num_sampled for t in batch)
        return measure(lambda: learner.step(batch, ObjectiveConfig()), tokens, trained)
    finally:
        head.CHUNK_CELLS = cells


def free() -> None:
    gc.collect()
    if HAS_GPU:
        torch.cuda.empty_cache()


def flops_per_token(shape: Shape, length: float, *, lora: bool = False) -> float:
    """Of a trained token in a row of that length: see the module's formula."""
    width = shape.heads * shape.head_width
    block = 2 * shape.hidden * (width + shape.kv_heads * shape.head_width) + 3 * shape.hidden * shape.mlp
    parameters = shape.layers * block + shape.vocabulary * shape.hidden
    return (4 if lora else 6) * parameters + 6 * shape.layers * width * length


def mfu(shape: Shape, rate: float, length: float, *, lora: bool = False) -> float:
    """Share of the peak."""
    return rate * flops_per_token(shape, length, lora=lora) / PEAK_FLOPS


# -- tables ------------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def row(name: str, m: Measured | None, *, beat: float = 0, goal: float = 0, base: float = 0, **more: Any) -> Row:
    if m is None:
        return {"what": name, "tok/s": "out of memory", **more}
    made: Row = {
        "what": name,
        "tok/s": round(m.rate),
        "s": round(m.seconds, 3),
        "±": round(m.spread[1] - m.spread[0], 3),
    }
    made |= {"GiB": round(m.peak_bytes / 2**30, 1), "x base": round(m.rate / base, 2) if base else "", **more}
    return made | {"beat": beat or "", "goal": goal or ""}


def tried(work: Callable[[], Measured]) -> Measured | None:
    """None where memory does not suffice."""
    try:
        return work()
    except (AgentGymError, torch.OutOfMemoryError) as error:
        if isinstance(error, AgentGymError) and "out of memory" not in str(error):
            raise
        return None
    finally:
        free()


def t0() -> list[Row]:
    """Packed (variable-length kernel) and tree (FlexAttention) take the gradient of padded rows: relative distance to
    the same in float32, which in bf16 may be no larger than that of padded rows."""
    shape = replace(TOY, hidden=256, heads=4, kv_heads=2, head_width=64, mlp=512)
    batch = agentic(2, shape.vocabulary, cap=4_096)

    def gradient(layout: str, dtype: torch.dtype) -> torch.Tensor:
        lm = shape.model()
        lm.model.to(dtype)
        config = OptimizerConfig(lr=1e-30, clip_norm=1e30, layout=layout)  # type: ignore[arg-type]
        learner = Learner(lm, config, total_steps=1)
        learner.step(batch, ObjectiveConfig())
        return torch.cat([m.grad.flatten() for m in learner.optimizer.masters]).double()

    exact = gradient("padded", torch.float32)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("padded", "packed", "tree"):
            apart = float((gradient(layout, dtype) - exact).norm() / exact.norm())
            limit = 1e-4 if dtype == torch.float32 else 5e-2
            rows.append(
                {"what": f"{layout}, {dtype}", "relative": f"{apart:.1e}", "limit": limit, "ok": apart <= limit}
            )
    return rows


def t1() -> list[Row]:
    """0.6B, rows of 16k, full recompute; prime-rl: 11.9k on one H100."""
    shape, length = SHAPES["0.6B"], 16_384 // SCALE
    batch = even(4, length, shape.vocabulary)
    base = tried(
        lambda: step(
            shape, batch, layout="padded", gradient_checkpointing=True, whole_head=True, microbatch_tokens=length
        )
    )
    ours = tried(lambda: step(shape, batch, layout="packed", gradient_checkpointing=True, microbatch_tokens=2 * length))
    return _beside(shape, length, base, ours, 11_900, 20_000)


def t2() -> list[Row]:
    """0.6B without recompute, 8k and 16k; prime-rl SFT: 26.0k and 25.5k on one H100."""
    shape, rows = SHAPES["0.6B"], []
    for length, beat, goal in ((8_192, 26_010, 35_000), (16_384, 25_490, 30_000)):
        length //= SCALE
        batch = even(65_536 // SCALE // length, length, shape.vocabulary)
        base = tried(lambda b=batch, n=length: step(shape, b, layout="padded", whole_head=True, microbatch_tokens=n))
        ours = tried(
            lambda b=batch, n=length: step(shape, b, layout="packed", microbatch_tokens=max(n, 16_384 // SCALE))
        )
        rows += _beside(shape, length, base, ours, beat, goal)
    return rows


def t3() -> list[Row]:
    """1.7B, the agentic mix, at most 16k tokens at once; TRL #6092: 7.3k."""
    shape = SHAPES["1.7B"]
    batch = agentic(4, shape.vocabulary)
    mean = sum(t.ledger.num_tokens for t in batch) / len(batch)
    base = tried(lambda: step(shape, batch, layout="padded", microbatch_tokens=16_384 // SCALE))
    ours = tried(lambda: step(shape, batch, layout="packed", microbatch_tokens=16_384 // SCALE))
    return _beside(shape, mean, base, ours, 7_300, 18_000)


def t4() -> list[Row]:
    """4B at 16k: LoRA of rank 16 and all weights; prime-rl: 6.23k on one H100, and 3.7k per H200 of eight."""
    shape, length = SHAPES["4B"], 16_384 // SCALE
    batch, rows = even(2, length, shape.vocabulary), []
    for lora, beat, goal in ((16, 6_230, 9_000), (0, 3_700, 7_000)):
        options = {"gradient_checkpointing": True, "lora": lora, "microbatch_tokens": length}
        base = tried(lambda o=options: step(shape, batch, layout="padded", whole_head=True, **o))
        ours = tried(lambda o=options: step(shape, batch, layout="packed", **o))
        rows += _beside(shape, length, base, ours, beat, goal, lora=bool(lora))
    return rows


def t5() -> list[Row]:
    """0.6B, the agentic mix: padded in the order of arrival (one part after the other), padded by length, packed, tree;
    tok/s of all tokens and of those that train. Aim: packed at least twice the first."""
    shape = SHAPES["0.6B"]
    batch = agentic(8, shape.vocabulary)
    widest = max(t.ledger.num_tokens for t in batch)
    found = {"padded to the longest": tried(lambda: _unsorted(shape, batch, widest))}
    for name, layout in (("padded by length", "padded"), ("packed", "packed"), ("tree", "tree")):
        found[name] = tried(lambda layout=layout: step(shape, batch, layout=layout, microbatch_tokens=32_768 // SCALE))
    base = found["padded to the longest"]
    aims = {"packed": {"beat": "2x padded"}}
    return [
        row(n, m, base=base.rate if base else 0, **{"trained/s": round(m.trained / m.seconds) if m else ""})
        | aims.get(n, {})
        for n, m in found.items()
    ]


def t6() -> list[Row]:
    """0.6B, a group of 8 behind one prompt (512 tokens each), and an episode whose context was rewritten seven times:
    tree against packed. verl PrefixGrouper: 1.26x at 4k, 1.70x at 8k."""
    shape, rows = SHAPES["0.6B"], []
    for length, beat in ((2_048, ""), (4_096, 1.26), (8_192, 1.70)):
        chance = np.random.default_rng(0)
        prompt = chance.integers(0, shape.vocabulary, length // SCALE)
        lengths = [(len(prompt), 256 // SCALE), (128 // SCALE, 128 // SCALE)]
        batch = [trajectory(lengths, chance, shape.vocabulary, prompt=prompt) for _ in range(8)]
        rows += _tree_against_packed(f"prompt of {length // SCALE}", shape, batch, beat)
    return rows + _tree_against_packed("seven forks", shape, [_forked(shape) for _ in range(2)], "")


def t7() -> list[Row]:
    """The head alone, 8,192 tokens, width 4,096, vocabulary 151,936, forward and backward: log-prob and entropy in
    chunks against whole logits and against its bare products. Aim: a tenth of the memory at 1.3 times the products."""
    tokens, width, vocabulary = (8_192, 4_096, 151_936) if HAS_GPU else (512, 64, 2_000)
    lm = replace(TOY, hidden=width, vocabulary=vocabulary, layers=1).model()
    weight = lm.linear_head.weight  # type: ignore[union-attr]
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=DTYPE, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,), device=DEVICE)

    def products() -> None:
        z = hidden @ weight.T
        z.backward(z)  # the two products of the backward pass, on a gradient of the same size

    def through(chunk_cells: int) -> None:
        weight.grad = hidden.grad = None
        head.CHUNK_CELLS = chunk_cells
        if chunk_cells == 1 << 62:
            logp = torch.log_softmax((hidden @ weight.T).float(), -1)
            entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
            (logp.gather(-1, targets[:, None]).sum() + 0 * entropy.sum()).backward()
        else:
            logp, _ = head.logp_and_entropy(lm, hidden, targets, 1.0)
            logp.sum().backward()

    usual, rows = head.CHUNK_CELLS, []
    held = weight.numel() * weight.element_size() * 2 + hidden.numel() * hidden.element_size() * 2
    for name, work in (
        ("products alone", products),
        ("whole logits", lambda: through(1 << 62)),
        ("chunks", lambda: through(usual)),
    ):
        m = measure(work, tokens, tokens)
        rows.append(
            {
                "what": name,
                "ms": round(1e3 * m.seconds, 2),
                "GiB beyond weights and gradients": round(max(0, m.peak_bytes - held) / 2**30, 2),
            }
        )
    head.CHUNK_CELLS = usual
    rows[-1] |= {
        "x products": round(rows[-1]["ms"] / rows[0]["ms"], 2),
        "aim": "<= 1.3x the products, <= 1/10 of the memory",
    }
    return rows


def t8() -> list[Row]:
    """The longest row that fits in one step with recompute, doubling: with the head in chunks and with whole logits."""
    rows = []
    for name in ("0.6B", "4B"):
        for whole in (True, False):
            longest, length = 0, 16_384 // SCALE
            while length <= (524_288 if HAS_GPU else 1_024):
                batch = even(1, length, SHAPES[name].vocabulary)
                options = {"gradient_checkpointing": True, "layout": "padded", "microbatch_tokens": length}
                if tried(lambda b=batch, o=options, n=name, w=whole: _once(SHAPES[n], b, w, o)) is None:
                    break
                longest, length = length, 2 * length
            rows.append({"what": f"{name}, {'whole logits' if whole else 'head in chunks'}", "longest row": longest})
    return rows


def _once(shape: Shape, batch: list[Trajectory], whole: bool, options: dict[str, Any]) -> Measured:
    free()
    cells, head.CHUNK_CELLS = head.CHUNK_CELLS, 1 << 62 if whole else head.CHUNK_CELLS
    try:
        learner = Learner(shape.model(), OptimizerConfig(lr=1e-6, **options), total_steps=1)
        return measure(lambda: learner.step(batch, ObjectiveConfig()), 1, 1, repeats=1, warm_up=0)
    finally:
        head.CHUNK_CELLS = cells


def _beside(
    shape: Shape,
    length: float,
    base: Measured | None,
    ours: Measured | None,
    beat: float,
    goal: float,
    *,
    lora: bool = False,
) -> list[Row]:
    made = []
    for name, m in (("padded, whole logits", base), ("ours", ours)):
        share = f"{100 * mfu(shape, m.rate, length, lora=lora):.1f} %" if m else ""
        reference = base.rate if base and name == "ours" else 0
        name = f"{name}, {'LoRA' if lora else 'all weights'}, mean row {length:,.0f}"
        made.append(row(name, m, base=reference, MFU=share, **({"beat": beat, "goal": goal} if reference else {})))
    return made


def _unsorted(shape: Shape, batch: list[Trajectory], widest: int) -> Measured:
    """All rows in one width, as a plain collator gives them."""
    filler = np.zeros(1, np.int32)
    wide = []
    for t in batch:
        missing = widest - t.ledger.num_tokens
        ledger = Ledger([*t.ledger])
        turn = ledger.num_turns
        if missing > 1:
            ledger.append(Segment(np.repeat(filler, missing - 1), Source.OBSERVED, turn))
            ledger.append(Segment(filler, Source.SAMPLED, turn, [-1.0], 0))
        wide.append(Trajectory(ledger, np.append(t.advantages, np.ones(ledger.num_turns - turn, np.float32))))
    found = step(shape, wide, layout="padded", microbatch_tokens=max(widest, 32_768 // SCALE))
    return replace(
        found, tokens=sum(t.ledger.num_tokens for t in batch), trained=sum(t.ledger.num_sampled for t in batch)
    )


def _forked(shape: Shape) -> Trajectory:
    chance, history = np.random.default_rng(1), np.zeros(0, np.int64)
    ledger = Ledger()
    for turn in range(8):
        history = np.concatenate([history, chance.integers(0, shape.vocabulary, 1_024 // SCALE)])
        ledger.append(Segment(history, Source.OBSERVED, turn, forks=turn > 0))
        said = chance.integers(0, shape.vocabulary, 256 // SCALE)
        ledger.append(Segment(said, Source.SAMPLED, turn, np.full(len(said), -np.log(shape.vocabulary)), 0))
        history = np.concatenate([history, said])
    return Trajectory(ledger, np.ones(8, np.float32))


def _tree_against_packed(name: str, shape: Shape, batch: list[Trajectory], beat: float | str) -> list[Row]:
    budget = max(65_536 // SCALE, sum(t.ledger.num_tokens for t in batch))
    packed, tree = (
        tried(lambda layout=layout: step(shape, batch, layout=layout, microbatch_tokens=budget))
        for layout in ("packed", "tree")
    )
    base = packed.rate if packed else 0
    return [
        row(f"{name}: packed", packed),
        row(f"{name}: tree", tree, base=base) | {"beat": f"{beat}x" if beat else ""},
    ]


TABLES: dict[str, Callable[[], list[Row]]] = {
    "T0": t0,
    "T1": t1,
    "T2": t2,
    "T3": t3,
    "T4": t4,
    "T5": t5,
    "T6": t6,
    "T7": t7,
    "T8": t8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--output", type=Path, default=None, help="JSON; benchmarks/results/gpu.json on a GPU")
    args = parser.parse_args()
    device = (
        torch.cuda.get_device_name()
        if HAS_GPU
        else f"no GPU: toy size on {platform.processor() or 'a CPU'}, figures mean nothing"
    )
    console.print(f"{device}; torch {torch.__version__}, transformers {transformers.__version__}, {DTYPE}")
    found: dict[str, Any] = {}
    began = perf_counter()
    for name in args.tables:
        start = perf_counter()
        try:
            rows = TABLES[name]()
        except Exception as error:  # one table less is better than none
            rows = [{"what": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}]
        free()
        found[name] = {"about": TABLES[name].__doc__, "rows": rows, "seconds": round(perf_counter() - start, 1)}
        table = Table(title=f"{name}  {TABLES[name].__doc__}", title_justify="left")
        columns = list(dict.fromkeys(key for each in rows for key in each))
        for column in columns:
            table.add_column(column)
        for each in rows:
            table.add_row(*(str(each.get(column, "")) for column in columns))
        console.print(table)
        path = args.output or (Path(__file__).parent / "results" / "gpu.json" if HAS_GPU else None)
        if path is not None:  # after every table: a run that is cut keeps what it has
            versions = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
            versions |= {"driver": torch.version.cuda, "toy": not HAS_GPU}
            path.write_text(json.dumps(versions | {"tables": found}, indent=1) + "\n", "utf-8")
    console.print(f"{perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
