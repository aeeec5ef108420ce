"""LSTMRank1 and GRURank1 against stock layers with perturbed kernels, row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_rank1 as r1
from tfp_rank1 import scopes
from tfp_rank1.layers import recurrent

L = r1.layers
K, ROWS, STEPS, INPUTS, UNITS = 2, 3, 4, 2, 3
KINDS = {
    "lstm": (L.LSTMRank1, keras.layers.LSTM, {}),
    "lstm_no_bias": (L.LSTMRank1, keras.layers.LSTM, {"use_bias": False}),
    "gru": (L.GRURank1, keras.layers.GRU, {}),
    "gru_reset_before": (L.GRURank1, keras.layers.GRU, {"reset_after": False}),
}
MODES = [
    {},
    {"return_sequences": True, "go_backwards": True},
    {"unroll": True, "return_state": True},
    {"stateful": True},
]


def inputs(seed=0):
    x = np.random.default_rng(seed).normal(size=(K * ROWS, STEPS, INPUTS))
    return x.astype("float32")


def in_scope(function):
    """The function's result under one seed, the same whenever it is called."""
    with r1.random.seed_scope(r1.random.make_seed(5)):
        return function()


def stock_row(layer, cell, draws, x, row):
    """The stock layer on one row, with the kernels that this row has drawn."""
    k, b = divmod(row, ROWS)

    def of(value):
        return np.array(value)[k, b % value.shape[1]]

    kernels = [
        np.array(cell.kernel) * np.outer(of(draws.r), of(draws.s)),
        np.array(cell.recurrent_kernel) * np.outer(of(draws.recurrent_r), of(draws.recurrent_s)),
    ]
    bias = [] if draws.bias is None else [of(draws.bias).reshape(layer.cell.bias.shape)]
    layer.cell.set_weights(kernels + bias)
    if layer.stateful:
        layer.reset_state()
    return keras.tree.map_structure(np.array, layer(x[row : row + 1]))


@pytest.mark.parametrize("sampling", ["example", "member", "flipout"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode) or "plain")
def test_every_sequence_has_one_draw(kind, mode, sampling):
    """Every time step of a row sees the factors that were drawn for the row, in every mode."""
    cls, stock, arguments = KINDS[kind]
    layer = cls(
        UNITS, ensemble_size=K, sampling=sampling, bias_initializer="normal",
        posterior=r1.posteriors.Normal(stddev=0.4), **arguments, **mode,
    )  # fmt: skip
    x = inputs()
    layer(x)
    if "stateful" in mode:
        layer.reset_state()
    found = keras.tree.map_structure(np.array, in_scope(lambda: layer(x)))
    draws = in_scope(lambda: layer.cell._draw_all(x[:, 0]))
    assert draws.r.shape[1] == (1 if sampling == "member" else ROWS)
    plain = stock(UNITS, **arguments, **mode)
    plain.build((1, STEPS, INPUTS))
    for row in range(K * ROWS):
        expected = stock_row(plain, layer.cell, draws, x, row)
        ours = keras.tree.map_structure(lambda v, i=row: v[i : i + 1], found)
        keras.tree.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected
        )


def test_stacked_cells_in_a_generic_rnn_draw_once(monkeypatch):
    """Per sequence, also in a graph; nothing is held afterwards."""
    cells = [L.LSTMCellRank1(UNITS, ensemble_size=K), L.GRUCellRank1(UNITS, ensemble_size=K)]
    layer = keras.layers.RNN(cells, return_sequences=True)
    layer(inputs())
    count = []
    draw = recurrent._CellRank1._draw_all
    monkeypatch.setattr(
        recurrent._CellRank1, "_draw_all", lambda cell, x: count.append(cell) or draw(cell, x)
    )
    first = layer(inputs())
    assert count == cells
    assert not np.array_equal(first, layer(inputs()))
    tf.function(lambda: layer(inputs()), autograph=False)()
    assert count == cells * 3
    assert not scopes.held_draws.value


def test_an_error_leaves_no_draws_behind(monkeypatch):
    layer = L.LSTMRank1(UNITS, ensemble_size=K)
    layer(inputs())
    monkeypatch.setattr(layer.cell, "call", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layer(inputs())
    assert not scopes.held_draws.value


def test_positional_arguments_are_those_of_the_stock_layer():
    layer = L.LSTMRank1(UNITS, "relu", ensemble_size=K)
    assert layer.activation is keras.activations.relu
    assert L.MultiHeadAttentionRank1(2, 3, 5).value_dim == 5
    layer(inputs())
    assert len(layer.factor_variables) == 8
    assert {v.name for v in layer.slow_weights} == {"kernel", "recurrent_kernel", "bias"}


def test_a_cell_alone_draws_anew():
    cell = L.LSTMCellRank1(UNITS, ensemble_size=K)
    x = inputs()[:, 0]
    states = cell.get_initial_state(len(x))
    assert not np.array_equal(cell(x, states)[0], cell(x, states)[0])


@pytest.mark.parametrize("cls", [L.LSTMRank1, pytest.param(L.GRURank1, marks=pytest.mark.slow)])
def test_bidirectional_with_masks_and_dropout(cls, tmp_path):
    """Padded steps change nothing; both directions count their KL once; it is saved and trained."""
    tokens = keras.Input((None,), dtype="int32")
    h = L.TileMembers(K)(tokens)
    h = L.EmbeddingRank1(6, 4, mask_zero=True, ensemble_size=K)(h)
    inner = cls(UNITS, dropout=0.1, recurrent_dropout=0.1, return_sequences=True, ensemble_size=K)
    h = keras.layers.Bidirectional(inner)(h)
    h = cls(UNITS, ensemble_size=K)(h)
    outputs = L.SplitMembers(K)(L.DenseRank1(1, ensemble_size=K)(h))
    model = r1.BayesianModel(tokens, outputs, likelihood="bernoulli")
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 1, 2, 3], [2, 0, 0, 0, 0], [3, 3, 1, 0, 0]])
    y = np.array([[0.0], [1.0], [0.0], [1.0]])
    # Such nets are traced in `test_models`, these within `posterior_predictive` below.
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
    history = model.fit(x, y, batch_size=2, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    layers = [v for v in model._flatten_layers() if isinstance(v, L.Rank1Mixin)]
    assert len(layers) == 5
    kl = sum(float(layer.kl()) for layer in layers)
    np.testing.assert_allclose(history["kl"][-1], kl / 4, rtol=0.05)
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x[[0]]), model(x[[0], :3]), atol=1e-5)
        model.save(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            keras.models.load_model(tmp_path / "model.keras")(x), model(x)
        )
    assert model.posterior_predictive(x, num_samples=4).mean().shape == (4, 1)


def test_directions_of_one_seed_have_draws_of_their_own():
    layer = L.LSTMRank1(UNITS, ensemble_size=K, seed=0)
    both = keras.layers.Bidirectional(layer, merge_mode=None)
    both(inputs())
    again = keras.layers.Bidirectional.from_config(both.get_config())
    again(inputs())
    for wrapper in (both, again):
        cells = wrapper.forward_layer.cell, wrapper.backward_layer.cell
        forward, backward = (np.array(cell.seed_generator.state) for cell in cells)
        assert not np.array_equal(forward, backward)
        assert wrapper.forward_layer.get_config()["seed"] == 0
        assert wrapper.backward_layer.get_config()["seed"] == 0


def test_the_forget_gate_is_open_for_every_member():
    cell = L.LSTMCellRank1(UNITS, ensemble_size=K)
    cell.build((None, INPUTS))
    np.testing.assert_array_equal(
        np.array(cell.bias).reshape(K, 4, UNITS)[:, :, 0], [[0, 1, 0, 0]] * K
    )


def test_stateful_nets_are_not_sampled(tmp_path):
    """Every pass would go on with the state of the pass before."""
    inputs = keras.Input((STEPS, INPUTS), batch_size=ROWS)
    h = L.LSTMRank1(UNITS, stateful=True, ensemble_size=K)(L.TileMembers(K)(inputs))
    model = r1.BayesianModel(inputs, L.SplitMembers(K)(h), likelihood="poisson")
    for sample in (
        lambda: model.posterior_predictive(np.ones((ROWS, STEPS, INPUTS))),
        lambda: model.export_predictive(str(tmp_path / "served")),
    ):
        with pytest.raises(ValueError, match=r"stateful=False.*Received: stateful layers \['lstm"):
            sample()


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"cuDNN knows no factors.*use_cudnn=True"):
        L.LSTMRank1(2, use_cudnn=True)
    with pytest.raises(ValueError, match="ensemble_size=4, so its batch must hold 4 times"):
        L.GRURank1(2, ensemble_size=4)(np.ones((6, 3, 2), "float32"))
