"""A page for every public module, with a row for each of its public names."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

ROOMS = {
    "tfp_rank1": (
        *("layers", "likelihoods", "posteriors", "priors", "divergence", "metrics", "plots"),
        *("models", "moments", "callbacks", "losses", "initializers", "random", "recipes"),
        "sklearn",
    ),
    "bali_keras": (
        *("layers", "models", "plots", "schedules", "matrix_normal", "recording", "sklearn"),
    ),
}
# What every example in a docstring may use.
IMPORTS = (
    "import keras",
    "import numpy as np",
    "import tensorflow as tf",
    "from tensorflow_probability import distributions as tfd",
    "",
    "import bali_keras as bk",
    "import tfp_rank1 as r1",
)
MODULES = tuple(
    f"{package}.{room}".rstrip(".") for package in ROOMS for room in ("", *ROOMS[package])
)


def write(folder: Path, examples: Path) -> None:
    """Write the pages, and empty lists of guides for names that no guide uses.

    Args:
        folder: of the pages.
        examples: where the gallery lists the guides that use a name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples.mkdir(parents=True, exist_ok=True)
    (folder / "index.rst").write_text(_index())
    for module in map(importlib.import_module, MODULES):
        names = public_names(module)
        (folder / f"{module.__name__}.rst").write_text(_page(module, names))
        for name in names:
            (examples / f"{module.__name__}.{name}.examples").touch()


def public_names(module: ModuleType) -> list[str]:
    """The classes and functions of a module, as its `__all__` lists them."""
    found = ((name, getattr(module, name)) for name in module.__all__)
    return [name for name, value in found if inspect.isclass(value) or inspect.isfunction(value)]


def _index() -> str:
    lines = ["API", "===", "", "Every public name, by module. Examples begin with", ""]
    lines += [".. code-block:: python", "", *(f"   {line}" for line in IMPORTS), ""]
    lines += ["and stand on data and a model of your own: ``x``, ``y``, ``model``.", ""]
    lines += [".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in MODULES), ""]
    return "\n".join(lines)


def _page(module: ModuleType, names: list[str]) -> str:
    title = module.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
    lines += [f".. currentmodule:: {title}", "", ".. autosummary::", "   :toctree: .", ""]
    return "\n".join([*lines, *(f"   {name}" for name in names), ""])
