"""Samples of a model's outputs: passes, one after the other, each with a seed of its own."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.checks import choice, whole
from tfp_rank1.keras_internals import layers_of, nodes_of
from tfp_rank1.layers.randomness import is_random
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.moments.registry import version
from tfp_rank1.outputs import as_members, check_output_shape, join_passes, position_mask
from tfp_rank1.predictive.answers import PosteriorPredictive, PredictiveMoments
from tfp_rank1.predictive.batches import batches_of, check_finite
from tfp_rank1.predictive.moments import DEFAULT_NODES, moment_outputs
from tfp_rank1.predictive.sampleable import Sampleable
from tfp_rank1.random import SharedDraws, fold_in, make_seed, next_seed, seed_scope

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "METHODS",
    "Samplers",
    "draws",
    "posterior_predictive",
    "sample_marginals",
    "sample_outputs",
    "stateful_layers",
]

DEFAULT_BATCH_SIZE = 128
# A pass of moments holds no samples of hidden layers, so more rows fit.
MOMENTS_BATCH_SIZE = 1024
DEFAULT_SAMPLES = 32
# Numbers in the raw outputs of one batch, 64 MiB: images with many pixels come a few at a time.
_MOST_NUMBERS = 2**24
METHODS = "samples", "moments"
# Layers that make a mask, beside embeddings with `mask_zero`.
_MASKING = keras.layers.Masking


def posterior_predictive(
    model: Sampleable,
    x: Any,
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    reduce: str | None = None,
    verbose: int = 0,
    method: str = "samples",
    num_passes: int | None = None,
) -> Any:
    """Sample the posterior predictive distribution of a model.

    Arguments, result and errors are those of `BayesianModel.posterior_predictive`.
    """
    model.check_answerable()
    is_sampled = choice("method", method, METHODS) == "samples"
    if is_sampled and num_passes is not None:
        raise ValueError(
            "Argument `num_passes` is for method='moments'; for samples pass num_samples. "
            f"Received: num_passes={num_passes} with method='samples'"
        )
    if num_samples is None:
        num_samples = DEFAULT_SAMPLES if is_sampled else DEFAULT_NODES
    num_samples = whole("num_samples", num_samples)
    if batch_size is None:
        most = DEFAULT_BATCH_SIZE if is_sampled else MOMENTS_BATCH_SIZE
        batch_size = _batch_size_for(model, x, num_samples, most)
    batch_size = whole("batch_size", batch_size)
    if reduce not in (None, "moments"):
        raise ValueError(
            f"Argument `reduce` must be None or 'moments'. Received: reduce={reduce!r}"
        )
    base = next_seed(model.seed_generator) if seed is None else make_seed(seed)
    batches, count = batches_of(x, batch_size)
    progress = keras.utils.Progbar(count, verbose=verbose) if verbose else None
    parts: list[Any] = []
    rows = _num_rows(x)
    streams = heads.map_heads(lambda _: _Stream(rows), model.likelihood)
    first_row = 0
    for index, batch in enumerate(batches):
        # Rows that are not finite would give NaN as answers, in silence.
        first_row = check_finite(batch, first_row)
        sample = model._samplers.get(model, batch, num_samples, method, num_passes)
        found = sample(batch, fold_in(base, index))
        if reduce is not None:
            moments = heads.map_heads(_moments_of, model.likelihood, *found[:2])
            heads.map_heads(lambda _, s, part: s.add(part), model.likelihood, streams, moments)
            found = ()  # let go
        parts.append(found)
        if progress is not None:
            progress.update(index + 1, finalize=index + 1 == count)
    if not parts:
        raise ValueError("Argument `x` holds no examples. Received: an empty input")
    if reduce is not None:
        return heads.map_heads(lambda _, found: found.joined(), model.likelihood, streams)
    columns = [
        heads.map_heads(lambda _, *v: v, model.likelihood, *c) for c in zip(*parts, strict=True)
    ]
    joined = functools.partial(_joined_samples, is_sampled and draws(model))
    return heads.map_heads(joined, model.likelihood, *columns, model.conformal)


def draws(model: Sampleable) -> bool:
    """Whether samples of a model differ: not those of points, or inside `posterior_mean()`."""
    return not scopes.mean_mode.value and is_random(layers_of(model))


def _batch_size_for(model: Sampleable, x: Any, num_samples: int, most: int) -> int:
    """Examples per batch, so that the raw outputs of all samples stay below `_MOST_NUMBERS`."""
    arrays = keras.tree.flatten(x)
    if not nodes_of(model) or not all(len(getattr(a, "shape", ())) for a in arrays):
        return most
    shapes = _shapes_of_outputs(model, x)
    if any(None in shape[1:] for shape in shapes):  # sizes of positions that the inputs tell
        given = [keras.KerasTensor((1, *a.shape[1:]), "float32") for a in arrays]
        found = model.compute_output_spec(keras.tree.pack_sequence_as(x, given))
        shapes = [v.shape for v in heads.parts(model.likelihood, found)]
    of_members = [check_output_shape(shape, model.has_members) for shape in shapes]
    numbers = sum(math.prod(int(n or 1) for n in shape[2:]) for shape in of_members)
    return max(1, min(most, _MOST_NUMBERS // (numbers * num_samples)))


def _moments_of(
    likelihood: Likelihood, outputs: tf.Tensor, variance: tf.Tensor | None
) -> PredictiveMoments:
    return PosteriorPredictive(outputs, likelihood, variance).moments()


def _num_rows(x: Any) -> int | None:
    """The number of examples in arrays; None for batches, whose number of rows is open."""
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset, Iterator)):
        return None
    return int(keras.tree.flatten(x)[0].shape[0])


class _Stream:
    """The moments of all batches, written to one place where the number of rows is known.

    Parts that are joined at the end would take the memory twice.

    Args:
        rows: the number of examples, or None.
    """

    def __init__(self, rows: int | None) -> None:
        self._rows, self._filled = rows, 0
        self._fields: list[Any] = []

    def add(self, part: PredictiveMoments) -> None:
        """Take in the moments of the next batch."""
        values = [None if v is None else np.asarray(v) for v in vars(part).values()]
        stop = self._filled + int(part.mean().shape[0])
        if not self._fields:
            self._fields = [None if v is None else self._empty(v) for v in values]
        for field, value in zip(self._fields, values, strict=True):
            if isinstance(field, list):
                field.append(value)
            elif field is not None:
                field[self._filled : stop] = value
        self._filled = stop

    def _empty(self, value: np.ndarray) -> Any:
        return [] if self._rows is None else np.empty((self._rows, *value.shape[1:]), value.dtype)

    def joined(self) -> PredictiveMoments:
        """The moments of all examples."""
        return PredictiveMoments(
            *(np.concatenate(v) if isinstance(v, list) else v for v in self._fields)
        )


def _joined_samples(
    is_sampled: bool,
    likelihood: Likelihood,
    outputs: Sequence[Any],
    variances: Sequence[Any],
    masks: Sequence[Any],
    conformal: Any,
) -> PosteriorPredictive:
    """The samples of all batches."""
    samples, variance = _concatenated(outputs, axis=1), _concatenated(variances, axis=1)
    mask = _concatenated(masks, axis=0)
    return PosteriorPredictive(samples, likelihood, variance, conformal, mask, is_sampled)


def sample_outputs(
    model: Sampleable, x: Any, num_samples: Any, seed: tf.Tensor, shared: bool = False
) -> Any:
    """Raw outputs `[S, B, D]` of enough passes for `num_samples`, a pure function of `seed`.

    One pass gives K samples, with the same matrix products for all members. The passes are
    iterations of a graph loop.

    Args:
        model: maps x to `[B, K, D]` or `[B, D]`, or to a list or dict of these, as the result is.
        x: one batch of inputs.
        num_samples: an integer, or an int32 scalar tensor in an exported graph. S is this number
            rounded up to a multiple of K.
        seed: int32 `[2]`.
        shared: whether all examples share the draws of a pass, for a number that is static.

    Raises:
        ValueError: for stateful layers, or outputs of another shape.
    """

    def one() -> tuple[Any, None]:
        return model(x, training=False), None

    return _passes(model, one, x, num_samples, seed, shared)[0]


def sample_marginals(
    model: Sampleable, x: Any, num_samples: Any, seed: tf.Tensor, shared: bool = False
) -> tuple[Any, Any]:
    """Samples as `sample_outputs` gives them, with the last layer integrated out if possible.

    Returns:
        Raw outputs `[S, B, D]` and None; or means and variances of the raw outputs. Of several
        outputs two lists or dicts.
    """
    return _passes(model, lambda: model.marginal_outputs(x), x, num_samples, seed, shared)


def _passes(
    model: Sampleable, one: Any, x: Any, num_samples: Any, seed: tf.Tensor, shared: bool
) -> tuple[Any, Any]:
    """Join the passes `one() -> (outputs, variance or None)` into samples `[S, B, D]`."""
    _check_stateless(model)
    own = model.likelihood
    shapes = [check_output_shape(s, model.has_members) for s in _shapes_of_outputs(model, x)]
    members = int(shapes[0][1])
    passes = -(-num_samples // members)  # rounded up, so that every member counts alike
    seeds = tf.map_fn(lambda i: fold_in(seed, i), tf.range(passes))
    has_variance: list[bool] = []

    def one_pass(numbered: tuple[tf.Tensor, tf.Tensor]) -> list[tf.Tensor]:
        nonlocal has_variance
        pass_seed, index = numbered
        draws = SharedDraws(seed, index, passes) if shared else None
        with seed_scope(pass_seed), scopes.shared_draws.set(draws):
            outputs, variance = one()
        pairs = heads.parts(own, heads.map_heads(lambda _, *pair: pair, own, outputs, variance))
        has_variance = [v is not None for _, v in pairs]  # known once the first pass is traced
        return [_as_columns(pair, model.has_members) for pair in pairs]

    # The last size is None: when the loop is declared, it is open whether variances come along.
    signature = [
        tf.TensorSpec([None, members, *shape[2:-1].as_list(), None], tf.float32) for shape in shapes
    ]
    found = tf.map_fn(one_pass, (seeds, tf.range(passes)), fn_output_signature=signature)
    pairs = []
    for values, shape, varies in zip(found, shapes, has_variance, strict=True):
        sizes = [*shape[2:-1].as_list(), shape[-1] * (1 + varies)]
        samples = join_passes(values, passes, sizes)
        pairs.append(tf.split(samples, 2, axis=-1) if varies else [samples, None])
    outputs, variances = zip(*pairs, strict=True)
    return heads.packed(own, outputs), heads.packed(own, variances)


def _as_columns(pair: tuple[Any, Any], has_members: bool | None) -> tf.Tensor:
    """Outputs `[B, K, ..., D]`, or outputs and variances, `[B, K, ..., 2 D]`."""
    present = [tf.cast(v, tf.float32) for v in pair if v is not None]
    return as_members(tf.concat(present, axis=-1), has_members).values


def mask_of_positions(model: Sampleable, x: Any) -> Any:
    """Which positions of a batch are no padding, boolean `[B, ...]`; None where there is no mask.

    In a graph, which drops what nobody reads, it costs no pass.
    """
    own = model.likelihood
    if not any(getattr(v, "mask_zero", False) or isinstance(v, _MASKING) for v in layers_of(model)):
        return heads.in_each(own, None)
    outputs = model(x, training=False)
    return heads.map_heads(lambda _, values: position_mask(values, model.has_members), own, outputs)


def stateful_layers(layers: Iterable[Any]) -> list[str]:
    """Names of the stateful layers, which go on in a batch where the batch before ended."""
    return [layer.name for layer in layers if getattr(layer, "stateful", False)]


def _check_stateless(model: Sampleable) -> None:
    """Refuse stateful layers: a pass would go on from where the pass before ended."""
    stateful = stateful_layers(layers_of(model))
    if stateful:
        raise ValueError(
            "A stateful layer goes on in one pass where the pass before ended, so the samples "
            "would not be answers to the same inputs. Give a net that was built with "
            f"stateful=False the same weights. Received: stateful layers {stateful}"
        )


def _shapes_of_outputs(model: Sampleable, x: Any) -> list[Any]:
    has_graph = bool(nodes_of(model))
    found: Any = model.output if has_graph else model.compute_output_spec(x)
    return [tensor.shape for tensor in heads.parts(model.likelihood, found)]


class Samplers:
    """Compiled samplers of one model, by number of samples, mode and kind of inputs.

    Each sampler holds a traced graph. Samplers that were not used for longest are dropped, so that
    a model which is asked in ever new ways does not grow without end.
    """

    _LIMIT = 16

    def __init__(self) -> None:
        self._functions: OrderedDict[Any, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._functions)

    def clear(self) -> None:
        """Drop all samplers, because a constant in their graphs has changed."""
        self._functions.clear()

    def get(
        self,
        model: Sampleable,
        x: Any,
        num_samples: int,
        method: str = "samples",
        num_passes: int | None = None,
    ) -> Any:
        """The compiled sampler `(x, seed) -> (outputs, variance)` for inputs like x.

        Args:
            model: the model to sample.
            x: one batch of inputs.
            num_samples: at least 1.
            method: "samples" (default) or "moments", which needs no seed and ignores it.
            num_passes: for moments, see `moment_outputs`.
        """
        # Any number of rows, so that a short last batch needs no graph of its own.
        specs = keras.tree.map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), x)
        # As text: structures of specs may be dicts and lists, which cannot be keys.
        rules = version() if method == "moments" else None
        key = (method, rules, num_passes, num_samples, scopes.mean_mode.value, str(specs))
        if key not in self._functions:
            self._functions[key] = _compiled_sampler(model, specs, num_samples, method, num_passes)
        self._functions.move_to_end(key)
        if len(self._functions) > self._LIMIT:
            self._functions.popitem(last=False)
        return self._functions[key]


def _compiled_sampler(
    model: Sampleable, specs: Any, num_samples: int, method: str, num_passes: int | None
) -> Any:
    signature = [specs, tf.TensorSpec([2], tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def sample(x: Any, seed: tf.Tensor) -> tuple[Any, Any, Any]:
        mask = mask_of_positions(model, x)
        if method == "moments":
            return *moment_outputs(model, x, num_samples, num_passes=num_passes), mask
        return *sample_marginals(model, x, num_samples, seed), mask

    return sample


def _concatenated(parts: Sequence[Any], axis: int) -> tf.Tensor | None:
    """The tensors of all batches as one; None where there are none."""
    return None if parts[0] is None else tf.concat(parts, axis=axis)
