"""TabM by its authors' package, as estimators; needs `pip install 'rank1-bali[peers]'`.

Everything is the package's own default, and its example's training: AdamW at 0.002, weight decay
0.0003, batches of 256, until the loss of a tenth of the rows has not fallen for 16 epochs.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split

from tfp_rank1.sklearn import TableColumns

__all__ = ["TabMClassifier", "TabMRegressor", "require"]

RATE, WEIGHT_DECAY, BATCH, PATIENCE, HELD_OUT = 2e-3, 3e-4, 256, 16, 0.1


def require() -> None:
    """Find out before any training whether the packages are there.

    Raises:
        ValueError: with the command that installs them.
    """
    missing = [name for name in ("torch", "tabm") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"TabM needs PyTorch and tabm: pip install 'rank1-bali[peers]'. Received: no {missing}"
        )


def _one_hot(cardinalities: list[int]) -> Any:
    """The package's module of categories, which stops at a code that no training row had.

    Args:
        cardinalities: numbers of categories n; n itself is the code of an unknown one: zeros.
    """
    import torch

    class OneHot(torch.nn.Module):
        def forward(self, codes: Any) -> Any:
            one_hot = torch.nn.functional.one_hot
            parts = [one_hot(codes[:, i], n + 1)[:, :n] for i, n in enumerate(cardinalities)]
            return torch.cat(parts, -1)

    return OneHot()


class _TabM(BaseEstimator):
    """Columns, training and the outputs of all members."""

    def __init__(self, epochs: int = 200, random_state: int = 0) -> None:
        self.epochs = epochs
        self.random_state = random_state

    def _tensors(self, table: Any) -> tuple[Any, Any]:
        import torch

        arrays = self.columns_.transform(table)
        numbers, codes = arrays.get("numeric"), arrays.get("categorical")
        if codes is not None:  # `_one_hot` has zeros for an unknown category
            codes = np.where(codes < 0, np.asarray(self.columns_.cardinalities_), codes)
        return (
            None if numbers is None else torch.tensor(numbers),
            None if codes is None else torch.tensor(codes, dtype=torch.int64),
        )

    def _fit(self, table: Any, y: np.ndarray, outputs: int) -> np.ndarray:
        """Train; the rows that were held out."""
        import tabm
        import torch

        torch.manual_seed(self.random_state)
        rows = np.arange(len(y))
        is_whole = y.dtype.kind in "iu"
        train, held_out = train_test_split(
            rows,
            test_size=HELD_OUT,
            random_state=self.random_state,
            stratify=y if is_whole else None,
        )
        self.columns_ = TableColumns().fit(table.iloc[train])
        inputs = self._tensors(table)
        targets = torch.tensor(y, dtype=torch.int64 if is_whole else torch.float32)
        self.net_ = tabm.TabM.make(
            n_num_features=self.columns_.num_numeric_,
            cat_cardinalities=self.columns_.cardinalities_,
            d_out=outputs,
        )
        if self.columns_.cardinalities_:
            self.net_.cat_module = _one_hot(self.columns_.cardinalities_)
        optimizer = torch.optim.AdamW(self.net_.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
        best, weights, waited = np.inf, None, 0
        for epoch in range(1, self.epochs + 1):
            self.net_.train()
            order = np.random.default_rng((self.random_state, epoch)).permutation(train)
            for part in torch.tensor(order).split(BATCH):
                optimizer.zero_grad()
                self._loss(self._outputs(inputs, part), targets[part]).backward()
                optimizer.step()
            loss = self._held_out_loss(inputs, targets, held_out)
            waited += 1
            if loss < best:
                best, weights, waited = loss, copy.deepcopy(self.net_.state_dict()), 0
            self.n_iter_ = epoch
            if waited >= PATIENCE:
                break
        if weights is not None:
            self.net_.load_state_dict(weights)
        self.net_.eval()
        return held_out

    def _outputs(self, inputs: tuple[Any, Any], rows: Any) -> Any:
        """Outputs `[rows, members, D]`."""
        return self.net_(*(None if part is None else part[rows] for part in inputs))

    def _loss(self, outputs: Any, targets: Any) -> Any:
        """The mean of the members' losses."""
        import torch

        members = outputs.shape[1]
        if targets.dtype == torch.int64:
            return torch.nn.functional.cross_entropy(
                outputs.flatten(0, 1), targets.repeat_interleave(members)
            )
        return ((outputs[..., 0] - targets[:, None]) ** 2).mean()

    def _held_out_loss(self, inputs: tuple[Any, Any], targets: Any, rows: np.ndarray) -> float:
        """The loss of the mean prediction."""
        import torch

        self.net_.eval()
        with torch.no_grad():
            outputs = self._outputs(inputs, torch.tensor(rows))
            if targets.dtype == torch.int64:
                mean = outputs.softmax(-1).mean(1).clamp_min(1e-30).log()
                return float(torch.nn.functional.nll_loss(mean, targets[rows]))
            return float(((outputs[..., 0].mean(1) - targets[rows]) ** 2).mean())

    def members(self, X: Any) -> np.ndarray:  # noqa: N803  scikit-learn's name
        """Outputs of all members, `[members, N, D]`."""
        import torch

        inputs = self._tensors(X)
        with torch.no_grad():
            parts = torch.arange(len(X)).split(4096)
            found = torch.cat([self._outputs(inputs, rows) for rows in parts])
        return np.asarray(found.numpy()).transpose(1, 0, 2)


class TabMClassifier(ClassifierMixin, _TabM):
    """Probabilities are the mean of the members'."""

    def fit(self, X: Any, y: np.ndarray) -> TabMClassifier:  # noqa: N803
        """Train on a frame."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._fit(X, codes, len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """`[N, classes]`."""
        logits = self.members(X).astype("float64")
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (odds / odds.sum(axis=-1, keepdims=True)).mean(axis=0)


class TabMRegressor(RegressorMixin, _TabM):
    """The standard deviation is that of the errors on the held-out rows."""

    def fit(self, X: Any, y: np.ndarray) -> TabMRegressor:  # noqa: N803
        """Train on a frame."""
        self.offset_, self.scale_ = float(np.mean(y)), float(np.std(y))
        held_out = self._fit(X, (y - self.offset_) / self.scale_, 1)
        errors = y[held_out] - self.predict(X.iloc[held_out])
        self.stddev_ = float(np.sqrt(np.mean(errors**2)))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:  # noqa: N803
        """Means, and the same standard deviation for all."""
        mean = self.members(X)[..., 0].astype("float64").mean(axis=0) * self.scale_ + self.offset_
        return (mean, np.full_like(mean, self.stddev_)) if return_std else mean
