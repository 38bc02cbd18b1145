"""`agentgym train`: its knobs, where their defaults come from, and the folder it writes.

Owns TrainConfig, the resolution of flags over files, and what --resume may change (nothing). The job itself is
train_job.py's."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
import transformers
import tyro

from agentgym.cli import Interrupted
from agentgym.cli.folder import CONFIG, newest, numbered, refuse_changes, saved, write
from agentgym.cli.options import parse, settings, to_toml
from agentgym.cli.train_job import Job
from agentgym.cli.versions import versions
from agentgym.engines.base import Sampling
from agentgym.errors import ConfigError
from agentgym.learner.alarms import AlarmConfig
from agentgym.learner.credit import NEEDS_STATES
from agentgym.learner.distributed import Ranks
from agentgym.learner.loop import LoopConfig
from agentgym.learner.lora import LoraConfig
from agentgym.learner.sampler import CurriculumConfig
from agentgym.learner.scratch import ScratchConfig
from agentgym.learner.selection import SelectionConfig
from agentgym.learner.update import ObjectiveConfig, OptimizerConfig
from agentgym.learner.warm_start import WarmStartConfig
from agentgym.policies.context import ContextConfig
from agentgym.registry import make
from agentgym.syntax import get_syntax

# What a resumed run may be given anew: where it stops, what it keeps, and how much goes through the model at once.
MAY_CHANGE = {f.name for f in fields(AlarmConfig)} | {
    "resume", "output", "controls", "max_mismatch", "checkpoint_every", "keep_checkpoints", "microbatch_tokens",
    "gradient_checkpointing",
}  # fmt: skip
EXAMPLE = "agentgym train agentgym/Door-v0 --group-size 16 --credit leave_one_out"


@dataclass(frozen=True)
class TrainConfig:
    """Train a policy in an environment. Writes runs/<name>/; Ctrl-C saves, --resume goes on."""

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")] = "agentgym/Lookup-v0"
    """Environment id; its folder's train.toml, where it has one, holds the defaults."""
    model: str | None = None
    """Model folder or hub name, with its own tokenizer and chat template; without it one starts from scratch."""
    seed: int = 0
    """Seed of everything: same seed, same run."""
    output: Path | None = None
    """Folder of the run; runs/<name>-<n> without it."""
    resume: bool = False
    """Go on with the run in --output (or the newest of this environment)."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights; below float32 the optimiser keeps float32 masters."""
    threads: int = 1
    """CPU threads; fixed, because the last bits depend on it."""
    nproc: int = 1
    """Processes on this machine that train together, each on its share of the groups and with its shard of the weights;
    more machines: torchrun … -m agentgym.cli train …"""
    syntax: str | None = None
    """How the model spells tool calls: hermes, xml, react or code; without it what the model was taught, or hermes."""
    temperature: float = 1.0
    """Sampling temperature, in rollouts and in the sampled evaluation."""
    top_p: float = 1.0
    """Training takes the whole distribution; below 1 is refused here, and for `agentgym eval`."""
    history: Literal["fork", "extend"] = "fork"
    """Where the chat template rewrites what went before: begin another row, or refuse such a template."""
    max_tokens: int = 256
    """Tokens per message."""
    concurrency: int = 256
    """Episodes at once."""
    horizon: tuple[int, ...] = ()
    """Trained horizons; the environment's default without it."""
    test_horizon: tuple[int, ...] = ()
    """Tested horizons; the trained ones without it."""
    eval_limit: int = 40
    """Held-out tasks per horizon, before and after."""
    eval_start: int = 0
    """Position in the test split of the first of them: another range, other tasks."""
    set: tuple[str, ...] = ()
    """More arguments of the environment, name=JSON: --set difficulty=1."""
    control_steps: int = 0
    """Imitation steps of the control: the same start, imitation alone and no reinforcement; 0 for none."""
    controls: bool = False
    """Afterwards train twice more, taught by random and by format-only reward: what these gain too was not learnt from
    the task. Three times the work."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    warm: WarmStartConfig = field(default_factory=WarmStartConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    view: ContextConfig = field(default_factory=ContextConfig)

    def __post_init__(self) -> None:
        for name, low in (
            ("threads", 1),
            ("eval_limit", 1),
            ("concurrency", 1),
            ("eval_start", 0),
            ("control_steps", 0),
            ("nproc", 1),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {low}")
        if self.temperature == 0:
            raise ConfigError("temperature is 0; training needs samples that differ, give a number above 0")
        Sampling(0, self.max_tokens, self.temperature)
        if self.top_p != 1:
            raise ConfigError(
                f"top_p {self.top_p} cuts the distribution that is sampled from, and which tokens were cut is not kept:"
                " the learner would score another distribution. Train with 1; agentgym eval takes any."
            )
        self._refuse_combinations()
        if self.device != "cpu" and not self.device.startswith("cuda"):
            raise ConfigError(f"device {self.device!r} is unknown; use cpu or cuda")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"device {self.device!r}: torch {torch.__version__} sees no GPU; use --device cpu")
        if self.model is None and not self.warm.warm_steps:
            raise ConfigError("warm_steps is 0: a model that starts from scratch must imitate first; or give --model")
        if self.syntax is not None:
            get_syntax(self.syntax)

    def _refuse_combinations(self) -> None:
        """Choices that cannot go together, each with its reason."""
        if self.loop.staleness and self.nproc > 1:
            raise ConfigError(
                f"staleness {self.loop.staleness} with nproc {self.nproc}: ranks sample and learn by turns, over"
                " one group of connections; take staleness 0, or one process"
            )
        if self.nproc > 1 and self.device == "cpu" and self.dtype != "float32":
            raise ConfigError(f"dtype {self.dtype} with nproc {self.nproc} on a CPU: shards are float32 there")
        if self.lora.lora_rank and self.optimizer.muon_lr:
            raise ConfigError("muon_lr with lora_rank: Muon is for whole hidden matrices; leave one of them out")
        if self.lora.lora_rank and self.model is None:
            raise ConfigError("lora_rank adapts a model that can already speak; give --model")

    @property
    def credit_needs_states(self) -> bool:
        return self.loop.credit in NEEDS_STATES

    def env_kwargs(self, **more: Any) -> dict[str, Any]:
        """Arguments the environment is made with."""
        horizon = {"horizon": list(self.horizon)} if self.horizon else {}
        return horizon | settings(self.set) | more


def main(argv: Sequence[str]) -> int:
    config = _configured(list(argv))
    if config.nproc > 1 and "WORLD_SIZE" not in os.environ:
        _torchrun(config.nproc, argv)
    ranks = Ranks.joined(config.device)
    try:
        return _train(config, ranks)
    finally:
        ranks.close()


def _torchrun(nproc: int, argv: Sequence[str]) -> NoReturn:
    """This process becomes torchrun, which starts the command `nproc` times."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    os.execv(sys.executable, [sys.executable, *run, "-m", "--", "agentgym.cli", "train", *argv])


def _train(config: TrainConfig, ranks: Ranks) -> int:
    folder = Path(ranks.from_leader(str(_folder(config)) if ranks.leads else None))
    transformers.utils.logging.disable_progress_bar()  # for files of a megabyte
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=config.device != "cpu")
    again = shlex.join(["agentgym", "train", config.env, "--output", str(folder), "--resume"])
    try:
        with Job(config, folder, ranks) as job:
            job.run()
    except KeyboardInterrupt:
        raise Interrupted(f"What was finished is saved. Go on with: {again}") from None
    return 0


def _configured(argv: list[str]) -> TrainConfig:
    """Flags over the environment's train.toml (or --config, or the resumed run's own)."""
    config = parse(TrainConfig, argv, "agentgym train", EXAMPLE)
    if config.resume:
        if any(a.split("=")[0] == "--config" for a in argv):
            raise ConfigError("--resume goes on with the run's own config.toml; leave --config out")
        folder = config.output or newest(_stem(config.env))
        saved(TrainConfig, folder)  # or the reason why there is none
        given = parse(TrainConfig, [*argv, "--config", str(folder / CONFIG)], "agentgym train", EXAMPLE)
        refuse_changes(given, folder, MAY_CHANGE)
        return replace(given, output=folder, resume=True)
    env = make(config.env)
    defaults = Path(inspect.getfile(type(env.unwrapped))).parent / "train.toml"
    env.close()
    if defaults.is_file() and not any(a.split("=")[0] == "--config" for a in argv):
        config = parse(TrainConfig, [*argv, "--config", str(defaults)], "agentgym train", EXAMPLE)
    return config


def _stem(env: str) -> str:
    return env.rpartition("/")[2]


def _folder(config: TrainConfig) -> Path:
    """The run's folder, made if the run is new."""
    folder, settled = config.output, to_toml(replace(config, resume=False), versions())
    if config.resume and folder is not None:
        write(folder / CONFIG, settled)
        return folder
    folder = numbered(_stem(config.env)) if folder is None else folder
    if any((folder / "checkpoints").glob("update-*")):
        raise ConfigError(f"{folder} holds a run already: add --resume to go on with it, or choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / CONFIG, settled)
    return folder
