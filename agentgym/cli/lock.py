"""One writer per run: the lock on a run's folder, which the operating system takes back from whoever dies.

Owns the file `lock` and what a second writer is told. Readers need none: run.sqlite is read while it is written."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from agentgym.errors import ConfigError

LOCK_FILE = "lock"


def locked(folder: Path) -> IO[str]:
    """A lock on the run's folder, held until it is closed or the process ends. Raises ConfigError, naming the holder,
    where it is taken."""
    file = (folder / LOCK_FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read(200).strip() or "unknown"
        file.close()
        raise ConfigError(
            f"{folder} is in use by another process ({holder}); wait for it, or choose another --output. "
            f"`agentgym show {folder}` reads it meanwhile."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
