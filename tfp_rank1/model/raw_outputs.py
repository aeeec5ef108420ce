"""The last operations of a net, which may be ones that a likelihood applies itself."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

from tfp_rank1 import heads
from tfp_rank1.keras_internals import calls_of, nodes_of, producer_of
from tfp_rank1.layers import SplitMembers
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.serialization import snake_case

__all__ = [
    "End",
    "check_raw_outputs",
    "ends_to_drop",
    "function_of",
    "is_graph",
]

# Layers that only arrange numbers, or do nothing when a model predicts.
_PASSING = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.Reshape,
    SplitMembers,
)
# Operations of `keras.ops` that only arrange numbers.
_ARRANGING = {"cast", "expand_dims", "ravel", "reshape", "squeeze"}
# Functions whose results are no raw outputs.
_SQUASHING = {
    *("softmax", "log_softmax", "sparsemax", "softplus", "exponential", "exp"),
    *("sigmoid", "log_sigmoid", "hard_sigmoid", "sparse_sigmoid"),
}


def is_graph(model: Any) -> bool:
    """Whether a model is Functional or Sequential, and built."""
    has_inputs = hasattr(model, "inputs") and bool(getattr(model, "inputs", None))
    return has_inputs and bool(model.built)


def function_of(operation: Any) -> str:
    """Name of a layer's activation; without an activation, of the layer or operation itself."""
    if isinstance(operation, keras.layers.Wrapper):
        return function_of(operation.layer)
    activation = getattr(operation, "activation", None)
    if isinstance(activation, keras.layers.Layer):
        return function_of(activation)
    found = operation if activation is None else activation
    return snake_case(getattr(found, "__name__", type(found).__name__)).removesuffix("_v2")


# -- what makes the outputs -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class End:
    """An operation that makes some of a net's outputs.

    Layers behind it that only arrange its numbers are passed over, nested models are entered, and
    what is concatenated has an end for every part.

    Attributes:
        operation: a layer, or an operation such as `keras.ops.softmax`.
        start: its first column among the D outputs.
        stop: the column after its last.
        is_free: whether its results become outputs and nothing else.
        output: place of the output in `heads.names_of`; 0 for a single one.
    """

    operation: Any
    start: int
    stop: int
    is_free: bool
    output: int = 0

    @property
    def function(self) -> str:
        """Name of the function that it ends in, such as `"softmax"`."""
        return function_of(self.operation)


def _ends_of(
    tensor: Any,
    uses: Counter[int],
    start: int = 0,
    is_free: bool = True,
    within: tuple[Any, ...] = (),
    positions: int | None = None,
) -> Iterator[End]:
    """The ends of a symbolic tensor.

    Args:
        tensor: symbolic outputs, or a part of them.
        uses: what `_uses_in` returned.
        start: the first column of the tensor.
        is_free: whether the tensor becomes outputs and nothing else.
        within: the nested models that the tensor is in, each with the inputs of its call.
        positions: number of positions of the outputs, of each of which an end makes columns.
            Defaults to None: that of the tensor.
    """
    positions = _size(tensor.shape[:-1]) if positions is None else positions
    while True:
        is_free = is_free and uses[id(tensor)] <= 1
        operation, node, index = producer_of(tensor)
        inputs = calls_of(operation)[node].input_tensors
        if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
            within = (*within, (operation, inputs))
            tensor = operation.outputs[index]
        elif isinstance(operation, keras.layers.InputLayer) and within:
            (model, given), within = within[-1], within[:-1]
            tensor = given[[id(t) for t in model.inputs].index(id(tensor))]
        elif _is_passing(operation):
            tensor = inputs[0]
        else:
            break
    function = function_of(operation)
    if function not in ("concatenate", "average"):
        is_free = is_free and uses[id(operation)] <= 1
        yield End(operation, start, start + _size(tensor.shape) // positions, is_free)
        return
    for part in inputs:
        # A mean of probabilities is not the probability at a mean of raw outputs.
        is_joined = function == "concatenate"
        yield from _ends_of(part, uses, start, is_free and is_joined, within, positions)
        start += _size(part.shape) // positions if is_joined else 0


def _uses_in(model: Any) -> Counter[int]:
    """How often operations are called and tensors read, by their ids; as outputs, too.

    A nested model counts once for every use: what is in it is then used as often.
    """
    uses: Counter[int] = Counter()
    models = [model]
    while models:
        graph = models.pop()
        uses.update(id(t) for t in getattr(graph, "outputs", None) or [])
        for node in (n for n in nodes_of(graph) if not n.is_input):
            uses[id(node.operation)] += 1
            uses.update(id(t) for t in node.input_tensors)
            if isinstance(node.operation, keras.Model):
                models.append(node.operation)
    return uses


def _is_passing(operation: Any) -> bool:
    """Whether an operation hands its numbers on, perhaps in another shape or dtype."""
    if isinstance(operation, _PASSING):
        return True
    if isinstance(operation, keras.layers.Layer):
        # Such an `Activation` often ends a net in mixed precision.
        return isinstance(operation, keras.layers.Activation) and function_of(operation) == "linear"
    return function_of(operation) in _ARRANGING


def _size(shape: Any) -> int:
    """Number of outputs per example; axes of positions of unknown size count as 1."""
    return math.prod(1 if d is None else d for d in shape[1:])


# -- what the likelihood applies ------------------------------------------------------------------


def check_raw_outputs(tensor: Any, likelihood: Likelihood) -> None:
    """Refuse outputs, or a part of them, that end in a function which the likelihood applies.

    The function would be applied twice: probabilities between .27 and .73, or a scale above .69.

    Args:
        tensor: symbolic outputs before the likelihood.
        likelihood: of the model.

    Raises:
        ValueError: with the name of the function and the layer.
    """
    ends = list(_ends_of(tensor, Counter()))
    for end in ends:
        if end.function in _refused_at(end, ends, likelihood):
            applied = (*likelihood.link_names, *likelihood.scale_link_names)[0]
            raise ValueError(
                f"The likelihood {type(likelihood).__name__} takes raw outputs and applies "
                f"{applied} itself. Give the last layer no activation (activation=None), and read "
                "probabilities or scales from `posterior_predictive`. Received: outputs that end "
                f"in {end.function}, in {type(end.operation).__name__} {end.operation.name!r}"
            )


def ends_to_drop(model: Any, likelihood: Any) -> list[End]:
    """The ends of a net whose function a converted net leaves to the likelihood.

    Args:
        model: a Functional or Sequential model.
        likelihood: of the converted model; for several outputs one for each.

    Raises:
        ValueError: for outputs that are not raw, by another function than the likelihood's or by
            one that cannot be dropped.
    """
    uses, dropped = _uses_in(model), []
    tensors = heads.parts(likelihood, model.output) if len(model.outputs) > 1 else model.outputs
    columns = zip(tensors, heads.parts(likelihood, likelihood), strict=True)
    for place, (tensor, own) in enumerate(columns):
        for end in _ends_of_output(tensor, own, uses):
            dropped.append(dataclasses.replace(end, output=place))
    return dropped


def _ends_of_output(tensor: Any, likelihood: Likelihood, uses: Counter[int]) -> list[End]:
    """As `ends_to_drop`, of one output."""
    ends = list(_ends_of(tensor, uses))
    dropped = []
    for end in ends:
        if end.function not in _refused_at(end, ends, likelihood):
            continue
        reason = _reason_to_keep(end, ends, likelihood, tensor.shape[-1])
        if reason:
            own = (*likelihood.link_names, *likelihood.scale_link_names)[0]
            raise ValueError(
                f"The likelihood {type(likelihood).__name__} takes raw outputs and applies {own} "
                f"itself. {reason} Convert keras.Model(model.inputs, the outputs before "
                f"{end.function}). Received: a model that ends in {end.function}, in "
                f"{type(end.operation).__name__} {end.operation.name!r}"
            )
        dropped.append(end)
    return dropped


def _refused_at(end: End, ends: list[End], likelihood: Likelihood) -> set[str]:
    """Names of the functions that must not make an end's columns."""
    own = likelihood.link_names
    # Logarithms of probabilities are raw outputs: softmax leaves them as they are.
    refused = _SQUASHING - {f"log_{name}" for name in own} if own else set()
    # The second half are scales; a mean before them may well be positive.
    is_scale = 2 * end.stop > max(e.stop for e in ends)
    return refused | set(likelihood.scale_link_names) if is_scale else refused


def _reason_to_keep(
    end: End, ends: list[End], likelihood: Likelihood, num_outputs: int | None
) -> str:
    """Why the likelihood cannot take the place of an end's function; empty if it can."""
    is_scale = bool(likelihood.scale_link_names) and 2 * end.start >= max(e.stop for e in ends)
    # The first name is the function that is applied to scales, the others are like it.
    own = likelihood.scale_link_names[:1] if is_scale else likelihood.link_names
    if end.function in likelihood.scale_link_names[:1] and not is_scale:
        return "It does so to the second half of the outputs only: make means and scales apart."
    if end.function not in own:
        return f"It does not apply {end.function} to these outputs."
    if not end.is_free or not _is_last_step(end.operation):
        return f"This {end.function} cannot be left out, since the net uses it elsewhere or within."
    # Over all outputs of a position, not over one of several parts that are then flattened.
    size = calls_of(end.operation)[0].outputs[0].shape[-1]
    if likelihood.is_categorical and (len(ends) > 1 or size != num_outputs):
        return f"A {end.function} over a part of the outputs is not its {end.function} over all."
    return ""


def _is_last_step(operation: Any) -> bool:
    """Whether an operation's function is what it does last, so that it can be left out."""
    if len(calls_of(operation)[0].input_tensors) != 1 or hasattr(operation, "cell"):
        return False  # such as a softmax with a mask; a recurrent layer multiplies by its gates
    if isinstance(operation, keras.layers.Wrapper):
        return False
    is_function = not isinstance(operation, keras.layers.Layer | keras.Model)
    own = callable(getattr(operation, "activation", None))
    return is_function or own or isinstance(operation, keras.layers.Softmax)
