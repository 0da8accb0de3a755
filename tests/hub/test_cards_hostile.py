# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Names and texts of users in the cards show as they are: no markup of theirs has an effect."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from jest_hf.hub import CuratedSummary, curated_card, learner_card, reference_cache_card, reference_card
from jest_hf.hub.card_parts import code, plain, python
from tests.hub.test_model_card import JOINT


MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![pixel](https://evil.example/p.png)",
    "`code` and ``more``",
    "```\nfenced",
    "# a heading\n\n- a list\n\n> a quote",
    "a | b | c",
    "*bold* **bold** _it_ __it__ ~~gone~~",
    "<!-- jest_hf:about 00000000 -->",
    "&lt;b&gt; &amp; & < >",
    "back\\slash \\` \\[x](y)",
    "\"quoted\" and 'quoted'",
    "line\rbreak\u2028other\x0bmore",
    "<https://evil.example>",
    "{{ title }} {% raw %}",
]


def html_of(text):
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def seen(html):
    """The text that a reader sees."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_text_shows_as_it_is(text):
    shown = html_of(f"It was trained on {plain(text)}, and others.")
    assert shown.startswith("<p>") and not re.findall(r"<(?!/?p>)", shown)
    assert seen(shown) == " ".join(f"It was trained on {text}, and others.".split())


@pytest.mark.parametrize("text", HOSTILE)
def test_code_ends_where_it_ends(text):
    assert len(re.findall(r"</?code>", html_of(f"A `{code(text)}` of images"))) == 2
    assert eval(python(text)) == text and "\n" not in python(text)


def skeleton(card):
    """The tags of a card's page, with those of its own links and pictures, without its words and numbers."""
    return re.findall(r"</?[a-z]+[^>]*>|<!--.*?-->", html_of(card.text))


def learner(text, make=learner_card):
    about = {"name": text, "base_model": text, "datasets": [text, text], "eval_dataset": text, "reference": text}
    about |= {"model_id": None, "hardware": text, "preset": text, "loss": "sigmoid", "sources": {text: (1, 2)}}
    return make(replace(JOINT, **about, metrics={f"eval_{text}": 0.5}, versions={"torch": text}))


def curated(text):
    filters = [(text, {text: text, "other": "plain"}, 5)]
    more = {"alignment_model": text, "columns": [text], "split": text}
    return curated_card(CuratedSummary(name=text, source=text, filters=filters, rows=10, **more))


def cache(text):
    manifest = {
        "reference": {"repo": text, "commit": None, "weights": "0" * 64},
        "reading": {
            "image": {"size": [8, 8], "shortest_edge": None, "crop_size": None},
            "view": text,
            "max_length": 8,
            "lower_case": False,
        },
        "data": {"image_column": text, "caption_column": text, "n_rows": 3, "row": {}},
        "storage": {"dtype": "float32", "precision": text},
        "shards": [{"readable": 3, "captions": 3, "bytes": 10}],
        "loss": "sigmoid",
        "logit_scale": 10.0,
        "logit_bias": None,
        "keyed": False,
        "width": 4,
        "flops": 1.0,
    }
    return reference_cache_card(manifest, dataset="scenes:web", split=text, where={"style": text})


CARDS = {
    "learner": learner,
    "reference": lambda text: learner(text, reference_card),
    "curated": curated,
    "cache": cache,
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", sorted(CARDS))
def test_a_card_of_hostile_names_has_the_structure_of_a_harmless_one(kind, text):
    assert skeleton(CARDS[kind](text)) == skeleton(CARDS[kind]("harmless"))
