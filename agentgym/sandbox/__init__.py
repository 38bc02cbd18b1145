"""Sandboxes: closed places in which an agent's code runs. `Sandbox(backend("auto"))`, then `await sandbox.exec("ls")`.

Backends are plug-ins (entry-point group `agentgym.sandboxes`): docker, bubblewrap, process; and anyone's own."""

from agentgym.sandbox.backends import backend
from agentgym.sandbox.contract import (
    MIB,
    WORKSPACE,
    Backend,
    Box,
    Command,
    EngineUnreachable,
    ExecResult,
    Limits,
    Listed,
    Output,
    Program,
    SandboxExhausted,
    SandboxFileError,
    SandboxLost,
    Snapshot,
    Spec,
    parse_bytes,
)
from agentgym.sandbox.env import BashTool, PythonTool, SandboxEnv, told
from agentgym.sandbox.pool import Pool
from agentgym.sandbox.sandbox import Sandbox, Session

__all__ = [
    "MIB",
    "WORKSPACE",
    "Backend",
    "BashTool",
    "Box",
    "Command",
    "EngineUnreachable",
    "ExecResult",
    "Limits",
    "Listed",
    "Output",
    "Pool",
    "Program",
    "PythonTool",
    "Sandbox",
    "SandboxEnv",
    "SandboxExhausted",
    "SandboxFileError",
    "SandboxLost",
    "Session",
    "Snapshot",
    "Spec",
    "backend",
    "parse_bytes",
    "told",
]
