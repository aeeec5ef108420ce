"""The paper's architectures and recipes."""

import argparse
import dataclasses

import keras
import numpy as np
import pytest

import tfp_rank1 as r1
from examples import cifar

models, recipes = r1.models, r1.recipes
rng = np.random.default_rng(0)
SMALL = {
    "mlp": ((5, 2), lambda **kw: models.mlp((5, 2), 3, (4,), **kw)),
    "lstm": ((6,), lambda **kw: models.lstm(9, 3, 4, 5, likelihood="categorical", **kw)),
    "wide_resnet": (
        (8, 8, 3),
        lambda **kw: models.wide_resnet((8, 8, 3), 3, depth=10, width=1, **kw),
    ),
    "vision_transformer": (
        (8, 8, 3),
        lambda **kw: models.vision_transformer((8, 8, 3), 3, 4, 1, 8, 2, **kw),
    ),
}


def inputs(name, rows=4):
    shape = (rows, *SMALL[name][0])
    return rng.integers(0, 9, shape) if name == "lstm" else rng.normal(size=shape)


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"wide_resnet"}))
def test_every_architecture_trains_and_is_saved(name, tmp_path):
    build = SMALL[name][1]
    model = build(ensemble_size=2)
    x, y = inputs(name), np.array([0, 1, 2, 0])
    model.compile("sgd")
    assert model.output_shape == (None, 2, 3)
    check_trained(model, model.fit(x, y, verbose=0).history, x, tmp_path)


def check_trained(model, history, x, tmp_path):
    assert np.isfinite(history["loss"]).all()
    assert history["kl"][0] > 0.0
    model.save(tmp_path / "model.keras")
    with r1.posterior_mean():
        np.testing.assert_array_equal(
            keras.models.load_model(tmp_path / "model.keras")(x), model(x)
        )


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"wide_resnet"}))
def test_every_architecture_answers_by_moments(name):
    model, x = SMALL[name][1](ensemble_size=2, prior_stddev=0.1), inputs(name)
    moments = model.posterior_predictive(x, method="moments").mean()
    samples = model.posterior_predictive(x, 300, seed=0).mean()
    np.testing.assert_allclose(moments, samples, atol=0.04)


@pytest.mark.parametrize("name", SMALL)
def test_without_members_it_is_the_stock_net(name):
    """Which has the same function as members with factors of exactly 1."""
    build = SMALL[name][1]
    stock = build(ensemble_size=None)
    assert not stock.factor_variables
    assert stock.output_shape == (None, 3)
    unit = build(ensemble_size=1, posterior=r1.posteriors.Deterministic("ones"), prior=None)
    unit.set_weights([_like(v, stock, unit) for v in unit.weights])
    x = inputs(name)
    np.testing.assert_allclose(unit(x)[:, 0], stock(x), atol=1e-4)


def _like(variable, stock, unit):
    """The stock net's value for a variable of the net with factors, in the order of both."""
    factors = {id(v) for v in unit.factor_variables}
    if id(variable) in factors:
        return np.array(variable)
    slow = [v for v in unit.weights if id(v) not in factors]
    position = next(i for i, v in enumerate(slow) if v is variable)
    return np.array(stock.weights[position]).reshape(variable.shape)


def count(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def test_parameters_of_the_papers_nets():
    """K = 4: 78,324 entries of factors for WRN-28-10, 208,556 for ResNet-50, two numbers each."""
    with keras.StatelessScope(initialize_variables=False):  # of the variables only shapes are made
        net = models.wide_resnet()
        stock = models.wide_resnet(ensemble_size=None)
        resnet = models.resnet50()
    assert count(net.factor_variables) == 2 * 78_324
    assert count(net.slow_weights) == count(stock.weights) + 3 * 10  # a bias per member
    assert count(stock.trainable_variables) == 36_479_194
    assert count(resnet.factor_variables) == 2 * 208_556


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.wide_resnet(depth=20), "`depth` must be 6 n \\+ 4"),
        (lambda: models.wide_resnet(batch_normalization="own"), "'shared' or 'member'"),
        (lambda: models.vision_transformer(patch_size=5), "must divide the sides"),
        (lambda: models.mlp((3,), 2, ensemble_size=None, prior="normal"), "has no factors"),
        (
            lambda: models.mlp((3,), 2, posterior="cauchy", prior_stddev=0.1),
            "`prior_stddev` is for Normal posteriors",
        ),
        (lambda: recipes.get("cifar"), "A recipe is one of"),
        (lambda: recipes.Recipe("vgg").build(), "A recipe's model is one of"),
        (lambda: recipes.Recipe("mlp", posterior="beta").build(), "A recipe's posterior is"),
        (lambda: recipes.Recipe("mlp", clipnorm=0.0), "`clipnorm` must be"),
        (lambda: recipes.Recipe("mlp", decay_epochs=(5, 2)), "decay_epochs must increase"),
        (lambda: recipes.Recipe("mlp", decay_epochs=("a",)), "`decay_epochs` must be a whole"),
        (lambda: models.mlp((3,), 2, prior_stddev=0.0), "`stddev` must be"),
        (lambda: models.mlp(3, 2), "`input_shape` must be a tuple.*Received: input_shape=3"),
        (lambda: models.lstm(0), "`num_events` must be a whole number of at least 1"),
        (lambda: recipes.Recipe("mlp", decay_epochs=3), "decay_epochs must be a tuple"),
        (lambda: recipes.Recipe("mlp", [1]), "model_arguments must be a dict"),
        (lambda: recipes.Recipe.from_json("{"), "A recipe is an object in JSON"),
        (
            lambda: recipes.Recipe("mlp", random_sign=0.5, prior_stddev=None),
            "the library's start of Normal factors",
        ),
        (lambda: recipes.Recipe("mlp", epochs="ten"), "`epochs` must be a whole number"),
        (lambda: recipes.Recipe("mlp", {"likelihood": r1.likelihoods.Poisson()}), "must be plain"),
        (lambda: recipes.Recipe.from_json('{"modle": "mlp"}'), "A recipe is an object with fields"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("arguments", "mean", "stddev"), [
    ({"prior_stddev": 0.5}, 1.0, 0.5),
    ({"posterior": r1.posteriors.Normal(stddev=0.01), "prior_stddev": 0.5}, 1.0, 0.5),
    ({"perturbation": "additive", "prior_stddev": 0.2}, 0.0, 0.2),
])  # fmt: skip
def test_the_prior_is_as_wide_as_asked(arguments, mean, stddev):
    layer = models.mlp((4,), 3, (5,), **arguments).layers[2]
    found = layer.r_prior
    np.testing.assert_allclose([float(found.mean()), float(found.stddev())], [mean, stddev])


@pytest.mark.parametrize("make", [
    lambda: models.mlp((4,), 3, (5,)).layers[2], lambda: models.lstm(6, 2).layers[-2],
])  # fmt: skip
def test_small_nets_start_as_their_layers_do(make):
    """Members that differ at no cost, as in a `DenseRank1` that is given nothing."""
    assert isinstance(make().r_factor.prior, r1.priors.NormalWithTiedMean)


def test_a_seed_is_one_for_every_layer():
    """And repeats the whole net."""
    first, second = (models.mlp((8,), 8, (8,), ensemble_size=1, seed=3) for _ in range(2))
    seeds = [v.seed for v in first.layers if hasattr(v, "seed")]
    assert len(set(seeds)) == len(seeds) == 2
    second.set_weights(first.get_weights())
    x = rng.normal(size=(4, 8))
    np.testing.assert_array_equal(first(x), second(x))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (0.2, 0.2)),
        ({"r_posterior": "cauchy"}, ("Cauchy", 0.2)),
        ({"posterior": "deterministic", "r_posterior": "normal"}, (0.2, None)),
        ({"s_prior": None}, (0.2, None)),
    ],
)
def test_every_normal_factor_without_a_prior_gets_the_architectures(arguments, expected):
    layer = models.mlp((3,), 2, hidden=(), prior_stddev=0.2, **arguments).layers[2]
    for factor, wanted in zip((layer.r_factor, layer.s_factor), expected, strict=True):
        prior = factor.prior
        assert getattr(prior, "stddev", prior and type(prior).__name__) == wanted


def test_a_recipe_of_additive_factors_is_centred_at_zero():
    arguments = {"input_shape": [3], "num_outputs": 2, "perturbation": "additive"}
    layer = recipes.Recipe("mlp", arguments).build().layers[2]
    np.testing.assert_array_equal(layer.r_prior.mean(), 0.0)


def test_a_recipe_may_start_as_the_layers_do():
    arguments = {"input_shape": [3], "num_outputs": 2, "hidden": [64]}
    recipe = recipes.Recipe("mlp", arguments, prior_stddev=None, stddev=0.05)
    model = recipe.build()
    layer = model.layers[2]
    assert isinstance(layer.s_factor.prior, r1.priors.NormalWithTiedMean)
    posterior = layer.s_posterior
    assert set(np.unique(np.sign(posterior.mean()))) == {-1.0, 1.0}
    np.testing.assert_allclose(posterior.stddev(), 0.05, rtol=1e-4)
    # The penalty of the recipe is the prior of the kernels.
    recipe.compile(model, 10)
    assert model.kernel_precision == 0.0
    assert recipes.Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_json(name):
    assert recipes.Recipe("mlp", {"input_shape": (5,)}).model_arguments == {"input_shape": [5]}
    recipe = recipes.get(name)
    assert recipes.Recipe.from_json(recipe.to_json()) == recipe
    assert hash(recipe) == hash(recipes.get(name))


def test_a_recipe_trains(tmp_path):
    """And with it the wide residual net."""
    small = {"input_shape": (8, 8, 3), "depth": 10, "width": 1}
    recipe = recipes.Recipe("wide_resnet", small, posterior="cauchy", kl_annealing_epochs=1)
    recipe = dataclasses.replace(recipe, clipnorm=1.0)
    model = recipe.build()
    recipe.compile(model, steps_per_epoch=2)
    assert model.optimizer.clipnorm == 1.0
    x, y = inputs("wide_resnet", 8), rng.integers(0, 3, 8)
    history = model.fit(x, y, batch_size=4, verbose=0, callbacks=recipe.callbacks()).history
    assert model.output_shape == (None, 4, 10)
    check_trained(model, history, x, tmp_path)


def test_the_learning_rate_rises_and_falls():
    schedule = recipes.StepDecay(0.4, 10, [100, 200], 0.1)
    found = [float(schedule(t)) for t in (0, 4, 9, 50, 99, 100, 250)]
    np.testing.assert_allclose(found, [0.04, 0.2, 0.4, 0.4, 0.4, 0.04, 0.004], rtol=1e-5)
    assert recipes.StepDecay.from_config(schedule.get_config())(4) == schedule(4)


def test_the_small_cifar_recipe_is_scaled():
    """All epochs of it, for every method of the example."""
    options = argparse.Namespace(depth=10, epochs=15, samples=1, stddev=cifar.MINI.stddev)
    for recipe in cifar.METHODS.values():
        found = cifar.adapted(recipe, options)
        assert found.decay_epochs == (8, 12, 14)
        assert found.kl_annealing_epochs == 5
        assert (found.epochs, found.evaluation_samples) == (15, 1)
        assert found.model_arguments == {"depth": 10, "width": 1}
        assert (found.ensemble_size, found.stddev) == (recipe.ensemble_size, recipe.stddev)


def test_a_short_cifar_run_has_fewer_decays():
    options = argparse.Namespace(depth=10, epochs=2, samples=1, stddev=cifar.MINI.stddev)
    assert cifar.adapted(cifar.MINI, options).decay_epochs == (1, 2)


def test_wider_draws_of_the_small_cifar_recipe():
    """Twice the standard deviation is four times the scale of a Cauchy; points have none."""
    stddev = 2 * cifar.MINI.stddev
    options = argparse.Namespace(depth=10, epochs=15, samples=1, stddev=stddev)
    found = {name: cifar.adapted(recipe, options).stddev for name, recipe in cifar.METHODS.items()}
    before = {name: recipe.stddev for name, recipe in cifar.METHODS.items()}
    assert found["rank1_normal"] == pytest.approx(2 * before["rank1_normal"])
    assert found["rank1_cauchy"] == pytest.approx(4 * before["rank1_cauchy"])
    assert found["batch_ensemble"] == before["batch_ensemble"]
    assert found["deterministic"] == before["deterministic"]
