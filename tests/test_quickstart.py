"""The quickstart's claim, over seeds: minutes, run by hand with `pytest -m slow -s`."""

import keras
import numpy as np
import pytest

from examples.datasets.small import load_digits, shuffle_blocks
from examples.quickstart import METHODS, score


@pytest.mark.slow
def test_rank1_beats_the_deterministic_net_on_digits():
    """Test NLL (of the mixture) and AUROC, five seeds of split and start, paired differences."""
    results = {method.name: [] for method in METHODS}
    for seed in range(5):
        data = load_digits(seed)
        for method in METHODS:
            keras.utils.set_random_seed(seed)
            model = method.build()
            method.compile(model)
            model.fit(data.x_train, data.y_train, batch_size=32, epochs=100, verbose=0)
            inside = model.posterior_predictive(data.x_test, num_samples=method.samples)
            outside = model.posterior_predictive(
                shuffle_blocks(data.x_test, seed), num_samples=method.samples
            )
            results[method.name].append(score(data.y_test, inside, outside))
    print()
    for name, rows in results.items():
        print(name, {key: mean_and_error([row[key] for row in rows]) for key in rows[0]})
    for key, sign in (("NLL", 1.0), ("OOD AUROC", -1.0)):
        difference = [
            sign * (a[key] - b[key])
            for a, b in zip(results["deterministic"], results["rank-1"], strict=True)
        ]
        mean, error = mean_and_error(difference)
        print(f"rank-1 is better in {key} by {mean} +- {error}")
        assert mean > 2 * error


def mean_and_error(values):
    """Mean and standard error over seeds."""
    return round(np.mean(values), 4), round(np.std(values, ddof=1) / np.sqrt(len(values)), 4)
