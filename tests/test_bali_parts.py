"""Layers that are made of layers: transformer blocks, bidirectional layers, parts that stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras.layers.composite import CompositeBali, composed, layers_within

K = keras.layers
RNG = np.random.default_rng(0)
WORDS, STEPS, WIDTH = 20, 6, 8


@keras.saving.register_keras_serializable("parts")
class Block(K.Layer):
    """A transformer block as people write it: parts as attributes, in a model and in a list."""

    def __init__(self, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.attention = K.MultiHeadAttention(2, 4)
        self.mlp = keras.Sequential(
            [K.Dense(16, activation="relu", name="wide"), K.Dense(WIDTH, name="narrow")]
        )
        self.norms = [K.LayerNormalization(), K.LayerNormalization()]
        self.dropout, self.noise = K.Dropout(rate), K.GaussianNoise(rate)
        self.maps = [K.Dense(WIDTH, name="last")]

    def build(self, shape):
        self.attention.build(shape, shape)
        self.mlp.build(shape)
        for layer in (*self.norms, *self.maps):
            layer.build(shape)
        self.built = True

    def call(self, x, training=None):
        h = self.norms[0](x + self.dropout(self.attention(x, x), training=training))
        return self.maps[0](self.norms[1](h + self.noise(self.mlp(h), training=training)))

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "note": "computed"}

    @classmethod
    def from_config(cls, config):
        return cls(**config)  # the constructor does not take the note


@keras.saving.register_keras_serializable("parts")
class Positions(K.Layer):
    """Embeds tokens and positions; the latter are the same for all examples."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.places = K.Embedding(WORDS, WIDTH), K.Embedding(STEPS, WIDTH)

    def build(self, shape):
        self.tokens.build(shape)
        self.places.build((STEPS,))
        self.built = True

    def call(self, x):
        return self.tokens(x) + self.places(keras.ops.arange(STEPS))[None]


@keras.saving.register_keras_serializable("parts")
class Nosy(K.Layer):
    """Reads the kernel of its part."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.part = K.Dense(WIDTH)

    def build(self, shape):
        self.part.build(shape)
        self.built = True

    def call(self, x):
        return self.part(x) + keras.ops.sum(self.part._kernel)


def text_net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS,), dtype="int32")
    h = Nosy(name="nosy")(Block(name="block")(Positions(name="positions")(inputs)))
    return keras.Model(inputs, K.Dense(2, name="head")(K.GlobalAveragePooling1D()(h)))


@pytest.fixture(scope="module")
def texts():
    x = RNG.integers(0, WORDS, (96, STEPS))
    return x, (np.sum(x < 5, axis=1) > 1).astype("int32")


def test_a_net_of_layers_of_layers(texts, tmp_path):
    x, y = texts
    stock = text_net()
    model = bk.convert(stock, "categorical")
    report = model.conversion_report
    assert [row.name for row in report.converted] == [
        "positions.tokens",
        "block.attention",
        "wide",
        "narrow",
        "block.maps.0",
        "head",
    ]
    left = {row.name: row for row in report.left if row.parameters}
    # Positions are no examples, and the code of `nosy` does not run without its own kernel.
    assert {name: row.parameters for name, row in left.items()} == {
        "positions": STEPS * WIDTH,
        "block": 4 * WIDTH,
        "nosy": WIDTH * WIDTH + WIDTH,
    }
    frozen = model.get_layer("block").layer
    assert frozen.dropout.rate == frozen.noise.stddev == 0.0
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x), stock(x), atol=1e-5)
    before = np.array(model.get_layer("block").layer.norms[0].gamma)
    model.compile()
    assert model.trainable_variables == []
    first = model.evaluate(x, y, verbose=0, return_dict=True)["nll"]
    model.fit(x, y, batch_size=32, epochs=20, verbose=0)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["nll"] < 0.8 * first
    np.testing.assert_array_equal(model.get_layer("block").layer.norms[0].gamma, before)

    answer = model.posterior_predictive(x, 8, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.posterior_predictive(x, 8, seed=0)
    np.testing.assert_array_equal(again.outputs, answer.outputs)
    loaded.save(tmp_path / "again.keras")
    keras.models.load_model(tmp_path / "again.keras")
    model.export_predictive(str(tmp_path / "served"))
    served = tf.saved_model.load(str(tmp_path / "served"))
    assert served is not None


def test_parts_are_chosen_by_path(texts):
    stock = text_net()
    named = ["block.attention", "head"]
    model = bk.convert(stock, "categorical", layers=named)
    assert [row.name for row in model.conversion_report.converted] == named
    model = bk.convert(stock, "categorical", layers=["block"])
    assert len(model.conversion_report.converted) == 4
    with pytest.raises(ValueError, match=r"block\.attention.*Received: \['block\.none'\]"):
        bk.convert(stock, "categorical", layers=["block.none"])
    # A backbone whose layers draw stays a function of its inputs in training.
    model = bk.convert(stock, "categorical", layers="last")
    assert [row.name for row in model.conversion_report.converted] == ["head"]
    x, _ = texts
    np.testing.assert_array_equal(
        model.get_layer("block")(x[..., None] * np.ones(WIDTH), training=True),
        model.get_layer("block")(x[..., None] * np.ones(WIDTH), training=True),
    )


@pytest.mark.parametrize("kind", [K.LSTM, pytest.param(K.GRU, marks=pytest.mark.slow)])
def test_bidirectional_layers(kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, 3))
    h = K.Bidirectional(kind(4, return_sequences=True), name="first")(K.Masking()(inputs))
    h = K.Bidirectional(kind(4), merge_mode="sum")(h)
    stock = keras.Model(inputs, K.Dense(2)(h))
    model = bk.convert(stock, "categorical")
    assert [row for row in model.conversion_report.left if row.parameters] == []
    x = RNG.normal(size=(32, STEPS, 3)).astype("float32")
    x[:16, 4:] = 0.0
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x), stock(x), atol=1e-6)
    model.compile(prior_precision=0.1, covariance_scale=1.0)
    model.fit(x, (x[:, 0, 0] > 0).astype("int32"), batch_size=16, epochs=5, verbose=0)
    samples = model.posterior_predictive(x, 64, seed=0).mean()
    moments = model.posterior_predictive(x, method="moments").mean()
    assert np.abs(samples - moments).mean() < 0.05


def test_parts_of_a_layer():
    block = Block()
    block.build((None, STEPS, WIDTH))
    paths = [path for path, _ in layers_within(block)]
    assert {"attention", "mlp", "norms.0", "norms.1", "dropout", "maps.0"} <= set(paths)
    new = composed(block, {"maps.0": bk.layers.DenseBali(WIDTH)})
    assert isinstance(new, CompositeBali)
    assert new.layer.maps[0] is new.parts["maps.0"]
    kernels = {id(w) for w in block.weights} & {id(w) for w in new.weights}
    assert kernels == set()
    assert len([w for w in new.weights if "last" in w.path]) == 0
    with pytest.raises(KeyError, match=r"no parts \['maps.1'\]"):
        composed(block, {"maps.1": bk.layers.DenseBali(WIDTH)})


def registered(cls):
    return keras.saving.register_keras_serializable("parts")(cls)


@registered
class Pair(K.Layer):
    """Two dense parts; subclasses say what becomes of them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.second, self.first = K.Dense(WIDTH), K.Dense(WIDTH, activation="tanh")

    def build(self, x_shape):
        self.first.build(x_shape)
        self.second.build(x_shape)
        self.built = True

    def call(self, x):
        return self.second(self.first(x)) + 1.0


@registered
class Loops(Pair):
    def call(self, x):
        more = keras.ops.while_loop(lambda i, h: i < 2, lambda i, h: (i + 1, self.first(h)), (0, x))
        return self.second(more[1])


@registered
class Stops(Pair):
    def call(self, x):
        return self.second(x) + keras.ops.stop_gradient(self.first(x))


@registered
class OutOfTraining(Pair):
    def call(self, x, training=None):
        return self.second(x) if training else self.second(x) + 0.0 * self.first(x)


@registered
class Tied(Pair):
    def call(self, x):
        return keras.ops.matmul(self.second(self.first(x)), self.first.kernel)


def dense_net(layer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, WIDTH))
    return keras.Model(inputs, K.Dense(2, name="head")(K.Flatten()(layer(inputs))))


def converted(model):
    return [row.name for row in model.conversion_report.converted]


@pytest.fixture(scope="module")
def rows():
    x = RNG.normal(size=(32, STEPS, WIDTH)).astype("float32")
    return x, (x[:, 0, 0] > 0).astype("int32")


@pytest.mark.parametrize("kind", [Loops, Stops, OutOfTraining, Tied])
def test_parts_that_a_step_cannot_follow_stay(kind, rows):
    """Or whose weights other code reads: it would see the means and send back no gradient."""
    model = bk.convert(dense_net(kind(name="pair")), "categorical")
    assert converted(model) == ["pair.second", "head"]
    model.compile()
    model.fit(*rows, batch_size=16, verbose=0)


@pytest.mark.filterwarnings("ignore:Layer 'pair'")
def test_a_layer_that_stops_masks_stops_them_as_before(rows):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, WIDTH))
    h = Pair(name="pair")(K.Masking()(inputs))
    stock = keras.Model(inputs, K.Dense(2)(K.GlobalAveragePooling1D()(h)))
    x = np.where(np.arange(STEPS)[:, None] < 4, rows[0], 0.0)
    model = bk.convert(stock, "categorical")
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x), stock(x), atol=1e-6)


@registered
class Scaled(Pair):
    def build(self, query_shape, context_shape=None):
        super().build(query_shape)

    def call(self, query, context=None, scale=1.0):
        return self.second(self.first(query)) * scale + context


def test_tensors_and_numbers_as_arguments(rows, tmp_path):
    inputs = [keras.Input((STEPS, WIDTH)), keras.Input((STEPS, WIDTH))]
    h = Scaled()(inputs[0], context=inputs[1], scale=2.0)
    stock = keras.Model(inputs, K.Dense(2)(K.Flatten()(h)))
    model = bk.convert(stock, "categorical")
    x = [rows[0], rows[0][::-1]]
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x), stock(x), atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with r1.posterior_mean():
        np.testing.assert_allclose(loaded(x), stock(x), atol=1e-6)


@registered
class Late(K.Layer):
    """Has a part that only a call builds, and one that is trained."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.rnn = K.LayerNormalization(), K.SimpleRNN(WIDTH, return_sequences=True)

    def call(self, x):
        return self.norm(self.rnn(x))

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.filterwarnings("ignore:`build")
def test_what_is_frozen_is_frozen_after_loading(rows, tmp_path):
    stock = dense_net(Late(name="late"))
    stock(rows[0])
    stock.get_layer("late").norm.gamma.assign(np.linspace(0.5, 1.5, WIDTH))
    with pytest.warns(UserWarning, match="became Bayesian"):
        model = bk.convert(stock, "categorical")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.trainable_variables == []
    with r1.posterior_mean():
        np.testing.assert_allclose(loaded(rows[0]), stock(rows[0]), atol=1e-5)


def test_the_last_layer_is_the_last_to_be_called():
    inputs = keras.Input((STEPS, WIDTH))
    stock = keras.Model(inputs, Pair(name="pair")(inputs))
    model = bk.convert(stock, "normal", layers="last")
    assert converted(model) == ["pair.second"]


def test_models_within_have_names(rows):
    inner = keras.Sequential([keras.Input((WIDTH,)), K.Dense(4, name="inner")], name="backbone")
    inputs = keras.Input((WIDTH,))
    stock = keras.Model(inputs, K.Dense(2, name="head")(inner(inputs)))
    assert converted(bk.convert(stock, "categorical", layers=["backbone"])) == ["inner"]
    with pytest.raises(ValueError, match=r"must choose at least one layer, of \['inner', 'head'\]"):
        bk.convert(stock, "categorical", layers=[])


def test_a_recurrent_layer_with_a_given_state_stays():
    inputs = keras.Input((STEPS, 3))
    _, state = K.GRU(4, return_state=True)(inputs)
    stock = keras.Model(inputs, K.Dense(2, name="head")(K.GRU(4)(inputs, initial_state=state)))
    with pytest.warns(UserWarning, match="became Bayesian"):
        assert converted(bk.convert(stock, "categorical")) == ["head"]
