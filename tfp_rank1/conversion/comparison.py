"""Whether a converted net computes the function of the original."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import heads
from tfp_rank1.conversion.differences import Converted, applied, first_difference
from tfp_rank1.conversion.trial import (
    TOLERANCE,
    as_array,
    cited,
    differ,
    reset_states,
    tolerance_of,
    trial_inputs,
    trial_of,
)
from tfp_rank1.keras_internals import input_structure, layers_of
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.scopes import posterior_mean, split_members

__all__ = ["Converted", "check_same_function"]

# Rows of a trial: one would hide what is done to their order.
_ROWS = 2
# Number of time steps from which on a graph saves time.
_LONG = 100
# Distance from 0 and 1 within which probabilities say little about the raw outputs.
_SATURATED = 1e-3


def check_same_function(original: Any, converted: Converted) -> None:
    """Refuse a converted net that computes another function than the original.

    Both run on the same random inputs at the posterior mean. What the likelihood makes of the raw
    outputs must be what the original ended in, where its last function was left to the likelihood;
    else the raw outputs themselves. Only if they differ are the layers compared, one by one.

    Args:
        original: the stock model. Its state stays.
        converted: the converted net, with factors at their centre.

    Raises:
        ValueError: with the layer in which the difference begins, and the way out.
    """
    with trial_of(original), trial_of(converted.model), posterior_mean():
        verdict = _verdict(original, converted)
    if isinstance(verdict, ValueError):
        raise verdict
    if verdict:
        warnings.warn(verdict, stacklevel=3)  # the line that called `convert`


def _verdict(original: Any, converted: Converted) -> ValueError | str:
    """The refusal of a converted net, a warning, or an empty text for a net as it should be."""
    try:
        inputs, expected = _first_run(original)
    except _NotRunError as error:
        return (
            "The converted net was not compared with the original, which does not run on random "
            "inputs. Compare them on data of yours: call the converted net inside `with "
            f"tfp_rank1.posterior_mean():`. Received: {error}"
        )
    tolerance = tolerance_of(original)
    for values, output in zip(expected, converted.by_output(), strict=True):
        if _are_probabilities(values, output, tolerance):
            return ValueError(_message_of_probabilities(output.likelihood))
    one_row = _is_same_at_a_row(original, inputs, expected, converted)
    is_same = one_row or _is_same(inputs, expected, converted)
    if is_same and not _is_hidden(expected, converted):
        return ""
    difference = first_difference(original, converted, inputs)
    if difference is not None:
        return ValueError(str(difference))
    if is_same:
        return ""
    again = _run(original, inputs)
    if any(differ(a, b, tolerance) for a, b in zip(expected, again, strict=True)):
        return (
            "The outputs of the original differ from call to call, also with training=False. The "
            "converted net was compared layer by layer, but for the layers that draw."
        )
    if tolerance == TOLERANCE:
        return ValueError(_message(converted))
    return (
        "The outputs of the converted net differ from those of the original, and no layer does by "
        "itself: in half precision rounding adds up. Compare both on data of yours."
    )


def _is_hidden(expected: list[np.ndarray], converted: Converted) -> bool:
    """Whether outputs would hide a difference: NaN, or probabilities that are all 0 or 1."""
    return any(map(_hides, expected, converted.by_output()))


def _hides(expected: np.ndarray, converted: Converted) -> bool:
    if not np.all(np.isfinite(expected)):
        return True
    rounded = np.abs(expected - np.round(expected)) < _SATURATED
    return bool(converted.dropped) and bool(np.all(rounded))


def _message(converted: Converted) -> str:
    """Of a difference that is in no layer by itself."""
    start = "The converted net would compute another function than the original"
    if converted.dropped:
        end = converted.dropped[0]
        own = converted.by_output()[end.output].likelihood
        return (
            f"{start}: no layer does so by itself, but the likelihood makes something else of raw "
            f"outputs than {end.function}. Convert keras.Model(model.inputs, the "
            f"outputs before {end.function}). Received: a model that ends in {end.function}, in "
            f"{type(end.operation).__name__} {end.operation.name!r}, and the likelihood "
            f"{type(own).__name__}"
        )
    kinds = sorted({type(old).__name__ for old, _ in converted.pairs.values()})
    return (
        f"{start}, and no layer does so by itself: layers are joined otherwise, or one that does "
        "not run alone has a state that its config does not hold. Convert "
        f"keras.Model(model.inputs, model.outputs) without such layers. Received: layers {kinds}"
    )


class _NotRunError(Exception):
    """The original does not run on any inputs that can be made for it."""


def _first_run(original: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Inputs on which the original runs, and its outputs `[B, D]`, finite if any inputs do that."""
    found, failure = None, _NotRunError("no inputs")
    for inputs in trial_inputs(original, _ROWS):
        try:
            outputs = _run(original, inputs)
        except Exception as error:  # of any kind: the layers may be the user's
            failure = _NotRunError(cited(error))
            continue
        found = inputs, outputs
        if all(np.all(np.isfinite(values)) for values in outputs):
            break
    if found is None:
        raise failure
    return found


def _run(model: Any, inputs: list[Any]) -> list[np.ndarray]:
    """The outputs of a model on a flat list of inputs, in the order of `heads.names_of`."""
    reset_states(model)
    structure = keras.tree.pack_sequence_as(input_structure(model), inputs)

    def call() -> Any:
        return model(structure, training=False)

    # A loop over many time steps takes long without a graph; of all else, making the graph would.
    is_recurrent = any(hasattr(v, "cell") for v in layers_of(model))
    is_long = any(len(v.shape) > 1 and v.shape[1] > _LONG for v in inputs)
    outputs = tf.function(call)() if is_recurrent and is_long else call()
    return [as_array(values) for values in heads.parts(outputs, outputs)]


# -- the outputs ----------------------------------------------------------------------------------


def _is_same_at_a_row(
    original: Any, inputs: list[Any], expected: list[np.ndarray], converted: Converted
) -> bool:
    """Whether every member gives the original's outputs for one row; False where one will not do.

    It takes K rows in place of K times all rows. A converter of the user's own may do something to
    all rows of a member together, and a net may have a number of rows of its own.
    """
    members = converted.members
    if members == 1 or original.inputs[0].shape[0] is not None:
        return False
    rows = np.arange(members) % len(expected[0])
    try:
        some = [values[rows] for values in expected]
        return _is_same([tf.gather(v, rows) for v in inputs], some, converted, True)
    except Exception:  # as said: all rows then decide
        return False


def _is_same(
    inputs: list[Any], expected: list[np.ndarray], converted: Converted, share_rows: bool = False
) -> bool:
    """Whether a converted net gives the original's outputs.

    Args:
        inputs: a flat list of inputs.
        expected: what the original gives for them, `[B, D]`, by output.
        converted: the converted net.
        share_rows: whether every member gets a K-th of the rows. Defaults to False: all of them.
    """
    with split_members.set(share_rows):
        raw = _run(converted.model, inputs)
    return all(map(_is_same_output, raw, expected, converted.by_output()))


def _is_same_output(raw: np.ndarray, expected: np.ndarray, converted: Converted) -> bool:
    if raw.ndim == expected.ndim + 1:
        expected = np.repeat(expected[:, np.newaxis], raw.shape[1], axis=1)
    tolerance = tolerance_of(converted.model)
    return any(not differ(expected, v, tolerance) for v in _answers(raw, converted))


def _answers(raw: np.ndarray, converted: Converted) -> Iterator[np.ndarray]:
    """What the original must have given for raw outputs: one array, or several candidates."""
    if not converted.dropped:
        yield raw
        return
    for made in _likelihood_of(raw, converted.likelihood):
        values = raw.copy()
        for end in converted.dropped:
            columns = slice(end.start, end.stop)
            # A likelihood with several outputs per target need not have a mean for each of them.
            fits = made.shape == raw.shape
            values[..., columns] = (made if fits else applied(end, raw))[..., columns]
        yield values


def _likelihood_of(raw: np.ndarray, likelihood: Likelihood) -> Iterator[np.ndarray]:
    """Means of the target, then medians; or means and scales, where outputs give both."""
    outputs = tf.cast(raw, tf.float32)
    mean = as_array(likelihood.mean(outputs))
    if likelihood.scale_link_names:
        # A lower bound keeps the scale of the likelihood a little above that of the original.
        scale = np.sqrt(as_array(likelihood.variance(outputs)))
        yield np.concatenate([mean, scale - as_array(likelihood.lowest_scale())], axis=-1)
        return
    yield mean
    if not likelihood.discrete:
        with contextlib.suppress(NotImplementedError):
            yield as_array(likelihood.distribution(outputs).quantile(0.5))


def _are_probabilities(expected: np.ndarray, converted: Converted, tolerance: float) -> bool:
    """Whether outputs that should be raw are probabilities, by whatever function."""
    likelihood = converted.likelihood
    takes_raw = likelihood.is_categorical and likelihood.link_names
    if not takes_raw or converted.dropped or expected.shape[-1] < 2:
        return False
    sums = expected.sum(axis=-1)
    return bool(np.all(expected >= 0.0) and np.all(np.abs(sums - 1.0) < tolerance))


def _message_of_probabilities(likelihood: Likelihood) -> str:
    return (
        f"The likelihood {type(likelihood).__name__} takes raw outputs and applies "
        f"{likelihood.link_names[0]} itself. Convert keras.Model(model.inputs, the outputs before "
        "the probabilities). Received: outputs that are probabilities, at least 0 and with a sum "
        "of 1"
    )
