"""The one door to private names of Keras and TensorFlow, each with the reason for its use.

No other module of the project uses a private name of either. When a new Keras loses one,
`tests/test_rules.py` names it, and this is the file to mend.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import set_keras_mask
from keras.src.models.functional import Functional
from keras.src.utils.naming import auto_name

__all__ = [
    "ATTENTION_PROJECTIONS",
    "Functional",
    "accepts_in_call",
    "added_loss",
    "attention_equations",
    "attention_probabilities",
    "attention_projections",
    "attention_value_dim",
    "auto_name",
    "better_direction",
    "build_input_shape",
    "calls_of",
    "causal_padding",
    "compile_state",
    "compiled_loss",
    "compiled_metrics",
    "forget_metrics",
    "freeze",
    "function_within",
    "graph_of",
    "has_strategy_of_its_own",
    "hook_into_trainer",
    "initial_epoch",
    "input_structure",
    "is_in_multi_worker_mode",
    "is_made_here",
    "is_training_call",
    "layers_of",
    "lstm_carry_and_output",
    "mask_of",
    "missing_names",
    "nodes_in_order",
    "nodes_of",
    "own_attributes",
    "own_state",
    "own_trainable_variables",
    "own_variables",
    "parent_hook",
    "positions_seen",
    "producer_of",
    "replace_part",
    "restore_compile_state",
    "run_graph",
    "runs_its_graph",
    "seed_generators_of",
    "set_better_direction",
    "set_initial_epoch",
    "set_loss_tracker",
    "set_mask",
    "standardized_inputs",
    "stored_weight",
    "take_signature",
    "tracked_by_tensorflow",
    "unlocked",
    "unpickle_model",
    "update_loss_tracker",
]

T = TypeVar("T")

# Under this name Keras keeps the arguments of the outermost call under way.
_CALL_CONTEXT = "current_call_ctx"

# -- layers ---------------------------------------------------------------------------------------


def layers_of(layer: Any, include_self: bool = True) -> list[Any]:
    """A layer and all layers in it, each once; `model.layers` stops at the first level."""
    return list(layer._flatten_layers(include_self=include_self))


def freeze(layer: Any) -> None:
    """Freeze a layer and all layers in it, also those of a layer that is frozen already."""
    for part in layers_of(layer):
        part.trainable = False  # Keras takes no notice of a value that an attribute has


def own_attributes(layer: Any) -> dict[str, Any]:
    """The attributes of a layer that its class sets, without the notes of Keras and TensorFlow."""
    plain = keras.layers.Layer()
    plain.part = keras.layers.Layer()  # TensorFlow takes notes of parts
    notes = vars(plain).keys() - {"part"}
    return {name: value for name, value in vars(layer).items() if name not in notes}


def own_trainable_variables(layer: Any) -> list[keras.Variable]:
    """A layer's own weights, frozen or not, without the weights of layers in it."""
    return list(layer._trainable_variables)


def own_state(layer: Any) -> list[keras.Variable]:
    """Variables that a layer changes by itself, such as its moving statistics."""
    # `layer.non_trainable_variables` also has frozen weights and the variables of layers within.
    return list(layer._non_trainable_variables)


def own_variables(layer: Any) -> list[keras.Variable]:
    """A layer's own variables, in the order in which Keras stores them in a file."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def seed_generators_of(layer: Any) -> list[keras.random.SeedGenerator]:
    """A layer's own random generators; the public attributes differ from class to class."""
    return list(layer._seed_generators)


def build_input_shape(layer: Any) -> Any:
    """The input shape that a layer was built with, for a copy that is to be built alike."""
    return layer._build_shapes_dict["input_shape"]


def accepts_in_call(layer: Any, argument: str) -> bool:
    """Whether a layer's `call` takes `"training"` or `"mask"`, as Keras itself found."""
    return bool(getattr(layer, f"_call_has_{argument}_arg"))


def is_training_call(kwargs: dict[str, Any]) -> bool:
    """Whether a call of a layer is part of training, by its arguments or by the call around it.

    Keras finds that out within `Layer.__call__`, and tells `call` alone.
    """
    training = kwargs.get("training")  # Keras takes no numbers in places of tensors
    if training is None:
        # Not `layer._get_call_context()`, which would begin a call.
        around = global_state.get_global_attribute(_CALL_CONTEXT)
        training = None if around is None else around.get_value("training")
    return bool(training)


def mask_of(tensor: Any) -> Any:
    """The mask that a layer has left with its outputs, boolean; None without one."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: Any) -> None:
    """Have the next layer find a mask with its inputs, as a layer that made them leaves it."""
    set_keras_mask(tensor, mask)


def stored_weight(layer: Any, name: str) -> keras.Variable:
    """The variable of a kernel or an embedding table: with LoRA, `layer.kernel` is a sum."""
    return getattr(layer, f"_{name}")


def causal_padding(layer: Any) -> Any:
    """How a causal `keras.layers.Conv1D` pads its inputs, as `keras.ops.pad` takes it."""
    return layer._compute_causal_padding()


def lstm_carry_and_output(cell: Any, gates: Any, carry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """New carry and output gate of a `keras.layers.LSTMCell` from its four pre-activations."""
    return cell._compute_carry_and_output_fused(gates, carry)


# Projections of `keras.layers.MultiHeadAttention`; no argument of that layer sets their class.
ATTENTION_PROJECTIONS = (
    "_query_dense",
    "_key_dense",
    "_value_dense",
    "_gate_dense",
    "_output_dense",
)


def attention_projections(layer: Any) -> list[Any]:
    """Projections of a `MultiHeadAttention`, by `ATTENTION_PROJECTIONS`; None without a gate."""
    return [getattr(layer, name, None) for name in ATTENTION_PROJECTIONS]


def attention_equations(layer: Any) -> tuple[str, str]:
    """Einsum equations of keys and queries to scores, and of probabilities and values to outputs.

    They depend on `attention_axes`, which no public attribute tells.
    """
    return layer._dot_product_equation, layer._combine_equation


def positions_seen(layer: Any, query: Any, value: Any, **masks: Any) -> Any:
    """Which positions see each other, boolean `[B, T, S]`, of all masks; None for all.

    Args:
        layer: a `MultiHeadAttention`.
        query: the queries, of which only the shape counts.
        value: the values, of which only the shape counts.
        **masks: arguments of the layer's call.
    """
    return layer._compute_attention_mask(query, value, **masks)


def attention_probabilities(layer: Any, scores: Any, mask: Any) -> Any:
    """The softmax of scores over the positions that are seen, in the dtype of the scores."""
    if mask is not None:
        # After the batch, where heads and further axes lie that a mask does not have.
        place = -2 * len(layer._attention_axes) - 1
        for _ in range(len(scores.shape) - len(mask.shape)):
            mask = keras.ops.expand_dims(mask, axis=place)
    # Not the layer itself, which would cast to the dtype of its policy.
    return layer._softmax.call(scores, mask=mask)


def attention_value_dim(layer: Any) -> int:
    """Size of each head's values in a `keras.layers.MultiHeadAttention`."""
    return int(layer._value_dim)


def replace_part(layer: Any, name: Any, new: Any, holder: Any = None) -> None:
    """Replace a layer within `layer` by `new`.

    Args:
        layer: the layer.
        name: of the attribute; or the index or key of an entry.
        new: the layer that takes the place.
        holder: the list or dict with the entry, within an attribute. Defaults to None: none.
    """
    # Keras tracks what an attribute held before, so the weights of the old part would stay.
    with unlocked(layer):
        if holder is None:
            layer._tracker.untrack(getattr(layer, name))
            setattr(layer, name, new)
        else:
            layer._tracker.untrack(holder[name])
            holder[name] = layer._tracker.track(new)


def take_signature(layer: Any, other: Any) -> None:
    """Have Keras pass arguments on to a layer as it would to `other`, masks and all."""
    names = (
        "_call_signature",
        "call_signature_parameters",
        "_call_has_training_arg",
        "_call_has_mask_arg",
        "_call_has_context_arg",
    )
    for name in names:
        if hasattr(other, name):  # some are of newer versions
            setattr(layer, name, getattr(other, name))


@contextlib.contextmanager
def unlocked(layer: Any) -> Iterator[None]:
    """A context in which a built layer may create variables."""
    was_locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if was_locked:
            layer._tracker.lock()


def set_better_direction(metric: Any, direction: str) -> None:
    """Tell `EarlyStopping` and `ModelCheckpoint` whether `"up"` or `"down"` is better.

    Keras sets the direction of its own metrics; no public argument sets that of others.
    """
    metric._direction = direction


def function_within(metric: Any) -> Any:
    """The function that a `keras.metrics.MeanMetricWrapper` averages; None for other metrics."""
    return getattr(metric, "_fn", None)


def better_direction(metric: Any) -> str | None:
    """`"up"` or `"down"`, whichever is better; None for a metric that does not say."""
    return getattr(metric, "_direction", None)


def tracked_by_tensorflow(cls: type[T]) -> type[T]:
    """Have TensorFlow find all variables of a layer class, also those that objects of ours hold.

    `tf.train.Checkpoint` and `tf.saved_model.save` follow attributes. A variable that they do not
    reach is neither written nor missed: a restored model would keep its initial values.
    """

    def children(self: Any, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        found = dict(super(cls, self)._trackable_children(save_type, **kwargs))
        states = [generator.state for generator in self._seed_generators]
        states += getattr(self, "state_beside_weights", [])
        for index, variable in enumerate([*own_variables(self), *states]):
            # At the time of the call: a variable made in a trial run has no value before.
            found[f"{variable.name.replace('/', '_')}_{index}"] = variable.value
        return found

    cls._trackable_children = children  # type: ignore[attr-defined]
    return cls


# -- graphs ---------------------------------------------------------------------------------------


def input_structure(model: Any) -> Any:
    """The inputs of a Functional model, nested as they were given; None for another model."""
    # `model.inputs` is a flat list.
    return getattr(_graph(model), "_inputs_struct", None)


def standardized_inputs(model: Any, x: Any) -> list[tf.Tensor]:
    """Inputs of a Functional model as it would take them: flat, of its dtypes and ranks."""
    return list(_graph(model)._standardize_inputs(x))


def producer_of(tensor: Any) -> tuple[Any, int, int]:
    """The operation that made a symbolic tensor, the index of its call and that of its output."""
    history = tensor._keras_history
    return history.operation, history.node_index, history.tensor_index


def calls_of(operation: Any) -> list[Any]:
    """The calls of an operation in graphs, with their `input_tensors`, `outputs`, `arguments`."""
    return list(operation._inbound_nodes)


def nodes_of(model: Any) -> list[Any]:
    """All calls in the graph of a Functional or Sequential model; none for a subclassed one."""
    by_depth = getattr(_graph(model), "_nodes_by_depth", {})
    return [node for depth in by_depth.values() for node in depth]


def nodes_in_order(model: Any) -> list[Any]:
    """The calls in a model's graph, from the inputs to the outputs."""
    by_depth = getattr(_graph(model), "_nodes_by_depth", {})
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def runs_its_graph(model: Any) -> bool:
    """Whether a model has a graph, and its `call` runs that graph and nothing else."""
    calls = (Functional.call, keras.Sequential.call)
    return bool(nodes_of(model)) and type(model).call in calls


def run_graph(model: Any, inputs: Any, operation_fn: Callable[[Any], Any]) -> Any:
    """Run a model's graph on other inputs, every operation replaced by `operation_fn(operation)`.

    `keras.models.clone_model` does the same inside, but returns a new model and not its outputs.
    """
    return _graph(model)._run_through_graph(inputs, operation_fn=operation_fn)


def _graph(model: Any) -> Any:
    """The model that has the graph: a Sequential holds a Functional model for it."""
    return getattr(model, "_functional", None) or model


# -- the trainer ----------------------------------------------------------------------------------

# Keras's trainer calls these methods, which have private names only. A class decorated with
# `hook_into_trainer` defines the public name on the right in place of the private one.
_HOOKS = {
    "_make_function": "make_step_function",
    "_maybe_symbolic_build": "symbolic_build",
    "_get_metrics_result_or_logs": "result_or_logs",
}
# What Keras's `compile` sets before it has checked all its arguments.
_COMPILED = "optimizer", "loss", "_compile_loss", "_compile_metrics"


def hook_into_trainer(cls: type) -> type:
    """Make Keras's trainer call the public methods of `cls` that `_HOOKS` names."""

    def forward(public: str) -> Callable[..., Any]:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(self, public)(*args, **kwargs)

        return hook

    for private, public in _HOOKS.items():
        setattr(cls, private, forward(public))
    return cls


def parent_hook(parent: Any, public: str) -> Callable[..., Any]:
    """Keras's own version of a hook: `parent_hook(super(), "symbolic_build")`."""
    private = next(name for name, value in _HOOKS.items() if value == public)
    return getattr(parent, private)


def compiled_loss(model: Any) -> Callable[..., tf.Tensor] | None:
    """The compiled loss, `(y, outputs, sample_weight) -> scalar`; None without a loss."""
    return model._compile_loss


def compiled_metrics(model: Any) -> Any:
    """The metric that holds all metrics of `compile`; None before `compile` or without any."""
    return model._compile_metrics


def forget_metrics(model: Any) -> None:
    """Drop the metrics of an earlier `compile`: Keras keeps them if a new one has none."""
    object.__setattr__(model, "_compile_metrics", None)


def compile_state(model: Any) -> dict[str, Any]:
    """The attributes that a `compile` may have changed when it refuses an argument."""
    return {name: vars(model)[name] for name in _COMPILED if name in vars(model)}


def restore_compile_state(model: Any, state: dict[str, Any]) -> None:
    """Put back what `compile_state` found, after a `compile` that was refused."""
    for name in _COMPILED:
        if name in state:
            object.__setattr__(model, name, state[name])  # past Keras's tracking, as in `compile`
        elif name in vars(model):
            object.__delattr__(model, name)


def set_loss_tracker(model: Any, tracker: keras.metrics.Metric) -> None:
    """Replace the metric that logs `loss`."""
    # Past Keras's tracking, which would list one more metric after every `compile`.
    object.__setattr__(model, "_loss_tracker", tracker)


def update_loss_tracker(model: Any, loss: tf.Tensor, rows: tf.Tensor) -> None:
    """Log the loss of one batch with `rows` examples."""
    model._loss_tracker.update_state(loss, sample_weight=rows)


def added_loss(model: Any, loss: tf.Tensor) -> tf.Tensor:
    """A penalty as Keras adds it to the loss: a scalar, divided by the number of replicas."""
    return model._aggregate_additional_loss(loss)


def initial_epoch(model: Any) -> int | None:
    """The epoch that the next `fit` begins with, if a restored checkpoint set one, else None."""
    return model._initial_epoch


def set_initial_epoch(model: Any, epoch: int | None) -> None:
    """Set the epoch that the next `fit` begins with; None for the one in its arguments."""
    # A callback has no other way: Keras reads this after `on_train_begin`.
    model._initial_epoch = epoch


def has_strategy_of_its_own(model: Any) -> bool:
    """Whether a model was made inside `strategy.scope()`."""
    # `model.distribute_strategy` gives a default strategy otherwise.
    return model._distribute_strategy is not None


def is_in_multi_worker_mode(strategy: tf.distribute.Strategy) -> bool:
    """Whether several processes train together."""
    # Without a cluster this strategy has a single worker, so its class alone does not tell.
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return is_multi_worker and strategy.extended._in_multi_worker_mode()


def unpickle_model(cls: type) -> Callable[..., Any]:
    """Keras's function that reads a pickled model, bound to `cls`, which pickle must find."""
    return cls._unpickle_model  # type: ignore[attr-defined]


# -- TensorFlow -----------------------------------------------------------------------------------


def is_made_here(tensor: tf.Tensor) -> bool:
    """Whether a tensor belongs to the graph under construction, or to none."""
    if not tf.is_symbolic_tensor(tensor):
        return True
    return tensor.graph is tf.compat.v1.get_default_graph()


def graph_of(tensor: tf.Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context for operations that belong into the graph in which a tensor was made.

    In a loop over samples some tensors come from outside of the loop. What depends on these alone
    is computed outside of the loop, once for all samples.
    """
    return contextlib.nullcontext() if is_made_here(tensor) else tensor.graph.as_default()


# -- the check ------------------------------------------------------------------------------------


def missing_names() -> list[str]:
    """The private names above that the installed Keras does not have."""
    # Looked up on objects, since constructors, `build` and `compile` set many of the names.
    inputs = keras.Input((3, 2))
    layer = keras.layers.Dense(2)
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse", metrics=["mae"])
    sequential = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    attention = keras.layers.MultiHeadAttention(1, 1)
    attention(keras.ops.zeros((1, 2, 2)), keras.ops.zeros((1, 2, 2)))
    # A strategy itself would look for other workers.
    strategy = importlib.import_module(
        "tensorflow.python.distribute.collective_all_reduce_strategy"
    )
    workers = strategy.CollectiveAllReduceExtended
    contexts: list[Any] = []

    class Nosy(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            contexts.append(global_state.get_global_attribute(_CALL_CONTEXT))
            return inputs

    Nosy()(keras.ops.zeros((1, 1)))
    embedding = keras.layers.Embedding(2, 2)
    embedding.build()
    rank1_names = [n for n in ATTENTION_PROJECTIONS if n != "_gate_dense"]  # newer Keras only
    required: list[tuple[Any, str, list[str]]] = [
        (layer, "Layer", ["_flatten_layers", "_trainable_variables", "_non_trainable_variables"]),
        (layer, "Layer", ["_seed_generators", "_build_shapes_dict", "_tracker"]),
        (layer, "Layer", ["_trackable_children"]),
        (layer, "Layer", ["_call_has_training_arg", "_call_has_mask_arg"]),
        (layer, "Dense", ["_kernel", "_inbound_nodes"]),
        (embedding, "Embedding", ["_embeddings"]),
        (keras.layers.Conv1D(1, 1), "Conv1D", ["_compute_causal_padding"]),
        (keras.layers.LSTMCell(1), "LSTMCell", ["_compute_carry_and_output_fused"]),
        (attention, "MultiHeadAttention", [*rank1_names, "_value_dim"]),
        (attention, "MultiHeadAttention", ["_dot_product_equation", "_combine_equation"]),
        (attention, "MultiHeadAttention", ["_compute_attention_mask", "_attention_axes"]),
        (attention, "MultiHeadAttention", ["_softmax"]),
        (keras.metrics.BinaryAccuracy(), "Metric", ["_direction", "_fn"]),
        (inputs, "KerasTensor", ["_keras_history"]),
        (model, "Functional", ["_inputs_struct", "_nodes_by_depth", "_run_through_graph"]),
        (sequential, "Sequential", ["_functional"]),
        (model, "Trainer", [*_HOOKS, *_COMPILED, "_loss_tracker", "_aggregate_additional_loss"]),
        (model, "Trainer", ["_initial_epoch", "_distribute_strategy", "_unpickle_model"]),
        (workers, "CollectiveAllReduceExtended", ["_in_multi_worker_mode"]),
        (contexts[0], f"the context {_CALL_CONTEXT!r}", ["get_value"]),
    ]
    pairs = [(owner, kind, name) for owner, kind, names in required for name in names]
    return [f"{kind}.{name}" for owner, kind, name in pairs if not hasattr(owner, name)]
