"""The documentation site: ``sphinx-build -W docs build/docs``."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.inspect import signature, stringify_signature
from sphinx.util.nodes import make_refnode

import leadfl_pl

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from api_pages import INTERNAL, PLUGINS, pages  # noqa: E402

DOCUMENTED = {name.rpartition(".")[2] for name in (*leadfl_pl.__all__, *INTERNAL)}

project = "leadfl_pl"
copyright = "the leadfl_pl authors"
version = release = leadfl_pl.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
nitpicky = True
nitpick_ignore_regex = [  # other packages, which are not on this site
    (r"py:.*", r"(?!leadfl_pl\b)[a-zA-Z_]\w*(\.\w+)+"),
    (r"py:.*", r"Tensor|Method|Message|ArrayRecord|MetricRecord"),
    # types of arguments that users do not pass themselves
    (r"py:class", r"leadfl_pl\..*\.(Client|DiagonalProbe|Method|Snapshot|TensorBatches)"),
]
autodoc_mock_imports = ["flwr", "nvflare"]  # whose versions of other packages are older
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # else every rule repeats what a rule is
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Differences"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_update_mathjax = False
nb_execution_mode = "off"
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = f"leadfl_pl {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False


def write_sources() -> None:
    """Writes the API pages, and copies what lies elsewhere to where Sphinx looks for pages."""
    for folder in ("api", "notebooks"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    for name, text in pages().items():
        (HERE / "api" / f"{name}.rst").write_text(text)
    for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, HERE / "notebooks")
    results = (HERE.parent / "results" / "README.md").read_text()
    results = re.sub(r"\]\((?!\.\./|https?:|#)", "](../results/", results)
    (HERE / "results.md").write_text(results)


def links_to_results(app: Sphinx, page: str, source: list[str]) -> None:
    """``results/README.md``, as GitHub has it, is the page that :func:`write_sources` makes."""
    source[0] = re.sub(r"\]\((\.\./)?\.\./results/README\.md", r"](\1results.md", source[0])


def mathml(node: nodes.Element, display: str) -> str:
    """A formula as MathML, which browsers show without a script or a font from elsewhere."""
    formula = node.astext().replace("\n", " ").strip()
    if display == "block":
        formula = re.sub(r"(\\(?:sum|prod|min|max))(?=[_^])", r"\1\\limits", formula)
        if r"\\" in formula and r"\begin" not in formula:
            formula = rf"\begin{{align*}}{formula}\end{{align*}}"
    text = convert(formula.replace("{aligned}", "{align*}"), display=display)
    text = text.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')  # norms in one height
    if "\\" in text:
        logging.getLogger(__name__).warning("a command is not known in %s", formula, location=node)
    return text


def inline_math(self: Any, node: nodes.Element) -> None:
    self.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block_math(self: Any, node: nodes.Element) -> None:
    self.body.append(f'<div class="math">{mathml(node, "block")}')
    if number := node.get("number"):
        self.body.append(f'<span class="eqno">({number})</span>')
    self.body.append("</div>")
    raise nodes.SkipNode


def public_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[type]) -> None:
    """Shows the nearest public class in place of a base that only shares code."""
    for i, base in enumerate(bases):
        line = base.__mro__ if isinstance(base, type) else [base]  # NamedTuple, another's stand-in
        bases[i] = next(b for b in line if b.__name__ in DOCUMENTED or not is_ours(b))


def own_arguments(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    shown: str | None,
    returns: str | None,
) -> Any:
    """The arguments of a class whose base is another package's stand-in, not those of that."""
    if shown == "(*args: Any, **kwargs: Any)" and what == "class":
        own = signature(obj.__init__, bound_method=True)
        return stringify_signature(own, show_return_annotation=False), None
    return None


def is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "leadfl_pl"


def no_field_numbers(app: Sphinx, what: str, name: str, *rest: Any) -> None:
    """Leaves out what Python says of the field of a NamedTuple without a comment."""
    lines: list[str] = rest[-1]
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def by_last_name(app: Sphinx, env: BuildEnvironment, node: Any, text: nodes.Node) -> Any:
    """What a docstring calls by its last name alone, as the code of its file does."""
    ending = f".{node['reftarget']}"
    entries = env.domains["py"].objects.items()
    ends = {(e.docname, e.node_id) for name, e in entries if name.endswith(ending)}
    if node.get("refdomain") != "py" or len(ends) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], *ends.pop(), text)


def require_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of every public name that no page documents."""
    for module in ("leadfl_pl", *PLUGINS.values()):
        for name in sys.modules[module].__all__:
            if f"{module}.{name}" not in env.domains["py"].objects:
                logging.getLogger(__name__).warning("%s.%s is on no page", module, name)


def setup(app: Sphinx) -> None:
    write_sources()
    app.connect("source-read", links_to_results)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", no_field_numbers)
    app.connect("autodoc-process-signature", own_arguments)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("missing-reference", by_last_name)
    app.connect("env-check-consistency", require_public_names)
