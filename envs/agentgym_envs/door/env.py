"""A locked door and a note: the template to copy."""

from agentgym import AgentEnv, Message, Rubric, Task, TaskSet, assistant, call, tool


class DoorEnv(AgentEnv):
    """A locked door and a note. Horizon: 2 turns."""

    tasks = TaskSet.procedural(lambda rng: Task("Open the door.", f"{rng.integers(10**4):04}", metadata={"horizon": 2}))
    rubric = Rubric(opened=lambda outcome: float(outcome.final["opened"]))
    max_turns, blocking = 8, False

    def setup(self) -> None:  # called by reset(), with self.task and self.np_random in place
        self.opened = False

    @tool
    def read_note(self) -> str:
        """Read the note on the floor."""
        return f"The code is {self.task.answer}."

    @tool
    def enter(self, code: str) -> str:
        """Type a four-digit code into the lock."""
        self.opened = code == self.task.answer
        if self.opened:
            self.end()
        return "The door opens." if self.opened else "A red light."

    def final(self) -> dict[str, bool]:
        return {"opened": self.opened}

    def gold(self) -> Message:
        return assistant("", call("enter", code=self.task.answer) if self.num_turns else call("read_note"))
