"""The loss of a BayesianModel: a bound on the evidence.

    loss(t) = NLL + anneal(t) / N * KL + other penalties

NLL is a mean per example, KL the sum over the layers, each counted once, and N the number of
training examples. The functions here compute one batch's loss for a model; they hold no state.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.divergence import KLOwner
from tfp_rank1.keras_internals import added_loss, compiled_loss, layers_of
from tfp_rank1.layers import TileMembers
from tfp_rank1.model.all_or_nothing import sum_over_replicas
from tfp_rank1.model.graph import (
    check_members_agree,
    common_members,
    members_by_output,
    members_of,
    output_shapes,
)
from tfp_rank1.model.kernel_prior import kernel_penalty, precision_in_graph
from tfp_rank1.model.options import PER_EXAMPLE
from tfp_rank1.model.roles import has_kl
from tfp_rank1.outputs import join_copies, num_members
from tfp_rank1.predictive.mixture import PredictiveMixture

__all__ = [
    "Objective",
    "check_anneals",
    "evaluation_bound",
    "evidence_bound",
    "kl_of",
    "kl_weight",
    "training_outputs",
    "with_penalties",
]


class Objective(NamedTuple):
    """The loss and its parts, scalars; `loss = nll + kl_weight * kl + penalties`.

    `rows` is the number of examples per replica, averaged over the replicas. `by_output` are the
    NLLs of several outputs, in the order of `heads.names_of`; `nll` is their weighted sum.
    """

    loss: tf.Tensor
    nll: tf.Tensor
    kl: tf.Tensor
    kl_weight: tf.Tensor
    rows: tf.Tensor
    by_output: tuple[tf.Tensor, ...] = ()


def training_outputs(model: Any, x: Any) -> tf.Tensor:
    """Raw outputs of one training pass, as `compile` asked for them.

    Args:
        model: a `BayesianModel`.
        x: one batch of inputs, `[B, ...]`.

    Returns:
        `[B, S K, ..., D]` for S samples of tiled batches, `[B, 1, ..., D]` for split batches; of
        several outputs a list or dict.

    Raises:
        ValueError: for S above 1 with layers that draw once per member and call, or with layers
            that fold another number of members.
    """
    samples = model._options.num_train_samples
    if samples > 1:
        _check_samples_differ(model)
        # One pass over S copies of the batch gives S samples: layers draw for every row.
        x = keras.tree.map_structure(lambda v: tf.concat([v] * samples, axis=0), x)
    is_split = model._options.member_batches == "split"
    with scopes.split_members.set(True) if is_split else contextlib.nullcontext():
        outputs = model(x, training=True)
    if is_split:  # the outputs have one member, whatever the layers fold
        layers = layers_of(model, include_self=False)
        folded = [v.ensemble_size for v in layers if isinstance(v, TileMembers)]
        check_members_agree(layers, folded[0] if folded else 1)
    if samples == 1:
        return outputs
    _check_members(model, outputs)  # while the outputs still have the K members of the layers
    return keras.tree.map_structure(
        lambda values: join_copies(values, samples, model.has_members), outputs
    )


def evidence_bound(
    model: Any, y: Any, outputs: tf.Tensor, sample_weight: Any, training: bool
) -> Objective:
    """The loss of one batch and its parts; see `BayesianModel.objective`."""
    # Outputs of a batch that is spread have other members than the model's layers.
    if not (training and model._options.spreads_batches):
        _check_members(model, outputs)
    own, evaluation = model.likelihood, model._options.evaluation_loss
    _check_batch(model, y, [v.shape for v in heads.parts(own, outputs)])
    if heads.are_several(own):
        losses = model._options.training_loss if training else evaluation
        members = members_by_output(model, outputs)
        weights = heads.for_each("sample_weight", own, sample_weight)
        nlls = heads.map_heads(
            lambda _, loss, *batch: loss(*batch), own, losses, y, members, weights
        )
        return _joined(model, losses, nlls, _mean_rows(outputs), outputs, training)
    is_compiled = training or evaluation is None
    loss_of: Any = compiled_loss(model) if is_compiled else evaluation
    if evaluation is not None:  # losses of Keras see raw outputs, which have no members
        outputs = members_of(model, outputs).values
    nll = loss_of(y, outputs, sample_weight)
    rows = _mean_rows(outputs)
    nll = _by_examples(nll, model.loss if is_compiled else evaluation, outputs, rows)
    return model.with_penalties(nll, rows, training)


def evaluation_bound(
    model: Any, y: Any, mixture: PredictiveMixture, sample_weight: Any
) -> Objective:
    """The loss of one batch in evaluation and its parts.

    The NLL is that of the mixture; a loss of Keras is averaged over the samples.

    Args:
        model: a compiled `BayesianModel`.
        y: targets `[B]` or `[B, targets]`, by output.
        mixture: the predictive distribution of the batch, by output.
        sample_weight: optional, `[B]` or `[B, targets]`, for all outputs or by output.
    """
    own = model.likelihood
    _check_batch(model, y, output_shapes(model) or [(None, None)])
    loss = model._options.evaluation_loss
    if heads.are_several(own):
        weights = heads.for_each("sample_weight", own, sample_weight)
        nlls = heads.map_heads(
            lambda _, reduce, *batch: reduce.reduce(*batch), own, loss, y, mixture, weights
        )
        outputs = heads.map_heads(lambda _, m: m.outputs, own, mixture)
        return _joined(model, loss, nlls, _mean_rows(outputs), outputs, False)
    if loss is not None:
        nll = loss.reduce(y, mixture, sample_weight)
    else:
        loss = model.loss
        compiled: Any = compiled_loss(model)
        samples = mixture.by_sample_first()
        nll = tf.reduce_mean(
            tf.map_fn(
                lambda outputs: tf.cast(compiled(y, outputs, sample_weight), tf.float32), samples
            )
        )
    rows = _mean_rows(mixture.outputs)
    return model.with_penalties(_by_examples(nll, loss, mixture.outputs, rows), rows, False)


def _joined(
    model: Any, losses: Any, nlls: Any, rows: tf.Tensor, outputs: Any, training: bool
) -> Objective:
    """The loss of several outputs: `nll = sum_o loss_weight_o nll_o`.

    Args:
        model: a `BayesianModel` with several outputs.
        losses: the losses that gave the NLLs, by output.
        nlls: NLL of this replica's batch, by output.
        rows: number of examples per replica, averaged over the replicas.
        outputs: raw outputs, by output.
        training: whether the KL is annealed.
    """
    own = model.likelihood
    scaled = heads.map_heads(
        lambda _, nll, loss, values: _by_examples(nll, loss, values, rows),
        own, nlls, losses, outputs,
    )  # fmt: skip
    weights = model._options.loss_weights_by_output(own)
    by_output = tuple(heads.parts(own, scaled))
    nll = tf.add_n([weight * nll for weight, nll in zip(weights, by_output, strict=True)])
    return model.with_penalties(nll, rows, training)._replace(by_output=by_output)


def with_penalties(model: Any, nll: tf.Tensor, rows: tf.Tensor, training: bool) -> Objective:
    """The NLL of a batch with all that the loss adds to it.

    In evaluation without a known N the KL, which has no weight then, is left out.

    Args:
        model: a `BayesianModel`.
        nll: the NLL of this replica's batch, scalar.
        rows: number of examples per replica, averaged over the replicas.
        training: whether the KL is annealed.
    """
    # Each layer's KL is one of `model.losses`; while they are read, `owner` weights and adds it.
    with scopes.kl_owner.set(KLOwner(kl_weight(model, training))) as owner:
        penalties = [added_loss(model, penalty) for penalty in model.losses]
    precision, count = precision_in_graph(model), model.num_train_examples
    if count and precision is not None:
        prior = kernel_penalty(model, precision) / float(count)
        penalties.append(added_loss(model, prior))
    # KLs come in the dtype of `keras.config.floatx()`, penalties in that of their weights.
    loss_and_penalties = [nll, *(tf.cast(v, nll.dtype) for v in penalties)]
    return Objective(tf.add_n(loss_and_penalties), nll, owner.total, owner.weight, rows)


def _check_batch(model: Any, y: Any, output_shapes: list[Any]) -> None:
    """Refuse a batch whose loss cannot be computed."""
    _check_loss(model, output_shapes)
    if y is None:
        raise ValueError(
            "The loss needs targets: give arrays as (x, y), a dataset of pairs (x, y). "
            "Received: batches without targets"
        )
    heads.matched("y", model.likelihood, y)
    if not all(likelihood.built for likelihood in model.likelihoods):
        raise ValueError(
            "A subclassed BayesianModel must end `call` with `return self.likelihood(outputs)`"
            f". Received: {type(model).__name__}.call returns raw outputs"
        )


def _by_examples(nll: tf.Tensor, loss: Any, outputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Weight a replica's mean by its share of the examples, so that all examples count alike.

    Keras adds up the means of the R replicas, each divided by R. One replica may have more
    examples than another, so each mean is multiplied by R times the replica's share.

    Args:
        nll: negative log-likelihood of this replica, scalar.
        loss: the loss that gave `nll`; only Keras's mean over the batch is weighted.
        outputs: raw outputs of this replica, `[B, ...]`.
        rows: mean of B over the replicas.

    Returns:
        The weighted `nll`, scalar.
    """
    # Functions and names have no `reduction`: Keras takes the mean of their values.
    if getattr(loss, "reduction", PER_EXAMPLE) != PER_EXAMPLE:
        return nll
    own = tf.cast(tf.shape(outputs)[0], tf.float32)
    return nll * tf.cast(tf.math.divide_no_nan(own, rows), nll.dtype)


def kl_weight(model: Any, training: bool) -> tf.Tensor:
    """`anneal(t) / N` in training, `1 / N` in evaluation, scalar; 0 without N or a KL.

    Raises:
        ValueError: in training, if N is not known yet and a layer has a KL.
    """
    if model.num_train_examples is None:
        if not training or not has_kl(model):
            return tf.zeros(())
        raise ValueError(
            "The KL weight is 1/N and the number N of training examples is not known yet. "
            "Call `fit`, which finds it in arrays and finite datasets, or pass "
            "num_train_examples= to the model. Received: num_train_examples=None"
        )
    annealing = model._options.annealing if training else None
    if annealing is not None:
        check_anneals(model)
    anneal = tf.ones(()) if annealing is None else annealing(_step(model))
    return anneal / float(model.num_train_examples)


def check_anneals(model: Any) -> None:
    """Refuse the annealing of a KL that is not there: it would change nothing.

    Raises:
        ValueError: for a built model without a trainable layer that has a prior.
    """
    if model.built and not has_kl(model):
        raise ValueError(
            "The model has no KL whose weight could be annealed: no trainable layer has a "
            "prior. Leave the annealing out, or give the layers a prior. Received: "
            f"{len(model.factor_variables)} variables of factors"
        )


def kl_of(model: Any) -> tf.Tensor:
    """KL of all layers in nats, unweighted; each layer counts once."""
    layers = layers_of(model, include_self=False)
    # A nested BayesianModel has a `kl` too, but its layers are in this list themselves.
    owners = [v for v in layers if hasattr(v, "kl") and not isinstance(v, keras.Model)]
    return tf.add_n([layer.kl() for layer in owners]) if owners else tf.zeros(())


def _step(model: Any) -> tf.Tensor:
    """Number of batches trained on so far, in whole updates of an accumulating optimizer."""
    if model.optimizer is None:
        return tf.zeros((), tf.int64)
    # An optimizer that scales the loss wraps the one that counts.
    inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    batches_per_update = getattr(inner, "gradient_accumulation_steps", None) or 1
    return tf.convert_to_tensor(inner.iterations) * batches_per_update


def _mean_rows(outputs: tf.Tensor) -> tf.Tensor:
    """Number of examples per replica, averaged over the replicas, float32 scalar."""
    rows = tf.cast(tf.shape(keras.tree.flatten(outputs)[0])[0], tf.float32)
    return sum_over_replicas(rows) / tf.distribute.get_strategy().num_replicas_in_sync


def _check_loss(model: Any, output_shapes: list[Any]) -> None:
    """Refuse a missing loss, and one of Keras, which broadcasts the targets over the members."""
    if compiled_loss(model) is None:
        raise ValueError(
            "The model has no loss. Call compile(loss='average_nll') or compile(loss="
            "'mixture_nll') first. Received: loss=None"
        )
    has_several = num_members(output_shapes[0], model.has_members) > 1
    if model._options.stock_loss is not None and has_several:
        raise ValueError(
            "Losses of Keras know no members and cannot be used for outputs [batch, members, "
            "outputs]. Use loss='average_nll' or 'mixture_nll'. "
            f"Received: loss={model._options.stock_loss!r}"
        )


def _check_samples_differ(model: Any) -> None:
    """Refuse layers that draw once per member and call: all samples would be equal."""
    layers = layers_of(model, include_self=False)
    shared = [v.name for v in layers if getattr(v, "sampling", None) == "member"]
    if shared:
        raise ValueError(
            "With num_train_samples above 1 layers must draw for every example: build them "
            f"with sampling='example' or 'flipout'. Received: sampling='member' in {shared}"
        )


def _check_members(model: Any, outputs: tf.Tensor) -> None:
    """Refuse layers that fold another number of members: they would mix examples."""
    shapes = [values.shape for values in keras.tree.flatten(outputs)]
    members = common_members(shapes, model.has_members)
    check_members_agree(layers_of(model, include_self=False), members)
