"""Functions that somebody else wrote, by name: `module:function`.

Owns the import and its errors. What a function must be like, its user says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentgym.errors import ConfigError


def function_at(name: str) -> Callable[..., Any]:
    """What `module:function` names, the working directory's modules among them. Raises ConfigError saying what is
    missing."""
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{name!r}: {error}. Give a function of a module that Python can import.") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"{name!r} is {type(found).__name__} and no function")
    return found
