"""Nets of keras-proba's variational layers, as estimators; needs `pip install 'rank1-bali[peers]'`.

Two hidden layers of 256 units by local reparameterization with the package's own prior and start,
the KL weighted by 1/N, its Gaussian head for numbers; Adam at 0.001, batches of 256, until the loss
of a tenth of the rows has not fallen for 16 epochs; 32 samples answer.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import keras
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split

from examples.benchmark.tables.one_hot import OneHotColumns

__all__ = ["ProbaClassifier", "ProbaRegressor", "require"]

UNITS, BATCH, PATIENCE, HELD_OUT, SAMPLES = (256, 256), 256, 16, 0.1, 32


def require() -> None:
    """Find out before any training whether the package is there.

    Raises:
        ValueError: with the command that installs it.
    """
    if find_spec("keras_proba") is None:
        raise ValueError("keras-proba is an extra: pip install 'rank1-bali[peers]'")


class _Proba(BaseEstimator):
    """Columns, training and samples."""

    def __init__(self, epochs: int = 200, random_state: int = 0) -> None:
        self.epochs = epochs
        self.random_state = random_state

    def _fit(self, table: Any, y: np.ndarray, head: Any, loss: Any) -> None:
        from keras_proba.layers import DenseLocalReparameterization

        keras.utils.set_random_seed(self.random_state)
        is_whole = y.dtype.kind in "iu"
        rows, held_out = train_test_split(
            np.arange(len(y)),
            test_size=HELD_OUT,
            random_state=self.random_state,
            stratify=y if is_whole else None,
        )
        self.columns_ = OneHotColumns().fit(table.iloc[rows])
        x = self.columns_.transform(table).astype("float32")
        h = inputs = keras.Input((x.shape[1],))
        weight = {"kl_weight": 1.0 / len(rows)}
        for units in UNITS:
            h = DenseLocalReparameterization(units, activation="relu", **weight)(h)
        self.net_ = keras.Model(inputs, head(h, weight))
        self.net_.compile(keras.optimizers.Adam(1e-3), loss)
        stop = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
        history = self.net_.fit(
            x[rows],
            y[rows],
            batch_size=BATCH,
            epochs=self.epochs,
            validation_data=(x[held_out], y[held_out]),
            callbacks=[stop],
            verbose=0,
        )
        self.n_iter_ = len(history.epoch)

    def samples(self, X: Any) -> np.ndarray:  # noqa: N803  scikit-learn's name
        """Outputs of the net, drawn anew every time, `[samples, N, D]`."""
        x = self.columns_.transform(X).astype("float32")
        drawn = [self.net_.predict(x, batch_size=4096, verbose=0) for _ in range(SAMPLES)]
        return np.stack(drawn).astype("float64")


class ProbaClassifier(ClassifierMixin, _Proba):
    """Probabilities are the mean over samples."""

    def fit(self, X: Any, y: np.ndarray) -> ProbaClassifier:  # noqa: N803
        """Train on a frame."""
        from keras_proba.layers import DenseLocalReparameterization

        self.classes_, codes = np.unique(y, return_inverse=True)
        classes = len(self.classes_)
        self._fit(
            X,
            codes,
            lambda h, weight: DenseLocalReparameterization(classes, **weight)(h),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """`[N, classes]`."""
        logits = self.samples(X)
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (odds / odds.sum(axis=-1, keepdims=True)).mean(axis=0)


class ProbaRegressor(RegressorMixin, _Proba):
    """Mean and standard deviation of the mixture of Gaussian heads."""

    def fit(self, X: Any, y: np.ndarray) -> ProbaRegressor:  # noqa: N803
        """Train on a frame."""
        from keras_proba.layers import GaussianHead
        from keras_proba.losses import GaussianNLL

        self.offset_, self.scale_ = float(np.mean(y)), float(np.std(y))
        scaled = ((y - self.offset_) / self.scale_).astype("float32")[:, np.newaxis]
        self._fit(X, scaled, lambda h, weight: GaussianHead(1)(h), GaussianNLL())
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:  # noqa: N803
        """Means, and standard deviations of noise and samples together."""
        drawn = self.samples(X)
        mean, scale = drawn[..., 0], drawn[..., 1]
        stddev = np.sqrt(np.mean(scale**2, axis=0) + np.var(mean, axis=0)) * self.scale_
        mean = mean.mean(axis=0) * self.scale_ + self.offset_
        return (mean, stddev) if return_std else mean
