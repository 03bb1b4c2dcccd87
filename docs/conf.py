"""Sphinx: the pages are the Markdown files of the repository, where they stand; `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipelines.version import VERSION  # noqa: E402

project = "Gemini pipelines"
release = version = VERSION
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "docs/*.md",
]
highlight_language = "text"
html_theme = "furo"
html_title = project
html_copy_source = False
myst_heading_anchors = 3


def setup(app: Sphinx) -> None:
    """Whoever opens the site's folder is led to its first page."""

    def lead_to_first_page(app: Sphinx, error: Exception | None) -> None:
        if error is None and app.builder.format == "html":
            page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
            (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")

    app.connect("build-finished", lead_to_first_page)
