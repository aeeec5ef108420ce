"""Other libraries in the benchmark; needs `pip install 'rank1-bali[peers]'`."""

import numpy as np
import pytest
import tensorflow_probability as tfp
from test_benchmark import SMOKE, request

from examples.benchmark import nets, peers, results, runner, tasks
from examples.benchmark.methods import STOCK
from tfp_rank1 import likelihoods

torch = pytest.importorskip("torch", reason="peers are an extra")
pytest.importorskip("laplace", reason="peers are an extra")
pytest.importorskip("bayesian_torch", reason="peers are an extra")
pytestmark = pytest.mark.filterwarnings("ignore")
tfd = tfp.distributions


def test_every_peer_runs_and_says_its_versions(tmp_path):
    assert runner.run(request(tmp_path, names=tuple(peers.PEERS), splits=1)) == 0
    for name in peers.PEERS:
        content = results.read(tmp_path / "uci-smoke" / f"{name}.json")
        assert set(peers.DISTRIBUTIONS) <= content["origins"][0]["versions"].keys()


def test_nets_have_the_same_size():
    net = nets.Net((28, 28, 1), (nets.Dense(100), nets.Dense(100)), 10)
    stock = nets.build(net, STOCK, likelihoods.Categorical())
    assert peers._count(peers.mlp(net)) == stock.count_params()


def test_the_kl_of_a_mean_field_net_is_the_closed_form():
    model = torch.nn.Module()
    rng = np.random.default_rng(0)
    mean, rho = rng.normal(size=(2, 3, 4))
    model.mu_weight = torch.nn.Parameter(torch.tensor(mean))
    model.rho_weight = torch.nn.Parameter(torch.tensor(rho))
    wrapped = torch.nn.Sequential(model)
    q = tfd.Normal(mean, np.log1p(np.exp(rho)))
    expected = np.sum(tfd.kl_divergence(q, tfd.Normal(np.zeros(()), 1.0)))
    assert float(peers.standard_normal_kl(wrapped).detach()) == pytest.approx(expected)


def test_linearised_predictions_do_not_depend_on_the_parts(monkeypatch):
    """Regression: mean and variance of 250 rows at once and a hundred at a time."""
    task = tasks.get("uci", SMOKE)[0]
    data = task.load(0)
    predict = peers.fit("torch_laplace_all", task, data, task.budget, 0).predict
    x = np.repeat(data.split.x_test, 6, axis=0)[:250]
    parts = predict(x)
    monkeypatch.setattr(peers, "LINEARISED_ROWS", 1000)
    whole = predict(x)
    np.testing.assert_allclose(parts.mean(), whole.mean(), rtol=1e-5)
    np.testing.assert_allclose(parts.variance(), whole.variance(), rtol=1e-4)
