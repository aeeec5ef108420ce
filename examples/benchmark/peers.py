"""Other libraries on the same splits and nets: PyTorch ensembles, Laplace, Bayes by Backprop.

They are an extra: `pip install 'rank1-bali[peers]'`. All train with Adam at its usual rate, for as
many steps of the same batches' size as the Keras methods.
"""

from __future__ import annotations

import importlib
import itertools
import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import tensorflow as tf

from examples.benchmark.methods import ENSEMBLE
from examples.benchmark.nets import Dense, Net
from examples.benchmark.tasks import Budget, Data, Task
from examples.benchmark.training import Fitted
from tfp_rank1 import likelihoods
from tfp_rank1.predictive.mixture import PredictiveMixture

RATE, SAMPLES = 1e-3, 64
MODULES = "torch", "laplace", "bayesian_torch.models.dnn_to_bnn"
DISTRIBUTIONS = "torch", "laplace-torch", "bayesian-torch"
# Of Adam on the Laplace evidence, over the logarithms of prior precision and noise.
EVIDENCE_STEPS, EVIDENCE_RATE = 200, 1e-1
# Rows whose outputs laplace-torch linearises at a time: it holds rows x outputs x weights numbers.
LINEARISED_ROWS = 100


def _torch() -> Any:
    import torch

    return torch


def require() -> None:
    """Find out before any training whether all three packages are there.

    Raises:
        ValueError: with the command that installs them.
    """
    missing = [n for n in ("torch", "laplace", "bayesian_torch") if find_spec(n) is None]
    if missing:
        raise ValueError(
            "Peers need PyTorch, laplace-torch and bayesian-torch: pip install "
            f"'rank1-bali[peers]'. Received: no {missing}"
        )
    import_all()


def import_all() -> None:
    """Import what the peers use: seconds of training must not hold it."""
    for name in MODULES:
        importlib.import_module(name)


def mlp(net: Net) -> Any:
    """The task's net of PyTorch layers.

    Raises:
        ValueError: for a net with convolutions.
    """
    nn = _torch().nn
    if not all(isinstance(spec, Dense) for spec in net.hidden):
        raise ValueError(f"Peers have dense layers only: --net mlp. Received: {net.hidden}")
    sizes = [math.prod(net.input_shape), *(s.units for s in net.hidden if isinstance(s, Dense))]
    layers: list[Any] = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], net.outputs))


class Trainer:
    """Adam on the negative log-likelihood, with a learned noise scale for regression.

    Args:
        task: its likelihood.
        data: one split.
        budget: for how long.
    """

    def __init__(self, task: Task, data: Data, budget: Budget) -> None:
        torch = _torch()
        self.regression = task.likelihood == "normal"
        self.x = torch.tensor(data.split.x_train)
        dtype = torch.float32 if self.regression else torch.int64
        self.y = torch.tensor(data.split.y_train).to(dtype)
        self.batch_size = budget.batch_size
        self.epochs = budget.epochs_for(len(self.x))
        self.steps = self.epochs * budget.steps_per_epoch(len(self.x))

    def loader(self) -> Any:
        """Shuffled batches."""
        data = _torch().utils.data
        return data.DataLoader(
            data.TensorDataset(self.x, self.y), batch_size=self.batch_size, shuffle=True
        )

    def fit(self, model: Any, penalty: Callable[[Any], Any] | None = None) -> float:
        """Train a model; returns its noise scale (1 for classes).

        Args:
            model: a torch module.
            penalty: of the model, such as its KL, divided here by the number of examples.
        """
        torch = _torch()
        rho = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([*model.parameters(), rho], lr=RATE, fused=True)
        count = len(self.x)
        for _ in range(self.epochs):
            order = torch.randperm(count)
            for rows in order.split(self.batch_size):
                optimizer.zero_grad()
                outputs = model(self.x[rows])
                if self.regression:
                    scale = torch.nn.functional.softplus(rho)
                    noise = torch.distributions.Normal(outputs, scale, validate_args=False)
                    loss = -noise.log_prob(self.y[rows]).mean()
                else:
                    loss = torch.nn.functional.cross_entropy(outputs, self.y[rows])
                if penalty is not None:
                    loss = loss + penalty(model) / count
                loss.backward()
                optimizer.step()
        return float(torch.nn.functional.softplus(rho.detach())) if self.regression else 1.0

    def likelihood(self, scale: float) -> Any:
        """The likelihood with a fixed noise scale."""
        return likelihoods.Normal(scale=scale) if self.regression else likelihoods.Categorical()


def _outputs(model: Any, x: np.ndarray) -> np.ndarray:
    torch = _torch()
    with torch.no_grad():
        return np.asarray(model(torch.tensor(x)).numpy())


def _count(model: Any) -> int:
    return int(sum(p.numel() for p in model.parameters()))


def fit_ensemble(task: Task, trainer: Trainer) -> Any:
    """Five nets of their own shuffling and noise."""
    members = []
    for _ in range(ENSEMBLE):
        model = mlp(task.net)
        members.append((model, trainer.fit(model)))

    def predict(x: np.ndarray) -> PredictiveMixture:
        outputs = np.stack([_outputs(model, x) for model, _ in members])
        if not trainer.regression:
            return PredictiveMixture(likelihoods.Categorical(), outputs)
        likelihood = likelihoods.HeteroscedasticNormal(min_scale=1e-3)
        raw = [np.log(np.expm1(max(s - 1e-3, 1e-6))) for _, s in members]
        scales = np.broadcast_to(np.array(raw, "float32")[:, None, None], outputs.shape)
        return PredictiveMixture(likelihood, np.concatenate([outputs, scales], axis=-1))

    return predict, sum(_count(model) + trainer.regression for model, _ in members)


def fit_laplace(task: Task, trainer: Trainer, subset: str) -> Any:
    """Laplace-torch: Kronecker-factored, prior and noise by the evidence.

    Args:
        task: the net.
        trainer: data and budget.
        subset: `"last_layer"` or `"all"`.
    """
    from laplace import Laplace

    torch = _torch()
    model = mlp(task.net)
    scale = trainer.fit(model)
    kind = "regression" if trainer.regression else "classification"
    la: Any = Laplace(model, kind, subset_of_weights=subset, hessian_structure="kron")
    la.fit(trainer.loader())
    log_prior = torch.zeros(1, requires_grad=True)
    log_noise = torch.tensor([math.log(scale)], requires_grad=True)
    optimizer = torch.optim.Adam([log_prior, log_noise], lr=EVIDENCE_RATE)
    for _ in range(EVIDENCE_STEPS):
        optimizer.zero_grad()
        noise = {"sigma_noise": log_noise.exp()} if trainer.regression else {}
        loss = -la.log_marginal_likelihood(log_prior.exp(), **noise)
        loss.backward()
        optimizer.step()
    scale = float(log_noise.detach().exp())

    def predict(x: np.ndarray) -> PredictiveMixture:
        parts = torch.tensor(x).split(LINEARISED_ROWS)
        if not trainer.regression:
            samples = [la.predictive_samples(p, pred_type="glm", n_samples=SAMPLES) for p in parts]
            probs = torch.cat(samples, dim=1).detach().numpy()
            return PredictiveMixture(likelihoods.Categorical(), np.log(probs + 1e-30))
        means, variances = zip(*map(la, parts), strict=True)
        mean = torch.cat(means).detach().numpy()
        variance = torch.cat(variances).detach().numpy().reshape(mean.shape)
        return PredictiveMixture(
            trainer.likelihood(scale), mean[None], output_variance=tf.constant(variance[None])
        )

    return predict, _count(model) + covariances(model, subset) + trainer.regression


def covariances(model: Any, subset: str) -> int:
    """Numbers in the Kronecker factors of the layers that Laplace covers."""
    linear = [m for m in model.modules() if isinstance(m, _torch().nn.Linear)]
    sizes = [s for m in linear[-1 if subset == "last_layer" else 0 :] for s in m.weight.shape]
    return sum(size * (size + 1) // 2 for size in sizes)


def standard_normal_kl(model: Any) -> Any:
    """KL of all weights from N(0, 1), nats.

    The package's own is a mean over each tensor in some versions, and a sum in others.
    """
    torch = _torch()
    parameters, total = dict(model.named_parameters()), 0.0
    for name, mean in parameters.items():
        if ".mu_" in name:
            scale = torch.nn.functional.softplus(parameters[name.replace(".mu_", ".rho_")])
            total = total + 0.5 * (scale**2 + mean**2 - 1.0 - 2.0 * torch.log(scale)).sum()
    return total


def fit_mean_field(task: Task, trainer: Trainer) -> Any:
    """Bayesian-torch's reparameterized layers in the place of the linear ones."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn

    model = mlp(task.net)
    dnn_to_bnn(
        model,
        {
            "prior_mu": 0.0,
            "prior_sigma": 1.0,
            "posterior_mu_init": 0.0,
            "posterior_rho_init": -3.0,
            "type": "Reparameterization",
            "moped_enable": False,
            "moped_delta": 0.5,
        },
    )
    scale = trainer.fit(model, standard_normal_kl)

    def predict(x: np.ndarray) -> PredictiveMixture:
        outputs = np.stack([_outputs(model, x) for _ in range(SAMPLES)])
        return PredictiveMixture(trainer.likelihood(scale), outputs)

    return predict, _count(model) + trainer.regression


PEERS: dict[str, Callable[[Task, Trainer], Any]] = {
    "torch_ensemble": fit_ensemble,
    "torch_laplace_last_layer": lambda task, trainer: fit_laplace(task, trainer, "last_layer"),
    "torch_laplace_all": lambda task, trainer: fit_laplace(task, trainer, "all"),
    "torch_mean_field": fit_mean_field,
}


def fit(name: str, task: Task, data: Data, budget: Budget, seed: int) -> Fitted:
    """Train one peer.

    Args:
        name: a key of `PEERS`.
        task: on what net.
        data: one split.
        budget: for how long.
        seed: of weights, shuffling and samples.
    """
    import_all()
    _torch().manual_seed(seed)
    trainer = Trainer(task, data, budget)
    start = time.perf_counter()
    predict, count = PEERS[name](task, trainer)
    return Fitted(predict, count, time.perf_counter() - start, trainer.steps, [])
