"""TRL's half of learner_vs_trl.py: it runs in an environment of its own, where TRL is installed and agentgym is not.

`loss FOLDER` takes TRL's loss and gradient on the tensors in FOLDER/inputs.npz, one case after the other, and writes
FOLDER/trl.npz. `step FOLDER batch|checkpointing|rows` trains in a world of so many turns, one step per line on stdin.
What both sides must agree on is in FOLDER/work.json."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
import transformers
import trl
from learner_vs_trl_common import filled, peak_kib, say
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

WORLD: dict[str, str] = {}  # what the world says: the prompt, and a tool's answer


class World:
    """One tool, which answers with the same text at every turn."""

    def reset(self, **_: Any) -> str:
        return WORLD["prompt"]

    def look(self, place: str) -> str:
        """Look at a place.

        Args:
            place: Its number.
        """
        return WORLD["told"]


def trainer(folder: Path, model: str, callbacks: list[TrainerCallback] | None = None, **options: Any) -> GRPOTrainer:
    """A trainer in float32 that saves, logs and asks nothing."""
    config = GRPOConfig(
        output_dir=str(folder / "trl"), bf16=False, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1000, disable_tqdm=True, dataloader_pin_memory=False, temperature=1.0, **options,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / model)
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text()
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / model, dtype=torch.float32),
        reward_funcs=[lambda completions, **_: [float(i % 2) for i in range(len(completions))]],
        args=config, processing_class=tokenizer, environment_factory=World, callbacks=callbacks,
    )  # fmt: skip


# -- the loss ------------------------------------------------------------------------------------------------------


def losses(folder: Path) -> None:
    """TRL's own `_compute_loss` and its backward pass on the same tensors, per case."""
    with np.load(folder / "inputs.npz") as file:
        inputs = {name: torch.from_numpy(file[name]) for name in file.files}
    found: dict[str, np.ndarray] = {}
    WORLD.update(prompt="x", told="y")
    for case in json.loads((folder / "work.json").read_text())["cases"]:
        one = trainer(folder, "small", per_device_train_batch_size=len(inputs["advantages"]), max_steps=1,
                      num_generations=len(inputs["advantages"]), **case["trl"])  # fmt: skip
        one.model.eval()
        loss = one._compute_loss(one.model, dict(inputs))
        loss.backward()
        found[f"{case['name']}|loss"] = loss.detach().numpy()
        for name, parameter in one.model.named_parameters():
            found[f"{case['name']}|{name}"] = parameter.grad.numpy()
    np.savez(folder / "trl.npz", **found)


# -- the step ------------------------------------------------------------------------------------------------------


class Rounds(TrainerCallback):
    """Waits for a line before each step and tells what the step took."""

    def __init__(self) -> None:
        self.clock = {"generate_s": 0.0, "rollout_s": 0.0, "sampled": 0}
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        sys.stdin.readline()
        self.clock = dict.fromkeys(self.clock, 0)
        self.began = perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        step_s = perf_counter() - self.began
        say("STEP", {"step_s": step_s, "update_s": step_s - self.clock["rollout_s"], "peak_kib": peak_kib(),
                     **self.clock})  # fmt: skip

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.clock[name] += perf_counter() - began

        return wrapped


def steps(folder: Path, variant: str) -> None:
    """Whole training steps: every turn is really generated; its ids then become a turn of the same length that calls
    the tool, since a random model never would."""
    work = json.loads((folder / "work.json").read_text())["step"]
    torch.set_num_threads(work["threads"])
    WORLD.update(prompt="", told="")
    rounds, size, turns = Rounds(), work["group_size"], work["turns"]
    rows = 1 if variant == "rows" else size
    one = trainer(
        folder, "tiny", [rounds], per_device_train_batch_size=rows, gradient_accumulation_steps=size // rows,
        num_generations=size, max_steps=work["steps"],
        max_completion_length=turns * (work["sampled"] + work["observed"]), max_tool_calling_iterations=turns - 1,
        generation_kwargs={"max_new_tokens": work["sampled"], "min_new_tokens": work["sampled"]}, top_k=0,
        learning_rate=work["lr"], activation_checkpointing=variant == "checkpointing", lr_scheduler_type="constant",
    )  # fmt: skip
    spoken = fit(one, work)
    generate = rounds.timed("generate_s", one._generate_single_turn)

    def speak(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        made, logprobs = generate(prompt_ids, *args, **kwargs)
        if any(len(ids) != work["sampled"] for ids in made):
            raise SystemExit(f"a turn of {[len(ids) for ids in made]} tokens; {work['sampled']} were asked for")
        rounds.clock["sampled"] += sum(map(len, made))
        return [list(spoken) for _ in made], logprobs

    def shown(generation_batch: Any) -> Any:
        batch = scored(generation_batch)
        rounds.clock["cells"] = batch["prompt_ids"].numel() + batch["completion_ids"].numel()
        rounds.clock["trained"] = int((batch["completion_mask"] * batch["tool_mask"]).sum())
        return batch

    scored = rounds.timed("rollout_s", one._generate_and_score_completions)
    one._generate_single_turn, one._generate_and_score_completions = speak, shown
    say("READY", {"kib": peak_kib(), "versions": {name: version(name) for name in ("trl", "transformers", "torch")}})
    one.train()


def fit(one: GRPOTrainer, work: dict[str, Any]) -> list[int]:
    """Choose texts so that the prompt, an observation and a turn have exactly the tokens wanted. -> the turn's ids."""
    one._batch_environments = [None]

    def prompt(text: str) -> int:
        return len(one._tokenize_prompts([[{"role": "user", "content": text}]])[0][0])

    def told(text: str) -> int:
        return len(one._get_tool_suffix_ids([{"role": "tool", "name": "look", "content": text}]))

    def turn(text: str) -> list[int]:
        call = json.dumps({"name": "look", "arguments": {"place": text}})
        return one.processing_class(f"<tool_call>\n{call}\n</tool_call><|im_end|>")["input_ids"]

    WORLD.update(prompt=filled(prompt, work["prompt"]), told=filled(told, work["observed"]))
    return turn(filled(lambda text: len(turn(text)), work["sampled"]))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    if sys.argv[1] == "loss":
        losses(Path(sys.argv[2]))
    else:
        steps(Path(sys.argv[2]), sys.argv[3])
