"""Checkpoints from which a killed training goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import warnings
from pathlib import Path

import keras
import numpy as np

from tfp_rank1.checks import whole
from tfp_rank1.keras_internals import layers_of, seed_generators_of, set_initial_epoch

__all__ = ["Resume"]

_NAME = re.compile(r"epoch-(\d{6})-[0-9a-f]{16}\.npz")


class Resume(keras.callbacks.Callback):
    """Saves all that training depends on after every epoch, and starts from the last such epoch.

    When `fit` begins, the callback looks for checkpoints in its folder. Without any, training
    begins as usual. Otherwise the newest checkpoint restores weights, posteriors and statistics,
    the optimizer with its step (and so schedules and annealing), and the state of all random
    generators, and `fit` goes on with the next epoch. A run that was killed and started again by
    the same script ends with the same bits as an undisturbed run, if epoch e has the same batches
    in both (`shuffle=False`, or a dataset that is shuffled by a seed made from e).

    With several replicas or workers the state of the first is saved. That is the whole state unless
    every replica keeps statistics of its own (`BatchNormalization(synchronized=False)`). Workers
    must share the folder.

    Two things are not saved, because Keras has no place for them: the memory of other callbacks
    (`EarlyStopping` and `ReduceLROnPlateau` begin to count anew, and a run that one of them ended
    goes on if it is started again), and Keras's global generator, from which `keras.random` draws
    without a seed.

    A checkpoint gets its name only when it is complete, and the name holds a digest of its content.
    A damaged checkpoint is passed over with a warning, and the one before it is used. If a
    checkpoint cannot be written, for example on a full disk, training goes on with a warning, and
    earlier checkpoints stay.

    Args:
        folder: folder of this run's checkpoints; it is made if it is missing.
        keep: number of checkpoints to keep, at least 1. Defaults to 2.
        verbose: 1 (default) prints from which checkpoint training goes on, 0 prints nothing.

    Raises:
        ValueError: for a `keep` below 1. In `fit`, for a model that is not built, or a checkpoint
            of other layers, or of another likelihood, loss or optimizer.

    Example:
    ```python
    model.fit(x, y, epochs=100, callbacks=[r1.callbacks.Resume("run1")])
    ```
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, verbose: int = 1) -> None:
        super().__init__()
        self.folder = Path(folder).expanduser()
        self.keep = whole("keep", keep)
        self.verbose = verbose

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Restore the newest checkpoint that is whole, if there is one.

        Raises:
            ValueError: for a model that is not built, or a checkpoint of another model.
        """
        if not self.model.built:
            raise ValueError(
                "Resume needs a model whose weights exist: call it on a batch, or use a Functional "
                f"model. Received: an unbuilt {type(self.model).__name__}"
            )
        for epoch, path in reversed(self._checkpoints()):
            if not _is_whole(path):
                warnings.warn(
                    f"{path} is damaged; the checkpoint before it is used, if there is one",
                    stacklevel=2,
                )
                with contextlib.suppress(OSError):  # else it would count as one of `keep`
                    path.rename(path.with_name(f"{path.name}.damaged"))
                continue
            _restore(self.model, path)
            set_initial_epoch(self.model, epoch)
            self._report(epoch, path)
            return

    def _report(self, epoch: int, path: Path) -> None:
        epochs = (self.params or {}).get("epochs")
        if epochs is not None and epoch >= epochs:
            warnings.warn(
                f"All epochs are done: the model is that of {path}. For more give a larger "
                f"`epochs`, for another run another folder. Received: epochs={epochs}",
                stacklevel=3,
            )
        elif self.verbose:
            print(f"Going on after epoch {epoch}, from {path}")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Let the next `fit` begin where its arguments say."""
        # Here as well as at the end, which an interrupted `fit` does not reach.
        set_initial_epoch(self.model, None)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write a checkpoint, then remove the oldest."""
        if not self.model.distribute_strategy.extended.should_checkpoint:
            return  # another worker saves the same state
        try:
            content = _content(self.model)
            name = f"epoch-{epoch + 1:06d}-{_digest(content)}.npz"
            _write(self.folder, name, content)
        except Exception as error:  # training is worth more than its checkpoint
            warnings.warn(
                f"No checkpoint after epoch {epoch + 1}: {error!r}. Training goes on; the earlier "
                f"checkpoints in {self.folder} are kept",
                stacklevel=2,
            )
            return
        for _, path in self._checkpoints()[: -self.keep]:
            path.unlink(missing_ok=True)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Let the next `fit` begin where its arguments say."""
        set_initial_epoch(self.model, None)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        """Numbers of epochs with their files, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)


# -- one file -------------------------------------------------------------------------------------


def _saved_variables(model: keras.Model) -> list[keras.Variable]:
    """Weights, slots of the optimizer, and what is saved beside them, in a fixed order."""
    # Slots have to exist before they are restored, and Keras makes them in the first step only.
    trained = getattr(model, "optimizer_variables", model.trainable_variables)
    if model.optimizer is not None and not model.optimizer.built and trained:
        model.optimizer.build(trained)
    slots = [] if model.optimizer is None else model.optimizer.variables
    beside = getattr(model, "state_beside_weights", [])
    return [*model.weights, *slots, *(g.state for g in _generators(model)), *beside]


def _content(model: keras.Model) -> bytes:
    # In memory, because the name of the file needs a digest of it. And not HDF5, whose library
    # ends the process if a file cannot be written.
    buffer = io.BytesIO()
    np.savez(buffer, *map(_array, _saved_variables(model)), kind=np.array(_kind(model)))
    return buffer.getvalue()


def _array(variable: keras.Variable) -> np.ndarray:
    """A variable's value as an array that NumPy can store."""
    # NumPy lacks some types, such as bfloat16; float32 holds their values exactly.
    value = keras.ops.convert_to_numpy(variable)
    return value.astype("float32") if value.dtype.kind == "V" else value


def _kind(model: keras.Model) -> str:
    """The classes of a model's layers, likelihood, optimizer and loss, as one text."""
    # No names of layers: Keras numbers them, so that they differ from run to run.
    parts = [*layers_of(model), getattr(model, "likelihood", None), model.optimizer]
    names = [type(part).__name__ for part in parts]
    loss = getattr(model, "loss", None)
    return " ".join([*names, loss if isinstance(loss, str) else type(loss).__name__])


def _restore(model: keras.Model, path: Path) -> None:
    """Load a checkpoint into a model.

    Raises:
        ValueError: for a checkpoint of another model; the model is then as before.
    """
    variables = _saved_variables(model)
    with np.load(path, allow_pickle=False) as arrays:
        kind = str(arrays["kind"])
        values = [arrays[name] for name in arrays.files if name != "kind"]
    # Checkpoints of 0.1.0 end before what is saved beside the weights.
    beside = len(getattr(model, "state_beside_weights", []))
    if len(variables) - beside <= len(values):
        variables = variables[: len(values)]
    shapes = [tuple(v.shape) for v in variables]
    if kind != _kind(model) or shapes != [v.shape for v in values]:
        raise ValueError(
            f"{path} belongs to another model, loss or optimizer. Give every run a folder of its "
            f"own, or remove this one. Received: {len(values)} arrays of {kind!r} for "
            f"{len(shapes)} variables of {_kind(model)!r}, or of other shapes"
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """The random generators of all layers, each once; stock layers do not save theirs."""
    found: dict[int, keras.random.SeedGenerator] = {}
    for layer in layers_of(model):
        found.update({id(generator): generator for generator in seed_generators_of(layer)})
    return list(found.values())


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read and has the digest that its name says."""
    try:
        return _digest(path.read_bytes()) in path.name
    except OSError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"writing-{os.getpid()}"
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the rename: a name must stand for all the content
        scratch.replace(folder / name)
    finally:
        scratch.unlink(missing_ok=True)
