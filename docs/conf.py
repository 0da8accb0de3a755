# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: `make docs` builds docs/_build/html without network, and fails on any warning."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import jest_hf  # noqa: E402


project = "jest_hf"
copyright = "The jest_hf authors, Apache-2.0"
version = release = jest_hf.__version__

extensions = ["myst_parser", "site_pages"]
# A cross reference that leads nowhere is an error (`py:obj`); a type in a signature that no page describes, or an
# exception, stays text.
nitpicky = True
nitpick_ignore_regex = [("py:(class|exc|data)", ".*")]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["fieldlist"]
myst_heading_anchors = 4

add_module_names = False
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"jest_hf {version}"
html_copy_source = False
html_show_sphinx = False
