"""KLAnnealing: the KL weight rises during training."""

from __future__ import annotations

import keras
import tensorflow as tf

__all__ = ["KLAnnealing"]


class KLAnnealing(keras.callbacks.Callback):
    """Raises the KL weight linearly from `start` to 1, then keeps it there.

        anneal(t) = start + (1 - start) * min(1, (t + 1) / steps)

    The KL weight of the model is `anneal(t) / N`. The step t is the number of batches that the
    optimizer has seen, so that a resumed run with the same callback goes on where it stopped. The
    schedule is computed in the compiled step and also holds within `steps_per_execution`. It ends
    with the `fit` that it was given to. Validation always has the full KL weight, so that
    `val_loss` can be compared between epochs.

    Args:
        epochs: length of the rise in epochs; `fit` must know the number of steps per epoch.
            Defaults to None: `steps` gives the length.
        steps: length of the rise in steps. Defaults to None: `epochs` gives the length.
        start: where the rise begins, in [0, 1]. Defaults to 0.

    Raises:
        ValueError: unless exactly one of `epochs` and `steps` is given and positive, or if the
            number of steps per epoch is unknown. In `fit`, for a model whose loss has no KL
            that could be annealed.

    Example:
    ```python
    model.fit(x, y, epochs=20, callbacks=[r1.callbacks.KLAnnealing(epochs=10)])
    ```
    """

    def __init__(
        self, epochs: float | None = None, steps: int | None = None, start: float = 0.0
    ) -> None:
        super().__init__()
        length = steps if epochs is None else epochs
        if (epochs is None) == (steps is None) or length is None or not length > 0:
            raise ValueError(
                "KLAnnealing needs exactly one of `epochs` and `steps`, above 0. "
                f"Received: epochs={epochs}, steps={steps}"
            )
        if not 0.0 <= float(start) <= 1.0:
            raise ValueError(f"Argument `start` must lie in [0, 1]. Received: start={start}")
        self.epochs = epochs
        self.steps = steps
        self.start = float(start)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Give the model its schedule.

        Raises:
            ValueError: for a plain `keras.Model`, a model without a KL, or an unknown number of
                steps per epoch.
        """
        if not hasattr(self.model, "set_annealing"):
            raise ValueError(
                "KLAnnealing needs a tfp_rank1.BayesianModel: in a plain keras.Model the layers' "
                f"`kl_weight` is a constant. Received: {type(self.model).__name__}"
            )
        length = float(self._length())
        start = self.start

        def anneal(step: tf.Tensor) -> tf.Tensor:
            progress = (tf.cast(step, tf.float32) + 1.0) / length
            return start + (1.0 - start) * tf.minimum(progress, 1.0)

        self.model.set_annealing(anneal)
        # `fit` made the train function before this hook, and `set_annealing` has dropped it.
        self.model.make_train_function(force=True)

    def _length(self) -> float:
        if self.epochs is None:
            return float(self.steps or 0)
        steps_per_epoch = (self.params or {}).get("steps")
        if steps_per_epoch is None:
            raise ValueError(
                "KLAnnealing(epochs=...) needs the number of steps per epoch, which this data "
                "does not tell. Pass steps= instead, or steps_per_epoch= to fit. "
                f"Received: epochs={self.epochs}"
            )
        return float(self.epochs * steps_per_epoch)
