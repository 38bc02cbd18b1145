"""Sampled tokens per second on multi-turn episodes: the local engine against `transformers.generate` in the same run.

Both sides play the same episodes: a prompt, then turns of (action, observation) whose lengths are drawn once, with a
fixed seed, for every episode. The engine keeps each episode's cache between turns. The baseline does what a plain
loop over `generate` does: all histories left padded and encoded anew each turn, one batch per turn, each row stopped
at its own length. Only the tokens that an episode asks for are counted.

example: python benchmarks/decode.py --turns 2 4 6 8 --episodes 64 --repeats 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, StoppingCriteria

from agentgym.engines.base import Sampling
from agentgym.engines.causal import CausalLM
from agentgym.engines.local import LocalEngine
from agentgym.loop import run_sync

RESULTS = Path(__file__).parent / "results" / "decode.json"
Episode = list[tuple[np.ndarray, int]]  # per turn: what is observed, and how many tokens the reply has


def models() -> dict[str, PreTrainedModel]:
    """The default job's shape, and the Qwen3 shape that the field's small comparisons use."""
    torch.manual_seed(0)
    scratch = LlamaConfig(
        vocab_size=1200, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=8192, bos_token_id=None,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    qwen = Qwen3Config(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, tie_word_embeddings=True, max_position_embeddings=8192,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return {"llama 0.3M": LlamaForCausalLM(scratch).eval(), "qwen3 4M": Qwen3ForCausalLM(qwen).eval()}


def episodes(count: int, turns: int, vocabulary: int) -> list[Episode]:
    """Lengths as agents have them: replies lognormal with mean 24 (cap 64), observations with mean 32 (cap 128)."""
    rng = np.random.default_rng(0)

    def length(mean: float, cap: int) -> int:
        return int(np.clip(rng.lognormal(np.log(mean) - 0.18, 0.6), 2, cap))

    def ids(n: int) -> np.ndarray:
        return rng.integers(1, vocabulary, n)

    return [[(ids(length(48 if t == 0 else 32, 128)), length(24, 64)) for t in range(turns)] for _ in range(count)]


def run_engine(model: PreTrainedModel, work: list[Episode]) -> int:
    engine = LocalEngine(CausalLM(model))

    async def play(session: int, number: int, episode: Episode) -> int:
        history: list[int] = []
        for turn, (observed, reply) in enumerate(episode):
            history += observed.tolist()
            made = await engine.generate(session, history, Sampling(seed=1000 * number + turn, max_tokens=reply))
            history += made.ids.tolist()
        engine.close(session)
        return sum(reply for _, reply in episode)

    async def all_of_them() -> int:
        sessions = [engine.open() for _ in work]
        return sum(await asyncio.gather(*(play(s, n, e) for n, (s, e) in enumerate(zip(sessions, work, strict=True)))))

    count = run_sync(all_of_them())
    engine.shutdown()
    return count


class Lengths(StoppingCriteria):
    """Stops each row at its own number of new tokens."""

    def __init__(self, start: int, lengths: list[int]) -> None:
        self.ends = start + torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def run_generate(model: PreTrainedModel, work: list[Episode]) -> int:
    histories: list[list[int]] = [[] for _ in work]
    for turn in range(len(work[0])):
        for history, episode in zip(histories, work, strict=True):
            history += episode[turn][0].tolist()
        width = max(map(len, histories))
        ids = torch.tensor([[0] * (width - len(h)) + h for h in histories])
        mask = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in histories])
        lengths = [episode[turn][1] for episode in work]
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=max(lengths), pad_token_id=0, stopping_criteria=[Lengths(width, lengths)],
            )  # fmt: skip
        for row, (history, length) in enumerate(zip(histories, lengths, strict=True)):
            history += out[row, width : width + length].tolist()
    return sum(reply for episode in work for _, reply in episode)


def measure(args: argparse.Namespace) -> list[dict]:
    rows = []
    for name, model in models().items():
        for turns in args.turns:
            work = episodes(args.episodes, turns, model.config.vocab_size)
            speed: dict[str, list[float]] = {"agentgym": [], "generate": []}
            for repeat in range(args.repeats + 1):  # the first is a warm-up; the two sides alternate
                for side, run in (("agentgym", run_engine), ("generate", run_generate)):
                    began = perf_counter()
                    count = run(model, work)
                    if repeat:
                        speed[side].append(count / (perf_counter() - began))
            ours, peer = (statistics.median(speed[side]) for side in ("agentgym", "generate"))
            ratios = [a / b for a, b in zip(speed["agentgym"], speed["generate"], strict=True)]
            rows.append(
                {"model": name, "turns": turns, "tokens": count, "speed": speed, "ratio": ours / peer, "ratios": ratios}
            )
            print(
                f"{name:<12}{turns:>6}{ours:>12,.0f}{peer:>12,.0f}{ours / peer:>10.2f}x   "
                f"[{min(ratios):.2f}, {max(ratios):.2f}]",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    print(
        f"decode, {args.episodes} episodes, {args.threads} CPU thread(s), float32: sampled tokens/s, "
        f"medians of {args.repeats}"
    )
    print(f"{'model':<12}{'turns':>6}{'agentgym':>12}{'generate':>12}{'ratio':>11}   [min, max]")
    rows = measure(args)
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    RESULTS.write_text(json.dumps({"settings": vars(args), "versions": about, "rows": rows}, indent=1) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
