"""Three signs that a run is dying, before its reward says so: RAGEN's (Wang et al. 2025, section 4).

Owns the thresholds. The figures are audit.py's; what happens to the run is loop.py's business."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from agentgym.errors import ConfigError

WINDOW = 50  # updates whose gradient norms are compared


@dataclass(frozen=True, slots=True)
class AlarmConfig:
    """When a run is stopped, with its state saved."""

    alarm_reward_std: float = 0.01
    """Groups whose members all earn the same teach nothing: the least mean standard deviation within groups; 0 for no
    alarm."""
    alarm_gradient: float = 30.0
    """A gradient so many times the median of the last 50 is a spike, and three in ten updates an alarm; 0 for none."""
    alarm_entropy: float = 1e-4
    """The least mean entropy in nats of the tokens trained; 0 for no alarm."""
    alarm_patience: int = 10
    """Updates in a row that must lie below the least standard deviation or entropy."""
    alarm_success: float = 0.9
    """From this success on, neither is alarming: whoever has learned the task stops varying."""

    def __post_init__(self) -> None:
        if self.alarm_patience < 1:
            raise ConfigError(f"alarm_patience is {self.alarm_patience}; give at least 1 update")
        for name in ("alarm_reward_std", "alarm_gradient", "alarm_entropy", "alarm_success"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")


class Alarms:
    """Watches the audit of one update after the other."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._spikes: deque[bool] = deque(maxlen=10)
        self._low = {"reward_std": 0, "entropy": 0}

    def seen(self, line: dict[str, Any]) -> str:
        """Take in an update's figures; the sentence of the alarm they raise, or nothing."""
        c = self.config
        known, norm = list(self._norms), line["grad_norm"]
        self._norms.append(norm)
        self._spikes.append(len(known) >= 10 and c.alarm_gradient > 0 and norm > c.alarm_gradient * median(known) > 0)
        for name, least in (("reward_std", c.alarm_reward_std), ("entropy", c.alarm_entropy)):
            is_low = line.get(name, least) < least and line["success"] < c.alarm_success
            self._low[name] = self._low[name] + 1 if is_low else 0
        if sum(self._spikes) >= 3:
            return (
                f"{sum(self._spikes)} of the last {len(self._spikes)} gradients are more than {c.alarm_gradient:g} "
                f"times the median, the last {norm:.3g}; try a lower --lr, a tighter --clip-norm, or --alarm-gradient 0"
            )
        for name, meaning, flag in (
            ("reward_std", "the groups' members all earn the same", "alarm-reward-std"),
            ("entropy", "the policy says one thing only", "alarm-entropy"),
        ):
            if self._low[name] >= c.alarm_patience:
                return (
                    f"{name} has been below {getattr(c, f'alarm_{name}'):g} for {self._low[name]} updates at success "
                    f"{line['success']:.1%}, the last {line[name]:.2g}: {meaning}, and there is nothing to learn from. "
                    f"Easier tasks, a higher --temperature or an --entropy-coef help; --{flag} 0 goes on regardless"
                )
        return ""
