# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the cards of models and of data sets share: templates, tables, and names without local paths."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import jinja2
from huggingface_hub import CardData, RepoCard

from jest_hf.report.table import format_table


Card = TypeVar("Card", bound=RepoCard)


def render_card(kind: type[Card], metadata: CardData, template: str, **values: Any) -> Card:
    """Fill in a template of `model_cards/`.

    Args:
        kind (`type`): `ModelCard` or `DatasetCard`.
        metadata (`CardData`): The metadata at the top of the card.
        template (`str`): File name of the template, which may extend another one.
        **values: Values of the template's variables.

    Returns:
        The card, of type `kind`.

    Raises:
        jinja2.UndefinedError: if a value of the template is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"plain": plain, "code": code, "python": python}
    text = environment.get_template(template).render(**values)
    return kind(f"---\n{metadata.to_yaml()}\n---\n\n{text.strip()}\n")


def read_template(name: str) -> str:
    """Read a Jinja template of `model_cards/` by its file name."""
    try:
        folder = resources.files("jest_hf.model_cards")
    except ModuleNotFoundError:  # a source tree on the path that is not installed
        folder = Path(__file__).parents[2] / "model_cards"
    return (folder / name).read_text(encoding="utf-8")


def plain(value: object) -> str:
    """Return a name, a caption or an id of a user as text of a card that shows as it is: no Markdown, no HTML."""
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*\[\]~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;").replace(">", "&gt;")


def code(value: object) -> str:
    """Return a name for a place between backticks, which no escape can hold."""
    return " ".join(str(value).replace("`", "'").split())


def python(value: object) -> str:
    """Return a value as Python, in the double quotes of the other code in the cards."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{python(name)}: {python(one)}' for name, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(python, value))}]"
    return repr(value)


def card_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table whose texts show as they are; see [`~jest_hf.report.format_table`]."""
    return format_table(headers, [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows])


def about_table(rows: Sequence[tuple[str, object]]) -> str:
    """Return a table of names and values without those that are `None`; an empty text if all are."""
    # As texts: the column has both numbers and words.
    known = [
        (name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows if value is not None
    ]
    return card_table(["", "value"], known) if known else ""


def percent(share: float | None) -> str | None:
    """Return a share as text, such as `"12.5%"`."""
    return None if share is None else f"{share:.1%}"


def is_hub_id(name: str | None) -> TypeGuard[str]:
    """Return whether a name is `owner/name` and no local path. A bare name is taken for a path."""
    return name is not None and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not os.path.exists(name)


def public_name(name: str | None) -> str | None:
    """Return a Hub id as it is, and the last part of a path: the rest describes the machine, not the model."""
    return name if name is None or is_hub_id(name) else os.path.basename(os.path.normpath(name))


def at_revision(name: str | None, revision: str | None) -> str | None:
    """Return `name@revision`, or what is known of it."""
    name = public_name(name)
    return f"{name}@{revision}" if name and revision else name


__all__ = [
    "about_table",
    "at_revision",
    "card_table",
    "is_hub_id",
    "percent",
    "plain",
    "public_name",
    "python",
    "read_template",
    "render_card",
]
