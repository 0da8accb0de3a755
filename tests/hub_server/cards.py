# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the Hub does not accept in the metadata of a card: its documented fields, and the types and words they take."""

from __future__ import annotations

import re
from typing import Any


# Of the Hub's lists, as many as a test here could want.
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail", "other", "unknown")
TASKS = ("zero-shot-image-classification", "image-classification", "feature-extraction", "image-to-text")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")
REPO = r"[\w-][\w.-]*(/[\w.-]+)?"
LANGUAGE = r"[a-z]{2,3}|multilingual"


def problems(metadata: dict[str, Any], repo_type: str) -> list[str]:
    """What is wrong, a sentence each."""
    checks = {"license": one_of(LICENSES), "language": listed(LANGUAGE), "tags": strings}
    if repo_type == "model":
        checks |= {
            "base_model": listed(REPO),
            "datasets": listed(REPO),
            "pipeline_tag": one_of(TASKS),
            "library_name": lambda value: isinstance(value, str),
            "model-index": is_model_index,
        }
    else:
        checks |= {
            "task_categories": lambda value: strings(value) and set(value) <= set(TASKS),
            "size_categories": lambda value: set(value if isinstance(value, list) else [value]) <= set(SIZES),
            "source_datasets": listed(REPO),
            "pretty_name": lambda value: isinstance(value, str),
            "viewer": lambda value: isinstance(value, bool),
        }
    return [
        f'"{name}" with the value {metadata[name]!r} is not valid'
        for name, accepts in checks.items()
        if name in metadata and not accepts(metadata[name])
    ]


def strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def one_of(words: tuple[str, ...]) -> Any:
    return lambda value: value in words


def listed(pattern: str) -> Any:
    """A word, or a list of words, of a pattern."""

    def accepts(value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        return strings(values) and all(re.fullmatch(pattern, one) for one in values)

    return accepts


def is_model_index(value: Any) -> bool:
    """https://github.com/huggingface/hub-docs/blob/main/modelcard.md"""
    try:
        return all(
            isinstance(model["name"], str)
            and isinstance(result["task"]["type"], str)
            and isinstance(result["dataset"]["type"], str)
            and isinstance(result["dataset"]["name"], str)
            and isinstance(metric["type"], str)
            and isinstance(metric["value"], (int, float, str))
            for model in value
            for result in model["results"]
            for metric in result["metrics"]
        )
    except (KeyError, TypeError):
        return False
