"""Saving a run so that it goes on bit for bit.

Owns the files in `checkpoints/`: written aside and renamed, so that a kill leaves the last whole one. What is in the
learner's state is update.py's business."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from agentgym.engines.causal import CausalLM
from agentgym.errors import ConfigError
from agentgym.learner.update import Learner


class Checkpoints:
    """The newest `keep` states of a run: weights, optimiser, random state, and where the run stood."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, learner: Learner, update: int, progress: dict[str, Any]) -> Path:
        """Write the state after `update` updates; `progress` is whatever else the run must remember (JSON)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "update": update,
            "learner": learner.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "progress": progress,
        }
        path = self.folder / f"update-{update:06}.pt"
        aside = path.with_suffix(".tmp")
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        for old in self._paths()[: -self.keep]:
            old.unlink()
        return path

    def load(self, learner: Learner) -> tuple[int, dict[str, Any]] | None:
        """Bring the learner to the newest state; (updates done, progress), or None where nothing was saved."""
        paths = self._paths()
        if not paths:
            return None
        try:
            with zipfile.ZipFile(paths[-1]) as file:
                if damaged := file.testzip():  # torch reads past a wrong checksum
                    raise ValueError(f"{damaged} is damaged")
            state = torch.load(paths[-1], map_location="cpu", weights_only=True)
            learner.load_state_dict(state["learner"])
            torch.set_rng_state(state["torch_rng"])
            return state["update"], state["progress"]
        except Exception as error:  # a broken file breaks in as many ways as there are bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"checkpoint {paths[-1]} cannot be read ({reason}). Delete it: --resume then takes the one before, "
                "or starts anew."
            ) from error

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("update-*.pt"))


def weights_hash(lm: CausalLM) -> str:
    """First 16 hex digits of the SHA-256 of all weights, by name: equal iff bit-identical."""
    digest = hashlib.sha256()
    for name, value in sorted(lm.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
