"""Training recipes: how each row of the paper's tables was trained, as a serializable object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import callbacks, initializers, models, posteriors, priors
from tfp_rank1.checks import positive, whole
from tfp_rank1.model import BayesianModel
from tfp_rank1.serialization import registered

__all__ = ["RECIPES", "Recipe", "StepDecay", "get"]


@registered("tfp_rank1")
class StepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, then falls by `factor` at given steps.

        rate(t) = base * min(1, (t + 1) / warmup) * factor^(number of boundaries at or before t)

    Args:
        base: learning rate after the rise, above 0.
        warmup: number of steps of the rise; 0 for none.
        boundaries: steps, increasing.
        factor: number that multiplies the rate at each boundary, above 0.
    """

    def __init__(self, base: float, warmup: int, boundaries: list[int], factor: float) -> None:
        self.base, self.warmup, self.factor = base, warmup, factor
        self.boundaries = list(boundaries)

    def __call__(self, step: Any) -> tf.Tensor:
        """The learning rate at a step, float32 scalar."""
        t = tf.cast(step, tf.float32)
        passed = tf.reduce_sum(tf.cast(t >= tf.constant(self.boundaries, tf.float32), tf.float32))
        rise = tf.minimum(1.0, (t + 1.0) / max(self.warmup, 1))
        return self.base * rise * tf.pow(tf.cast(self.factor, tf.float32), passed)

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the schedule."""
        return {
            "base": self.base,
            "warmup": self.warmup,
            "boundaries": self.boundaries,
            "factor": self.factor,
        }


# Posteriors of the paper's rows, each with its prior; points have none.
_PRIORS: dict[str, Any] = {"normal": priors.Normal, "cauchy": priors.Cauchy, "deterministic": None}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a rank-1 net is built and trained.

    Attributes:
        model: name of a builder in `tfp_rank1.models`.
        model_arguments: arguments of the builder that have no attribute here.
        posterior: `"normal"`, `"cauchy"`, or `"deterministic"` (BatchEnsemble).
        random_sign: P(+1) of the factors' means at the start; None for the posterior's default,
            `N(1, 0.1^2)`. Negative signs under the prior `N(1, prior_stddev^2)` cost tens of nats
            per example until the means have turned, so they need the paper's long annealing.
        stddev: standard deviation, or scale, of the posterior at the start.
        prior_stddev: standard deviation of the prior `N(1, prior_stddev^2)` (around 0 for additive
            factors), or the scale of a Cauchy prior. None for the library's start of Normal
            factors, `priors.default_pair`: signs under a prior that follows them.
        ensemble_size: number of members K; None for the deterministic net.
        batch_size: examples per step, over all replicas.
        epochs: number of epochs.
        learning_rate: learning rate after the rise, for this batch size.
        warmup_epochs: length of the rise of the learning rate, in epochs.
        decay_epochs: epochs at which the learning rate is multiplied by `decay`.
        decay: number that multiplies the learning rate at each of `decay_epochs`.
        clipnorm: norm to which the gradient of each variable is clipped, or None.
        l2: strength of the L2 penalty on the other weights.
        kl_annealing_epochs: length of the rise of the KL weight to 1 / N, in epochs; 0 for none.
        evaluation_samples: samples per member in evaluation.
        kl_reduction: `"mean"`, or `"sum"` over members as in the reference code, K times heavier.

    Raises:
        ValueError: for values that cannot be written as JSON or are out of range.

    Example:
    ```python
    recipe = r1.recipes.get("cifar10")
    model = recipe.build()
    recipe.compile(model, steps_per_epoch=390)
    model.fit(train, epochs=recipe.epochs, callbacks=recipe.callbacks())
    ```
    """

    model: str
    model_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    posterior: str = "normal"
    random_sign: float | None = None
    stddev: float = 0.0316
    prior_stddev: float | None = 0.1
    ensemble_size: int | None = 4
    batch_size: int = 128
    epochs: int = 250
    learning_rate: float = 0.1
    warmup_epochs: int = 1
    decay_epochs: tuple[int, ...] = (100, 200, 225)
    decay: float = 0.2
    clipnorm: float | None = None
    l2: float = 1e-4
    kl_annealing_epochs: int = 200
    evaluation_samples: int = 1
    kl_reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse values that cannot be written as JSON, or are out of range."""
        if not isinstance(self.model_arguments, Mapping):
            raise ValueError(
                "A recipe's model_arguments must be a dict of arguments by name. "
                f"Received: model_arguments={self.model_arguments!r}"
            )
        try:
            plain = json.loads(json.dumps(self.model_arguments))
        except TypeError as error:
            raise ValueError(
                f"A recipe's model_arguments must be plain numbers, texts and lists: {error}. "
                f"Received: model_arguments={self.model_arguments}"
            ) from error
        # As JSON has them, with lists for tuples: a recipe must equal the one read from its file.
        object.__setattr__(self, "model_arguments", plain)
        for name in ("batch_size", "epochs", "evaluation_samples"):
            whole(name, getattr(self, name))
        for name in ("warmup_epochs", "kl_annealing_epochs"):
            whole(name, getattr(self, name), least=0)
        if not isinstance(self.decay_epochs, (list, tuple)):
            raise ValueError(
                "A recipe's decay_epochs must be a tuple of epochs. "
                f"Received: decay_epochs={self.decay_epochs!r}"
            )
        decay_epochs = tuple(whole("decay_epochs", e, least=0) for e in self.decay_epochs)
        object.__setattr__(self, "decay_epochs", decay_epochs)
        if list(decay_epochs) != sorted(set(decay_epochs)):
            raise ValueError(
                f"A recipe's decay_epochs must increase. Received: decay_epochs={self.decay_epochs}"
            )
        for name in ("stddev", "learning_rate", "decay"):
            positive(name, getattr(self, name))
        if self.prior_stddev is not None:
            positive("prior_stddev", self.prior_stddev)
        elif self.posterior != "normal" or self.random_sign is not None:
            raise ValueError(
                "A recipe with prior_stddev=None has the library's start of Normal factors: use "
                "posterior='normal' and random_sign=None. Received: "
                f"posterior={self.posterior!r}, random_sign={self.random_sign}"
            )
        if self.clipnorm is not None:
            positive("clipnorm", self.clipnorm)
        if self.ensemble_size is not None:
            whole("ensemble_size", self.ensemble_size)

    def build(self) -> BayesianModel:
        """The model, not compiled.

        Raises:
            ValueError: for an unknown model or posterior.
        """
        known = [name for name in models.__all__ if name != "table_features"]
        if self.model not in known:
            raise ValueError(f"A recipe's model is one of {known}. Received: model={self.model!r}")
        rank1 = {
            "posterior": self._posterior(),
            "prior": self._prior(),
            "kl_reduction": self.kl_reduction,
        }
        return getattr(models, self.model)(
            **{
                "ensemble_size": self.ensemble_size,
                "l2": self.l2,
                **({} if self.ensemble_size is None else rank1),
                **self.model_arguments,
            }
        )

    def _posterior(self) -> posteriors.Posterior:
        """The posterior of both factors.

        Raises:
            ValueError: for a posterior without a recipe.
        """
        if self.posterior not in _PRIORS:
            raise ValueError(
                "A recipe's posterior is 'normal', 'cauchy' or 'deterministic'. "
                f"Received: posterior={self.posterior!r}"
            )
        if self.prior_stddev is None:
            return posteriors.default_start(self.stddev)
        sign = self.random_sign
        mean = None if sign is None else initializers.RandomSign(sign)
        return posteriors.family(self.posterior).starting_at(mean, self.stddev)

    def _prior(self) -> priors.Prior | None:
        if self.prior_stddev is None:
            return priors.default_pair()[1]
        family = _PRIORS.get(self.posterior)
        # A mean of None is that of an unperturbed layer: 1, or 0 for additive factors.
        return None if family is None else family(None, self.prior_stddev)

    def compile(self, model: BayesianModel, steps_per_epoch: int, **kwargs: Any) -> None:
        """Compile a model with SGD (Nesterov momentum of 0.9) and the recipe's learning rates.

        Args:
            model: what `build` returned.
            steps_per_epoch: number of batches in an epoch.
            **kwargs: more arguments of `BayesianModel.compile`. Where the recipe has an `l2`,
                which is the prior of the kernels, `kernel_precision` is 0 by default.
        """
        if self.l2:
            kwargs.setdefault("kernel_precision", 0.0)
        schedule = StepDecay(
            self.learning_rate,
            self.warmup_epochs * steps_per_epoch,
            [epoch * steps_per_epoch for epoch in self.decay_epochs],
            self.decay,
        )
        optimizer = keras.optimizers.SGD(
            schedule, momentum=0.9, nesterov=True, clipnorm=self.clipnorm
        )
        model.compile(optimizer, **kwargs)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The callbacks for `fit`: the annealing of the KL, if there is one."""
        has_kl = self._prior() is not None and self.ensemble_size is not None
        if not has_kl or not self.kl_annealing_epochs:
            return []
        return [callbacks.KLAnnealing(epochs=self.kl_annealing_epochs)]

    def __hash__(self) -> int:
        return hash(self.to_json())

    def to_json(self) -> str:
        """The recipe as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            ValueError: for a text that is no JSON, unknown or missing fields, or wrong values.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"A recipe is an object in JSON: {error}. Received: {text!r}"
            ) from error
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.keys() - known or "model" not in content:
            raise ValueError(f"A recipe is an object with fields {sorted(known)}. Received: {text}")
        return cls(**content)


RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe("wide_resnet", random_sign=0.5, kl_reduction="sum"),
    "cifar100": Recipe("wide_resnet", {"num_outputs": 100}, random_sign=0.5, kl_reduction="sum"),
    "imagenet": Recipe(
        "resnet50",
        random_sign=0.75,
        prior_stddev=0.05,
        batch_size=1024,
        epochs=135,
        learning_rate=0.4,
        warmup_epochs=5,
        decay_epochs=(45, 90, 120),
        decay=0.1,
        kl_annealing_epochs=90,
        kl_reduction="sum",
    ),
    "mini_cifar10": Recipe(
        "wide_resnet",
        {"depth": 16, "width": 1},
        batch_size=128,
        epochs=30,
        warmup_epochs=1,
        decay_epochs=(15, 23, 27),
        kl_annealing_epochs=10,
        evaluation_samples=4,
    ),
}

# In the paper, rows with heavy tails are evaluated with four samples per member.
RECIPES |= {
    f"{name}_cauchy": dataclasses.replace(RECIPES[name], posterior="cauchy", evaluation_samples=4)
    for name in ("cifar10", "cifar100", "imagenet")
}


def get(name: str) -> Recipe:
    """A recipe by its name.

    The Cauchy recipes start as in the paper, at a scale of 0.0316, where clipped draws have a
    standard deviation of 0.6: a short training hardly leaves the start. This library's own defaults
    are `dataclasses.replace(recipe, stddev=1e-4, prior_stddev=0.01, clipnorm=1.0)`.

    Args:
        name: `"cifar10"`, `"cifar100"`, `"imagenet"`, one of the three with `"_cauchy"` behind it,
            or `"mini_cifar10"`, which two cores can train.

    Raises:
        ValueError: for another name.
    """
    if name not in RECIPES:
        raise ValueError(f"A recipe is one of {sorted(RECIPES)}. Received: {name!r}")
    return RECIPES[name]
