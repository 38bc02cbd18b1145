"""Run 12: InterCode's shell requests, each in a fresh copy of its file system, in Docker."""

from __future__ import annotations

import json

from acceptance_runs.base import Found, Setup, play, run
from acceptance_runs.terminal import offline_image
from agentgym.policies.builtin import Gold

SHARE = 120 / 135


@run(12, "intercode_bash")
def intercode_bash(setup: Setup) -> Found:
    """The gold command, twice, in fresh copies: status 0, and the same output and files each time as in a third."""
    kwargs = {"data": str(setup.data / "intercode_bash"), "sandbox": "docker", "image": offline_image(setup)}
    once, again = (play(setup, "agentgym/Shell-v0", Gold(), **kwargs) for _ in range(2))
    ended = repeated = both = 0
    for one, two in zip(once, again, strict=True):
        well = one.final["exit_code"] == two.final["exit_code"] == 0
        same = one.success and two.success and _seen(one.final) == _seen(two.final)
        ended, repeated, both = ended + well, repeated + same, both + (well and same)
    count = len(once)
    needed = int(SHARE * count)
    return Found(
        count, f"at least {needed} of {count} end with 0 and repeat exactly",
        f"{both} of {count} (status 0: {ended}, repeat: {repeated})", passed=count > 0 and both >= needed,
    )  # fmt: skip


def _seen(final: dict) -> str:
    return json.dumps([final["files"], final["output"]])
