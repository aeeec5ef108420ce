"""PosteriorPredictive: samples of a model's outputs turned into answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1._mode import in_posterior_mean
from tfp_rank1._registry import whole
from tfp_rank1._training_choices import stateful_layers
from tfp_rank1.likelihoods import Categorical, Likelihood
from tfp_rank1.mixture import PredictiveMixture
from tfp_rank1.random import fold_in, make_seed, next_seed, seed_scope

if TYPE_CHECKING:
    from tfp_rank1.model import BayesianModel


DEFAULT_BATCH_SIZE = 128


class PosteriorPredictive(PredictiveMixture):
    """The posterior predictive distribution of N examples, as S samples of the raw outputs.

    `mean`, `variance`, `stddev`, `aleatoric_variance`, `epistemic_variance`, `entropy`,
    `expected_entropy`, `mutual_information`, `quantile`, `credible_interval`, `cdf` and
    `log_prob` are documented at `tfp_rank1.mixture.PredictiveMixture`.

    Args:
        samples: raw outputs `[S, N, D]`.
        likelihood: what they mean.
        output_variance: `[S, N, D]` where `samples` are means over the last layer's weights, which
            are integrated out in closed form (a `bali_keras.BaliModel` with a Normal likelihood).
            Defaults to None.

    Example:
    ```python
    p = model.posterior_predictive(x_test, num_samples=32)
    low, high = p.credible_interval(0.9)
    p.log_prob(y_test)                                    # [N], nats
    ```
    """

    def __init__(
        self, samples: tf.Tensor, likelihood: Likelihood, output_variance: tf.Tensor | None = None
    ) -> None:
        super().__init__(likelihood, samples, axis=0, output_variance=output_variance)

    @property
    def samples(self) -> tf.Tensor:
        """Raw outputs `[S, N, D]`; their means where there is an `output_variance`."""
        return self._outputs

    def sample(self, num_draws: int = 1, seed: int | None = None) -> tf.Tensor:
        """Draws of the target, `[num_draws, N, targets]`; labels for Categorical.

        Args:
            num_draws: at least 1. Defaults to 1.
            seed: integer for reproducible draws. Defaults to None: new ones each call.
        """
        chosen = keras.random.SeedGenerator(seed)
        return self._draw(num_draws, next_seed(chosen))

    def distribution(self) -> tfd.MixtureSameFamily:
        """The predictive distribution as a `tfd.MixtureSameFamily`, batch shape `[N]`."""
        by_example = self.output_variance
        if by_example is not None:
            by_example = self._by_example(by_example)
        components = PredictiveMixture(self.likelihood, self.outputs, 1, by_example).conditional()
        if not isinstance(self.likelihood, Categorical):
            components = tfd.Independent(components, 1)
        weights = tf.zeros([self._outputs.shape[1], self.num_samples])
        return tfd.MixtureSameFamily(tfd.Categorical(logits=weights), components)

    def moments(self) -> PredictiveMoments:
        """What remains when the samples are dropped."""
        discrete = self.likelihood.mean_name == "probs"
        return PredictiveMoments(
            self.mean(),
            self.aleatoric_variance(),
            self.epistemic_variance(),
            self.entropy() if discrete else None,
            self.expected_entropy() if discrete else None,
        )


@dataclasses.dataclass(frozen=True)
class PredictiveMoments:
    """Moments of the predictive distribution, without its samples.

    The methods are those of `PosteriorPredictive`; quantiles and log-probabilities need samples.
    """

    _mean: tf.Tensor
    _aleatoric_variance: tf.Tensor
    _epistemic_variance: tf.Tensor
    _entropy: tf.Tensor | None
    _expected_entropy: tf.Tensor | None

    def mean(self) -> tf.Tensor:
        """`E[y]`, `[N, targets]`."""
        return self._mean

    def aleatoric_variance(self) -> tf.Tensor:
        """`E_s Var[y | s]`, `[N, targets]`."""
        return self._aleatoric_variance

    def epistemic_variance(self) -> tf.Tensor:
        """`Var_s E[y | s]`, `[N, targets]`."""
        return self._epistemic_variance

    def variance(self) -> tf.Tensor:
        """Total variance, `[N, targets]`."""
        return self._aleatoric_variance + self._epistemic_variance

    def stddev(self) -> tf.Tensor:
        """Square root of the total variance, in units of the target."""
        return tf.sqrt(self.variance())

    def entropy(self) -> tf.Tensor:
        """Entropy of the mixture, `[N]`, nats; classification only."""
        return self._required(self._entropy, "entropy")

    def expected_entropy(self) -> tf.Tensor:
        """Mean entropy of the samples, `[N]`, nats; classification only."""
        return self._required(self._expected_entropy, "expected_entropy")

    def mutual_information(self) -> tf.Tensor:
        """`entropy - expected_entropy`, `[N]`, nats; classification only."""
        return tf.nn.relu(self.entropy() - self.expected_entropy())

    def _required(self, value: tf.Tensor | None, name: str) -> tf.Tensor:
        if value is None:
            raise ValueError(
                f"`{name}` has no closed form for this likelihood and the samples were dropped. "
                "Use posterior_predictive(..., reduce=None). Received: reduce='moments'"
            )
        return value

    def __getattr__(self, name: str) -> Any:
        if name in ("quantile", "credible_interval", "log_prob", "cdf", "sample", "distribution"):
            raise AttributeError(
                f"`{name}` needs the samples, which reduce='moments' drops. "
                "Use posterior_predictive(..., reduce=None)."
            )
        raise AttributeError(f"PredictiveMoments has no attribute {name!r}")


def posterior_predictive(
    model: BayesianModel,
    x: Any,
    num_samples: int = 32,
    batch_size: int | None = None,
    seed: int | None = None,
    reduce: str | None = None,
    verbose: int = 0,
) -> PosteriorPredictive | PredictiveMoments:
    """See `BayesianModel.posterior_predictive`."""
    num_samples = whole("num_samples", num_samples)
    batch_size = DEFAULT_BATCH_SIZE if batch_size is None else whole("batch_size", batch_size)
    if reduce not in (None, "moments"):
        raise ValueError(
            f"Argument `reduce` must be None or 'moments'. Received: reduce={reduce!r}"
        )
    base = next_seed(model.seed_generator) if seed is None else make_seed(seed)
    batches, count = _batches(x, batch_size)
    progress = keras.utils.Progbar(count, verbose=verbose) if verbose else None
    parts: list[Any] = []
    first_row = 0
    for index, batch in enumerate(batches):
        first_row = _check_finite(batch, first_row)
        outputs, variance = _sampler(model, batch, num_samples)(batch, fold_in(base, index))
        part = PosteriorPredictive(outputs, model.likelihood, variance)
        parts.append((outputs, variance) if reduce is None else part.moments())
        if progress is not None:
            progress.update(index + 1, finalize=index + 1 == count)
    if not parts:
        raise ValueError("Argument `x` holds no examples. Received: an empty input")
    if reduce is not None:
        return PredictiveMoments(*_concatenate([vars(p).values() for p in parts], axis=0))
    outputs, variance = _concatenate(parts, axis=1)
    return PosteriorPredictive(outputs, model.likelihood, variance)


def sample_outputs(model: BayesianModel, x: Any, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
    """Raw outputs `[S, B, D]` of enough passes for `num_samples`, a pure function of `seed`.

    Args:
        model: maps x to `[B, K, D]` or `[B, D]`.
        x: one batch of inputs.
        num_samples: an integer, or an int32 scalar tensor in an exported graph.
        seed: int32 `[2]`.

    One pass gives K samples; the passes are iterations of a graph loop, and within one all
    members go through the same matrix products.
    """
    return _passes(model, lambda: (model(x, training=False), None), x, num_samples, seed)[0]


def sample_marginals(
    model: BayesianModel, x: Any, num_samples: Any, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """As `sample_outputs`, with the last layer integrated out where the model can.

    Returns:
        Raw outputs `[S, B, D]` and None; or their means and variances.
    """
    return _passes(model, lambda: model.marginal_outputs(x), x, num_samples, seed)


def _passes(
    model: BayesianModel, one: Any, x: Any, num_samples: Any, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Join the passes `one() -> (outputs, variance or None)` into samples."""
    _check_stateless(model)
    spec = _output_spec(model, x)
    members = 1 if spec.rank == 2 else int(spec[1])
    passes = -(-num_samples // members)
    seeds = tf.map_fn(lambda i: fold_in(seed, i), tf.range(passes))
    has_variance = False

    def one_pass(pass_seed: tf.Tensor) -> tf.Tensor:
        nonlocal has_variance
        with seed_scope(pass_seed):
            outputs, variance = one()
        has_variance = variance is not None
        parts = [tf.cast(v, tf.float32) for v in (outputs, variance) if v is not None]
        joined = tf.concat(parts, axis=-1)
        return joined if spec.rank == 3 else joined[:, tf.newaxis]

    signature = tf.TensorSpec([None, members, None], tf.float32)
    samples = tf.transpose(tf.map_fn(one_pass, seeds, fn_output_signature=signature), [0, 2, 1, 3])
    width = spec[-1] * (1 + has_variance)
    samples = tf.reshape(samples, [passes * members, tf.shape(samples)[2], width])
    if not has_variance:
        return samples, None
    outputs, variance = tf.split(samples, 2, axis=-1)
    return outputs, variance


def _check_stateless(model: BayesianModel) -> None:
    stateful = stateful_layers(model._flatten_layers())
    if stateful:
        raise ValueError(
            "A stateful layer goes on in one pass where the pass before ended, so the samples "
            "would not be answers to the same inputs. Give a net that was built with "
            f"stateful=False the same weights. Received: stateful layers {stateful}"
        )


def _output_spec(model: BayesianModel, x: Any) -> tf.TensorShape:
    if hasattr(model, "output_shape"):
        shape = model.output_shape
    else:
        shape = keras.tree.flatten(model.compute_output_spec(x))[0].shape
    shape = tf.TensorShape(shape)
    if shape.rank not in (2, 3) or shape[-1] is None or shape[1] is None:
        raise ValueError(
            "The posterior predictive needs outputs [batch, members, outputs] or "
            "[batch, outputs] of known size; end the model with SplitMembers(K). "
            f"Received: a model with outputs of shape {shape}"
        )
    return shape


class _Samplers:
    """Compiled samplers of one model, by number of samples and mode."""

    def __init__(self) -> None:
        self.functions: dict[Any, Any] = {}


def _sampler(model: BayesianModel, x: Any, num_samples: int) -> Any:
    """The compiled sampler for inputs like x with any number of rows."""
    if not hasattr(model, "_samplers"):
        model._samplers = _Samplers()
    functions = model._samplers.functions
    specs = keras.tree.map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), x)
    key = (num_samples, in_posterior_mean(), str(specs))
    if key not in functions:
        signature = [specs, tf.TensorSpec([2], tf.int32)]

        @tf.function(input_signature=signature, autograph=False)
        def sample(x: Any, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
            return sample_marginals(model, x, num_samples, seed)

        functions[key] = sample
    return functions[key]


def _batches(x: Any, batch_size: int) -> tuple[Iterator[Any], int | None]:
    """Batches of inputs, and how many there are if that is known."""
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        if count == tf.data.INFINITE_CARDINALITY:
            raise ValueError("Argument `x` must be finite. Received: a dataset without an end")
        return map(_inputs_of, x), count if count >= 0 else None
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise ValueError("Argument `x` must be finite. Received: a PyDataset without a length")
        return (_inputs_of(x[i]) for i in range(x.num_batches)), x.num_batches
    if isinstance(x, Iterator):
        return map(_inputs_of, x), None
    leaves = keras.tree.flatten(x)
    if not leaves or not all(len(getattr(leaf, "shape", ())) for leaf in leaves):
        raise ValueError(
            "Argument `x` must be an array with a batch axis, a structure of such arrays, or "
            f"batches (tf.data.Dataset, keras.utils.PyDataset, iterator). Received: {type(x)}"
        )
    rows = len(leaves[0])

    def slices() -> Iterator[Any]:
        for start in range(0, rows, batch_size):
            part = slice(start, start + batch_size)
            yield keras.tree.map_structure(lambda a, part=part: tf.convert_to_tensor(a[part]), x)

    return slices(), math.ceil(rows / batch_size)


def _inputs_of(batch: Any) -> Any:
    inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
    return keras.tree.map_structure(tf.convert_to_tensor, inputs)


def _check_finite(batch: Any, first_row: int) -> int:
    """The index of the row after the batch; raises at the first row that is not finite."""
    rows = 0
    for leaf in keras.tree.flatten(batch):
        values = np.asarray(leaf)
        rows = values.shape[0]
        bad = rows_not_finite(values)
        if not bad.any():
            continue
        raise ValueError(
            "The inputs of posterior_predictive must be finite; remove or impute these rows. "
            f"Received: NaN or infinity in {int(bad.sum())} rows of a batch, the first of them "
            f"row {first_row + int(np.argmax(bad))}"
        )
    return first_row + rows


def rows_not_finite(values: np.ndarray) -> np.ndarray:
    """Which rows of `[N, ...]` hold NaN or infinity, boolean `[N]`."""
    if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
        return np.zeros(len(values), bool)
    return ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)


def _concatenate(parts: list[Any], axis: int) -> list[tf.Tensor | None]:
    """Join the tensors of several tuples place by place; None where there are none."""
    columns = zip(*parts, strict=True)
    return [None if c[0] is None else tf.concat(c, axis=axis) for c in columns]
