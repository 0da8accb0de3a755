# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Write a generated card (`README.md`) again and again, and keep what users wrote into it.

Each generated section lies between two comments in the Markdown, and the first comment has a digest of the section. A
third comment has digests of the metadata. One rule tells generated text from a user's text:

    What is still exactly as it was generated is replaced. Everything else belongs to the user, and is kept.

So a user can put sections anywhere. A section is no longer replaced if it was edited, if its comments were removed, or
if the user's text has a section with the same heading. In the metadata, a value that the user changed or added is
kept, and lists (tags, data sets, results in the model index) have the generated and the user's elements. What a user
deleted is generated again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData, RepoCard, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers.utils import logging

from jest_hf.files import replacing
from jest_hf.hub.card_parts import is_hub_id


logger = logging.get_logger(__name__)

BEGIN = "<!-- jest_hf:{name} {digest} generated; your edits, here and elsewhere, stay -->"
END = "<!-- jest_hf:end -->"
METADATA = "<!-- jest_hf:metadata {digests} -->"
SECTION = re.compile(
    r"<!-- jest_hf:(?P<name>[\w-]+) (?P<digest>[0-9a-f]{8}) [^>]*-->\n+"
    rf"(?P<body>(?:(?!<!-- jest_hf:).)*?)\n+{re.escape(END)}\n*",
    re.DOTALL,
)
WRITTEN = re.compile(r"\n*<!-- jest_hf:metadata (?P<digests>[0-9a-f ]*) -->\n*")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
# peft adds this at the end of any card when it saves an adapter.
PEFT_NOTE = re.compile(r"\n*### Framework versions\n\n- PEFT \S+\s*\Z")
MODEL_INDEX = "model-index"


def write_card(card: RepoCard, path: str | os.PathLike[str]) -> None:
    """Write a card to a file, and keep what users wrote into the file.

    Args:
        card (`huggingface_hub.RepoCard`): A card made by a function of [`jest_hf.hub`].
        path (`str` or `os.PathLike`): The `README.md`. It is replaced in one move: if the process is killed, the old
            or the new file is there.

    Raises:
        ValueError: if the file begins with metadata that cannot be read.
    """
    path = Path(path)
    existing = path.read_text(encoding="utf-8-sig") if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(merge_card(card, existing).encode())


def push_card(
    card: RepoCard,
    repo_id: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Update the card",
) -> str:
    """Commit a card to a repository on the Hub, and keep what users, or other libraries, wrote into its card.

    Args:
        card (`huggingface_hub.RepoCard`): A card made by a function of [`jest_hf.hub`]. A `DatasetCard` goes to a
            data-set repository.
        repo_id (`str`): An existing repository, `owner/name`.
        token (`str`, *optional*): Token that may write. Default: the token of `hf auth login`.
        revision (`str`, *optional*): The branch. Default: `main`.
        commit_message (`str`, *optional*): Message of the commit.

    Returns:
        `str`: the commit.

    Raises:
        ValueError: if the Hub does not accept the metadata, or the repository's card begins with metadata that cannot
            be read.
    """
    try:
        path = hf_hub_download(repo_id, "README.md", repo_type=card.repo_type, revision=revision, token=token)
        existing = Path(path).read_text(encoding="utf-8-sig")
    except RemoteEntryNotFoundError:  # there is no card; a failed request raises another error
        existing = None
    content = merge_card(card, existing).encode()
    commit = HfApi().upload_file(
        path_or_fileobj=content,
        path_in_repo="README.md",
        repo_id=repo_id,
        repo_type=card.repo_type,
        revision=revision,
        token=token,
        commit_message=commit_message,
    )
    return commit.oid


def merge_card(card: RepoCard, existing: str | None = None) -> str:
    r"""Merge a generated card into an existing one.

    Args:
        card (`huggingface_hub.RepoCard`): The generated card; it is not changed.
        existing (`str`, *optional*): The whole text of the existing card, whoever wrote it.

    Returns:
        `str`: the text of the merged card, with the comments that mark generated text.

    Raises:
        ValueError: if `existing` begins with metadata that cannot be read.

    Example:

    ```python
    >>> from huggingface_hub import ModelCard
    >>> from jest_hf.hub import merge_card
    >>> first = merge_card(ModelCard("# Learner\n\n## Results\n\n0.5"))
    >>> edited = first + "\n## My notes\n\nKeep me."
    >>> second = merge_card(ModelCard("# Learner\n\n## Results\n\n0.6"), edited)
    >>> "0.5" in second, "0.6" in second, "Keep me." in second
    (False, True, True)

    ```
    """
    metadata, text = _split(existing or "")
    text = PEFT_NOTE.sub("", text)
    if text.strip() == ModelCard.from_template(ModelCardData()).text.strip():  # the Hub's empty template
        text = ""
    written = {digest for found in WRITTEN.finditer(text) for digest in found["digests"].split()}
    text = WRITTEN.sub("\n\n", text)

    generated = yaml.safe_load(card.data.to_yaml()) or {}
    merged = _merge_metadata(generated, metadata, written)
    body = _merge_text(_sections(card.text), text).strip()
    digests = METADATA.format(digests=" ".join(_digests(generated)))
    return f"---\n{yaml.dump(merged, allow_unicode=True, sort_keys=False).strip()}\n---\n\n{body}\n\n{digests}\n"


# ---- Text ----


def _merge_text(sections: Mapping[str, str], text: str) -> str:
    """Replace the generated sections of a text in place; insert new sections after those that they follow."""
    edited = []

    def renew(found: re.Match[str]) -> str:
        name, body = found["name"], found["body"]
        if _digest(body) != found["digest"]:
            edited.append(name)
            return found[0]
        return _enclosed(name, sections[name]) if name in sections else ""

    text = SECTION.sub(renew, text)
    if edited:
        logger.warning_once(
            f"The section(s) {', '.join(edited)} of the card were edited and are kept as they are, figures included; "
            "delete them from the card to have them generated again."
        )
    taken = _headings(SECTION.sub("", text))
    for name, body in sections.items():
        there = {found["name"]: found.end() for found in SECTION.finditer(text)}
        if name in there or (_headings(body) & taken):
            continue
        earlier = [there[other] for other in list(sections)[: list(sections).index(name)] if other in there]
        place = max(earlier) if earlier else (0 if name == "about" else len(text))
        before, after = text[:place].rstrip("\n"), text[place:].lstrip("\n")
        text = "\n\n".join(part for part in (before, _enclosed(name, body).rstrip("\n"), after) if part)
    return text


def _sections(text: str) -> dict[str, str]:
    """Split a generated text into sections; `"about"` is all before the first heading of the second level."""
    code = [range(*found.span()) for found in FENCED.finditer(text)]
    starts = [
        found.start()
        for found in re.finditer(r"^## ", text, re.MULTILINE)
        if not any(found.start() in span for span in code)
    ]
    parts = [text[start:stop].strip() for start, stop in zip([0, *starts], [*starts, len(text)], strict=True)]
    names = ["about"] + [re.sub(r"\W+", "-", part.splitlines()[0].strip("# ").lower()) for part in parts[1:]]
    return dict(zip(names, parts, strict=True))


def _headings(text: str) -> set[str]:
    """Return the headings of the second level, and `#` if there is one of the first: a card has one title."""
    found = re.findall(r"^(#{1,2}) +(.+?) *#*$", FENCED.sub("", text), re.MULTILINE)
    return {"#" if level == "#" else title.lower() for level, title in found}


def _enclosed(name: str, body: str) -> str:
    return f"{BEGIN.format(name=name, digest=_digest(body))}\n\n{body}\n\n{END}\n\n"


def _split(content: str) -> tuple[dict[str, Any], str]:
    """Split a card into metadata and text."""
    found = REGEX_YAML_BLOCK.search(content)
    if not found:
        return {}, content
    try:
        metadata = yaml.safe_load(found[2]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata at the top of README.md are not YAML ({error}); correct them.") from error
    if not isinstance(metadata, dict):
        raise ValueError("the metadata at the top of README.md are not a mapping of names to values; correct them.")
    return metadata, content[found.end() :]


# ---- Metadata ----


def _merge_metadata(new: Mapping[str, Any], old: Mapping[str, Any], written: set[str]) -> dict[str, Any]:
    """Merge generated metadata with those of a card, in the order of the card."""
    merged = {}
    for key in [*old, *(key for key in new if key not in old)]:
        ours = _elements(key, new.get(key))
        others = [one for one in _elements(key, old.get(key)) if not _names_a_path(key, one)]
        theirs = [one for one in others if _digest_of(key, one) not in written]
        if key == MODEL_INDEX:
            known = [_without_value(one) for one in theirs]
            merged[key] = _grouped([one for one in ours if _without_value(one) not in known] + theirs)
        elif isinstance(new.get(key), list) or isinstance(old.get(key), list):
            merged[key] = [*ours, *(one for one in theirs if one not in ours)]
        else:
            merged[key] = (theirs or ours or [None])[0]
    return {key: value for key, value in merged.items() if value not in (None, [])}


def _digests(metadata: Mapping[str, Any]) -> list[str]:
    return [_digest_of(key, one) for key, value in metadata.items() for one in _elements(key, value)]


def _elements(key: str, value: Any) -> list[Any]:
    """Return the parts of a value that a user can change one by one: elements of a list, or results of an index."""
    if value is None:
        return []
    if key == MODEL_INDEX:
        try:
            return [
                {"name": model["name"], **result, "metrics": [metric]}
                for model in value
                for result in model["results"]
                for metric in result["metrics"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the model-index at the top of README.md does not have the Hub's format ({error!r}); correct it."
            ) from error
    return value if isinstance(value, list) else [value]


def _grouped(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group single results as a model index."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for one in results:
        about = {name: value for name, value in one.items() if name not in ("name", "metrics")}
        groups = models.setdefault(one["name"], {})
        groups.setdefault(_text(about), {**about, "metrics": []})["metrics"] += one["metrics"]
    return [{"name": name, "results": list(groups.values())} for name, groups in models.items()]


def _without_value(result: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [{name: value for name, value in metric.items() if name != "value"} for metric in result["metrics"]]
    return {**result, "metrics": metrics}


def _names_a_path(key: str, value: Any) -> bool:
    """Return whether a value is a local path: peft writes that of an adapter's base model, which the Hub refuses."""
    if key == "tags" and isinstance(value, str) and value.startswith("base_model:"):
        return not is_hub_id(value.rpartition(":")[2])
    return key == "base_model" and isinstance(value, str) and (os.path.isabs(value) or os.path.exists(value))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest_of(key: str, value: Any) -> str:
    return _digest(f"{key}: {_text(value)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:8]


__all__ = ["merge_card", "push_card", "write_card"]
