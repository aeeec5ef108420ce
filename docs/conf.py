"""Settings of Sphinx: `python -m sphinx -W docs docs/_build`.

`RANK1_BALI_GUIDES=smoke` fits two epochs at most in every guide, `none` runs no guide.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import api_pages  # noqa: E402
import docstring_markup  # noqa: E402
import figures  # noqa: E402
from links import linkcode_resolve  # noqa: E402, F401  read by sphinx.ext.linkcode
from sphinx.application import Sphinx  # noqa: E402

import tfp_rank1  # noqa: E402

project = "rank1-bali"
author = "the rank1-bali maintainers"
copyright = f"2026, {author}"
release = version = tfp_rank1.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "guides"]
templates_path = ["_templates"]
myst_enable_extensions = ["dollarmath"]
bibtex_bibfiles = ["references.bib"]
# Docstrings name code in single backticks; what is documented becomes a link.
default_role = "py:obj"
# A name of ours with a dot must be documented; other code in backticks need not be.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:(?!obj).*", ".*"),  # bases that are not public, errors of others
    ("py:obj", r"(?!(tfp_rank1|bali_keras)\.[\w.]+$).*"),
]
autosummary_generate = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "none"  # the signature shows none; `Args` says shapes and units
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are documented once
napoleon_custom_sections = [
    ("Input shape", "params_style"),
    ("Output shape", "params_style"),
    "Source",
    "Call arguments",
]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"rank1-bali {version}"
# The package that carries MathJax along, so that equations show without a network.
_mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static"
html_static_path = ["_static", str(_mathjax)]
mathjax_path = "mathjax/tex-chtml.js"
html_css_files = ["tables.css"]
html_show_sphinx = False

# -- guides ---------------------------------------------------------------------------------------

_guides = os.environ.get("RANK1_BALI_GUIDES", "all")
ORDER = [
    "first_classifier",
    "error_bars",
    "pretrained_net",
    "segmentation",
    "forecasting",
    "tables",
    "calibration",
    "out_of_distribution",
    "serving",
    "devices_and_faults",
    "continual_and_active",
    "migration",
    "how_rank1_works",
    "how_bali_works",
    "extending",
    "gotchas",
]


def guide_number(name: str) -> int:
    """The place of a guide, by its file name."""
    return ORDER.index(Path(name).stem)


sphinx_gallery_conf = {
    "examples_dirs": "guides",
    "gallery_dirs": "auto_guides",
    "filename_pattern": ".",
    "plot_gallery": str(_guides != "none"),
    "within_subsection_order": "conf.guide_number",
    "reset_modules": ("guide_setup.reset",),
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("tfp_rank1", "bali_keras"),
    "inspect_global_variables": False,
    "first_notebook_cell": (
        "# In a hosted notebook this installs the packages; restart the runtime if it asks.\n"
        '%pip install -q "rank1-bali[examples,export]"'
    ),
    "default_thumb_file": str(DOCS / "_static/thumb.png"),
    "capture_repr": ("_repr_html_",),  # tables; no names of axes
    "min_reported_time": 1,
    "download_all_examples": False,
    "show_signature": False,
    "parallel": True,  # as many guides at a time as `-j` says
}

# Written before Sphinx looks for pages.
api_pages.write(DOCS / "api/generated", DOCS / "generated/backreferences")
figures.write_pages(DOCS / "generated")


def skips(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn adds to its estimators."""
    return True if getattr(obj, "__module__", None) == "sklearn.utils._metadata_requests" else None


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, text: str, returned: str
) -> tuple[str, None] | None:
    """A class is made as its `__init__` says; Keras's `__new__` takes anything."""
    if what != "class" or "__init__" not in vars(obj):
        return None
    _, *others = inspect.signature(obj.__init__).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in others]
    return str(inspect.Signature(bare)), None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skips)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring_markup.process, priority=400)
    return {"parallel_read_safe": True}
