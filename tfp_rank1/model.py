"""BayesianModel: its loss is an evidence bound, its answer a distribution."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, overload

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import likelihoods
from tfp_rank1._counting import count_examples
from tfp_rank1._functional import (
    Functional,
    check_members_agree,
    end_in_likelihood,
    functional_variant,
    is_functional_call,
    take_graph,
)
from tfp_rank1._objective import Annealing, MeanOrNaN
from tfp_rank1._registry import positive, registered
from tfp_rank1._roles import RolesModel
from tfp_rank1._training_choices import check_split_batches
from tfp_rank1.export import check_exportable, export_predictive
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.losses import MixtureNLL
from tfp_rank1.predictive import PosteriorPredictive, PredictiveMoments, posterior_predictive
from tfp_rank1.random import load_seed_state, save_seed_state


@registered
class BayesianModel(RolesModel):
    """A Keras model trained by an evidence bound; Functional or subclassed.

        loss(t) = NLL + anneal(t) / N * KL + other penalties

    NLL is a mean per example in nats, KL the sum over the model's layers (each counted once), N
    the number of training examples and `anneal` 1 unless `callbacks.KLAnnealing` changes it. The
    loss does not depend on the batch size. Evaluation reports the NLL of the mixture over members,
    training that of the compiled loss. `fit` logs

        nll         nats per example
        kl          KL / N, nats per example
        kl_weight   anneal / N
        refused     fraction of the epoch's batches whose loss or gradients were not finite:
                    weights, optimizer and metrics are then as before the batch

    Args:
        *args, **kwargs: as for `keras.Model`: `BayesianModel(inputs, outputs, ...)` with outputs
            `[B, K, D]` (`[B, D]` for a net without members), or a built Sequential or Functional
            model in place of the two. A subclass that defines `call`
            passes only what follows, and ends `call` with `return self.likelihood(outputs)`.
        likelihood: a `tfp_rank1.likelihoods` object or its name. It becomes the last operation
            of a Functional model, which is how clones and saved models keep it.
        num_train_examples: N. Defaults to None: every `fit` counts the arrays or the finite
            dataset it is given (a dataset that repeats its examples counts every repetition).

    Raises:
        ValueError: without a likelihood, or with an N that is not above 0.

    Example:
    ```python
    model = BayesianModel(inputs, outputs, likelihood=likelihoods.Categorical())
    model.compile("adam", loss="average_nll", metrics=[metrics.ExpectedCalibrationError()])
    model.fit(x, y, epochs=20, callbacks=[callbacks.KLAnnealing(epochs=10)])
    p = model.posterior_predictive(x_test, num_samples=32)
    p.mean(), p.mutual_information()
    ```

    Source: Dusenberry et al. (2020).
    """

    def __init__(
        self,
        *args: Any,
        likelihood: Any = None,
        num_train_examples: float | None = None,
        **kwargs: Any,
    ) -> None:
        if len(args) == 1 and isinstance(args[0], keras.Model):
            args = _graph_of(args[0])  # such as a Sequential
        if is_functional_call(args, kwargs):
            cls: Any = type(self)
            self.__class__ = functional_variant(cls)
            inputs, outputs, args = take_graph(args, kwargs)
            outputs, likelihood = end_in_likelihood(outputs, likelihood)
            super().__init__(inputs, outputs, *args, **kwargs)
            check_members_agree(self._flatten_layers(include_self=False), self.output_shape)
        else:
            super().__init__(*args, **kwargs)
        if likelihood is None:
            raise ValueError(
                "A BayesianModel needs a likelihood, which says what its raw outputs mean: pass "
                f"likelihood= one of {sorted(c.__name__ for c in likelihoods.ALL)}, for example "
                "tfp_rank1.likelihoods.Categorical(). Received: likelihood=None"
            )
        # Keras saves attributes in alphabetical order; under this name the likelihood comes before
        # the private containers of a Functional model, which hold it as well.
        self._likelihood: Likelihood = likelihoods.get(likelihood)
        self._count: float | None = _check_count(num_train_examples)
        self._count_is_given = num_train_examples is not None
        self._annealing: Annealing | None = None
        self._factor_multiplier = 1.0
        self._member_batches, self._num_train_samples = "tiled", 1
        # Not an attribute that Keras tracks: the parts would count as the model's own.
        object.__setattr__(self, "_frozen", [])
        self._loss_name: str | None = None
        self._evaluation_loss: MixtureNLL | None = None
        self._stock_names: list[str] = []
        self.seed_generator = keras.random.SeedGenerator()
        self._nll_tracker = MeanOrNaN(name="nll")
        self._kl_tracker = keras.metrics.Mean(name="kl")
        self._kl_weight_tracker = keras.metrics.Mean(name="kl_weight")
        self._refused_tracker = keras.metrics.Mean(name="refused")

    @property
    def likelihood(self) -> Likelihood:
        """What the raw outputs mean."""
        return self._likelihood

    @property
    def num_train_examples(self) -> float | None:
        """N; None until it is given or found by `fit`. One that is assigned stays."""
        return self._count

    @num_train_examples.setter
    def num_train_examples(self, count: float | None) -> None:
        self._count, self._count_is_given = _check_count(count), count is not None
        self._forget_functions()

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The model's layers; the likelihood, the last operation, is `model.likelihood`."""
        # While Keras builds the graph it must see, and track, the likelihood as well.
        hidden = self.__dict__.get("_likelihood")
        return [layer for layer in super().layers if layer is not hidden]

    # -- fit, evaluate, predict -----------------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; as `keras.Model.fit`, after finding N and looking at array targets.

        Raises:
            ValueError: if N is neither given nor found in `x`, arrays are empty or come without
                targets, or targets lie outside the support of the likelihood.
        """
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        _check_not_empty(x, y)
        if not self._count_is_given:
            self._find_count(arguments)
        self._check_array_targets(y)
        if self._member_batches == "split":
            check_split_batches(arguments, self._flatten_layers())
        annealing = self._annealing
        try:
            history = super().fit(x, y, *args, **kwargs)
            self._warn_of_refused(history.history.get("refused", []))
            return history
        finally:
            # Also after an interrupt, when Keras tells no callback that training has ended.
            self._initial_epoch = None  # of a restored checkpoint
            if self._annealing is not annealing:
                self.set_annealing(annealing)

    def _warn_of_refused(self, shares: list[float]) -> None:
        if any(shares):
            warnings.warn(
                f"In {sum(s > 0 for s in shares)} of {len(shares)} epochs some batches, up to "
                f"{max(shares):.0%}, left the model as it was: the loss or a gradient was not "
                "finite. Look for NaN or huge numbers in inputs and targets, scale both to unit "
                "size, or lower the learning rate. See `refused` in the logs",
                stacklevel=3,
            )

    def _find_count(self, arguments: dict[str, Any]) -> None:
        found = count_examples(arguments.get("x"), arguments.get("validation_split", 0.0))
        if found == 0:
            raise ValueError("`fit` needs at least one example. Received: N = 0")
        if found != self._count:
            self._count = found
            self._forget_functions()
        if self._has_kl():
            self._kl_weight()  # raises without N, before anything is traced

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Loss and metrics; as `keras.Model.evaluate`."""
        self._check_array_targets(y)
        return super().evaluate(x, y, *args, **kwargs)

    def _check_array_targets(self, y: Any) -> None:
        if y is None or not hasattr(y, "__array__") or self._evaluation_loss is None:
            return
        num_outputs = self.output_shape[-1] if isinstance(self, Functional) else None
        if num_outputs is not None:
            self.likelihood.check_targets(y, num_outputs)

    # -- answers --------------------------------------------------------------------------------

    @overload
    def posterior_predictive(
        self,
        x: Any,
        num_samples: int = ...,
        batch_size: int | None = ...,
        seed: int | None = ...,
        reduce: None = ...,
        verbose: int = ...,
    ) -> PosteriorPredictive: ...

    @overload
    def posterior_predictive(
        self,
        x: Any,
        num_samples: int = ...,
        batch_size: int | None = ...,
        seed: int | None = ...,
        *,
        reduce: str,
        verbose: int = ...,
    ) -> PredictiveMoments: ...

    def posterior_predictive(
        self,
        x: Any,
        num_samples: int = 32,
        batch_size: int | None = None,
        seed: int | None = None,
        reduce: str | None = None,
        verbose: int = 0,
    ) -> PosteriorPredictive | PredictiveMoments:
        """Sample the posterior predictive distribution.

        Args:
            x: inputs: an array, a structure of arrays, or batches (a `tf.data.Dataset`, a
                `keras.utils.PyDataset` or an iterator), whose targets, if any, are ignored.
            num_samples: S, at least 1. Members count as samples; S is rounded up to a multiple
                of K so that every member weighs the same. Defaults to 32.
            batch_size: examples per pass, for arrays. Defaults to 128.
            seed: integer for reproducible samples. Defaults to None: new ones each call.
            reduce: None (default) keeps the samples; `"moments"` keeps mean, variances and
                entropies only.
            verbose: 1 shows a progress bar. Defaults to 0.

        Returns:
            `PosteriorPredictive` with samples `[S, N, D]`, or `PredictiveMoments`.

        The seed fixes the samples for one `batch_size`; another split into batches draws others.

        Raises:
            ValueError: for inputs that are not finite, no arrays or batches, or stateful layers.
        """
        return posterior_predictive(self, x, num_samples, batch_size, seed, reduce, verbose)

    def marginal_outputs(self, x: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Raw outputs of one pass, and their variance where a subclass knows it in closed form.

        Args:
            x: one batch of inputs.

        Returns:
            Sampled outputs and None; or, where the last layer is integrated out, means and
            variances of the outputs, given the sample of all layers before it.
        """
        return self(x, training=False), None

    def export_predictive(
        self, path: str, num_samples: int = 32, input_signature: Any = None
    ) -> None:
        """Write a SavedModel that answers with the predictive distribution.

        See `tfp_rank1.export.export_predictive`.
        """
        export_predictive(self, path, num_samples, input_signature)

    def export(self, filepath: str, format: str = "tf_saved_model", **kwargs: Any) -> Any:
        """As `keras.Model.export`; ONNX and LiteRT only inside `posterior_mean()`.

        Raises:
            ValueError: for a format that would freeze the noise of the samples.
        """
        check_exportable(format)
        return super().export(filepath, format=format, **kwargs)

    # -- persistence ----------------------------------------------------------------------------

    def __reduce__(self) -> Any:
        """Pickle the bytes of a `.keras` file, under the class that users import."""
        _, state = super().__reduce__()
        return BayesianModel._unpickle_model, state

    def get_config(self) -> dict[str, Any]:
        """The graph of a Functional model, and N if it was given."""
        given = self.num_train_examples if self._count_is_given else None
        return {**super().get_config(), "num_train_examples": given}

    def save_own_variables(self, store: Any) -> None:
        """Save the random state of the model and the N that `fit` found."""
        super().save_own_variables(store)
        save_seed_state(self.seed_generator, store)
        store["num_train_examples"] = np.float64(self.num_train_examples or 0)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` wrote."""
        arrays = load_seed_state(self.seed_generator, store)
        count = float(np.asarray(arrays.pop("num_train_examples", 0)))
        if count and self._count is None:  # never over an N that was given or just counted
            self._count = _check_count(count)
            self._forget_functions()
        super().load_own_variables(arrays)


def _graph_of(model: keras.Model) -> tuple[Any, Any]:
    """Inputs and outputs of a model that is given in their place."""
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(
            "A model in place of inputs and outputs must be Functional, or a Sequential that is "
            "built: begin it with keras.Input. Received: "
            f"{type(model).__name__}, built={model.built}"
        )
    return model.inputs, model.outputs


def _check_count(count: float | None) -> float | None:
    """N as an int if it is whole; a total of weights may not be."""
    if count is None:
        return None
    number = positive("num_train_examples", count)
    return int(number) if number.is_integer() else number


def _check_not_empty(x: Any, y: Any) -> None:
    """Refuse arrays without examples or without targets, before Keras asks for their length."""
    arrays = [leaf for leaf in keras.tree.flatten(x) if hasattr(leaf, "__array__")]
    if not arrays:
        return
    if y is None:
        raise ValueError("`fit` needs targets with arrays of inputs: fit(x, y). Received: y=None")
    if any(0 in leaf.shape[:1] for leaf in arrays):
        shapes = [tuple(leaf.shape) for leaf in arrays]
        raise ValueError(f"`fit` needs at least one example. Received: x of shape {shapes}")
