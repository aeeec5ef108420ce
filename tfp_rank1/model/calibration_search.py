"""The search for a calibration on held-out data.

    L(c, tau) = -sum_n w_n log 1/S sum_s p(y_n | tempered(z_ns(c), tau))
                + (log c / log 10)^2 / 2 + (log tau / log 2)^2 / 2,         c, tau = argmin L

z_ns(c) are raw outputs of example n for sample s, whose random numbers are the same for every c:
L is a smooth function of c. The minimum over tau is found for every c on the same outputs. A
number is changed only if L falls by more than three nats for it: a number without any use does so
once in 70 times (chi-squared, one degree of freedom). Some hundred examples often gain one or two
nats by chance, which new examples then lose.

The squares are a weak prior, of a few nats however many examples there are. Without it a hundred
examples that are all classified right would make the temperature 0: their likelihood has no other
maximum.

L of several outputs is the sum of theirs: one c, and the best tau of each for every c.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.checks import whole
from tfp_rank1.metrics import ExpectedCalibrationError, IntervalCoverage, PredictiveNLL
from tfp_rank1.model.answer_state import set_calibration
from tfp_rank1.model.calibration import Calibration
from tfp_rank1.model.line_search import minimum
from tfp_rank1.predictive import PredictiveMixture, labelled_batches, sample_marginals
from tfp_rank1.predictive.sampling import draws, mask_of_positions
from tfp_rank1.random import fold_in, make_seed
from tfp_rank1.target_weights import split_weights

__all__ = ["CalibrationReport", "calibrate"]

_SEED = 0
# Steps of the walk in log c and log tau, how far it goes, and how exactly the minimum is found. A
# c that is off by 5 % costs a hundredth of what an overlooked factor of 2 costs.
_SCALE_STEP, _SCALE_TOLERANCE = math.log(4.0), 0.05
# Not far upwards: what asks for more variance than that is noise which the likelihood lacks, and
# behind an exponential (counts) it would move the mean.
_SCALE_BOUNDS = math.log(0.001), math.log(10.0)
_TEMPERATURE_STEP, _TEMPERATURE_TOLERANCE = math.log(1.5), 0.002
_TEMPERATURE_BOUNDS = math.log(0.02), math.log(50.0)
# Nats by which L must fall for every number that is changed.
_LEAST_GAIN = 3.0
# Standard deviations of log c and log tau a priori.
_SCALE_PRIOR, _TEMPERATURE_PRIOR = math.log(10.0), math.log(2.0)
# Raw outputs are joined to pieces of about this many numbers: a call for every batch would take
# longer than its arithmetic.
_PIECE = 2**22
# Probability of the interval whose coverage is reported.
_LEVEL = 0.9


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """What `calibrate` found. `print` shows it as a table.

    Numbers of several outputs are lists or dicts.

    Attributes:
        posterior_scale: c, the factor of all posterior variances in answers.
        temperature: tau, the divisor of logits or the factor of the noise's scale.
        nll_before, nll_after: nats per example on the held-out data.
        ece_before, ece_after: expected calibration errors; None for a likelihood without
            probabilities.
        coverage_before, coverage_after: shares of targets in the central 90 % interval; None for a
            likelihood with probabilities.
    """

    posterior_scale: float
    temperature: Any
    nll_before: Any
    nll_after: Any
    ece_before: Any = None
    ece_after: Any = None
    coverage_before: Any = None
    coverage_after: Any = None

    def __str__(self) -> str:
        kinds = {"NLL": "nll", "ECE": "ece", f"coverage of {_LEVEL:.0%}": "coverage"}
        own = self.nll_before
        columns = [heads.names_of(own), heads.parts(own, self.temperature)]
        lines = []
        for index, (name, temperature) in enumerate(zip(*columns, strict=True)):
            of_output = f"{name}: " if name else ""
            scale = f"posterior_scale {self.posterior_scale:.3g}, temperature {temperature:.3g}"
            lines.append(of_output + scale)
            lines.append(f"{'':16}{'before':>9}{'after':>9}")
            for title, kind in kinds.items():
                both = [getattr(self, f"{kind}_{when}") for when in ("before", "after")]
                a, b = (None if v is None else heads.parts(own, v)[index] for v in both)
                if None not in (a, b):
                    lines.append(f"{title:16}{a:9.4f}{b:9.4f}")
        if self.nll_after == self.nll_before:
            lines.append(f"Unchanged: no number gains {_LEAST_GAIN:.0f} nats on these examples.")
        return "\n".join(lines)


def calibrate(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
    num_samples: int = 32,
    verbose: int = 1,
) -> CalibrationReport:
    """Find c and tau on held-out data, and have the model answer with them.

    Arguments, result and errors are those of `BayesianModel.calibrate`.
    """
    model.check_answerable()
    num_samples = whole("num_samples", num_samples)
    batch_size = 128 if batch_size is None else whole("batch_size", batch_size)
    batches = _of_mean_weight(labelled_batches(x, y, sample_weight, batch_size))
    held_out = _HeldOut(model, batches, num_samples)
    before = model.calibration
    after = _best(held_out, before, varies=draws(model))
    scores = [held_out.scores(calibration) for calibration in (before, after)]
    report = CalibrationReport(
        after.posterior_scale,
        after.temperatures(model.likelihood),
        **{f"{name}_before": value for name, value in scores[0].items()},
        **{f"{name}_after": value for name, value in scores[1].items()},
    )
    set_calibration(model, after)
    if verbose:
        print(report)
    return report


def _of_mean_weight(batches: list[tuple[Any, Any, Any]]) -> list[tuple[Any, Any, Any]]:
    """Batches whose positive weights have the mean 1: gains are counted in examples.

    Weights that add up to 1 would make every gain smaller than chance.
    """
    given = [np.ravel(v) for _, _, w in batches for v in keras.tree.flatten(w) if v is not None]
    weights = np.concatenate(given) if given else np.zeros(0)
    total, count = float(weights.sum()), int((weights > 0.0).sum())
    if not count:
        return batches

    def scaled(weight: Any) -> Any:
        return None if weight is None else np.asarray(weight, "float32") * (count / total)

    return [(x, y, keras.tree.map_structure(scaled, w)) for x, y, w in batches]


@dataclasses.dataclass(frozen=True)
class _Point:
    """L at one c: at the old temperatures, and at the best ones."""

    loss: float
    best_temperature: Any
    best_loss: float


def _best(held_out: _HeldOut, before: Calibration, varies: bool) -> Calibration:
    """The calibration with the smallest `L + _LEAST_GAIN * number of changed numbers`."""
    points: dict[float, _Point] = {}

    def at(log_scale: float) -> _Point:
        if log_scale not in points:
            points[log_scale] = held_out.point(math.exp(log_scale))
        return points[log_scale]

    def best_scale(loss_of: Any) -> float:
        def loss(log_scale: float) -> float:
            return loss_of(at(log_scale))

        return minimum(loss, start, _SCALE_STEP, _SCALE_BOUNDS, _SCALE_TOLERANCE)

    start = math.log(before.posterior_scale)
    options = [(at(start).loss, before)]
    # Every temperature that has changed must gain so much by itself, see `point`.
    if held_out.has_temperature:
        cooled = dataclasses.replace(before, temperature=at(start).best_temperature)
        options.append((at(start).best_loss, cooled))
    if varies:
        c = best_scale(lambda point: point.loss)
        options.append((at(c).loss + _LEAST_GAIN, Calibration(math.exp(c), before.temperature)))
    if varies and held_out.has_temperature:
        c = best_scale(lambda point: point.best_loss)
        both = Calibration(math.exp(c), at(c).best_temperature)
        options.append((at(c).best_loss + _LEAST_GAIN, both))
    return min(options, key=lambda option: option[0])[1]  # the first, of equal ones


class _HeldOut:
    """Held-out data, and L as a function of c and tau.

    Args:
        model: a `BayesianModel`.
        batches: inputs, targets and weights.
        num_samples: S.
    """

    def __init__(self, model: Any, batches: list[tuple[Any, Any, Any]], num_samples: int) -> None:
        self._own = model.likelihood
        self._batches = batches
        before = heads.parts(self._own, model.calibration.temperatures(self._own))
        self._held = [
            _HeldOutOutput(v, tau) for v, tau in zip(model.likelihoods, before, strict=True)
        ]
        self.has_temperature = any(output.has_temperature for output in self._held)
        specs = keras.tree.map_structure(
            lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), batches[0][0]
        )
        signature = [specs, tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.float32)]

        @tf.function(input_signature=signature, autograph=False)
        def sample(x: Any, seed: tf.Tensor, scale: tf.Tensor) -> tuple[Any, Any, Any]:
            # The scope is set, so the model adds no calibration of its own.
            with scopes.posterior_scale.set(scale):
                found = sample_marginals(model, x, num_samples, seed)
                return *found, mask_of_positions(model, x)

        self._sample = sample

    def point(self, posterior_scale: float) -> _Point:
        """L at one c, at the old temperatures and at the best ones.

        `best_loss` is above L by what every changed temperature must gain.
        """
        of_scale = 0.5 * (math.log(posterior_scale) / _SCALE_PRIOR) ** 2
        columns = zip(self._held, self._pieces(posterior_scale), strict=True)
        found = [output.best(pieces) for output, pieces in columns]
        loss, best = (
            of_scale + sum(values) for values in zip(*[v[:2] for v in found], strict=True)
        )
        return _Point(loss, heads.packed(self._own, [v[2] for v in found]), best)

    def scores(self, calibration: Calibration) -> dict[str, Any]:
        """NLL, and ECE or coverage, by name; of several outputs a list or dict of numbers."""
        pieces = self._pieces(calibration.posterior_scale)
        temperatures = heads.parts(self._own, calibration.temperatures(self._own))
        columns = zip(self._held, pieces, temperatures, strict=True)
        found = [output.scores(of_output, tau) for output, of_output, tau in columns]
        names = sorted({name for scores in found for name in scores})
        return {
            name: heads.packed(self._own, [scores.get(name) for scores in found]) for name in names
        }

    def _pieces(self, posterior_scale: float) -> list[list[tuple[Any, ...]]]:
        """By output: raw outputs `[S, B, D]`, their variance, mask, targets, weights of both kinds.

        Variances, masks and weights, of examples and of targets, are None where there are none.
        """
        scale = tf.constant(posterior_scale, tf.float32)
        batches: list[list[Any]] = [[] for _ in self._held]
        for index, (x, y, sample_weight) in enumerate(self._batches):
            outputs, variance, mask = self._sample(x, fold_in(make_seed(_SEED), index), scale)
            targets = heads.matched("y", self._own, y)
            weights = heads.for_each("sample_weight", self._own, sample_weight)
            rows = heads.map_heads(
                lambda _, *row: row, self._own, outputs, variance, mask, targets, weights
            )
            for found, row in zip(batches, heads.parts(self._own, rows), strict=True):
                found.append(row)
        columns = zip(self._held, batches, strict=True)
        return [output.pieces(of_output) for output, of_output in columns]


class _HeldOutOutput:
    """Held-out targets of one output, and its part of L as a function of tau.

    Args:
        likelihood: of the output.
        before: the temperature that answers have now.
    """

    def __init__(self, likelihood: Any, before: float) -> None:
        self._likelihood, self._before = likelihood, before
        self.has_temperature = bool(likelihood.has_temperature)
        self._loss = tf.function(self._traced_loss, autograph=False, reduce_retracing=True)

    def best(self, pieces: list[tuple[Any, ...]]) -> tuple[float, float, float]:
        """L at the old temperature; L at the best one and what that must gain; the best one."""

        def loss(log_temperature: float) -> float:
            number = tf.constant(math.exp(log_temperature), tf.float32)
            prior = 0.5 * (log_temperature / _TEMPERATURE_PRIOR) ** 2
            return prior + sum(float(self._loss(*piece, number)) for piece in pieces)

        start = math.log(self._before)
        old = loss(start), loss(start), self._before
        if not self.has_temperature:
            return old
        found = minimum(loss, start, _TEMPERATURE_STEP, _TEMPERATURE_BOUNDS, _TEMPERATURE_TOLERANCE)
        new = old[0], loss(found) + _LEAST_GAIN, math.exp(found)
        return min(old, new, key=lambda option: option[1])

    def scores(self, pieces: list[tuple[Any, ...]], temperature: float) -> dict[str, float]:
        """NLL, and ECE or coverage, by name."""
        metrics: dict[str, Any] = {"nll": PredictiveNLL()}
        if self._likelihood.predicts_probabilities:
            metrics["ece"] = ExpectedCalibrationError()
        else:
            metrics["coverage"] = IntervalCoverage(_LEVEL)
        tau = tf.constant(temperature, tf.float32)
        for outputs, variance, mask, y, examples, targets in pieces:
            weights = targets if examples is None else examples
            with scopes.noise_factor.set(tau / self._before):
                mixture = self._mixture(outputs, variance, mask, tau)
                for metric in metrics.values():
                    metric.update_state(y, mixture, sample_weight=weights)
        return {name: float(metric.result()) for name, metric in metrics.items()}

    def pieces(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Batches joined to pieces, with prepared targets and weights of examples and targets."""
        batches = []
        for outputs, variance, mask, y, sample_weight in rows:
            positions = outputs.shape[2:-1].as_list()
            prepared = self._likelihood.prepare_targets(y, int(outputs.shape[-1]), positions)
            examples, targets = split_weights(sample_weight, int(prepared.shape[-1]), positions)
            batches.append((outputs, variance, mask, prepared, examples, targets))
        most = max(1, _PIECE // math.prod(d for i, d in enumerate(batches[0][0].shape) if i != 1))
        per_piece = max(1, most // int(batches[0][0].shape[1]))
        groups = (batches[i : i + per_piece] for i in range(0, len(batches), per_piece))
        return [_joined(group) for group in groups]

    def _mixture(
        self,
        outputs: tf.Tensor,
        variance: tf.Tensor | None,
        mask: tf.Tensor | None,
        temperature: tf.Tensor,
    ) -> PredictiveMixture:
        tempered = self._likelihood.tempered(outputs, temperature)
        return PredictiveMixture(self._likelihood, tempered, 0, variance, mask)

    def _traced_loss(
        self,
        outputs: tf.Tensor,
        variance: tf.Tensor | None,
        mask: tf.Tensor | None,
        y: tf.Tensor,
        examples: tf.Tensor | None,
        targets: tf.Tensor | None,
        temperature: tf.Tensor,
    ) -> tf.Tensor:
        """This output's part of L in one piece, in nats, scalar."""
        # A learned scale holds the old temperature already; outputs hold none, see `_HeldOut`.
        with scopes.noise_factor.set(temperature / self._before):
            log_probs = self._mixture(outputs, variance, mask, temperature).log_prob(y, targets)
        return -tf.reduce_sum(log_probs if examples is None else examples * log_probs)


def _joined(batches: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Several batches as one; outputs and variances have the examples on axis 1."""
    columns = list(zip(*batches, strict=True))
    axes = (1, 1, 0, 0, 0, 0)
    return tuple(
        None if column[0] is None else tf.concat(column, axis=axis)
        for column, axis in zip(columns, axes, strict=True)
    )
