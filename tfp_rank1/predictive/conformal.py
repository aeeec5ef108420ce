"""Conformal: thresholds that turn predictions into sets and intervals of a given coverage.

    q = the ceil((n + 1) coverage)-th smallest of the n scores s(x_i, y_i) of held-out examples
    C(x) = {y : s(x, y) <= q},     P(y in C(x)) >= coverage

The inequality holds for any model and any n, if the new example and the held-out ones are
exchangeable; the probability is over all of them. With groups there is a q for every group, from
its own n examples, and the inequality holds within every group (Mondrian). Where
`(n + 1) coverage > n` no q is large enough: it is infinite, and C(x) holds everything.

Source: Vovk, Gammerman & Shafer (2005), "Algorithmic Learning in a Random World"; Angelopoulos &
Bates (2023), "Conformal Prediction: A Gentle Introduction".
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_rank1 import checks
from tfp_rank1.predictive.conformal_scores import CLASSES, NUMBERS
from tfp_rank1.predictive.mixture import PredictiveMixture

__all__ = ["DEFAULT_COVERAGE", "Conformal", "class_probabilities", "order_statistic"]

DEFAULT_COVERAGE = 0.9
# Groups by the label of an example.
BY_CLASS = "class"


def order_statistic(scores: np.ndarray, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest of n scores `[n]`; infinite if that is above n."""
    # Without the margin, rounding would make 0.9 * 10 the tenth of nine.
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def class_probabilities(mixture: PredictiveMixture) -> tf.Tensor:
    """Probabilities of classes `[N, C]`; for one Bernoulli target those of 0 and 1.

    Raises:
        ValueError: for several Bernoulli targets, whose joint classes have no probabilities here.
    """
    mean = tf.convert_to_tensor(mixture.mean())
    if mixture.likelihood.is_categorical:
        return mean
    if mean.shape[-1] != 1:
        raise ValueError(
            "Prediction sets are for one target with classes. Give every yes/no target a model of "
            f"its own. Received: {mean.shape[-1]} targets of a "
            f"{type(mixture.likelihood).__name__} likelihood"
        )
    return tf.concat([1.0 - mean, mean], axis=-1)


def groups_by_position(groups: Any, mixture: PredictiveMixture) -> np.ndarray:
    """The group of every position, `[N P]`, from those of examples, `[N]`, or of positions.

    Without positions the groups are returned as they are.

    Raises:
        ValueError: for groups of another shape.
    """
    given = np.asarray(groups)
    if not mixture.positions:
        return given
    shape = [mixture.outputs.shape[0], *mixture.positions]
    if given.ndim == 1 and len(given) == shape[0]:
        given = np.repeat(given, math.prod(int(n or 1) for n in mixture.positions))
    elif list(given.shape) != shape:
        raise ValueError(
            f"Argument `groups` must have one label per example, [{shape[0]}], or one per "
            f"position, {shape}. Received: shape {given.shape}"
        )
    return np.ravel(given)


@dataclasses.dataclass(frozen=True, repr=False)
class Conformal:
    """Scores of held-out examples; what `BayesianModel.conformalize` makes.

    Attributes:
        score: the method with its parameters, of `conformal_scores`.
        labels: labels of the groups; `(None,)` without groups. With groups by class the labels
            are the classes 0 to C - 1.
        by_class: whether a group is a class, to which a new example may or may not belong.
        scores: for every group the sorted scores of every target, float32.
        num_samples: samples of the predictions that were scored; None where it is not known.
    """

    score: Any
    labels: tuple[Any, ...]
    by_class: bool
    scores: tuple[tuple[np.ndarray, ...], ...]
    num_samples: int | None = None

    def __repr__(self) -> str:
        counts = [len(by_target[0]) for by_target in self.scores]
        groups = "" if self.labels == (None,) else f" in {len(counts)} groups"
        return f"Conformal({self.score}: {sum(counts)} examples{groups})"

    @property
    def has_given_groups(self) -> bool:
        """Whether the groups of new examples have to be given as well."""
        return self.labels != (None,) and not self.by_class

    def warn_of_fewer(self, num_samples: int) -> None:
        """Warn of predictions by fewer samples than those that were scored: they are noisier."""
        if self.num_samples is not None and num_samples < self.num_samples:
            warnings.warn(
                "Sets and intervals hold the target as often as promised if new examples are "
                f"predicted like the held-out ones: ask with num_samples={self.num_samples}. "
                f"Received: num_samples={num_samples}",
                stacklevel=4,
            )

    def coverage(self, coverage: float | None) -> float:
        """A coverage that can be asked for, strictly between 0 and 1.

        Args:
            coverage: None for the one that the scores were made for, else 0.9.

        Raises:
            ValueError: for another coverage than the quantiles of CQR have.
        """
        own = getattr(self.score, "coverage", None)
        if coverage is None:
            return DEFAULT_COVERAGE if own is None else own
        asked = checks.level(coverage, "coverage")
        if own is not None and asked != own:
            raise ValueError(
                "The quantiles of method 'cqr' belong to one coverage: ask for that one, or call "
                f"model.conformalize(x, y, method='cqr', coverage={asked}). "
                f"Received: coverage={asked}, and scores for {own}"
            )
        return asked

    def prediction_set(
        self, mixture: PredictiveMixture, coverage: float | None = None, groups: Any = None
    ) -> tf.Tensor:
        """Prediction sets of all examples, boolean `[N, C]`; `[N, ..., C]` with positions.

        Arguments and errors are those of `PosteriorPredictive.prediction_set`.
        """
        if self.score.name not in CLASSES:
            raise ValueError(
                "The target is a number: use `prediction_interval`, which returns both ends. "
                f"Received: scores of method {self.score.name!r}"
            )
        flat = mixture.by_position()
        probabilities = class_probabilities(flat)
        found = self.thresholds(self.coverage(coverage))
        thresholds = found.T if self.by_class else found[self._rows(groups, mixture)]
        sets = self.score.holds(probabilities, tf.constant(thresholds))
        return mixture.by_example_again(sets)

    def prediction_interval(
        self, mixture: PredictiveMixture, coverage: float | None = None, groups: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Lower and upper ends of all examples, `[N, targets]` each, or `[N, ..., targets]`.

        Arguments and errors are those of `PosteriorPredictive.prediction_interval`.
        """
        if self.score.name not in NUMBERS:
            raise ValueError(
                "The target is a class: use `prediction_set`, which says what classes are in. "
                f"Received: scores of method {self.score.name!r}"
            )
        found = self.thresholds(self.coverage(coverage))
        thresholds = tf.constant(found[self._rows(groups, mixture)])
        low, high = self.score.interval(mixture.by_position(), thresholds)
        low = tf.maximum(low, mixture.likelihood.least)  # where targets end, coverage loses nothing
        return mixture.by_example_again(low), mixture.by_example_again(high)

    def thresholds(self, coverage: float) -> np.ndarray:
        """Q for every group and target, float32 `[groups, targets]`; it warns where q is infinite.

        Args:
            coverage: strictly between 0 and 1.
        """
        found = [[order_statistic(s, coverage) for s in by_target] for by_target in self.scores]
        table = np.array(found, "float32")
        if np.isinf(table).any():
            self._warn_of_too_few(coverage)
        return table

    def _warn_of_too_few(self, coverage: float) -> None:
        needed = math.ceil(coverage / (1.0 - coverage) - 1e-9)
        counts = [min(map(len, by_target)) for by_target in self.scores]
        short = {str(v): n for v, n in zip(self.labels, counts, strict=True) if n < needed}
        where = f"groups with fewer: {short}" if self.labels != (None,) else f"{counts[0]} examples"
        warnings.warn(
            f"coverage={coverage} needs at least {needed} held-out examples with a target (of each "
            "group): with fewer a set holds all classes, and an interval is infinite. Received: "
            f"{where}",
            stacklevel=5,
        )

    def _rows(self, groups: Any, mixture: PredictiveMixture) -> np.ndarray:
        """Row of `thresholds` of every example, `[N]`, or `[1]` without groups."""
        if not self.has_given_groups:
            if groups is not None:
                raise ValueError(
                    "Argument `groups` is for a model whose held-out examples had groups: call "
                    "model.conformalize(x, y, groups=...). Received: groups, and scores without"
                )
            return np.zeros(1, int)
        examples = mixture.by_position().outputs.shape[0]
        given = [] if groups is None else np.ravel(groups_by_position(groups, mixture)).tolist()
        if len(given) != examples:
            raise ValueError(
                "Every example needs its group, as at `conformalize`: pass groups=, an array "
                f"[{examples}]. Received: {len(given)} groups"
            )
        unknown = sorted({str(g) for g in given} - {str(g) for g in self.labels})
        if unknown:
            raise ValueError(
                f"Argument `groups` must name groups of the held-out examples, {list(self.labels)}"
                f". Received: {unknown}"
            )
        row = {str(label): i for i, label in enumerate(self.labels)}
        return np.array([row[str(g)] for g in given])

    # -- persistence ----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """All of it as plain Python objects; floats keep their bits."""
        return {
            "method": self.score.name,
            "parameters": dataclasses.asdict(self.score),
            "labels": list(self.labels),
            "by_class": self.by_class,
            "num_samples": self.num_samples,
            "scores": [[s.tolist() for s in by_target] for by_target in self.scores],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Conformal:
        """The object that gave `get_config()`."""
        score = {**CLASSES, **NUMBERS}[config["method"]](**config["parameters"])
        arrays = [[np.array(s, "float32") for s in by_target] for by_target in config["scores"]]
        labels, by_class = tuple(config["labels"]), config["by_class"]
        return cls(score, labels, by_class, grouped(arrays), config.get("num_samples"))


def grouped(arrays: Sequence[Sequence[np.ndarray]]) -> tuple[tuple[np.ndarray, ...], ...]:
    """Scores by group and target, sorted, as `Conformal` keeps them."""
    return tuple(tuple(np.sort(s.astype("float32")) for s in by_target) for by_target in arrays)
