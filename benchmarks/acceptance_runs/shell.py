"""Run 12: InterCode's shell requests, each in a fresh copy of its file system, in Docker."""

from __future__ import annotations

from acceptance_runs.base import Found, Setup, play, run
from acceptance_runs.terminal import offline_image
from agentgym.policies.builtin import Gold

SHARE = 120 / 135


@run(12, "intercode_bash")
def intercode_bash(setup: Setup) -> Found:
    """The gold command ends with 0, and comes to the same files and the same output, byte for byte, as when the
    environment runs it in another fresh copy to judge by."""
    kwargs = {"data": str(setup.data / "intercode_bash"), "sandbox": "docker", "image": offline_image(setup)}
    ended = repeated = both = 0
    episodes = play(setup, "agentgym/Shell-v0", Gold(), **kwargs)
    for final in (episode.final for episode in episodes):
        well = final["exit_code"] == 0
        same = final["files"] == final["expected_files"] and final["output"] == final["expected_output"]
        ended, repeated, both = ended + well, repeated + same, both + (well and same)
    count = len(episodes)
    needed = int(SHARE * count)
    return Found(
        count, f"at least {needed} of {count} end with 0 and repeat exactly",
        f"{both} of {count} (status 0: {ended}, repeat: {repeated})", passed=count > 0 and both >= needed,
    )  # fmt: skip
