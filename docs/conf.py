"""How the documentation is built: ``pip install '.[docs]' && sphinx-build -W --keep-going -n docs docs/_build``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pygments.lexers.special import TextLexer
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

project = "stepwell"
author = "The stepwell authors"
copyright = "The stepwell authors. Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "README.md"]

html_theme = "furo"
html_title = "stepwell"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"font-stack--monospace": "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"}
}
pygments_style = "default"
pygments_dark_style = "monokai"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_display_short_literal_types = True
maximum_signature_line_length = 110
python_trailing_comma_in_multi_line_signatures = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
toc_object_entries = False
default_role = None
highlight_language = "text"

# Types of the standard library and of drivers are not documented here, nor are names that only type checkers read.
nitpick_ignore_regex = [(r"py:.*", r"(?!stepwell\b).*")]

_PUBLIC = ("stepwell", "stepwell.reasons", "stepwell.testing", "stepwell.testing.invariants", "stepwell.testing.faults")
# Named in signatures, and of no use to whoever reads them: what they take is told in words.
_UNTOLD = {"Clock", "Named", "StartOptions", "TaskDecorator", "TaskOptions", "Wait", "WorkflowDecorator"}


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Send a reference to where a name is defined on to where it is documented: users import it from there."""
    home, _, name = node.get("reftarget", "").rpartition(".")
    for module in _PUBLIC:
        for full, entry in env.domains["py"].find_obj(env, None, None, f"{module}.{name}", None, 0):
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, full)
    return content if name in _UNTOLD or _is_type_variable(home, name) else None


def _is_type_variable(home: str, name: str) -> bool:
    try:
        return isinstance(getattr(import_module(home), name, None), (TypeVar, ParamSpec))
    except (ImportError, ValueError):
        return False


def _show_one_signature() -> None:
    """Let the reference show one signature, of the code or as written there, where type checkers see many."""
    analyze = ModuleAnalyzer.analyze

    def analyze_without_overloads(self: ModuleAnalyzer) -> None:
        analyze(self)
        self.overloads = {}

    ModuleAnalyzer.analyze = analyze_without_overloads  # type: ignore[method-assign]


class Golden(TextLexer):
    """Bytes on record, which other tests look for; to readers they are text."""


def setup(app: Any) -> None:
    app.connect("missing-reference", resolve)
    app.add_lexer("golden", Golden)
    _show_one_signature()
