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
    """Saves everything training depends on after every epoch, and starts from the last of it.

    Given to `fit`, it looks for checkpoints in its folder. Without one training begins as usual;
    otherwise weights, posteriors and statistics, the optimizer with its step (and so schedules
    and annealing), and the state of all random generators are those of the last whole epoch,
    and `fit` goes on with the next. A run that was killed and started again by the same script
    ends with the same bits as one that was not, if epoch e has the same batches in both
    (`shuffle=False`, or a dataset shuffled by a seed made from e). With several replicas or
    workers the state is that of the first, which is all of it unless layers keep statistics of
    their own replica (`BatchNormalization(synchronized=False)`); workers share the folder.

    Not saved is what Keras has no place for: the memory of other callbacks (`EarlyStopping` and
    `ReduceLROnPlateau` begin to count anew, and a run that one of them ended goes on if it is
    started again), and Keras's global generator, from which `keras.random` draws without a seed.

    A checkpoint appears under its name only when it is complete, and the name holds a digest of
    its content: one that was cut or damaged is passed over, with a warning, for the one before.
    If one cannot be written, for example on a full disk, training goes on, with a warning, and
    the earlier ones stay.

    Args:
        folder: of this run's checkpoints, made if it is missing.
        keep: how many to keep, at least 1. Defaults to 2.
        verbose: 1 (default) says from which checkpoint training goes on, 0 nothing.

    Raises:
        ValueError: for a `keep` below 1; in `fit` with a model that is not built, or whose
            checkpoints are those of other layers, another likelihood, loss or optimizer.

    Example:
    ```python
    model.fit(x, y, epochs=100, callbacks=[tfp_rank1.callbacks.Resume("run1")])
    ```
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, verbose: int = 1) -> None:
        super().__init__()
        self.folder = Path(folder).expanduser()
        self.keep = whole("keep", keep)
        self.verbose = verbose

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Go back to the newest checkpoint that is whole, if there is one."""
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
                with contextlib.suppress(OSError):  # it must not count as one to keep
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
        """Let the next `fit` begin where its arguments say, also if this one is interrupted."""
        set_initial_epoch(self.model, None)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write a checkpoint, then remove the oldest."""
        if not self.model.distribute_strategy.extended.should_checkpoint:
            return  # another worker does
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
        """Epochs with their files, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)


# -- one file -------------------------------------------------------------------------------------


def _saved_variables(model: keras.Model) -> list[keras.Variable]:
    """Weights, optimizer, and states of random generators, in an order that code determines."""
    trained = getattr(model, "optimizer_variables", model.trainable_variables)
    if model.optimizer is not None and not model.optimizer.built and trained:
        model.optimizer.build(trained)
    slots = [] if model.optimizer is None else model.optimizer.variables
    return [*model.weights, *slots, *(g.state for g in _generators(model))]


def _content(model: keras.Model) -> bytes:
    # In memory, and not HDF5, whose library ends the process if a file cannot be written.
    buffer = io.BytesIO()
    np.savez(buffer, *map(_array, _saved_variables(model)), kind=np.array(_kind(model)))
    return buffer.getvalue()


def _array(variable: keras.Variable) -> np.ndarray:
    """A variable's value; types that NumPy has not, such as bfloat16, as float32, exactly."""
    value = keras.ops.convert_to_numpy(variable)
    return value.astype("float32") if value.dtype.kind == "V" else value


def _kind(model: keras.Model) -> str:
    """What a model is made of. Names of layers are left out: they differ from run to run."""
    parts = [*layers_of(model), getattr(model, "likelihood", None), model.optimizer]
    names = [type(part).__name__ for part in parts]
    loss = getattr(model, "loss", None)
    return " ".join([*names, loss if isinstance(loss, str) else type(loss).__name__])


def _restore(model: keras.Model, path: Path) -> None:
    variables = _saved_variables(model)
    with np.load(path, allow_pickle=False) as arrays:
        kind = str(arrays["kind"])
        values = [arrays[name] for name in arrays.files if name != "kind"]
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
    """Of all layers, those of Keras too, which save no random state by themselves."""
    found: dict[int, keras.random.SeedGenerator] = {}
    for layer in layers_of(model):
        found.update({id(generator): generator for generator in seed_generators_of(layer)})
    return list(found.values())


def _is_whole(path: Path) -> bool:
    try:
        return _digest(path.read_bytes()) in path.name
    except OSError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _write(folder: Path, name: str, content: bytes) -> None:
    """All of a file or none: it gets its name when its content is on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"writing-{os.getpid()}"
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(folder / name)
    finally:
        scratch.unlink(missing_ok=True)
