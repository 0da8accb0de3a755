# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A report on a run as one HTML page. It has no script and loads nothing; texts of the data are escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from jest_hf.curation.pictures import Picture


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A browser refuses what the page does not need: scripts, frames, fonts, forms and all requests.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .9rem .15rem 0; vertical-align: top; }
.figure { max-width: 100%; height: auto; } .note { color: #7a4b00; }
.gallery { display: flex; flex-wrap: wrap; gap: .7rem; }
.gallery figure { width: 126px; margin: 0; font-size: 11px; line-height: 1.3; overflow-wrap: anywhere; }
.gallery img { width: 112px; height: 112px; object-fit: contain; object-position: left; display: block; }
.gallery b { display: block; font-weight: 600; } .gallery i { color: #666; display: block; font-style: normal; }
"""


@dataclass
class Gallery:
    """Pictures with a title and a sentence about them."""

    title: str
    about: str
    pictures: list[Picture]


@dataclass
class Table:
    """A table with a title: a row of heads, and rows of texts."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class RunReport:
    """
    A report on a run.

    Args:
        folder (`Path`): The run.
        facts (list of pairs of `str`): What the run was, in words and numbers.
        figures (`dict`): matplotlib figures, by title.
        galleries (list of [`Gallery`]): Pictures.
        tables (list of [`Table`]): Tables.
        notes (list of `str`): What the report lacks, and why.
    """

    folder: Path
    facts: list[tuple[str, str]]
    figures: dict[str, Figure]
    galleries: list[Gallery] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def html(self) -> str:
        """Return the report as one HTML page: without a script, and without a request to anywhere."""
        return _page_of(self)


def _page_of(report: RunReport) -> str:
    """Return the page of a report, UTF-8."""
    name = report.folder.resolve().name
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">',
        f"<title>{_text(name)}: what was selected</title><style>{STYLE}</style></head><body>",
        f"<h1>What the run {_text(name)} selected</h1>",
        *(f'<p class="note">{_text(note)}</p>' for note in report.notes),
        _table((), report.facts),
    ]
    for title, figure in report.figures.items():
        image = f'<img class="figure" alt="{_text(title)}" src="{_uri("image/png", _png(figure))}">'
        parts.append(f"<h2>{_text(title)}</h2>{image}")
    for gallery in report.galleries:
        parts.append(f"<h2>{_text(gallery.title)}</h2><p>{_text(gallery.about)}</p>")
        parts.append(f'<div class="gallery">{"".join(map(_picture, gallery.pictures))}</div>')
    for table in report.tables:
        parts.append(f"<h2>{_text(table.title)}</h2>{_table(table.heads, table.rows)}")
    return "\n".join([*parts, "</body></html>\n"])


def _picture(picture: Picture) -> str:
    image = ""
    if picture.jpeg is not None:
        image = f'<img alt="{_text(picture.title)}" src="{_uri("image/jpeg", picture.jpeg)}">'
    note = f"<b>{_text(picture.note)}</b>" if picture.note else ""
    return f"<figure>{image}{note}{_text(picture.caption)}<i>{_text(picture.title)}</i></figure>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if heads else ''}{body}</table>"


def _text(text: object) -> str:
    """Escape a text of the data, also for attributes; marks that turn the direction of writing are replaced."""
    kept = (one if one.isprintable() or one in "\n\t" else "\ufffd" for one in str(text))
    return escape("".join(kept), quote=True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


__all__ = ["Gallery", "RunReport", "Table"]
