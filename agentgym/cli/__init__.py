"""The command line: which command is meant, and how its errors become one sentence and an exit code.

Owns the table of commands and the border to the shell. Each command is one module here with `main(argv) -> exit code`,
imported when it is called and not before; flags and configuration files are options.py's business.

An imported command is an attribute of this package: `list` and `eval` mean the commands here, not the builtins."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from agentgym.errors import AgentGymError, ConfigError, nearest
from agentgym.messages import safe

COMMANDS = {
    "train": "train a policy in an environment; writes runs/<name>/ with a report",
    "ablate": "train with switches on and off, over seeds, and compare with intervals",
    "eval": "measure a policy's success on held-out tasks, by horizon, with intervals",
    "horizon": "measure how far a policy gets: success by horizon, H50, first errors, planted errors",
    "compare": "set runs beside one another on the same tasks: differences with intervals, tasks that changed",
    "check": "test environments against the contract: determinism, rewards, leaks, hostile output",
    "score": "judge a run's episodes again, without the agent",
    "export": "write a run's episodes as OpenAI messages, ATIF or Parquet",
    "import": "read recorded episodes, ours or others', into a run",
    "list": "show the environments that are installed",
    "show": "show a run: its figures, or an episode as a transcript",
    "play": "play an environment yourself at the terminal",
    "sandbox": "run a command in a sandbox; list, remove, measure, build sandboxes",
    "doctor": "say what this machine has, what is missing, and how to get it",
}
_EXTRAS = {  # optional package -> the extra that installs it
    **dict.fromkeys(("torch", "transformers", "tokenizers", "jinja2", "scipy", "matplotlib", "psutil"), "train"),
    "docker": "docker",
    "pyarrow": "parquet",
    "reasoning_gym": "reasoning",
    "math_verify": "math",
    "bm25s": "search",
    "Stemmer": "search",
    "sqlglot": "sql",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after the command has saved what it had; the message says how to go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    args = [*(sys.argv[1:] if argv is None else argv)]
    try:
        code = _dispatch(args)
        sys.stdout.flush()  # a closed pipe shows here, not at exit
        return code
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "Interrupted.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush at exit
        return 141  # what a shell reports for a program whose reader went away
    except AgentGymError as error:
        return _complain(f"error: {error}", 2 if isinstance(error, ConfigError) else 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return _complain(
            f"error: this needs the package {package}, which is not installed. In your clone of agentgym: "
            f"pip install -e '.[{_EXTRAS[package]}]'",
            1,
        )
    except OSError as error:
        if error.errno not in (*_FULL, *_DENIED):
            raise
        place = f" ({error.filename})" if error.filename else ""
        fix = "free some space" if error.errno in _FULL else "choose another --output or mend its permissions"
        kept = "; what is already written is kept, and --resume goes on" if error.errno in _FULL else ""
        return _complain(f"error: {error.strerror}{place}: {fix}{kept}.", 1)


def say(text: str = "") -> None:
    """A line or more for the user, on standard output; what others wrote in it drives no terminal."""
    sys.stdout.write(safe(text) + "\n")


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        say(_usage())
        return 0
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version  # noqa: PLC0415  50 ms, for this flag only

        say(f"agentgym {version('agentgym')}")
        return 0
    name = args[0]
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r}{nearest(name, [*COMMANDS])} See `agentgym --help`.")
    return importlib.import_module(f"agentgym.cli.{name}").main(args[1:])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: agentgym COMMAND [...]",
            "A gym for language-model agents that act for hundreds of turns.",
            "",
            *lines,
            "",
            "`agentgym COMMAND --help` shows its flags.",
            "example: agentgym eval agentgym/Door-v0 --model gold --limit 20",
        ]
    )


def _complain(message: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(safe(message) + "\n")  # which may hold what a server said
    return code
