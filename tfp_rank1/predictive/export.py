"""Files that answer with a distribution, without this package or TFP at the client."""

from __future__ import annotations

import re
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.checks import choice, whole
from tfp_rank1.keras_internals import input_structure
from tfp_rank1.predictive.conformal import Conformal
from tfp_rank1.predictive.graph_files import FORMATS, write_graph
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.predictive.moments import DEFAULT_NODES, moment_outputs
from tfp_rank1.predictive.sampleable import Sampleable
from tfp_rank1.predictive.sampling import (
    DEFAULT_SAMPLES,
    METHODS,
    draws,
    sample_marginals,
    sample_outputs,
)
from tfp_rank1.random import entropy_seed

__all__ = ["check_exportable", "export_predictive"]


def export_predictive(
    model: Sampleable,
    path: str,
    num_samples: int | None = None,
    input_signature: Any = None,
    coverage: float | None = None,
    method: str = "samples",
    format: str = "tf_saved_model",
    num_passes: int | None = None,
) -> None:
    """Write the file of `BayesianModel.export_predictive`, which says what is in it.

    Args:
        model: a built model.
        path: as there.
        num_samples: as there.
        input_signature: as there.
        coverage: as there.
        method: as there.
        format: as there.
        num_passes: as there.

    Raises:
        ValueError, ImportError: as there.
    """
    model.check_answerable()
    is_sampled = choice("method", method, METHODS) == "samples"
    _check_format(choice("format", format, FORMATS), is_sampled)
    if num_samples is None:
        num_samples = DEFAULT_SAMPLES if is_sampled else DEFAULT_NODES
    num_samples = whole("num_samples", num_samples)
    if isinstance(input_signature, (list, tuple)) and len(input_signature) == 1:
        input_signature = input_signature[0]  # `keras.Model.export` takes this form
    signature = _signature_of(model) if input_signature is None else input_signature

    conformal = _exportable_scores(
        model, coverage, num_samples if is_sampled and draws(model) else None
    )

    def serve(x: Any) -> dict[str, tf.Tensor]:
        if is_sampled:
            outputs, variance = sample_marginals(model, x, num_samples, entropy_seed())
        else:
            unrolls = format != "tf_saved_model"
            outputs, variance = moment_outputs(
                model, x, num_samples, num_passes=num_passes, unrolls=unrolls
            )
        may_draw, own = format == "tf_saved_model", model.likelihood

        def answers(*of_output: Any) -> dict[str, tf.Tensor]:
            likelihood, values, variances, scores = of_output
            mixture = PredictiveMixture(likelihood, values, 0, variances)
            return _answers(mixture, may_draw) | _conformal_answers(scores, mixture, coverage)

        return _flat(own, heads.map_heads(answers, own, outputs, variance, conformal))

    if format == "tf_saved_model":
        _write_saved_model(model, path, serve, signature)
    else:
        write_graph(serve, signature, path, format)


def _write_saved_model(model: Sampleable, path: str, serve: Any, signature: Any) -> None:
    @tf.function(autograph=False)
    def samples(x: Any, num_samples: tf.Tensor, seed: tf.Tensor | None = None) -> Any:
        seed, own = entropy_seed() if seed is None else seed, model.likelihood
        found = sample_outputs(model, x, tf.maximum(num_samples, 1), seed)
        if not heads.are_several(own):
            return found
        return dict(zip(heads.names_of(own), heads.parts(own, found), strict=True))

    # Traced here, with and without a seed: `add_endpoint` itself takes a single signature.
    count, seed = tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.int32)
    samples.get_concrete_function(signature, count)
    samples.get_concrete_function(signature, count, seed)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, input_signature=[signature])
    archive.add_endpoint("samples", samples)
    archive.write_out(path, verbose=False)


def _check_format(format: str, is_sampled: bool) -> None:
    if format != "tf_saved_model" and is_sampled:
        raise ValueError(
            f"Samples in {format!r} would be frozen: every call would return the same draw. Export "
            "moments, export_predictive(..., method='moments'), or write a SavedModel. "
            f"Received: method='samples' and format={format!r}"
        )


def check_exportable(format: str) -> None:
    """Refuse formats that would freeze the noise, except inside `posterior_mean()`.

    Args:
        format: as for `keras.Model.export`.

    Raises:
        ValueError: outside `posterior_mean()` for any format but `"tf_saved_model"`.
    """
    if format != "tf_saved_model" and not scopes.mean_mode.value:
        raise ValueError(
            f"Exporting to {format!r} would freeze the samples into constants: every call would "
            "return the same draw. Export the posterior-mean model inside "
            "`with tfp_rank1.posterior_mean():`, or the predictive distribution by "
            f"export_predictive(..., method='moments', format={format!r}). "
            f"Received: format={format!r}"
        )


def _flat(own: Any, answers: Any) -> dict[str, tf.Tensor]:
    """Answers of all outputs by name, which begins with that of one of several outputs."""
    if not heads.are_several(own):
        return answers
    columns = zip(heads.names_of(own), heads.parts(own, answers), strict=True)
    return {f"{name}_{key}": value for name, found in columns for key, value in found.items()}


def _exportable_scores(model: Sampleable, coverage: float | None, num_samples: int | None) -> Any:
    """The conformal scores that endpoints can use, by output.

    Args:
        model: the model.
        coverage: that was asked for.
        num_samples: of `serve`; None for moments, and for a model that draws nothing.
    """
    given = (
        heads.parts(model.likelihood, model.conformal) if model.conformal is not None else [None]
    )
    if coverage is not None and all(scores is None for scores in given):
        raise ValueError(
            "Argument `coverage` is for a model with scores of held-out examples: call "
            f"model.conformalize(x_val, y_val) first. Received: coverage={coverage}"
        )
    return heads.map_heads(
        lambda _, scores: _exportable(scores, coverage, num_samples),
        model.likelihood,
        model.conformal,
    )


def _exportable(
    conformal: Conformal | None, coverage: float | None, num_samples: int | None
) -> Conformal | None:
    if conformal is None:
        return None
    conformal.coverage(coverage)  # refuses a bad one before anything is written
    if num_samples is not None:
        conformal.warn_of_fewer(num_samples)
    if conformal.has_given_groups:
        warnings.warn(
            "The endpoints do not know the groups of examples, so prediction sets and intervals "
            "are left out. Conformalize without groups to export them",
            stacklevel=6,
        )
        return None
    return conformal


def _conformal_answers(
    conformal: Conformal | None, mixture: PredictiveMixture, coverage: float | None
) -> dict[str, tf.Tensor]:
    if conformal is None:
        return {}
    if mixture.likelihood.predicts_probabilities:
        return {"prediction_set": conformal.prediction_set(mixture, coverage)}
    low, high = conformal.prediction_interval(mixture, coverage)
    return {"prediction_interval_low": low, "prediction_interval_high": high}


def _answers(mixture: PredictiveMixture, draws: bool) -> dict[str, tf.Tensor]:
    """Outputs by name.

    Args:
        mixture: of the batch.
        draws: whether a graph may draw, as the entropy of several Bernoulli targets does.
    """
    if mixture.likelihood.predicts_probabilities:
        mean = mixture.mean()
        if not draws and mixture.likelihood.entropy_of_mixture(mean) is None:
            return {"probs": mean}
        return {
            "probs": mean,
            "entropy": mixture.entropy(),
            "mutual_information": mixture.mutual_information(),
        }
    return {
        "mean": mixture.mean(),
        "variance": mixture.variance(),
        "aleatoric_variance": mixture.aleatoric_variance(),
        "epistemic_variance": mixture.epistemic_variance(),
    }


def _signature_of(model: Sampleable) -> Any:
    inputs = input_structure(model)
    if inputs is None:
        raise ValueError(
            "export_predictive cannot tell the inputs of a subclassed model. Pass "
            "input_signature=tf.TensorSpec([None, ...], tf.float32). "
            "Received: input_signature=None"
        )
    is_single = isinstance(inputs, keras.KerasTensor)
    given = ["x"] if is_single else [tensor.name for tensor in keras.tree.flatten(inputs)]
    names = iter(_argument_names(given))

    def spec(tensor: keras.KerasTensor) -> tf.TensorSpec:
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name=next(names))

    return keras.tree.map_structure(spec, inputs)


def _argument_names(names: list[str]) -> list[str]:
    """Names that TensorFlow takes as arguments of a signature, none of them twice."""
    # TensorFlow itself cleans a name in this way, and then fails where two have become one.
    found: list[str] = []
    for name in names:
        clean = re.sub(r"\W", "_", name, flags=re.ASCII).lower().strip("_") or "input"
        clean = f"arg_{clean}" if clean[:1].isdigit() or clean in ("self", "cls") else clean
        options = [clean, *(f"{clean}_{i}" for i in range(1, len(names)))]
        found.append(next(option for option in options if option not in found))
    return found
