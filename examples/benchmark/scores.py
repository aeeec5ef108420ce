"""What is measured of a predictive distribution."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

import tfp_rank1 as r1
from examples.benchmark.tasks import Data, Task
from examples.benchmark.training import Fitted
from tfp_rank1.predictive.mixture import PredictiveMixture

BINS, ROC_POINTS = 15, 50
# Fewer rows would time the cost of a call; how often they are predicted; seconds without repeat.
TIMED_ROWS, TIMES, LONG = 900, 3, 120.0
# Whether more is better, for ranks and arrows.
BETTER = {
    "rmse": "down", "log_likelihood": "up", "crps": "down", "accuracy": "up", "nll": "down",
    "ece": "down", "brier": "down", "auroc": "up", "aupr": "up", "fpr95": "down",
    "outside_confidence": "down", "train_seconds": "down", "seconds_per_1000": "down",
    "parameters": "down",
}  # fmt: skip


def score(fitted: Fitted, task: Task, data: Data) -> tuple[dict[str, float], dict[str, Any]]:
    """All scores of one trained method, and what its figures need.

    Returns:
        Numbers by name, and arrays by figure.
    """
    x, y = data.split.x_test, data.split.y_test
    inside, seconds = timed(fitted, x)
    counts = {
        "parameters": fitted.parameters,
        "train_seconds": fitted.seconds,
        "steps": fitted.steps,
    }
    scores = {name: float(count) for name, count in counts.items() if count is not None}
    if len(x) >= TIMED_ROWS:
        scores["seconds_per_1000"] = seconds
    figures: dict[str, Any] = {"curve": fitted.curve} if fitted.curve else {}
    if task.likelihood == "normal":
        scores.update(regression(inside, y, data.scale))
    else:
        scores.update(classification(inside, y))
        figures["reliability"] = reliability(inside, y)
    if fitted.members is not None:
        scores.update(diversity(fitted.members(x), y))
    for name, images in data.outside.items():
        outside = fitted.predict(images)
        scores.update(told_apart(inside, outside))
        figures["roc"] = {"outside": name, **roc(inside, outside)}
    for name, corrupted in data.shifted.items():
        found = classification(fitted.predict(corrupted()), y)
        scores.update({f"{key}/{name}": value for key, value in found.items()})
    if data.grid is not None:
        figures["grid"] = on_grid(fitted.predict(data.grid), data)
    return scores, figures


def timed(fitted: Fitted, x: np.ndarray) -> tuple[PredictiveMixture, float]:
    """The predictive distribution at test inputs, and seconds per 1,000 of them once compiled."""
    seconds = []
    for _ in range(1 + TIMES):
        start = time.perf_counter()
        predictive = fitted.predict(x)
        np.asarray(predictive.mean())
        seconds.append(time.perf_counter() - start)
        # Of minutes, compiling takes no share that matters.
        if len(x) < TIMED_ROWS or seconds[0] > LONG:
            break
    return predictive, 1000.0 * statistics.median(seconds[1:] or seconds) / len(x)


def regression(p: PredictiveMixture, y: np.ndarray, scale: float) -> dict[str, float]:
    """In units of the target: errors times its scale, log-likelihood less its logarithm."""
    error = _metric(r1.metrics.RootMeanSquaredError(), p, y)
    found = {
        "rmse": scale * error,
        "log_likelihood": float(np.mean(p.log_prob(y))) - float(np.log(scale)),
        "crps": scale * _metric(r1.metrics.CRPS(), p, y),
    }
    for level in (0.5, 0.9, 0.95):
        found[f"coverage_{round(100 * level)}"] = _metric(r1.metrics.IntervalCoverage(level), p, y)
    return found


def classification(p: PredictiveMixture, y: np.ndarray) -> dict[str, float]:
    """Of class probabilities and labels."""
    return {
        "accuracy": _metric(r1.metrics.Accuracy(), p, y),
        "nll": _metric(r1.metrics.PredictiveNLL(), p, y),
        "ece": _metric(r1.metrics.ExpectedCalibrationError(), p, y),
        "brier": _metric(r1.metrics.BrierScore(), p, y),
    }


def diversity(members: dict[str, PredictiveMixture], y: np.ndarray) -> dict[str, float]:
    """How far members lie apart in outputs and predicted classes, and what one alone would lose."""
    found = {}
    for name, mixture in members.items():
        variance = r1.metrics.MemberVariance(likelihood=mixture.likelihood)
        found[f"{name}_variance"] = _metric(variance, mixture, y)
        if mixture.likelihood.is_categorical:
            disagreement = r1.metrics.MemberDisagreement()
            found[f"{name}_disagreement"] = _metric(disagreement, mixture, y)
            found[f"{name}_nll"] = -float(np.mean(mixture.member_log_prob(y)))
    return found


def told_apart(inside: PredictiveMixture, outside: PredictiveMixture) -> dict[str, float]:
    """Test examples against those of another source, by the entropy; mean confidence in those."""
    found = {}
    metrics: dict[str, Any] = {
        "auroc": r1.metrics.OODAUROC(),
        "aupr": r1.metrics.OODAUPR(),
        "fpr95": r1.metrics.FPR95(),
    }
    if inside.outputs.shape[1] > 1:  # a single net has no mutual information
        metrics["auroc_mutual_information"] = r1.metrics.OODAUROC("mutual_information")
    for name, metric in metrics.items():
        for is_outside, p in ((0.0, inside), (1.0, outside)):
            metric.update_state(np.full(p.outputs.shape[0], is_outside), p)
        found[name] = float(metric.result())
    found["outside_confidence"] = float(np.mean(np.max(outside.mean(), axis=1)))
    return found


def _metric(metric: Any, p: PredictiveMixture, y: np.ndarray) -> float:
    metric.update_state(y, p)
    return float(metric.result())


# -- for figures ----------------------------------------------------------------------------------


def reliability(p: PredictiveMixture, y: np.ndarray) -> dict[str, list[float]]:
    """Count, mean confidence and accuracy in bins of equal width."""
    probabilities = np.asarray(p.mean())
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    divisor = np.maximum(count, 1)
    return {
        "count": count.tolist(),
        "confidence": (np.bincount(index, confidence, BINS) / divisor).tolist(),
        "accuracy": (np.bincount(index, correct, BINS) / divisor).tolist(),
    }


def roc(inside: PredictiveMixture, outside: PredictiveMixture) -> dict[str, list[float]]:
    """Rates of true and false alarms of the entropy, thinned."""
    low, high = (np.sort(np.asarray(p.entropy())) for p in (inside, outside))
    false = np.linspace(0.0, 1.0, ROC_POINTS)
    threshold = np.quantile(low, 1.0 - false)
    true = 1.0 - np.searchsorted(high, threshold, side="right") / len(high)
    return {"false": false.tolist(), "true": true.tolist()}


def on_grid(p: PredictiveMixture, data: Data) -> dict[str, Any]:
    """The predictive distribution on a toy set's grid, with the training examples."""
    split = data.split
    found: dict[str, Any] = {
        "grid": data.grid.tolist() if data.grid is not None else [],
        "x": split.x_train.tolist(),
        "y": split.y_train.ravel().tolist(),
    }
    if p.likelihood.predicts_probabilities:
        found["mean"] = np.asarray(p.mean())[:, 1].tolist()
        found["entropy"] = np.asarray(p.entropy()).tolist()
        return found
    found["mean"] = np.asarray(p.mean()).ravel().tolist()
    found["stddev"] = np.asarray(p.stddev()).ravel().tolist()
    found["epistemic"] = np.sqrt(np.asarray(p.epistemic_variance())).ravel().tolist()
    return found
