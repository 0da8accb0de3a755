# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The pages of the repository, read as Markdown: their code blocks, inline code, links and headings."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*TOP, *GUIDES, *sorted((ROOT / ".github").rglob("*.md"))]

FENCE = re.compile(r"^ *(`{3,})(\S*)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    file: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def name_of(path: Path) -> str:
    """A file as it is named from the top folder."""
    return path.relative_to(ROOT).as_posix()


def blocks_of(text: str, file: str, first_line: int = 1) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        line = first_line + text.count("\n", 0, match.start()) + 1
        yield Block(file, line, match[2], textwrap.dedent(match[3]))


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in one of these languages."""
    found = [block for page in PAGES for block in blocks_of(page.read_text(), name_of(page))]
    return [block for block in found if block.language in languages]


def docstring_blocks(language: str) -> list[Block]:
    """The blocks in docstrings of the package."""
    found = []
    for path in sorted((ROOT / "jest_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                first_line = node.body[0].lineno
                found += blocks_of(inspect.cleandoc(ast.get_docstring(node)), name_of(path), first_line)
    return [block for block in found if block.language == language]


def prose(text: str) -> str:
    """A page without its blocks of code; lines keep their numbers."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def spans(page: Path) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page.read_text()))


def links(text: str) -> list[str]:
    """The targets of links and images."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(text))
    return re.findall(r"\]\(\s*<?([^()\s>]+)>?[^()]*\)", without_code) + re.findall(r'src="([^"]+)"', without_code)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        names.add(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return names
