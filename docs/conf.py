"""Sphinx settings of the site; `make site` gathers its pages first, see quantlib/study/site.py."""

from sphinx import addnodes

from quantlib import __version__
from quantlib.study.site import docstring

project, author, release = "quantlib", "The quantlib authors", __version__
copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "quantlib"
html_static_path: list[str] = []
html_favicon = "icon.svg"
html_copy_source = False
html_show_sourcelink = False

nb_execution_mode = "off"  # the outputs are those that the course recorded
nb_render_image_options = {"alt": "figure"}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# The type `bytes` is looked for among our own names too, and several attributes are called so.
suppress_warnings = ["ref.python"]
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"


def without_folders(app, doctree):
    """Take the value away from constants that are folders: it would be one of this machine."""
    for value in list(doctree.findall(addnodes.desc_annotation)):
        if "Path('" in value.astext():
            value.parent.remove(value)


def setup(app):
    """Our docstrings are plain text: formulas indented, names in single backticks."""
    app.connect("autodoc-process-docstring", lambda app, what, name, obj, options, lines: docstring(lines))
    app.connect("doctree-read", without_folders)
