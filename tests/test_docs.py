"""Every public name is documented, and the README's Python runs."""

import ast
import builtins
import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

import bali_keras
import tfp_rank1 as r1
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.rank1 import ARGUMENTS

MODULES = [
    *(r1, r1.layers, r1.metrics, r1.posteriors, r1.priors, r1.likelihoods, r1.losses, r1.models),
    *(r1.callbacks, r1.plots, r1.random, r1.initializers, r1.recipes, bali_keras),
    *(bali_keras.layers, bali_keras.matrix_normal, bali_keras.schedules, bali_keras.recording),
    *(bali_keras.plots, bali_keras.models),
]


def public_members(module):
    for name, value in vars(module).items():
        if name.startswith("_") or not getattr(value, "__module__", "").startswith(
            ("tfp_rank1", "bali_keras")
        ):
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_names_are_documented(module):
    members, bare = dict(public_members(module)), []
    assert members
    for name, member in members.items():
        parts = {name: member}
        if inspect.isclass(member):
            for attribute, value in vars(member).items():
                if not attribute.startswith("_") and inspect.isfunction(value):
                    parts[f"{name}.{attribute}"] = getattr(member, attribute)
        bare += [where for where, part in parts.items() if not inspect.getdoc(part)]
    assert not bare


def examples_of(module):
    """The Python of every docstring, by name."""
    for name, member in public_members(module):
        parts = {name: member}
        if inspect.isclass(member):
            parts |= {f"{name}.{k}": v for k, v in vars(member).items() if inspect.isfunction(v)}
        for where, part in parts.items():
            blocks = re.findall(r"```python\n(.*?)```", inspect.getdoc(part) or "", re.DOTALL)
            yield from ((where, block) for block in blocks)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_name_what_is_public_by_r1_and_bk(module):
    """Then all run behind the same imports, those of the manual's page on the API."""
    public = {name for m in MODULES for name in m.__all__} - {*dir(builtins)}
    for where, block in examples_of(module):
        if where.split(".")[0] not in module.__all__:
            continue  # a tool of the package itself
        nodes = list(ast.walk(ast.parse(block)))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        given = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        given |= {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        used = {node.id for node in names if isinstance(node.ctx, ast.Load)} - given
        assert not used & public, where


def rank1_layers():
    """Layers with factors; `TimeDistributedRank1` only has a layer with factors within."""
    classes = {name: getattr(r1.layers, name) for name in r1.layers.__all__}
    return {
        name: cls
        for name, cls in classes.items()
        if name.endswith("Rank1") and cls is not r1.layers.TimeDistributedRank1
    }


def test_rank1_layers_have_every_section():
    """Sections that a class writes and sections from the template; no placeholder is left."""
    for name, cls in rank1_layers().items():
        text = inspect.getdoc(cls)
        assert "{{" not in text, name
        assert all(len(line) <= 100 for line in text.splitlines()), name
        for section in ("Args", "Input shape", "Output shape", "Raises", "Example", "Source"):
            assert len(re.findall(f"^{section}:", text, flags=re.MULTILINE)) == 1, (name, section)
        assert " o " in text, name  # an equation with factors
        assert f"`keras.layers.{name.removesuffix('Rank1')}`" in text, name
        assert all(f"`{argument}`" in text for argument in ARGUMENTS), name


def test_the_docstring_template():
    class DenseRank1:
        """A layer.

        Args:
            {{rank1_arguments}}
                More of it.
        """

    lines = fill_docstring(DenseRank1).__doc__.splitlines()
    assert lines[:3] == ["A layer.", "", "Args:"]
    assert lines[3].startswith("    **kwargs: every argument of `keras.layers.Dense`")
    assert lines[4].startswith("        `tfp_rank1.layers.Rank1Mixin`")
    assert lines[-1] == "        More of it."
    DenseRank1.__doc__ = None  # as under python -OO
    assert fill_docstring(DenseRank1).__doc__ is None
    DenseRank1.__doc__ = "{{unknown}}"
    with pytest.raises(KeyError, match="unknown"):
        fill_docstring(DenseRank1)


# -- the README -----------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
outside = pytest.mark.skipif(not README.exists(), reason="tests run against an installed wheel")


def readme_blocks():
    text = README.read_text() if README.exists() else ""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@outside
@pytest.mark.parametrize("block", readme_blocks(), ids=lambda block: block.count("\n"))
def test_readme_code_runs_as_it_stands(block, tmp_path, monkeypatch):
    """Each block by itself, with the data that it loads; one epoch does."""
    monkeypatch.chdir(tmp_path)
    block = re.sub(r"epochs=\d+", "epochs=1", block)
    block = block.replace("random_state=0", "random_state=0, epochs=1, ensemble_size=2")
    exec(compile(block, "README.md", "exec"), {})


@outside
def test_the_readme_is_short_and_its_figures_are_those_of_the_json(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    figures = importlib.import_module("figures")
    text = README.read_text()
    assert len(text.splitlines()) <= 130 and len(readme_blocks()) >= 3
    assert all(f"<!-- {name} -->" in text for name in figures.README_TABLES)
    assert figures.with_tables(text) == text, "run: python docs/figures.py"


@outside
def test_what_is_said_of_tables_is_so():
    """Which estimators are ahead on most tables, as README and manual say."""
    ahead = []
    for file in (ROOT / "examples/benchmark/results/tables").glob("*/bali_table.json"):
        scores = [
            json.loads(path.read_text())["summary"]
            for path in (file, file.with_name("rank1_table.json"))
        ]
        name, sign = ("nll", 1.0) if "nll" in scores[0] else ("log_likelihood", -1.0)
        bali, rank1 = (sign * found[name]["mean"] for found in scores)
        ahead.append(bali < rank1)
    assert len(ahead) >= 8 and np.mean(ahead) > 0.5


@outside
def test_the_manual_names_every_longer_example():
    named = re.findall(r"`examples\.([\w.]+)`", (ROOT / "docs/examples.md").read_text())
    for name in named:
        assert importlib.util.find_spec(f"examples.{name}"), name
    for folder in ("outputs", "learning"):
        files = {f"{folder}.{path.stem}" for path in (ROOT / "examples" / folder).glob("*.py")}
        assert files - {f"{folder}.__init__", "learning.spread"} <= set(named)


@outside
def test_every_public_module_has_a_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pages = importlib.import_module("api_pages")
    assert {module.__name__ for module in MODULES} <= set(pages.MODULES)
    for name in pages.MODULES:
        assert pages.public_names(importlib.import_module(name))
