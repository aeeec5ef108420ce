"""The methods: each a model, how it is trained, and how many samples answer a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras

import bali_keras as bk
import tfp_rank1 as r1
from examples.benchmark.mean_field import MeanFieldConv2D, MeanFieldDense
from examples.benchmark.nets import Kit, Net, build, build_ensemble

MEMBERS = 4
ENSEMBLE = 5
DROPOUT = 0.05
# What the results of all methods depend on beside their own fields.
CONSTANTS = {"members": MEMBERS, "ensemble": ENSEMBLE, "dropout": DROPOUT}


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        build: a model from a net and a likelihood.
        samples: of the predictive distribution.
        rate: of Adam; None for a model without an optimizer.
        clipnorm: of Adam: the norm to which the gradient of a variable is clipped, or None.
        annealing: share of the epochs over which the KL is faded in.
        closed_form: whether a regression needs no training: see `training.fit_linear`.
        converted: whether the net is first trained as it is built, and then made a BALI net that
            sees the data once more.
        tuned: by kind of task, fields of `Budget` that were chosen on held-out parts of the
            training sets, one choice for all sets of a kind.
    """

    build: Callable[[Net, Any], r1.BayesianModel]
    samples: int = 64
    rate: float | None = 1e-3
    clipnorm: float | None = None
    annealing: float = 0.0
    converted: bool = False
    closed_form: bool = False
    tuned: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)


# Epochs on images, of 5, 10 and 20, by the NLL of a fifth of the training images, MNIST and
# Fashion-MNIST together, one seed. The deterministic and the mean-field net are best at the task's
# own 10.
LONGER = {"images": {"epochs": 20}}

STOCK = Kit(keras.layers.Dense, keras.layers.Conv2D)
MEAN_FIELD = Kit(MeanFieldDense, MeanFieldConv2D)
BALI = Kit(bk.layers.DenseBali, bk.layers.Conv2DBali)


class SamplingDropout(keras.layers.Dropout):
    """Dropout that also drops in prediction: each call is a sample (Gal & Ghahramani 2016)."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Inputs with some entries at zero, the others scaled."""
        return super().call(inputs, training=True)


def rank1_kit(posterior: Any, prior: Any = None) -> Kit:
    """Layers with rank-1 factors for `MEMBERS` members."""
    arguments = {"ensemble_size": MEMBERS, "posterior": posterior}
    if prior is not None:
        arguments["prior"] = prior
    return Kit(
        partial(r1.layers.DenseRank1, **arguments),
        partial(r1.layers.Conv2DRank1, **arguments),
        start=lambda h: r1.layers.TileMembers(MEMBERS)(h),
        end=lambda h: r1.layers.SplitMembers(MEMBERS)(h),
    )


def build_dropout(net: Net, likelihood: Any) -> r1.BayesianModel:
    """Stock layers, dropout after every hidden one."""
    kit = dataclasses.replace(STOCK, between=lambda h: SamplingDropout(DROPOUT)(h))
    return build(net, kit, likelihood)


def build_batch_ensemble(net: Net, likelihood: Any) -> r1.BayesianModel:
    """Rank-1 factors that are points: one pair per member, of random signs."""
    start = r1.posteriors.Deterministic(r1.initializers.RandomSign())
    return build(net, rank1_kit(start), likelihood)


def build_rank1(family: str, net: Net, likelihood: Any) -> r1.BayesianModel:
    """Rank-1 factors with a posterior, all defaults."""
    return build(net, rank1_kit(family), likelihood)


def build_linear(net: Net, likelihood: Any) -> r1.BayesianModel:
    """Bayesian softmax regression, the last layer of BALI alone."""
    return build(dataclasses.replace(net, hidden=()), BALI, likelihood, bk.BaliModel)


METHODS: dict[str, Method] = {
    "deterministic": Method(lambda net, lik: build(net, STOCK, lik), samples=1),
    "mc_dropout": Method(build_dropout, tuned=LONGER),
    "deep_ensemble": Method(
        lambda net, lik: build_ensemble(net, STOCK, ENSEMBLE, lik), samples=ENSEMBLE, tuned=LONGER
    ),
    "mean_field": Method(lambda net, lik: build(net, MEAN_FIELD, lik), annealing=0.25),
    "batch_ensemble": Method(build_batch_ensemble, samples=MEMBERS, tuned=LONGER),
    "rank1_normal": Method(partial(build_rank1, "normal"), annealing=0.25, tuned=LONGER),
    "rank1_cauchy": Method(
        partial(build_rank1, "cauchy"), clipnorm=1.0, annealing=0.25, tuned=LONGER
    ),
    "bali": Method(lambda net, lik: build(net, BALI, lik, bk.BaliModel), rate=None, tuned=LONGER),
    "bali_converted": Method(lambda net, lik: build(net, STOCK, lik), converted=True),
    "linear": Method(build_linear, rate=None, closed_form=True, tuned=LONGER),
}


def get(name: str) -> Method:
    """A method by name.

    Raises:
        ValueError: with the names there are.
    """
    if name not in METHODS:
        raise ValueError(f"A method is one of {sorted(METHODS)}. Received: {name!r}")
    return METHODS[name]
