"""Adaptive calibration error against the definition on sorted probabilities."""

import keras
import numpy as np
import pytest
from scipy import special

import tfp_rank1 as r1

M = r1.metrics
RNG = np.random.default_rng(0)
N, C = 1500, 4
LOGITS = RNG.normal(0, 2.0, size=(N, C)).astype("float32")
PROBS = special.softmax(np.float64(LOGITS), axis=-1)
LABELS = np.array([RNG.choice(C, p=p) for p in special.softmax(0.6 * LOGITS, axis=-1)])


def ace(probabilities, is_class, bins, threshold=None):
    """Nixon et al. (2019): for every class, bins of equal count of its sorted probabilities."""
    by_class = []
    for p, y in zip(probabilities.T, is_class.T, strict=True):
        order = np.argsort(p, kind="stable")
        order = order if threshold is None else order[p[order] > threshold]
        parts = [part for part in np.array_split(order, bins) if len(part)]
        gaps = [len(part) * abs(y[part].mean() - p[part].mean()) for part in parts]
        by_class += [sum(gaps) / len(order)] if len(order) else []
    return np.mean(by_class)


def streamed(metric, y, outputs, size=400, weight=None):
    for i in range(0, len(y), size):
        at = slice(i, i + size)
        metric.update_state(y[at], outputs[at], None if weight is None else weight[at])
    return float(metric.result())


@pytest.mark.parametrize("threshold", [None, 0.05])
@pytest.mark.parametrize("bins", [1, 5, 15])
def test_definition(bins, threshold):
    expected = ace(PROBS, np.eye(C)[LABELS], bins, threshold)
    found = streamed(M.AdaptiveCalibrationError(bins, threshold), LABELS, LOGITS)
    assert expected > 2e-3 + 3e-3 * (bins > 1)
    # With one bin no example can be in another one.
    assert found == pytest.approx(expected, abs=1e-5 if bins == 1 else 3e-3)


def test_exact_where_bins_end_between_cells():
    """Sixty probabilities far apart, ten in each bin, down to 1e-6 and up to 1 - 1e-6."""
    logit = RNG.permutation(np.linspace(-14, 14, 60)).astype("float32")
    outputs = np.stack([np.zeros(60, "float32"), logit], axis=1)
    y = RNG.integers(0, 2, 60)
    expected = ace(special.softmax(np.float64(outputs), axis=1), np.eye(2)[y], 6)
    found = streamed(M.AdaptiveCalibrationError(6), y, outputs, size=7)
    assert found == pytest.approx(expected, abs=1e-6)


def test_any_batching_is_one_result():
    results = [
        streamed(M.AdaptiveCalibrationError(), LABELS, LOGITS, size) for size in (N, 400, 37)
    ]
    assert np.ptp(results) < 1e-6


def test_all_classes_count_and_not_only_the_predicted_one():
    """A net that swaps its two unlikely classes: right in the first place, wrong in the others."""
    y = np.repeat([0, 1], [80, 20])
    outputs = np.tile(np.log([[0.8, 0.0001, 0.1999]]), (100, 1)).astype("float32")
    ece, found = M.ExpectedCalibrationError(1), M.AdaptiveCalibrationError(1)
    ece.update_state(y, outputs)
    found.update_state(y, outputs)
    assert float(ece.result()) < 1e-4
    assert float(found.result()) == pytest.approx((0.0 + 0.1999 + 0.1999) / 3, abs=1e-4)


def test_a_class_below_the_threshold_is_left_out():
    outputs = np.tile(np.log([[0.7, 0.29, 0.01]]), (10, 1)).astype("float32")
    metric = M.AdaptiveCalibrationError(3, threshold=0.1)
    metric.update_state(np.zeros(10), outputs)
    assert float(metric.result()) == pytest.approx((0.3 + 0.29) / 2, abs=1e-5)


def test_bernoulli_targets_are_the_classes():
    y = RNG.integers(0, 2, (N, C))
    probabilities = special.expit(np.float64(LOGITS))
    metric = M.AdaptiveCalibrationError(10, likelihood="bernoulli")
    expected = ace(probabilities, y, 10)
    assert streamed(metric, y, LOGITS) == pytest.approx(expected, abs=3e-3)


def test_weights_missing_labels_and_soft_labels():
    weight = RNG.integers(0, 3, N).astype("float32")
    repeats = weight.astype(int)
    weighted = streamed(M.AdaptiveCalibrationError(), LABELS, LOGITS, weight=weight)
    repeated = M.AdaptiveCalibrationError()
    repeated.update_state(np.repeat(LABELS, repeats), np.repeat(LOGITS, repeats, axis=0))
    assert weighted == pytest.approx(float(repeated.result()), abs=1e-6)
    ignoring = r1.likelihoods.Categorical(ignore_class=-1)
    found = streamed(
        M.AdaptiveCalibrationError(likelihood=ignoring), np.where(weight > 0, LABELS, -1), LOGITS
    )
    kept = streamed(M.AdaptiveCalibrationError(), LABELS[weight > 0], LOGITS[weight > 0])
    assert found == pytest.approx(kept, abs=1e-6)
    soft = np.float32(PROBS)
    assert streamed(M.AdaptiveCalibrationError(), soft, LOGITS) == pytest.approx(0.0, abs=1e-5)


def test_equal_mass_ece_of_a_confident_net():
    """Nearly all confidences above 0.999: the bins must still be of equal mass."""
    n = 3000
    margin = RNG.uniform(7, 14, n).astype("float32")
    outputs = np.stack([margin, np.zeros(n, "float32")], axis=1)
    confidence = special.expit(np.float64(margin))
    # All errors among the least confident third.
    correct = (margin > np.quantile(margin, 0.33)) | (RNG.uniform(size=n) > 0.3)
    order = np.argsort(confidence)
    expected = sum(
        len(part) / n * abs(correct[part].mean() - confidence[part].mean())
        for part in np.array_split(order, 15)
    )
    metric = M.ExpectedCalibrationError(15, binning="equal_mass")
    metric.update_state(1 - correct, outputs)
    assert float(metric.result()) == pytest.approx(expected, rel=2e-2)
    sums = r1.metrics.histogram.merge_to_equal_mass(np.asarray(metric.sums).T[None], 15)
    count = np.asarray(sums)[0, :, 0]
    assert count.min() > 0.8 * n / 15 and count.max() < 1.2 * n / 15


def test_in_compile_under_xla(digits):
    inputs = keras.Input((64,))
    members = r1.layers.SplitMembers(2)(r1.layers.TileMembers(2)(inputs))
    model = r1.BayesianModel(inputs, keras.layers.Dense(10)(members), likelihood="categorical")
    model.compile("sgd", metrics=[M.AdaptiveCalibrationError()], jit_compile=True)
    x, y = digits[0][:200], digits[1][:200]
    model.fit(x, y, verbose=0, validation_data=(x, y), callbacks=[
        keras.callbacks.EarlyStopping("val_ace", patience=3)
    ])  # fmt: skip
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    again = model.evaluate(x, y, batch_size=77, verbose=0, return_dict=True)
    expected = ace(model.predict(x, verbose=0), np.eye(10)[y], 15)
    assert logs["ace"] == pytest.approx(again["ace"], abs=1e-6)
    assert logs["ace"] == pytest.approx(expected, abs=1e-2)


def test_one_result_on_two_replicas(strategy):
    def evaluate():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((C,))
        model = r1.BayesianModel(inputs, keras.layers.Dense(C)(inputs), likelihood="categorical")
        model.compile("sgd", metrics=[M.AdaptiveCalibrationError(), M.AURC(), M.AURC(excess=True)])
        x, y = LOGITS[:200], LABELS[:200]
        model.fit(x, y, batch_size=50, shuffle=False, verbose=0)
        return model.evaluate(x, y, batch_size=30, verbose=0, return_dict=True)

    single = evaluate()
    with strategy.scope():
        mirrored = evaluate()
    assert min(single[name] for name in ("ace", "aurc", "e_aurc")) > 0.0
    assert mirrored == pytest.approx(single, rel=1e-3)


ERRORS = [
    (lambda: M.AdaptiveCalibrationError(0), "`num_bins` must be a whole number of at least 1"),
    (lambda: M.AdaptiveCalibrationError(threshold=1.0), r"`threshold` must be .* \[0, 1\).*1.0"),
    (
        lambda: M.AdaptiveCalibrationError(likelihood="poisson").update_state([1.0], [[1.0]]),
        "needs class probabilities.* Received: Poisson",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_numbers_of_classes_are_refused_and_no_data_is_zero():
    metric = M.AdaptiveCalibrationError()
    assert float(metric.result()) == 0.0
    metric.update_state([0], [[0.0, 1.0]])
    metric.reset_state()
    assert float(metric.result()) == 0.0
    with pytest.raises(ValueError, match=r"that of the first batch, 2\. Received: 3 classes"):
        metric.update_state([0], [[0.0, 1.0, 2.0]])
