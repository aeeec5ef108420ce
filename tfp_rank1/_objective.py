"""The loss of a BayesianModel: a bound on the evidence, and who owns its KL weight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1._distribution import DistributedModel
from tfp_rank1._functional import check_members_agree, same_likelihood
from tfp_rank1._mode import split_members
from tfp_rank1._refusal import sum_over_replicas
from tfp_rank1._registry import whole
from tfp_rank1._training_choices import check_members_share, check_multiplier
from tfp_rank1.divergence import current_kl_scope, kl_scope
from tfp_rank1.losses import NAMES as LOSS_NAMES
from tfp_rank1.losses import MixtureNLL, NegativeLogLikelihood
from tfp_rank1.metrics import Accuracy, UncertaintyMetric

_PER_EXAMPLE = "sum_over_batch_size"  # as Keras calls the mean over a batch
Annealing = Callable[[tf.Tensor], tf.Tensor]


class Objective(NamedTuple):
    """The loss and its parts, scalars; `loss = nll + kl_weight * kl + penalties`.

    `rows` is the number of examples per replica, the mean over all replicas.
    """

    loss: tf.Tensor
    nll: tf.Tensor
    kl: tf.Tensor
    kl_weight: tf.Tensor
    rows: tf.Tensor


class MeanOrNaN(keras.metrics.Mean):
    """A mean that is not a number where there was nothing, as in an epoch of refused batches."""

    def result(self) -> tf.Tensor:
        """The mean."""
        return self.total / tf.cast(self.count, self.dtype)


class ObjectiveModel(DistributedModel):
    """The part of a `BayesianModel` that is configured by `compile` and computes the loss."""

    num_train_examples: float | None
    _factor_multiplier: float
    _member_batches: str
    _num_train_samples: int
    _loss_name: str | None
    _annealing: Annealing | None
    _evaluation_loss: MixtureNLL | None
    _stock_names: list[str]

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = "average_nll",
        *,
        metrics: Any = None,
        factor_learning_rate_multiplier: float = 1.0,
        member_batches: str = "tiled",
        num_train_samples: int = 1,
        **kwargs: Any,
    ) -> None:
        """Configure training; everything else as in `keras.Model.compile`.

        Args:
            optimizer: as in Keras.
            loss: `"average_nll"` (default), `"mixture_nll"`, an object of either class, or, for
                a net without members, any Keras loss.
            metrics: metrics of `tfp_rank1`, which get the model's likelihood unless they have
                one; `"accuracy"` is `metrics.Accuracy`. Those of Keras only without members.
            factor_learning_rate_multiplier: the factors' steps are this many times those of the
                slow weights, for any optimizer, above 0. Defaults to 1.
            member_batches: `"tiled"` (default): every member trains on the whole batch;
                `"split"`: on a K-th of it, for the time of one net, with `"average_nll"`. K must
                divide the batches.
            num_train_samples: samples per member and example in training, at least 1. The loss
                averages them, or, `"mixture_nll"`, takes them for a mixture. Defaults to 1.
            **kwargs: as in Keras.

        Raises:
            ValueError: for values out of range, arguments that exclude each other, or a loss or
                metric that knows no members.
        """
        optimizer = keras.optimizers.get(optimizer)
        multiplier = check_multiplier(factor_learning_rate_multiplier, optimizer)
        num_train_samples = whole("num_train_samples", num_train_samples)
        loss = self._known_loss(loss)
        check_members_share(member_batches, num_train_samples, loss, self._flatten_layers())
        metrics, weighted = (
            keras.tree.map_structure(_own_accuracy, m)
            for m in (metrics, kwargs.pop("weighted_metrics", None))
        )
        with _undone_if_refused(self):
            # Keras keeps the metrics of the `compile` before where none are given.
            object.__setattr__(self, "_compile_metrics", None)
            super().compile(
                optimizer=optimizer, loss=loss, metrics=metrics, weighted_metrics=weighted, **kwargs
            )
        # After all that may refuse: a model keeps what it was compiled with before.
        self._factor_multiplier, self._annealing = multiplier, None
        self._member_batches, self._num_train_samples = member_batches, num_train_samples
        self._bind(loss, keras.tree.flatten([metrics, weighted]))
        # As in Keras, not tracked: it would be a metric once more, for every call of `compile`.
        object.__setattr__(self, "_loss_tracker", MeanOrNaN(name="loss"))

    def _known_loss(self, loss: Any) -> Any:
        """One of this package by its name, or a Keras loss as it is."""
        if isinstance(loss, str):
            return LOSS_NAMES[loss]() if loss in LOSS_NAMES else _loss_of_keras(loss)
        own = getattr(loss, "likelihood", None) if isinstance(loss, NegativeLogLikelihood) else None
        if own not in (None, self.likelihood) and not same_likelihood(own, self.likelihood):
            raise ValueError(
                "The loss and the model have different likelihoods. Pass the loss without one, "
                f"loss={loss.name!r}. Received: {type(own).__name__} in the loss, "
                f"{type(self.likelihood).__name__} in the model"
            )
        return loss

    def _bind(self, loss: Any, metrics: list[Any]) -> None:
        """Give loss and metrics the model's likelihood; take down which of them have none."""
        self._loss_name, self._evaluation_loss, self._stock_names = None, None, []
        if isinstance(loss, NegativeLogLikelihood):
            # The model's own object: it holds the weights of a learned noise scale.
            loss.likelihood = self.likelihood
            is_default = loss.reduction == _PER_EXAMPLE
            if is_default and type(loss) is LOSS_NAMES.get(loss.name):
                self._loss_name = loss.name
            self._evaluation_loss = MixtureNLL(self.likelihood, reduction=loss.reduction)
        elif loss is not None:
            self._stock_names.append(str(getattr(loss, "name", loss)))
        for metric in metrics:
            if isinstance(metric, UncertaintyMetric):
                metric.bind(self.likelihood)
            elif metric is not None:
                self._stock_names.append(str(getattr(metric, "name", metric)))

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`; a loss of this package goes by its name."""
        config = super().get_compile_config()
        if not config:
            return None
        if self._loss_name is not None:
            config["loss"] = self._loss_name
        config["factor_learning_rate_multiplier"] = self._factor_multiplier
        config["member_batches"] = self._member_batches
        config["num_train_samples"] = self._num_train_samples
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was, with the optimizer's state ready to be loaded."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self._build_optimizer()

    # -- the objective -------------------------------------------------------------------------

    def training_outputs(self, x: Any) -> tf.Tensor:
        """Raw outputs of one training pass, as `compile` asks for them.

        Args:
            x: one batch of inputs, `[B, ...]`.

        Returns:
            `[B, S K, D]` for S samples of tiled batches, `[B, 1, D]` for split ones.
        """
        samples = self._num_train_samples
        if samples > 1:
            self._check_samples_differ()
            x = keras.tree.map_structure(lambda v: tf.concat([v] * samples, axis=0), x)
        with split_members() if self._member_batches == "split" else contextlib.nullcontext():
            outputs = self(x, training=True)
        if samples == 1:
            return outputs
        self._check_members(outputs)
        members = outputs.shape[1] if len(outputs.shape) == 3 else 1
        dim = outputs.shape[-1]
        by_sample = tf.reshape(outputs, [samples, -1, members, dim])
        by_example = tf.transpose(by_sample, [1, 0, 2, 3])
        return tf.reshape(by_example, [-1, samples * members, dim])

    def objective(
        self, y: Any, outputs: tf.Tensor, sample_weight: Any = None, training: bool = True
    ) -> Objective:
        """The loss of one batch and its parts.

        Args:
            y: targets `[B]` or `[B, targets]`.
            outputs: raw outputs `[B, K, D]`.
            sample_weight: optional, `[B]`.
            training: False takes the mixture's NLL in place of the training loss, and the KL at
                its full weight 1/N: validation losses are comparable while the weight rises.

        Returns:
            `Objective`, on each replica divided by the number of replicas as Keras does it, but
            for `kl` (the whole KL in nats) and `kl_weight`.
        """
        self._check_outputs(outputs)
        is_plain = self._member_batches == "tiled" and self._num_train_samples == 1
        if is_plain or not training:  # else they are those of `training_outputs`
            self._check_members(outputs)
        if y is None:
            raise ValueError(
                "The loss needs targets: give arrays as (x, y), a dataset of pairs (x, y). "
                "Received: batches without targets"
            )
        if not self.likelihood.built:
            raise ValueError(
                "A subclassed BayesianModel must end `call` with `return self.likelihood(outputs)`"
                f". Received: {type(self).__name__}.call returns raw outputs"
            )
        if training or self._evaluation_loss is None:
            nll = self._compile_loss(y, outputs, sample_weight)
            loss = self._compile_loss._user_loss
        else:
            nll = self._evaluation_loss(y, outputs, sample_weight)
            loss = self._evaluation_loss
        rows = _mean_rows(outputs)
        nll = by_examples(nll, loss, outputs, rows)
        with kl_scope(self._kl_weight(training)) as scope:
            penalties = [self._aggregate_additional_loss(loss) for loss in self.losses]
        # KLs come in Keras's dtype, penalties in that of their weights.
        loss_and_penalties = [nll, *(tf.cast(v, nll.dtype) for v in penalties)]
        return Objective(tf.add_n(loss_and_penalties), nll, scope.total, scope.weight, rows)

    def _check_outputs(self, outputs: tf.Tensor) -> None:
        """Refuse losses and metrics of Keras, which broadcast the targets over the members."""
        if self._compile_loss is None:
            raise ValueError(
                "The model has no loss. Call compile(loss='average_nll') or compile(loss="
                "'mixture_nll') first. Received: loss=None"
            )
        if len(outputs.shape) == 3 and self._stock_names:
            raise ValueError(
                "Losses and metrics of Keras know no members and cannot be used for outputs "
                "[batch, members, outputs]. Use loss='average_nll' or 'mixture_nll', and metrics "
                f"of tfp_rank1.metrics. Received: {', '.join(self._stock_names)}"
            )

    def _check_samples_differ(self) -> None:
        """Refuse layers that draw once per member and call: all samples would be one."""
        layers = self._flatten_layers(include_self=False)
        shared = [v.name for v in layers if getattr(v, "sampling", None) == "member"]
        if shared:
            raise ValueError(
                "With num_train_samples above 1 layers must draw for every example: build them "
                f"with sampling='example'. Received: sampling='member' in {shared}"
            )

    def _check_members(self, outputs: tf.Tensor) -> None:
        """Refuse layers that fold another number of members: they would mix examples."""
        check_members_agree(self._flatten_layers(include_self=False), outputs.shape)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """`NLL + anneal / N * KL + other penalties`, scalar."""
        return self.objective(y, y_pred, sample_weight, training).loss

    @property
    def losses(self) -> list[tf.Tensor]:
        """The weighted KL of every layer, regularizers, and `add_loss` terms.

        Raises:
            ValueError: if N is not known yet and a layer has a KL.
        """
        if current_kl_scope() is not None:
            return super().losses
        with kl_scope(self._kl_weight()):
            return super().losses

    def kl(self) -> tf.Tensor:
        """KL of all layers, each counted once, unweighted, in nats; averaged over members."""
        layers = [m for m in self._flatten_layers(include_self=False) if _owns_kl(m)]
        return tf.add_n([layer.kl() for layer in layers]) if layers else tf.zeros(())

    def _kl_weight(self, training: bool = True) -> tf.Tensor:
        if self.num_train_examples is None:
            if not self._has_kl():
                return tf.zeros(())
            raise ValueError(
                "The KL weight is 1/N and the number N of training examples is not known yet. "
                "Call `fit`, which finds it in arrays and finite datasets, or pass "
                "num_train_examples= to the model. Received: num_train_examples=None"
            )
        annealing = self._annealing if training else None
        anneal = tf.ones(()) if annealing is None else annealing(self._step())
        return anneal / float(self.num_train_examples)

    def _has_kl(self) -> bool:
        return any(v.regularizer is not None and v.trainable for v in self.factor_variables)

    def _step(self) -> tf.Tensor:
        """Number of batches trained on so far (whole updates of an accumulating optimizer)."""
        if self.optimizer is None:
            return tf.zeros((), tf.int64)
        inner: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        batches_per_update = getattr(inner, "gradient_accumulation_steps", None) or 1
        return tf.convert_to_tensor(inner.iterations) * batches_per_update

    def set_annealing(self, annealing: Annealing | None) -> None:
        """Set `anneal(t)`, a function from the step (int64 scalar) to a weight in [0, 1].

        It becomes part of the compiled training step, so that it also holds within
        `steps_per_execution`. None, the state after `compile`, is the full weight.
        `callbacks.KLAnnealing` sets it for the length of one `fit`.
        """
        self._annealing = annealing
        self._forget_functions()


def by_examples(nll: tf.Tensor, loss: Any, outputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """A replica's mean over its examples, so that in the sum over replicas all weigh the same.

    Keras adds up the replicas' means, each divided by their number R. Here each is multiplied by R
    times its share of the examples, of which one replica may have more than another.

    Args:
        nll: of this replica, scalar.
        loss: that gave it; reductions other than Keras's mean over the batch are left alone.
        outputs: of this replica, `[B, ...]`.
        rows: mean of B over the replicas.
    """
    if getattr(loss, "reduction", _PER_EXAMPLE) != _PER_EXAMPLE:
        return nll
    own = tf.cast(tf.shape(outputs)[0], tf.float32)
    return nll * tf.cast(tf.math.divide_no_nan(own, rows), nll.dtype)


def _mean_rows(outputs: tf.Tensor) -> tf.Tensor:
    rows = tf.cast(tf.shape(outputs)[0], tf.float32)
    return sum_over_replicas(rows) / tf.distribute.get_strategy().num_replicas_in_sync


def _owns_kl(layer: keras.layers.Layer) -> bool:
    return hasattr(layer, "kl") and not isinstance(layer, ObjectiveModel)


@contextlib.contextmanager
def _undone_if_refused(model: Any) -> Iterator[None]:
    """Keras sets these one by one, and looks at the arguments on the way."""
    names = "optimizer", "loss", "_compile_loss", "_compile_metrics"
    before = {name: vars(model)[name] for name in names if name in vars(model)}
    try:
        yield
    except Exception:
        for name, value in before.items():
            object.__setattr__(model, name, value)  # not tracked, as in Keras
        raise


def _own_accuracy(metric: Any) -> Any:
    """The metric `"accuracy"` of this package, which knows members; others as they are."""
    return Accuracy() if isinstance(metric, str) and metric in ("accuracy", "acc") else metric


def _loss_of_keras(name: str) -> str:
    """The name; an unknown one is refused with the names of this package."""
    try:
        keras.losses.get(name)
    except ValueError as error:
        raise ValueError(
            f"Unknown loss: expected one of {sorted(LOSS_NAMES)} or a loss of Keras. "
            f"Received: loss={name!r}"
        ) from error
    return name
