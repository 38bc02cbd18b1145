"""A gym for language-model agents that act for hundreds of turns.

The public API: what an environment's author and its user import. Loading it loads the environments that installed
packages offer by name, and nothing heavy."""

from agentgym.env import AgentEnv, State
from agentgym.errors import AgentGymError, ConfigError, InfrastructureError, PolicyError, TaskError
from agentgym.ledger import StopReason
from agentgym.messages import JSON, Message, ToolCall, assistant, call, system, tool_result, user
from agentgym.registry import list_envs, load_plugins, make, register
from agentgym.rewards import Outcome, Rubric, Unscored, answer_equals
from agentgym.spaces import Action, Observation
from agentgym.tasks import Split, Task, TaskSet
from agentgym.tools import ToolError, tool
from agentgym.wrappers import TextEnv

__all__ = [
    "JSON", "Action", "AgentEnv", "AgentGymError", "ConfigError", "InfrastructureError", "Message", "Observation",
    "Outcome", "PolicyError", "Rubric", "Split", "State", "StopReason", "Task", "TaskError", "TaskSet", "TextEnv",
    "ToolCall", "ToolError", "Unscored", "answer_equals", "assistant", "call", "list_envs", "load_plugins", "make",
    "register", "system", "tool", "tool_result", "user",
]  # fmt: skip

load_plugins()
