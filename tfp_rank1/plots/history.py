"""How a fit went."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.plots.style import GRAY, count_along_x, look, new_axes, points_of

__all__ = ["training_history"]


@look
def training_history(history: Any, ax: Any = None) -> Any:
    """NLL of training and validation by epoch, and the KL on an axis of its own.

    The NLL of validation that rises again says when to stop; a KL that still moves says that the
    posteriors have not settled.

    Args:
        history: what `fit` returns, or its `history`, with `"nll"`; `"val_nll"` and `"kl"` are
            drawn where they are.
        ax: matplotlib axes. Defaults to new axes.

    Returns:
        The axes of the NLL.

    Raises:
        ValueError: for a history without `"nll"`, or without an epoch.

    Example:
    ```python
    history = model.fit(x, y, epochs=20, validation_data=(x_val, y_val))
    r1.plots.training_history(history)
    ```
    """
    logs = getattr(history, "history", history)
    if not len(logs.get("nll", ())):
        raise ValueError(
            "`history` needs 'nll' of an epoch or more, as `fit` of a BayesianModel or BaliModel "
            f"logs it. Received: { {name: len(values) for name, values in logs.items()} }"
        )
    ax = ax or new_axes()
    epochs = np.arange(1, len(logs["nll"]) + 1)
    for name in ("nll", "val_nll"):
        if name in logs:
            # Validation may be rarer than epochs (`validation_freq`).
            last = np.linspace(0, len(epochs), len(logs[name]) + 1)[1:].astype(int) - 1
            ax.plot(epochs[last], logs[name], label=name, **points_of(logs[name]))
    ax.set(xlabel="epoch", ylabel="nats per example")
    count_along_x(ax)
    if "kl" in logs:
        other = ax.twinx()
        other.spines["right"].set_visible(True)
        other.plot(epochs, logs["kl"], color=GRAY, linestyle="--", **points_of(logs["kl"]))
        other.set_ylabel("kl, nats per example (dashed)")
    # Above the axes, since the lines of both fill them.
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return ax
