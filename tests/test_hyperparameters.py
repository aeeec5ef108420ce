"""Prior, damping and scale of a `BaliModel`: given, found from the data, or default."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import conjugate, linear_data, net

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras import search
from bali_keras.hyperparameters import Hyperparameters, defaults_for
from bali_keras.inference.step import trained_layers
from bali_keras.settings import Settings
from tfp_rank1.model.cross_validation import CrossValidation
from tfp_rank1.model.search_data import Examples, in_memory


def noisy_table(rows=90, signal=0.0, seed=0):
    """Four columns and two classes; without a signal the columns say nothing of the class."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return x, (signal * x[:, 0] + rng.normal(size=rows) * (signal == 0) > 0).astype("int32")


def classifier(hidden=(12,)):
    keras.utils.set_random_seed(3)
    return net(4, hidden, 2, "categorical", "relu")


def test_defaults_follow_the_data():
    """Damping falls with the number of examples; the prior goes by the kind of target."""
    classes, numbers = True, False
    assert defaults_for(100, classes)["damping"] == pytest.approx(0.0949, rel=1e-2)
    assert defaults_for(60_000, classes)["damping"] == pytest.approx(0.0192, rel=1e-2)
    for count, expected in ((300, 0.0721), (600, 0.0606), (6000, 0.00341), (100_000, 0.003)):
        assert defaults_for(count, numbers)["damping"] == pytest.approx(expected, rel=1e-2)
    assert defaults_for(100, classes)["prior_precision"] == 0.02
    assert defaults_for(100, numbers)["prior_precision"] == 0.06


def test_what_is_given_wins_over_what_is_found():
    likelihood = r1.likelihoods.Categorical()
    found = Hyperparameters()
    found.assign(prior_precision=0.5, damping=0.25)
    given = Settings(prior_precision=0.1)
    prior = found.prior(given, 100, likelihood)
    assert float(prior.weight_precision) == pytest.approx(0.1)
    assert float(prior.damping[0]) == pytest.approx(0.25)
    assert float(prior.covariance_scale) == 1.0


def test_covariance_scale_multiplies_the_covariance_and_leaves_the_mean():
    x, y = linear_data()
    model = net()
    model.compile(
        forgetting=1.0, warmup_steps=0, prior_row_precision=3.0, factorise_every=1,
        covariance_scale=0.25,
    )  # fmt: skip
    model.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    mean, row_covariance = conjugate(x, y, 3.0)
    state = model.bali_layers[0].posterior_state.matrix_normal()
    np.testing.assert_allclose(state.mean, mean, atol=1e-5)
    np.testing.assert_allclose(state.row_covariance(), 0.25 * row_covariance, rtol=1e-4, atol=1e-7)


def test_effective_parameters_of_linear_regression():
    """`k sum_i N s_i / (N s_i + l)` over the eigenvalues s of the inputs' second moment."""
    x, y = linear_data()
    for scale in (1.0, 0.25):
        model = net()
        model.compile(
            forgetting=1.0, warmup_steps=0, prior_row_precision=3.0, covariance_scale=scale
        )
        history = model.fit(x, y, batch_size=len(x), verbose=0).history
        h = np.c_[x, np.ones(len(x))].astype("float64")
        eigenvalues = np.linalg.eigvalsh(h.T @ h)
        expected = 2 * np.sum(eigenvalues / (eigenvalues + 3.0))
        assert history["effective_parameters"][-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_table_of_noise_gets_a_stronger_prior_than_a_clear_one():
    found = {}
    for signal in (0.0, 4.0):
        x, y = noisy_table(signal=signal)
        model = classifier()
        model.compile(covariance_scale=1.0)
        model.fit(x, y, batch_size=16, epochs=20, verbose=0)
        found[signal] = model.prior_precision
    assert found[0.0] >= 10.0 * found[4.0]


def test_a_search_holds_out_what_it_judges_by_and_leaves_no_trace(monkeypatch):
    x, y = noisy_table(rows=60)
    model = classifier()
    model.compile()
    model.num_train_examples = 60
    model(x[:2])
    trained, train = [], type(model).train_for

    def train_for(self, batches, steps):
        rows = np.concatenate([b[0].numpy() for b in batches.take(-(-48 // 10) + 1)])
        trained.append({row.tobytes() for row in rows})
        train(self, batches, steps)

    monkeypatch.setattr(type(model), "train_for", train_for)
    folds_held_out, held_out = [], CrossValidation._held_out

    def note_fold(self, fold, values):
        folds_held_out.append(fold)
        return held_out(self, fold, values)

    monkeypatch.setattr(CrossValidation, "_held_out", note_fold)
    before = [v.numpy() for v in model.every_variable]
    found = search.Search(model, Examples(x, y, None), search.Plan(5, 12, 10))
    result = found.run(("prior_precision", "covariance_scale"))
    assert set(result) == {"prior_precision", "covariance_scale"}
    assert len(trained) == len(folds_held_out) >= 10
    for rows, fold in zip(trained, folds_held_out, strict=True):
        assert len(rows) == 48
        assert not rows & {x[i].tobytes() for i in fold}
    folds = np.stack(folds_held_out[:5])
    assert sorted(folds.reshape(-1)) == list(range(60))
    for variable, value in zip(model.every_variable, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert not model.hyperparameters.are_found


def test_a_fit_that_breaks_down_loses(monkeypatch):
    x, y = noisy_table(rows=50)
    model = classifier()
    model.compile()
    model.num_train_examples = 50

    def held_out(self, fold, values):
        p = values["prior_precision"]
        return np.full(len(fold), np.nan if p > 0.05 else p) + 1e-3 * np.arange(len(fold))

    monkeypatch.setattr(CrossValidation, "_held_out", held_out)
    found = search.Search(model, Examples(x, y, None), search.Plan(5, 5, 5)).run(
        ("prior_precision",)
    )
    assert found["prior_precision"] < 0.005


def test_equally_good_precisions_give_the_largest(monkeypatch):
    """Losses that differ by less than their noise: the prior that is stronger costs less."""
    x, y = noisy_table(rows=50)
    model = classifier()
    model.compile()
    model.num_train_examples = 50

    def held_out(self, fold, values):
        noise = np.random.default_rng([int(1e4 * values["prior_precision"]), fold[0]])
        far = 5.0 if values["prior_precision"] > 0.5 else 0.0
        return noise.normal(size=len(fold)) * 0.01 + far

    monkeypatch.setattr(CrossValidation, "_held_out", held_out)
    found = search.Search(model, Examples(x, y, None), search.Plan(5, 5, 5)).run(
        ("prior_precision",)
    )
    assert 0.06 <= found["prior_precision"] < 0.5


def test_a_default_stays_unless_another_value_is_clearly_better(monkeypatch):
    x, y = noisy_table(rows=50)
    model = classifier()
    model.compile()
    model.num_train_examples = 50
    noise = np.arange(10) % 2

    def held_out(gain):
        def losses(self, fold, values):
            is_lower = values["prior_precision"] < 0.01
            return (1 - noise if is_lower else noise) - gain * is_lower

        return losses

    for gain, expected in ((0.1, 0.02), (3.0, 0.02 / 10**0.5)):
        monkeypatch.setattr(CrossValidation, "_held_out", held_out(gain))
        plan = search.Plan(5, 5, 5, is_wary=True)
        found = search.Search(model, Examples(x, y, None), plan).run(("prior_precision",))
        assert found["prior_precision"] == pytest.approx(expected)


@pytest.mark.parametrize("reason", ["given", "short", "generator", "second fit", "keras loss"])
def test_no_search(reason, monkeypatch):
    x, y = noisy_table(rows=64)
    ran = []
    monkeypatch.setattr(search.Search, "run", lambda self, wanted: ran.append(wanted) or {})
    model = classifier()
    epochs = 1 if reason == "short" else 30
    loss = "average_nll"
    if reason == "keras loss":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if reason == "given":
        model.compile(prior_precision=0.1, covariance_scale=0.5)
    else:
        model.compile(loss=loss)
    if reason == "generator":
        model.num_train_examples = 64
        batches = ((x[:16], y[:16]) for _ in range(120))
        model.fit(batches, steps_per_epoch=120, verbose=0)
    else:
        model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)
    if reason == "second fit":
        assert len(ran) == 1
        model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)
        assert len(ran) == 1
    else:
        assert not ran
    if reason == "given":
        assert (model.prior_precision, model.covariance_scale) == (pytest.approx(0.1), 0.5)


def test_a_converted_net_is_not_searched(monkeypatch):
    x, y = noisy_table(rows=64)
    ran = []
    monkeypatch.setattr(search.Search, "run", lambda self, wanted: ran.append(wanted) or {})
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2)(keras.layers.Dense(8, activation="relu")(inputs))
    model = bk.convert(keras.Model(inputs, outputs), likelihood="categorical")
    model.compile()
    model.fit(x, y, batch_size=16, epochs=30, verbose=0)
    assert not ran


def test_regressions_are_searched_by_their_depth(monkeypatch):
    x, y = linear_data()
    wanted = []

    def run(self, names):
        wanted.append((self._plan.is_wary, names))
        return {}

    monkeypatch.setattr(search.Search, "run", run)
    for hidden in ((), (4, 4)):
        model = net(hidden=hidden)
        model.compile()
        model.fit(x, y, batch_size=10, epochs=40, verbose=0)
    assert wanted == [
        (True, ("prior_precision", "damping")),
        (False, ("prior_precision", "damping", "covariance_scale")),
    ]


def test_found_values_are_saved(tmp_path):
    x, y = noisy_table(rows=40)
    model = classifier()
    model.compile()
    model.fit(x, y, batch_size=20, epochs=2, verbose=0)
    model.hyperparameters.assign(prior_precision=0.25, covariance_scale=0.5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.prior_precision, loaded.covariance_scale) == (0.25, 0.5)
    assert loaded.damping == model.damping
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    other = classifier()
    other.compile()
    tf.train.Checkpoint(model=other).restore(path)
    assert other.prior_precision == 0.25
    assert model.get_compile_config()["prior_precision"] is None


def test_the_plan_goes_by_the_cost_of_the_fit():
    small = search.plan_for(500, 500, 800, 32)
    assert (small.folds, small.steps) == (5, 182)
    middle = search.plan_for(4000, 4000, 4000, 32)
    assert (middle.folds, middle.steps) == (5, 137)
    assert search.plan_for(4096, 8_000, 4000, 32).folds == 1
    assert search.plan_for(4096, 60_000, 1440, 250) is None
    assert search.plan_for(500, 500, 60, 32) is None
    assert search.plan_for(30, 30, 800, 32) is None
    # Regressions of one hidden layer: fits of half the user's length at least, to few folds.
    assert search.plan_for(300, 300, 400, 32, is_wary=True)[:2] == (3, 345)
    assert search.plan_for(300, 300, 1600, 32, is_wary=True)[:2] == (3, 1000)
    assert search.plan_for(300, 300, 4000, 32, is_wary=True) is None
    assert search.plan_for(4096, 7000, 9000, 32, is_wary=True) is None


def test_examples_of_arrays_datasets_and_weights():
    x, y = np.arange(60.0)[:, None], np.arange(60) % 3
    arguments = {"x": x, "y": y, "class_weight": {0: 2.0}, "validation_split": 0.5}
    found = in_memory(arguments, 30)
    assert sorted(found.x[:, 0]) == list(range(30))
    np.testing.assert_array_equal(found.weights, np.where(found.y == 0, 2.0, 1.0))
    assert found.total_weight == 40.0
    batches = tf.data.Dataset.from_tensor_slices(({"a": x}, y)).batch(7)
    found = in_memory({"x": batches}, 60)
    assert sorted(found.x["a"][:, 0]) == list(range(60))
    assert found.weights is None
    # Endless batches repeat their examples.
    assert len(in_memory({"x": batches.repeat()}, 60)) == 60
    assert in_memory({"x": iter(batches)}, 60) is None


def test_rates_in_units_of_the_fit():
    schedule = bk.schedules.PerFit(100.0, 1.5, 0.25)

    def rate(step, steps):
        values = (tf.constant(v, tf.int64) for v in (step, 1, steps))
        return float(schedule(bk.schedules.Progress(*values)))

    assert rate(1, 1000) == pytest.approx(0.1)
    assert rate(1000, 1000) == pytest.approx(0.0015, rel=1e-5)
    assert rate(500, 999) == pytest.approx(0.5 * 101.5 / 999)
    assert rate(1, 100) == 0.25
    assert bk.schedules.default_for(is_slow=False).get_config()["start"] == 290.0
    copy = bk.schedules.get(keras.saving.serialize_keras_object(schedule))
    assert copy.get_config() == schedule.get_config()
    with pytest.raises(ValueError, match="`end` must not exceed"):
        bk.schedules.PerFit(1.0, 2.0)
    with pytest.raises(ValueError, match="`largest` must be in"):
        bk.schedules.PerFit(largest=2.0)


def test_all_layers_share_the_prior():
    model = classifier((5, 6))
    model.compile(prior_precision=0.3, prior_row_precision={model.bali_layers[1].name: 2.0})
    priors = [model._options.prior_of(v, model.prior()) for v in trained_layers(model)]
    assert [p.row_precision for p in priors] == [None, 2.0, None]
    assert model._options.not_given == ("damping", "covariance_scale")


def test_the_scale_is_searched_from_three_layers_on(monkeypatch):
    x, y = noisy_table(rows=64)
    wanted = []
    monkeypatch.setattr(search.Search, "run", lambda self, names: wanted.append(names) or {})
    for hidden in ((6,), (6, 6)):
        model = classifier(hidden)
        model.compile()
        model.fit(x, y, batch_size=16, epochs=30, verbose=0)
    assert wanted == [("prior_precision",), ("prior_precision", "covariance_scale")]


@pytest.mark.parametrize("kind", ["sample_weight", "class_weight", "given"])
def test_weights_do_not_change_which_examples_are_searched(kind, monkeypatch, capsys):
    x, y = noisy_table(rows=64)
    seen = []

    def run(self, wanted):
        seen.append(self._held_out._examples)
        return {"prior_precision": 0.25}

    monkeypatch.setattr(search.Search, "run", run)
    model = classifier()
    model.compile()
    weights = {
        "sample_weight": {"sample_weight": np.full(64, 0.1)},
        "class_weight": {"class_weight": {0: 3.0, 1: 1.0}},
        "given": {},
    }[kind]
    if kind == "given":
        model.num_train_examples = 1000
    model.fit(x, y, batch_size=16, epochs=30, verbose=2, **weights)
    (examples,) = seen
    assert {row.tobytes() for row in examples.x} == {row.tobytes() for row in x}
    told = capsys.readouterr().out
    assert "Looking for `prior_precision` by fits to parts of the training data, once" in told
    assert "compile(prior_precision=...) skips" in told
    assert "Found: prior_precision 0.25" in told
