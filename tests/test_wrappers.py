"""TextEnv and the way through wrappers to the async face."""

import gymnasium
import pytest
from gymnasium.wrappers import TimeLimit

import agentgym
from agentgym import ConfigError, TextEnv, call
from agentgym.loop import run_sync
from agentgym.spaces import TextSpace
from agentgym.wrappers import Wrapper, async_face

ANSWERS = {
    "hermes": '<tool_call>{"name": "read_note", "arguments": {}}</tool_call>',
    "xml": "<function=read_note></function>",
    "react": "Action: read_note\nAction Input: {}",
    "code": "```tool\nread_note()\n```",
}
REPLIES = {
    "hermes": "<tool_response>\nThe code is {}.\n</tool_response>",
    "xml": "<tool_response>\nThe code is {}.\n</tool_response>",
    "react": "Observation: The code is {}.",
    "code": "```output\nThe code is {}.\n```",
}


@pytest.mark.parametrize("syntax", ANSWERS)
def test_an_episode_in_text(syntax):
    env = TextEnv(agentgym.make("agentgym/Door-v0"), syntax=syntax)
    observation, _ = env.reset(seed=1)
    assert observation.startswith("You have these tools:\n")
    assert observation.endswith("\nOpen the door.")
    observation, *_ = env.step(ANSWERS[syntax])
    code = env.unwrapped.task.answer
    assert observation == REPLIES[syntax].format(code)
    message = {"role": "assistant", "content": "", "tool_calls": [call("enter", code=code)]}
    _, reward, terminated, *_ = env.step(env.syntax.format(message))
    assert (reward, terminated) == (1.0, True)
    assert env.observation_space == env.action_space == TextSpace()


def test_both_faces_of_a_text_env_agree():
    env = TextEnv(agentgym.make("agentgym/Door-v0"))
    here = env.reset(seed=1)[0], env.step(ANSWERS["hermes"])

    async def there():
        return (await env.areset(seed=1))[0], await env.astep(ANSWERS["hermes"])

    assert run_sync(there()) == here


def test_a_text_env_passes_gymnasiums_checker(recwarn):
    from gymnasium.utils.env_checker import check_env

    env = TextEnv(agentgym.make("agentgym/Lookup-v0").unwrapped)
    check_env(env, skip_render_check=True)
    assert [str(w.message) for w in recwarn if "different from the unwrapped" not in str(w.message)] == []


def test_wrong_actions_and_syntaxes_are_named():
    env = agentgym.make("agentgym/Door-v0")
    with pytest.raises(ConfigError, match="no text form"):
        TextEnv(env, syntax="structured")
    with pytest.raises(ConfigError, match="did you mean 'react'"):
        TextEnv(env, syntax="reakt")
    with pytest.raises(ConfigError, match="is a str, not dict"):
        TextEnv(env).do({"role": "assistant", "content": ""})


class Shout(Wrapper):
    def see(self, observation):
        return observation

    def do(self, action):
        return action.upper()


def test_the_async_face_skips_only_gymnasiums_own_checks():
    made = agentgym.make("agentgym/Door-v0")
    assert isinstance(made, gymnasium.wrappers.OrderEnforcing)
    assert async_face(made) is made.unwrapped
    ours = Shout(TextEnv(made))
    assert async_face(ours) is ours
    assert async_face(TimeLimit(made, 3)) is None
    assert async_face(TextEnv(TimeLimit(made, 3))) is None
    assert async_face(gymnasium.make("CartPole-v1")) is None


def test_nobodys_wrapper_is_skipped_in_silence():
    env = TextEnv(TimeLimit(agentgym.make("agentgym/Door-v0"), 3))

    async def reset():
        await env.areset()

    with pytest.raises(ConfigError, match="without an async face"):
        run_sync(reset())


def test_the_order_of_calls_still_holds_on_the_async_face():
    face = async_face(agentgym.make("agentgym/Door-v0"))

    async def step():
        await face.astep("x")

    with pytest.raises(gymnasium.error.ResetNeeded):
        run_sync(step())
