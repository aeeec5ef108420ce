"""What answers are made of beside the posterior: calibration and conformal scores of a model.

Clones and files ask for them in three ways. `keras.models.clone_model` makes a new graph from the
layers of a Functional model, and calls the constructor with it: the likelihood, the last of the
layers, carries a copy. A subclassed model is made from its config. Weights files hold the store
alone. Each has a copy only of what there is, so that a model without either is saved as ever.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tfp_rank1 import heads
from tfp_rank1.keras_internals import Functional
from tfp_rank1.model.calibration import Calibration
from tfp_rank1.predictive import Conformal

__all__ = [
    "forget_calibration",
    "load",
    "pop_from_config",
    "restore_from_config",
    "restore_from_graph",
    "save",
    "set_calibration",
    "set_conformal",
    "with_answers",
]

# Name of the entry in configs and stores.
_ANSWERS = "answers"


# -- in memory ------------------------------------------------------------------------------------


def set_calibration(model: Any, calibration: Calibration) -> None:
    """Have a model answer with a calibration; conformal scores, of other answers, are dropped.

    Args:
        model: a `BayesianModel`.
        calibration: the new numbers.
    """
    own = model.likelihood
    temperatures = (v.temperatures(own) for v in (calibration, model.calibration))
    heads.map_heads(_multiply_scale, own, *temperatures)
    _assign(model, calibration, None)


def _multiply_scale(likelihood: Any, new: float, old: float) -> None:
    if new != old:
        likelihood.multiply_scale(new / old)


def forget_calibration(model: Any) -> None:
    """Have a model answer as it was trained: what was found belonged to another posterior."""
    set_calibration(model, Calibration())


def set_conformal(model: Any, conformal: Any) -> None:
    """Give a model the scores of held-out examples; for several outputs a list or dict."""
    _assign(model, model.calibration, conformal)


def _assign(model: Any, calibration: Calibration, conformal: Any) -> None:
    if calibration != model.calibration:
        # It is a constant in the graphs of functions that answer; the training function has none.
        model.test_function = model.predict_function = None
        model._samplers.clear()
    model._calibration, model._conformal = calibration, conformal
    answers = _answers_of(model)
    # With its name, because several models may share a likelihood; a clone has the model's name.
    text = json.dumps({"model": model.name, **answers}) if answers else None
    if model.likelihoods[0].answers != text:
        model.likelihoods[0].answers = text  # of several outputs the first carries it all


def _answers_of(model: Any) -> dict[str, Any]:
    """Calibration and conformal scores as plain Python objects, as far as the model has any."""
    found: dict[str, Any] = {}
    if not model.calibration.is_neutral:
        found["calibration"] = model.calibration.get_config()
    if model.conformal is not None:
        found["conformal"] = heads.map_heads(
            lambda _, scores: None if scores is None else scores.get_config(),
            model.likelihood,
            model.conformal,
        )
    return found


def _restore(model: Any, answers: dict[str, Any]) -> None:
    """Take what `_answers_of` found; a learned scale is a weight, and holds the temperature."""
    conformal = answers.get("conformal")
    if conformal is not None:
        conformal = heads.map_heads(
            lambda _, config: None if config is None else Conformal.from_config(config),
            model.likelihood,
            conformal,
        )
    _assign(model, Calibration.from_config(answers.get("calibration", {})), conformal)


# -- in graphs and configs ------------------------------------------------------------------------


def restore_from_graph(model: Any) -> None:
    """Take the copy of the likelihood in which a given graph ends, if it is the model's."""
    answers = json.loads(model.likelihoods[0].answers or "{}")
    if answers.pop("model", None) == model.name:
        _restore(model, answers)


def with_answers(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model, with the copy of a subclassed one."""
    answers = {} if isinstance(model, Functional) else _answers_of(model)
    return {**config, _ANSWERS: answers} if answers else config


def pop_from_config(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config without what `with_answers` added, for the constructor; and what was added."""
    rest = {name: value for name, value in config.items() if name != _ANSWERS}
    return rest, config.get(_ANSWERS, {})


def restore_from_config(model: Any, answers: dict[str, Any]) -> None:
    """Take what `pop_from_config` returned."""
    if answers:
        _restore(model, answers)


# -- in stores ------------------------------------------------------------------------------------


def save(model: Any, store: Any) -> None:
    """Put the copy into a Keras weight store.

    Args:
        model: a `BayesianModel`.
        store: as `save_own_variables` gets it.
    """
    answers = _answers_of(model)
    if answers:  # as the bytes of a text: a store takes arrays of numbers, and groups have names
        store[_ANSWERS] = np.frombuffer(json.dumps(answers).encode(), np.uint8)


def load(model: Any, arrays: dict[str, Any]) -> None:
    """Take the copy out of the entries of a store; without one the model answers as it was trained.

    Args:
        model: a `BayesianModel`.
        arrays: entries of the store by name.
    """
    found = arrays.pop(_ANSWERS, None)
    text = "{}" if found is None else np.asarray(found, np.uint8).tobytes().decode()
    _restore(model, json.loads(text))
