"""Which versions a run was made with: what config.toml, summary.json and `agentgym doctor` print."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("agentgym", "torch", "transformers", "tokenizers", "gymnasium", "numpy", "reasoning-gym")


def versions() -> dict[str, str | None]:
    """Package -> version (None: not installed), Python's, and the git commit of a clone. Imports none of them."""
    return {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}, "commit": commit()}


def installed(package: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The clone's commit, with `+changes` where tracked files differ from it; None where this is no clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return f"{head}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
