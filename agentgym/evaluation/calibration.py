"""Whether a policy that says how sure it is, is right as often as it says.

Owns the figures of stated confidences and where episodes state them. What an answer earns is the environment's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgym.errors import ConfigError
from agentgym.evaluation.intervals import Array, is_number, or_null
from agentgym.ledger import Episode

NUM_BINS = 10
COVERAGES = (0.25, 0.5, 0.75, 1.0)  # at which `as_json` tells the selective accuracy
ANSWER = {"chosen", "key", "confidence"}  # what an environment says of an answer


@dataclass(frozen=True, slots=True)
class Calibration:
    """Stated confidences beside what was right. All of it is over the `n` answers that stated one."""

    n: int
    num_unstated: int  # answers without a confidence in [0, 1]: in no figure here
    accuracy: float
    confidence: float  # the mean
    ece_width: float  # expected calibration error over bins of equal width
    ece_mass: float  # over bins of equal numbers of answers
    brier: float  # = reliability - resolution + uncertainty
    reliability: float
    resolution: float
    uncertainty: float
    auroc: float  # NaN where all or none were right
    selective: tuple[tuple[float, float], ...]  # (coverage, accuracy of the surest so many), rising coverage

    def accuracy_at(self, coverage: float) -> float:
        """Accuracy of the surest answers that make up at least this share; ties in confidence come in together."""
        return next(accuracy for share, accuracy in self.selective if share >= coverage - 1e-12)

    def as_json(self) -> dict[str, Any]:
        told = asdict(self) | {"auroc": or_null(self.auroc)}
        del told["selective"]
        return told | {"selective_accuracy": {f"{share:g}": self.accuracy_at(share) for share in COVERAGES}}


def calibration(
    confidences: Sequence[float], right: Sequence[bool], num_bins: int = NUM_BINS, num_unstated: int = 0
) -> Calibration:
    """All figures of n >= 1 stated confidences in [0, 1] and whether each answer was right. Raises ConfigError."""
    said, won = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if said.shape != won.shape or said.ndim != 1 or not len(said):
        raise ConfigError(f"{said.shape} confidences for {won.shape} answers; give one each, and at least one")
    if not (said.min() >= 0 and said.max() <= 1):
        raise ConfigError(f"confidences from {said.min():g} to {said.max():g}; they lie in [0, 1]")
    by_width = np.clip(np.ceil(said * num_bins) - 1, 0, num_bins - 1)  # bins closed on the right
    by_mass = np.searchsorted(np.sort(said), said) * num_bins // len(said)
    reliability, resolution, uncertainty = murphy(said, won)
    return Calibration(
        len(said), num_unstated, float(won.mean()), float(said.mean()),
        ece(said, won, by_width), ece(said, won, by_mass), float(((said - won) ** 2).mean()), reliability, resolution,
        uncertainty, auroc(said, won), selective(said, won),
    )  # fmt: skip


def calibration_of(episodes: Iterable[Episode]) -> Calibration | None:
    """The figures of the confidences that the episodes which count state; None where they state none."""
    given = [each for episode in episodes if episode.counts for each in stated(episode)]
    told = [(said, right) for said, right in given if said is not None]
    if not told:
        return None
    return calibration([said for said, _ in told], [right for _, right in told], num_unstated=len(given) - len(told))


def stated(episode: Episode) -> list[tuple[float | None, bool]]:
    """(confidence, right) of each answer that an episode's final state tells of: of the list `given` of answers with
    `chosen`, `key` and `confidence`, else of one `confidence` for the episode's success. None is a confidence that was
    not said, or is no number in [0, 1]."""
    final = episode.final
    if not isinstance(final, Mapping):
        return []
    given = final.get("given")
    if isinstance(given, Sequence) and not isinstance(given, str):
        answers = [each for each in given if isinstance(each, Mapping) and each.keys() >= ANSWER]
        return [(_share(each["confidence"]), each["chosen"] == each["key"]) for each in answers]
    return [(_share(final["confidence"]), episode.success)] if "confidence" in final else []


def ece(said: Array, won: Array, bins: NDArray[Any]) -> float:
    """Mean distance of accuracy from confidence over bins, weighted by their sizes (Naeini et al. 2015; Guo et al.
    2017, eq. 3). said, won [n] float64, bins [n] the bin of each. Biased upwards: a perfect forecaster's falls with
    n^(-1/2)."""
    _, index = np.unique(bins, return_inverse=True)
    return float(np.abs(np.bincount(index, weights=won - said)).sum() / len(said))


def murphy(said: Array, won: Array) -> tuple[float, float, float]:
    """Reliability, resolution, uncertainty, with Brier = reliability - resolution + uncertainty (Murphy 1973).
    said, won [n] float64. Groups are the distinct confidences, for which alone the sum is exact."""
    values, index, sizes = np.unique(said, return_inverse=True, return_counts=True)
    rates, base = np.bincount(index, weights=won) / sizes, won.mean()
    weights = sizes / len(said)
    return float(weights @ (values - rates) ** 2), float(weights @ (rates - base) ** 2), float(base * (1 - base))


def auroc(said: Array, won: Array) -> float:
    """The chance that a right answer was surer than a wrong one, ties one half (Hanley & McNeil 1982)."""
    right, wrong = said[won == 1], np.sort(said[won == 0])
    if not (len(right) and len(wrong)):
        return float("nan")
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / 2 / len(wrong))


def selective(said: Array, won: Array) -> tuple[tuple[float, float], ...]:
    """The risk-coverage curve (El-Yaniv & Wiener 2010), as (coverage, accuracy) at each distinct confidence."""
    _, index, sizes = np.unique(-said, return_inverse=True, return_counts=True)
    taken = np.cumsum(sizes)
    accuracy = np.cumsum(np.bincount(index, weights=won)) / taken
    return tuple(zip((taken / len(said)).tolist(), accuracy.tolist(), strict=True))


def _share(said: Any) -> float | None:
    return float(said) if is_number(said) and 0 <= said <= 1 else None
