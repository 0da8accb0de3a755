# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Links, anchors, paths and dotted names on the pages lead somewhere. Nothing is fetched."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, name_of, spans


FOLDERS = "|".join(sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")))
PATH = re.compile(rf"(?:{FOLDERS})/[\w./-]*\w/?")
DOTTED = re.compile(r"jest_hf(\.[A-Za-z_]\w*)+")


def broken(page: Path, text: str) -> list[str]:
    """The links of a page with this text that lead nowhere."""
    found = []
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            if not re.match(r"https://[\w.-]+\.[a-z]+(/|$)|mailto:\S+@\S+$", target):
                found.append(target)
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        if not file.exists():
            found.append(target)
        elif anchor and anchor not in anchors(text if file == page else file.read_text()):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text()) == []


def test_links_that_lead_nowhere_are_seen():
    page = ROOT / "README.md"
    text = (
        "# A `title`, twice\n# A `title`, twice\n"
        "[a](docs/method.md) [b](docs/methods.md) [c](docs/method.md#losses) [d](docs/method.md#loss) "
        "[e](#a-title-twice-1) [f](#a-title-twice-2) ![g](docs/images/none.png) [h](http://insecure.org) "
        "`[code](nowhere.md)`\n```text\n[block](nowhere.md)\n```\n"
    )
    wanted = ["docs/methods.md", "docs/method.md#loss", "#a-title-twice-2", "docs/images/none.png"]
    assert broken(page, text) == [*wanted, "http://insecure.org"]


# The changelog names what has gone.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_paths_and_modules_in_inline_code_exist(page):
    for span in spans(page):
        if PATH.fullmatch(span):
            assert (ROOT / span).exists(), span
        if DOTTED.fullmatch(span):
            assert resolves(span), span


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return bool(module) and hasattr(importlib.import_module(module), attribute)
    return True


def test_names_that_do_not_exist_are_seen():
    assert resolves("jest_hf.selection") and resolves("jest_hf.selection.gumbel_noise")
    assert not resolves("jest_hf.selection.gumble_noise") and not resolves("jest_hf.selections")
