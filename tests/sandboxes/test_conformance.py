"""Every backend keeps every rule of the contract; an image without Python too."""

from __future__ import annotations

import pytest

from agentgym.sandbox import Sandbox, backend
from agentgym.sandbox.conformance import CLOSED, RULES, check_rule


@pytest.mark.parametrize("rule", [*RULES, *CLOSED])
def test_a_backend_that_isolates_keeps_every_rule(isolating, rule):
    result = check_rule(rule, lambda spec: Sandbox(isolating, spec))
    assert result.ok, result.detail


@pytest.mark.parametrize("rule", RULES)
def test_plain_processes_keep_the_rules_that_are_not_about_isolation(rule):
    result = check_rule(rule, lambda spec: Sandbox(backend("process", unsafe=True), spec))
    assert result.ok, result.detail


@pytest.mark.parametrize("rule", [*RULES, *CLOSED])
def test_an_image_without_python_keeps_every_rule(busybox_image, rule):
    result = check_rule(rule, lambda spec: Sandbox(backend("docker", image=busybox_image), spec))
    assert result.ok, result.detail


def test_a_backend_that_breaks_a_rule_is_told_which_and_how(bubblewrap):
    class Loud(Sandbox):
        async def exec(self, command, **kwargs):
            done = await super().exec(command, **kwargs)
            return type(done)(**{**{f: getattr(done, f) for f in done.__slots__}, "stdout": done.stdout + "!"})

    result = check_rule("a command's output, errors and status come back", lambda s: Loud(bubblewrap, s))
    assert not result.ok
    assert "out\\n!" in result.detail
