"""The loss: exact values, every mode, KL weight and annealing, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import members_input, small_classifier

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.model.kernel_prior import kernel_penalty


def deterministic_start(**kwargs):
    """A model whose forward pass is exact although it has a KL: the noise is negligible."""
    posterior = r1.posteriors.Normal(stddev=1e-6)
    keras.utils.set_random_seed(5)
    return small_classifier(layer_kwargs={"posterior": posterior}, **kwargs)


def oracle_nll(model, x, y):
    """Average NLL of the members in float64, from the posterior means."""
    with r1.posterior_mean():
        logits = np.float64(model(x))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_probs[np.arange(len(y)), :, y].mean()


def oracle_kl(model):
    """Average over members of the Normal KLs, in float64."""
    total = 0.0
    for layer in model.layers:
        for factor in getattr(layer, "_factors", list)():
            m, s = np.float64(factor.distribution().loc), np.float64(factor.distribution().scale)
            kl = np.log(0.1 / s) + (s**2 + (m - 1.0) ** 2) / 0.02 - 0.5
            total += kl.sum(axis=1).mean()
    return total


@pytest.mark.parametrize("batch_size", [16, 48])
def test_loss_is_nll_plus_kl_over_n(digits, batch_size):
    """With annealing 1/4 at the first step, to 1e-5, whatever the batch size."""
    x, y = digits[0][:48], digits[1][:48]
    model = deterministic_start()
    prior = float(kernel_penalty(model, model.kernel_precision))
    expected = oracle_nll(model, x, y) + (0.25 * oracle_kl(model) + prior) / 48
    model.compile(keras.optimizers.SGD(0.0))
    callback = r1.callbacks.KLAnnealing(steps=4, start=0.0)
    history = model.fit(
        x, y, batch_size=batch_size, steps_per_epoch=1, verbose=0, callbacks=[callback]
    ).history
    if batch_size == 48:
        np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-5)
        np.testing.assert_allclose(history["nll"][0], oracle_nll(model, x, y), rtol=1e-5)
    np.testing.assert_allclose(history["kl"][0], oracle_kl(model) / 48, rtol=1e-5)
    np.testing.assert_allclose(history["kl_weight"][0], 0.25 / 48, rtol=1e-5)


def test_loss_does_not_depend_on_the_batch_size(digits):
    x, y = digits[0][:48], digits[1][:48]
    losses = []
    for batch_size in (8, 48):
        model = deterministic_start()
        model.compile(keras.optimizers.SGD(0.0))
        losses.append(model.fit(x, y, batch_size=batch_size, verbose=0).history["loss"][0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


MODES = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 4},
}


def train_in_mode(digits, mode, policy="float32"):
    keras.config.set_dtype_policy(policy)
    x, y = digits[0][:128], digits[1][:128]
    model = deterministic_start()
    model.compile(keras.optimizers.SGD(0.1), **MODES[mode])
    annealing = r1.callbacks.KLAnnealing(epochs=2)
    history = model.fit(
        x, y, batch_size=16, epochs=3, shuffle=False, verbose=0, callbacks=[annealing]
    ).history
    return {name: np.array(history[name]) for name in ("loss", "nll", "kl", "kl_weight")}


@pytest.mark.slow
def test_all_modes_train_alike(digits):
    """Annealing is part of the step: it is the same within steps_per_execution."""
    expected = train_in_mode(digits, "graph")
    assert expected["nll"][-1] < expected["nll"][0]
    assert expected["kl_weight"][0] < expected["kl_weight"][1] < expected["kl_weight"][2]
    for mode in ("eager", "xla", "steps_per_execution"):
        actual = train_in_mode(digits, mode)
        for name, values in expected.items():
            np.testing.assert_allclose(actual[name], values, rtol=1e-5, err_msg=f"{mode} {name}")


def test_mixed_bfloat16_trains_alike_to_its_precision(digits):
    expected, actual = (
        train_in_mode(digits, "graph"),
        train_in_mode(digits, "graph", "mixed_bfloat16"),
    )
    np.testing.assert_allclose(actual["kl"], expected["kl"], rtol=1e-3)
    np.testing.assert_allclose(actual["nll"], expected["nll"], rtol=0.02)


def test_shared_layer_counts_its_kl_once():
    inputs, h = members_input((4,), 2)
    shared = r1.layers.DenseRank1(4, ensemble_size=2)
    outputs = r1.layers.SplitMembers(2)(shared(shared(h)))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical", num_train_examples=10)
    assert len(model.losses) == 1
    np.testing.assert_allclose(model.losses[0], shared.kl() / 10, rtol=1e-6)
    np.testing.assert_allclose(model.kl(), shared.kl(), rtol=1e-6)


def test_other_penalties_are_added():
    inputs, h = members_input((4,), 2)
    layer = r1.layers.DenseRank1(3, ensemble_size=2, kernel_regularizer="l2", prior=None)
    outputs = r1.layers.SplitMembers(2)(layer(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    model.compile("sgd")
    loss = model.evaluate(np.ones((4, 4)), np.zeros(4), verbose=0, return_dict=True)
    expected = loss["nll"] + 0.01 * np.sum(np.asarray(layer.kernel) ** 2)
    np.testing.assert_allclose(loss["loss"], expected, rtol=1e-5)


def test_evaluation_reports_the_mixture(digits):
    """`evaluate` takes log of the mean over members, `fit` the mean of the logs."""
    x, y = digits[0][:32], digits[1][:32]
    model = deterministic_start()
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(x, y, batch_size=32, verbose=0)
    with r1.posterior_mean():
        probabilities = np.exp(np.float64(tf.nn.log_softmax(model(x))))
    expected = -np.log(probabilities[np.arange(32), :, y].mean(axis=1)).mean()
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["nll"], expected, rtol=1e-4)
    assert logs["nll"] < oracle_nll(model, x, y)


def test_plain_keras_model_with_kl_weight(digits):
    x, y = digits[0][:64], digits[1][:64]
    inputs, h = members_input((64,), 2)
    layer = r1.layers.DenseRank1(10, ensemble_size=2, kl_weight=1 / 64)
    model = keras.Model(inputs, r1.layers.SplitMembers(2)(layer(h)))
    model.compile("sgd", r1.losses.AverageNLL("categorical"))
    first = model.fit(x, y, batch_size=16, epochs=5, verbose=0).history["loss"]
    assert first[-1] < first[0]
    np.testing.assert_allclose(model.losses[0], layer.kl() / 64, rtol=1e-6)


def test_plain_keras_model_without_kl_weight_is_refused():
    inputs, h = members_input((4,), 2)
    layer = r1.layers.DenseRank1(3, ensemble_size=2)
    model = keras.Model(inputs, r1.layers.SplitMembers(2)(layer(h)))
    model.compile("sgd", r1.losses.AverageNLL("categorical"))
    message = r"nobody gave its weight.*BayesianModel.*`kl_weight=1/N`.*Received: kl_weight=None"
    with pytest.raises(ValueError, match=message):
        model.fit(np.ones((4, 4)), np.zeros(4), verbose=0)


def test_two_owners_of_the_kl_weight_are_refused():
    model = small_classifier(layer_kwargs={"kl_weight": 0.1}, num_train_examples=5)
    with pytest.raises(ValueError, match=r"has two owners.*Received: kl_weight=0.1"):
        _ = model.losses


def test_factor_learning_rate_multiplier(digits):
    """With Adam the factors' first step is the multiple of what it would have been."""
    x, y = digits[0][:32], digits[1][:32]
    steps = {}
    for multiplier in (1.0, 0.25):
        model = deterministic_start()
        model.compile(keras.optimizers.Adam(1e-2), factor_learning_rate_multiplier=multiplier)
        before = [np.asarray(v) for v in model.trainable_variables]
        model.fit(x, y, batch_size=32, verbose=0)
        after = [np.asarray(v) for v in model.trainable_variables]
        steps[multiplier] = [a - b for a, b in zip(after, before, strict=True)]
    factors = {id(v) for v in model.factor_variables}
    assert len(factors) == 8
    for variable, full, scaled in zip(
        model.trainable_variables, steps[1.0], steps[0.25], strict=True
    ):
        expected = 0.25 * full if id(variable) in factors else full
        np.testing.assert_allclose(scaled, expected, atol=1e-6)


@pytest.mark.slow
def test_two_replicas_train_alike(digits, strategy):
    """Loss, its parts and the weights are those of one replica."""

    def train():
        model = deterministic_start()
        model.compile(keras.optimizers.SGD(0.1))
        history = model.fit(
            digits[0][:96], digits[1][:96], batch_size=32, epochs=2, shuffle=False, verbose=0,
            callbacks=[r1.callbacks.KLAnnealing(epochs=2)],
        ).history  # fmt: skip
        return history, [np.asarray(v) for v in model.trainable_variables]

    single, weights = train()
    with strategy.scope():
        mirrored, mirrored_weights = train()
    for name, values in single.items():
        np.testing.assert_allclose(mirrored[name], values, rtol=1e-4, err_msg=name)
    for a, b in zip(weights, mirrored_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("loss", ["mixture_nll", "sparse_categorical_crossentropy"])
def test_other_losses(loss, digits):
    x, y = digits[0][:64], digits[1][:64]
    inputs = keras.Input((64,))
    outputs = keras.layers.Dense(10)(inputs)
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    if loss == "sparse_categorical_crossentropy":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_quickstart_net_has_a_small_kl_at_the_start(capsys, digits):
    """The default configuration must train: its KL at the start is small and printed."""
    from examples.quickstart import build_classifier

    model = build_classifier()
    kl = float(model.kl()) / len(digits[0])
    with capsys.disabled():
        print(f"\nKL at initialisation of the quickstart's net: {kl:.3f} nats per example")
    assert 0.0 < kl < 5.0


def weights_seen(model, x, y, annealing=(), **arguments):
    """anneal(t), the KL weight times N, of every epoch."""
    history = model.fit(x, y, verbose=0, callbacks=list(annealing), **arguments).history
    return np.array(history["kl_weight"]) * model.num_train_examples


def test_annealing_counts_batches_of_an_accumulating_optimizer(digits):
    x, y = digits[0][:64], digits[1][:64]
    model = small_classifier()
    model.compile(keras.optimizers.Adam(gradient_accumulation_steps=2))
    annealing = [r1.callbacks.KLAnnealing(epochs=2)]
    seen = weights_seen(model, x, y, annealing, batch_size=16, epochs=4)
    np.testing.assert_allclose(seen[2:], 1.0, rtol=1e-5)
    assert 0.1 < seen[0] < 0.5


def test_annealing_ends_with_its_fit_and_validation_has_the_full_weight(digits):
    x, y = digits[0][:64], digits[1][:64]
    model = small_classifier()
    model.compile("sgd")
    history = model.fit(
        x, y, validation_data=(x, y), batch_size=32, verbose=0,
        callbacks=[r1.callbacks.KLAnnealing(epochs=10)],
    ).history  # fmt: skip
    assert history["kl_weight"][0] < 0.5 / 64
    np.testing.assert_allclose(history["val_kl_weight"][0], 1 / 64, rtol=1e-5)
    np.testing.assert_allclose(weights_seen(model, x, y), 1.0, rtol=1e-5)


@keras.saving.register_keras_serializable("test")
class DoubleNLL(r1.losses.AverageNLL):
    def call(self, y_true, y_pred):
        return 2.0 * super().call(y_true, y_pred)


@pytest.mark.parametrize("name", [None, "mine", "average_nll"])
def test_own_losses_are_saved_as_they_are(tmp_path, name):
    for cls in (DoubleNLL, r1.losses.AverageNLL):
        model = small_classifier()
        model.compile("sgd", loss=cls(name=name))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert type(loaded.loss) is cls
        assert loaded.loss.likelihood is loaded.likelihood


def test_annealing_ends_with_an_interrupted_fit(digits):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    x, y = digits[0][:16], digits[1][:16]
    model = small_classifier()
    model.compile("sgd")
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, verbose=0, callbacks=[r1.callbacks.KLAnnealing(steps=99), Interrupt()])
    np.testing.assert_allclose(weights_seen(model, x, y), 1.0, rtol=1e-5)


def test_losses_of_keras_are_refused_with_members(digits):
    """They would compare every member's output with every example's target."""
    x, y = digits[0][:8], digits[1][:8]
    model = small_classifier()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=r"know no members.*loss='sparse_categorical"):
            call(x, y, verbose=0)
    model.compile("sgd", metrics=["accuracy"])
    model.fit(x, y, verbose=0)
    with r1.posterior_mean():
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        probabilities = tf.reduce_mean(tf.nn.softmax(model(x)), axis=1)
    assert logs["accuracy"] == pytest.approx(np.mean(np.argmax(probabilities, -1) == y))


def test_labels_out_of_range_give_nan_under_xla():
    """XLA drops checks; the loss must not look good."""
    data = tf.data.Dataset.from_tensor_slices((np.ones((4, 64)), np.full(4, 12)))
    model = small_classifier(layer_kwargs={"posterior": "deterministic"})  # noise compiles long
    model.compile("sgd", jit_compile=True)
    with pytest.warns(UserWarning, match="left the model as it was"):
        history = model.fit(data.batch(4, drop_remainder=True), verbose=0).history
    assert np.isnan(history["nll"][0])


def test_annealing_needs_a_bayesian_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"KLAnnealing needs a tfp_rank1\.BayesianModel"):
        model.fit(
            np.ones((2, 2)), np.ones(2), verbose=0, callbacks=[r1.callbacks.KLAnnealing(steps=1)]
        )


def test_annealing_needs_a_kl():
    """It would change nothing, and a word too many in the logs is no answer."""
    x, y, annealing = np.ones((4, 2)), np.ones(4), [r1.callbacks.KLAnnealing(steps=1)]
    points = r1.models.mlp((2,), 1, (2,), "relu", "normal", 2, posterior="deterministic")
    points.compile("sgd")
    with pytest.raises(ValueError, match="no KL whose weight could be annealed: no trainable"):
        points.fit(x, y, verbose=0, callbacks=annealing)
    inputs = keras.Input((2,))
    inferred = bk.BaliModel(inputs, bk.layers.DenseBali(1)(inputs), likelihood="normal")
    inferred.compile()
    with pytest.raises(ValueError, match="A BaliModel has no KL whose weight could be annealed"):
        inferred.fit(x, y, verbose=0, callbacks=annealing)
    assert inferred._options.annealing is None

    class Unbuilt(r1.BayesianModel):
        def call(self, x):
            return self.likelihood(x)

    later = Unbuilt(likelihood="normal")
    later.compile("sgd")
    with pytest.raises(ValueError, match="no KL whose weight could be annealed: no trainable"):
        later.fit(x, np.ones((4, 2)), verbose=0, callbacks=annealing)
    inferred.fit(x, y, verbose=0)
