"""An LSTM over sequences of events, as in health records."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1.checks import whole
from tfp_rank1.model import BayesianModel
from tfp_rank1.models.parts import Parts

__all__ = [
    "lstm",
]


def lstm(
    num_events: int,
    num_outputs: int = 1,
    embedding_dim: int = 32,
    units: int = 64,
    likelihood: Any = "bernoulli",
    ensemble_size: int | None = 4,
    l2: float = 0.0,
    prior_stddev: float | None = None,
    **rank1: Any,
) -> BayesianModel:
    """An embedding of events, an LSTM, and a dense head.

        outputs = Dense(num_outputs)(LSTM(units)(Embedding(embedding_dim)(events)))

    Args:
        num_events: number of kinds of events, numbered from 1; 0 is padding.
        num_outputs: number of outputs D. Defaults to 1, a yes or no.
        embedding_dim: size of an embedding. Defaults to 32.
        units: size of the LSTM's state. Defaults to 64.
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to `"bernoulli"`.
        ensemble_size: number of members K. Defaults to 4. None makes the same net of stock layers.
        l2: strength of the penalty `l2 sum(w^2)` on the head. Defaults to 0.
        prior_stddev: standard deviation of the prior `N(1, prior_stddev^2)` of Normal posteriors
            (mean 0 if additive). Defaults to None: the start and the prior of
            `tfp_rank1.priors.default_pair`, as in any rank-1 layer.
        **rank1: arguments of `tfp_rank1.layers.Rank1Mixin`, for all layers.

    Returns:
        A `BayesianModel` from whole numbers `[B, T]`, for any T, to `[B, K, num_outputs]`.

    Raises:
        ValueError: unless `num_events` is a whole number of at least 1; for `prior_stddev` where no
            factor has a Normal posterior without a prior.

    Example:
    ```python
    model = r1.models.lstm(num_events=500)
    ```

    Source: Dusenberry et al. (2020), section on electronic health records.
    """
    whole("num_events", num_events)
    parts = Parts(ensemble_size, l2, prior_stddev, None, rank1)
    inputs = keras.Input((None,), dtype="int32")
    h = parts.start(inputs)
    # With `mask_zero` the LSTM skips padding, so the length of the padding changes no output.
    h = parts.without_penalty("Embedding", num_events + 1, embedding_dim, mask_zero=True)(h)
    h = parts.without_penalty("LSTM", units)(h)
    return parts.model(inputs, parts.layer("Dense", num_outputs)(h), likelihood, "lstm")
