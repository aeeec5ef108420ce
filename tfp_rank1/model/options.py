"""What `BayesianModel.compile` was told: checked, immutable, and written into saved models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import heads
from tfp_rank1.checks import choice, not_negative, positive, whole
from tfp_rank1.layers import TileMembers
from tfp_rank1.layers.folding import split_message
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.losses import NAMES as LOSS_NAMES
from tfp_rank1.losses import MixtureNLL, NegativeLogLikelihood
from tfp_rank1.metrics import on_predictive_mean
from tfp_rank1.model.counting import batch_size_of, count_examples
from tfp_rank1.model.graph import same_likelihood
from tfp_rank1.predictive.sampling import METHODS, stateful_layers

__all__ = [
    "PER_EXAMPLE",
    "Annealing",
    "Options",
    "check_multiplier",
    "check_split_batches",
    "known_loss",
    "loss_weights_of",
    "own_metrics",
]

Annealing = Callable[[tf.Tensor], tf.Tensor]

PER_EXAMPLE = "sum_over_batch_size"  # Keras's name for the mean over a batch


@dataclasses.dataclass(frozen=True)
class Options:
    """The choices of `compile`, and what follows from them.

    Attributes:
        factor_learning_rate_multiplier: number by which every step of a factor is multiplied.
        member_batches: `"tiled"` or `"split"`.
        num_train_samples: samples per member and example in training.
        loss_name: name under which a saved model finds its loss; None for a loss of Keras or one
            with arguments of its own.
        evaluation_loss: the loss that evaluation reports; None where that is a loss of Keras. For
            several outputs one for each.
        training_loss: for several outputs the loss of each; None for a single one, whose loss Keras
            holds.
        loss_weights: for several outputs the number by which the loss of each counts; None for 1.
        stock_loss: name of the compiled loss if it is one of Keras, which knows no members.
        evaluation_samples: samples of the predictive distribution in `evaluate`, validation and
            `predict`.
        evaluation_method: `"samples"` or `"moments"`, which draws nothing there; None for moments
            where they take one pass.
        kernel_precision: p of the kernels' prior, see `model.kernel_prior`; 0 for none, None for
            the model's default.
        annealing: `anneal(t)`, from the step t to a number in [0, 1]; None for the full KL weight.
    """

    factor_learning_rate_multiplier: float = 1.0
    member_batches: str = "tiled"
    num_train_samples: int = 1
    loss_name: str | None = None
    evaluation_loss: Any = None
    stock_loss: str | None = None
    annealing: Annealing | None = None
    evaluation_samples: int = 8
    kernel_precision: float | None = None
    evaluation_method: str | None = None
    training_loss: Any = None
    loss_weights: Any = None

    @classmethod
    def check(
        cls,
        optimizer: Any,
        loss: Any,
        layers: Iterable[Any],
        *,
        factor_learning_rate_multiplier: Any,
        member_batches: Any,
        num_train_samples: Any,
        evaluation_samples: Any,
        kernel_precision: Any,
        evaluation_method: Any,
    ) -> Options:
        """Options from the arguments of `compile`, before Keras compiles anything.

        Args:
            optimizer: the optimizer, or None.
            loss: what `known_loss` returned.
            layers: all layers of the model.
            factor_learning_rate_multiplier: argument of `compile`.
            member_batches: argument of `compile`.
            num_train_samples: argument of `compile`.
            evaluation_samples: argument of `compile`.
            kernel_precision: argument of `compile`.
            evaluation_method: argument of `compile`.

        Raises:
            ValueError: for values out of range, or values that exclude each other.
        """
        options = cls(
            check_multiplier(factor_learning_rate_multiplier, optimizer),
            choice("member_batches", member_batches, ("tiled", "split")),
            whole("num_train_samples", num_train_samples),
            evaluation_samples=whole("evaluation_samples", evaluation_samples),
            kernel_precision=(
                None
                if kernel_precision is None
                else not_negative("kernel_precision", kernel_precision)
            ),
            evaluation_method=(
                None
                if evaluation_method is None
                else choice("evaluation_method", evaluation_method, METHODS, or_none=True)
            ),
        )
        _check_members_share(options, loss, layers)
        return options

    @property
    def spreads_batches(self) -> bool:
        """Whether training outputs have other members than the model's layers."""
        return self.member_batches == "split" or self.num_train_samples > 1

    def loss_weights_by_output(self, likelihood: Any) -> list[float]:
        """The number by which the loss of every output counts, in the order of `heads.names_of`."""
        given = self.loss_weights
        return heads.parts(likelihood, heads.in_each(likelihood, 1.0) if given is None else given)

    def bound_to(
        self, likelihood: Any, loss: Any, metrics: list[Any], loss_weights: Any = None
    ) -> Options:
        """Give loss and metrics the model's likelihood, and note what follows from them.

        Args:
            likelihood: the model's likelihood; for several outputs one for each.
            loss: what `known_loss` returned.
            metrics: what `own_metrics` returned, for `metrics` and `weighted_metrics`.
            loss_weights: what `loss_weights_of` returned. Defaults to None.

        Returns:
            These options with all that follows from the loss.
        """
        name, evaluation, training, stock = None, None, None, None
        if isinstance(loss, NegativeLogLikelihood):
            # A name stands for a loss with default arguments; any other is saved as an object.
            is_default = loss.reduction == PER_EXAMPLE
            name = loss.name if is_default and type(loss) is LOSS_NAMES.get(loss.name) else None

            def bound(kind: Any) -> Any:
                # The model's own objects, no copies: they hold the weights of learned noise scales.
                return heads.map_heads(lambda v: kind(v, reduction=loss.reduction), likelihood)

            evaluation = bound(MixtureNLL)
            if heads.are_several(likelihood):
                training = bound(type(loss))
            else:
                loss.likelihood = likelihood
        elif loss is not None:
            stock = str(getattr(loss, "name", getattr(loss, "__name__", loss)))
        for given in metrics:
            _bind_metrics(given, likelihood)
        return dataclasses.replace(
            self,
            loss_name=name,
            evaluation_loss=evaluation,
            training_loss=training,
            stock_loss=stock,
            loss_weights=loss_weights,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments of `compile` that are not Keras's, and the name of the loss if it has one.

        The annealing is left out: a callback sets it anew for each `fit`.
        """
        config: dict[str, Any] = {} if self.loss_name is None else {"loss": self.loss_name}
        names = (
            "factor_learning_rate_multiplier",
            "member_batches",
            "num_train_samples",
            "evaluation_samples",
            "evaluation_method",
            "kernel_precision",
        )
        if self.loss_weights is not None:
            config["loss_weights"] = self.loss_weights
        return config | {name: getattr(self, name) for name in names}


def _bind_metrics(metrics: Any, likelihood: Any) -> None:
    """Give metrics the likelihood of the output that they look at.

    Raises:
        ValueError: for metrics of several outputs that do not say of which.
    """
    if not heads.are_several(likelihood):
        for metric in keras.tree.flatten(metrics):
            if metric is not None:
                metric.bind(likelihood)
        return
    if metrics is None:
        return
    if isinstance(metrics, dict) and isinstance(likelihood, dict):
        metrics = {name: metrics.get(name) for name in likelihood} | metrics  # some have none
    matched = heads.matched("metrics", likelihood, metrics)
    pairs = zip(heads.parts(likelihood, likelihood), heads.parts(likelihood, matched), strict=True)
    for own, given in pairs:
        _bind_metrics(given, own)


def _loss_of_several(loss: Any, likelihood: Any) -> NegativeLogLikelihood | None:
    """The loss of every one of several outputs: they are parts of one bound, of one kind.

    Raises:
        ValueError: for losses of Keras, losses of several kinds, or losses with a likelihood.
    """
    given = loss
    if heads.are_several(loss):
        given = heads.parts(likelihood, heads.matched("loss", likelihood, loss))
    found = [LOSS_NAMES[v]() if v in LOSS_NAMES else v for v in keras.tree.flatten(given)]
    if found == [None]:
        return None
    is_known = all(isinstance(v, NegativeLogLikelihood) for v in found)
    if not is_known or len({(type(v), v.reduction) for v in found}) > 1:
        raise ValueError(
            "The losses of several outputs add up to one bound: loss='average_nll' or "
            f"'mixture_nll', the same for all. `loss_weights` weighs them. Received: loss={loss!r}"
        )
    if any(v.likelihood is not None for v in found):
        raise ValueError(
            "Every output has the likelihood of the model: pass the losses without one. "
            f"Received: loss={loss!r}"
        )
    return found[0]


def loss_weights_of(loss_weights: Any, likelihood: Any) -> Any:
    """The weight of every output's loss, above 0; None for 1.

    Args:
        loss_weights: a structure of numbers like the outputs, or None.
        likelihood: one for each of several outputs.

    Raises:
        ValueError: for another structure, or a number that is not above 0.
    """
    if loss_weights is None:
        return None
    matched = heads.matched("loss_weights", likelihood, loss_weights)
    return heads.map_heads(lambda _, w: positive("loss_weights", w), likelihood, matched)


def known_loss(loss: Any, likelihood: Any) -> Any:
    """The loss to compile: an object for a name of this package, else the loss that is given.

    Args:
        loss: a name, a loss of either kind, or None; for several outputs a likelihood's loss, or a
            structure of losses of one kind.
        likelihood: the model's likelihood; for several outputs one for each.

    Raises:
        ValueError: for an unknown name, a loss with another likelihood than the model's, or a loss
            of Keras that takes raw outputs for probabilities.
    """
    if heads.are_several(likelihood):
        return _loss_of_several(loss, likelihood)
    if isinstance(loss, str) and loss in LOSS_NAMES:
        return LOSS_NAMES[loss]()
    _check_takes_raw_outputs(_loss_of_keras(loss) if isinstance(loss, str) else loss, likelihood)
    # By value: a loss that was loaded with a model brings a likelihood object of its own.
    own = getattr(loss, "likelihood", None) if isinstance(loss, NegativeLogLikelihood) else None
    if own not in (None, likelihood) and not same_likelihood(own, likelihood):
        raise ValueError(
            "The loss and the model have different likelihoods. Pass the loss without one, "
            f"loss={loss.name!r}. Received: {type(own).__name__} in the loss, "
            f"{type(likelihood).__name__} in the model"
        )
    return loss


def _loss_of_keras(name: str) -> str:
    """The name; the error for an unknown name lists the losses of this package."""
    try:
        keras.losses.get(name)
    except ValueError as error:
        raise ValueError(
            f"Unknown loss: expected one of {sorted(LOSS_NAMES)} or a loss of Keras. "
            f"Received: loss={name!r}"
        ) from error
    return name


def _check_takes_raw_outputs(loss: Any, likelihood: Likelihood) -> None:
    """Refuse losses of Keras that would take logits or log rates for probabilities or rates.

    A function of the user's own is taken at its word.
    """
    found = keras.losses.get(loss) if isinstance(loss, str) else loss
    is_of_keras = getattr(found, "__module__", type(found).__module__).startswith("keras")
    if not likelihood.link_names or not is_of_keras or getattr(found, "from_logits", False):
        return
    name = loss if isinstance(loss, str) else getattr(found, "name", found.__class__.__name__)
    cls = "".join(part.title() for part in name.split("_"))
    own = f", or keras.losses.{cls}(from_logits=True)" if name.endswith("crossentropy") else ""
    raise ValueError(
        f"The outputs of a model with a {type(likelihood).__name__} likelihood are raw, before "
        f"{likelihood.link_names[0]}, and the loss {name!r} takes them as they are. Use the "
        f"default loss, compile(loss='average_nll'){own}. Received: loss={loss!r}"
    )


def own_metrics(metrics: Any) -> Any:
    """A structure of metrics in which those of Keras see the predictive mean.

    They would broadcast the targets over the members, and take raw outputs for probabilities.
    """
    if metrics is not None and not isinstance(metrics, list | tuple | dict):
        raise ValueError(
            f"Metrics must be a list, tuple or dict: metrics=[{metrics!r}]. Received: "
            f"metrics={metrics!r}"
        )
    return keras.tree.map_structure(on_predictive_mean, metrics)


def check_multiplier(multiplier: Any, optimizer: Any) -> float:
    """The factors' learning-rate multiplier as a number.

    Raises:
        ValueError: unless it is finite and above 0; and for an optimizer with `use_ema`, which
            averages the variables before the factors' steps are multiplied.
    """
    value = positive("factor_learning_rate_multiplier", multiplier)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if value != 1.0 and getattr(inner, "use_ema", False):
        raise ValueError(
            "The moving average of an optimizer is taken before the factors' steps are "
            "multiplied: use factor_learning_rate_multiplier=1, or an optimizer with "
            f"use_ema=False. Received: factor_learning_rate_multiplier={multiplier}"
        )
    return value


def _check_members_share(options: Options, loss: Any, layers: Iterable[Any]) -> None:
    """Refuse ways of spreading a batch over members and samples that exclude each other."""
    is_split = options.member_batches == "split"
    if is_split and options.num_train_samples > 1:
        raise ValueError(
            "Members that split a batch take one sample each: use num_train_samples=1, or "
            f"member_batches='tiled'. Received: num_train_samples={options.num_train_samples}"
        )
    if is_split and isinstance(loss, MixtureNLL):
        raise ValueError(
            "Members that split a batch see one example each, so the mixture would be one "
            "member: use loss='average_nll', or member_batches='tiled'. "
            f"Received: loss={loss.name!r}"
        )
    stateful = stateful_layers(layers)
    if stateful and options.spreads_batches:
        raise ValueError(
            "A stateful layer keeps a state for every row of a tiled batch: use stateful=False, "
            "or member_batches='tiled' and num_train_samples=1. "
            f"Received: stateful layers {stateful}"
        )


def check_split_batches(arguments: Mapping[str, Any], layers: Iterable[Any]) -> None:
    """Refuse arrays that `fit` would cut into batches which the members cannot share.

    A compiled step would refuse such a batch too, but `fit` may come to it last, and XLA drops the
    message.

    Args:
        arguments: the arguments of `fit`.
        layers: all layers of the model.

    Raises:
        ValueError: unless the number of members divides every batch.
    """
    x = arguments.get("x")
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    # The sizes of these batches are not known here: `TileMembers` checks each batch in the step.
    if isinstance(x, tf.data.Dataset) or replicas > 1 or arguments.get("steps_per_epoch"):
        return
    count = count_examples(x, arguments.get("validation_split", 0.0))
    if not count:  # a generator, whose batches are not known here either
        return
    batch = min(batch_size_of(arguments), count)
    rows = {batch, count % batch} - {0}
    for members in {v.ensemble_size for v in layers if isinstance(v, TileMembers)}:
        odd = sorted(n for n in rows if n % members)
        if odd:
            raise ValueError(
                f"{split_message(members)} Received: {count} examples in batches of {batch}, "
                f"some of {odd}"
            )
