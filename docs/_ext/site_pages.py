# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Fills pages of the site: those with the text of a file of the top folder, and those of the API (see `api_pages`).

The files in docs/ that stand for these pages hold a heading or a list of pages, so that Sphinx and a reader of the
repository find them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_pages import api_page


if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]

# Files of the top folder that are pages of the site.
PAGES = {
    "README.md": "index",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
}
FILES = {page: file for file, page in PAGES.items()}

LINK = re.compile(r"(?P<image>!?)\[(?P<label>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Sphinx's `source-read`: the text of a page as it is read."""
    if page in FILES:
        source[0] = with_links_of_the_site((ROOT / FILES[page]).read_text(encoding="utf-8")) + "\n" + source[0]
    elif page.startswith("api/"):
        source[0] += "\n" + api_page(page.removeprefix("api/"))


def with_links_of_the_site(text: str) -> str:
    """The text of a file of the top folder: links to docs/ and to other pages lead there, links to files are code."""

    def replace(link: re.Match) -> str:
        path, hash_sign, anchor = link["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        if path.startswith("docs/"):
            return f"{link['image']}[{link['label']}]({link['target'].removeprefix('docs/')})"
        if path in PAGES:
            return f"[{link['label']}]({PAGES[path]}.md{hash_sign}{anchor})"
        return link["label"] if link["label"] == path else f"{link['label']} (`{path}`)"

    return LINK.sub(replace, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
