"""Saving a run so that it goes on bit for bit, and its model so that others can load it.

Owns the folders in `checkpoints/`: written aside and renamed, so that a kill leaves the last whole one. Each holds the
run's state and `model/`, which AutoModelForCausalLM.from_pretrained opens. What the learner's state is, is update.py's
business."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentgym.engines.causal import CausalLM
from agentgym.errors import ConfigError
from agentgym.learner.lora import is_adapted, merged_weights
from agentgym.learner.update import Learner


class Checkpoints:
    """The newest `keep` states of a run, and the best: weights, optimiser, random state, and where the run stood.

    `beside` writes what else a model's folder needs, such as its tokenizer."""

    def __init__(self, folder: Path, *, keep: int = 2, beside: Callable[[Path], None] | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.beside = beside

    def save(self, learner: Learner, update: int, progress: dict[str, Any], *, score: float | None = None) -> Path:
        """Write the state after `update` updates; `progress` is whatever else the run must remember (JSON), `score`
        what the best is the best by. Every rank calls it; the leader writes."""
        state = {"update": update, "learner": learner.state_dict(), "random": _random_state(), "progress": progress}
        path = self.folder / f"update-{update:06}"
        if not learner.ranks.leads:
            return path
        if score is None:  # the same update in another phase of the run: as good as it was
            score = _score(path)
        self._recover()
        aside = self.folder / "aside.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_model(learner.lm, aside / "model", state["learner"]["weights"], self.beside)
        (aside / "score.json").write_text(json.dumps(score) + "\n", "utf-8")
        with (aside / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        before = self.folder / f"before-{path.name}"
        if path.exists():
            path.replace(before)
        aside.replace(path)
        self._recover()
        kept = {*self._paths()[-self.keep :], self.best()}
        for old in set(self._paths()) - kept:
            shutil.rmtree(old)
        return path

    def load(self, learner: Learner) -> tuple[int, dict[str, Any]] | None:
        """Bring the learner to the newest state; (updates done, progress), or None where nothing was saved."""
        if learner.ranks.leads:
            self._recover()
        learner.ranks.gather(None)  # nobody looks before the leader is done
        paths = self._paths()
        if not paths:
            return None
        path = paths[-1] / "state.pt"
        try:
            with zipfile.ZipFile(path) as file:
                if damaged := file.testzip():  # torch reads past a wrong checksum
                    raise ValueError(f"{damaged} is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
            learner.load_state_dict(state["learner"])
            _set_random_state(state["random"])
            return state["update"], state["progress"]
        except Exception as error:  # a broken file breaks in as many ways as there are bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"checkpoint {paths[-1]} cannot be read ({reason}). Delete it: --resume then takes the one before, "
                "or starts anew."
            ) from error

    def best(self) -> Path | None:
        """The checkpoint before which success was highest, the newest of equals; None where none has a score."""
        scores = {path: _score(path) for path in self._paths()}
        known = [path for path, score in scores.items() if score is not None]
        return max(reversed(known), key=lambda path: scores[path] or 0.0, default=None)

    def _recover(self) -> None:
        """Put back a state whose successor a kill kept from its place, or drop it."""
        for before in self.folder.glob("before-update-*"):
            path = self.folder / before.name.removeprefix("before-")
            if path.exists():
                shutil.rmtree(before)
            else:
                before.replace(path)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("update-*") if (path / "state.pt").is_file())


def save_model(
    lm: CausalLM, folder: Path, weights: dict[str, Any] | None = None, beside: Callable[[Path], None] | None = None
) -> None:
    """A Hugging Face folder, adapters added in; `weights` where the model's own are sharded."""
    if is_adapted(lm.model):
        weights = merged_weights(lm.model, weights or lm.model.state_dict())
    lm.model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))  # it drops tied ones
    if beside is not None:
        beside(folder)


def weights_hash(lm: CausalLM) -> str:
    """First 16 hex digits of the SHA-256 of all weights, by name: equal iff bit-identical."""
    digest = hashlib.sha256()
    for name, value in sorted(lm.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _score(path: Path) -> float | None:
    try:
        return json.loads((path / "score.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _random_state() -> dict[str, Any]:
    """Of every process-wide generator: ours draw from their own, but an objective of the user's may not."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    made: dict[str, Any] = {"python": [version, list(numbers), gauss], "torch": torch.get_rng_state()}
    made["numpy"] = [name, torch.from_numpy(np.array(keys, np.int64)), *rest]
    if torch.cuda.is_available():
        made["cuda"] = torch.cuda.get_rng_state_all()
    return made


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
