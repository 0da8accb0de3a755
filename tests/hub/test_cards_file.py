# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A card that is written again: figures anew, and every word of a user where the user left it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, ModelCardData

from jest_hf.hub import card_file, learner_card, merge_card, write_card
from jest_hf.hub.card_file import PEFT_NOTE, SECTION
from tests.hub.test_model_card import JOINT


LATER = replace(
    JOINT, steps=400, examples_trained=102400, metrics={"eval_image_to_text_R@1": 0.55, "eval_zero_shot_accuracy": 0.8}
)
HEADINGS = ["Curation", "Compute", "Evaluation", "How to use", "Limitations", "Citations"]


@pytest.fixture
def card(tmp_path):
    """The path of a card after 300 steps."""
    path = tmp_path / "README.md"
    write_card(learner_card(JOINT), path)
    return path


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the card"
    path.write_text(text.replace(old, new))


def rewrite(path, summary=LATER):
    """Written again, which must come to the same when it is done twice; its text and metadata."""
    write_card(learner_card(summary), path)
    once = path.read_text()
    write_card(learner_card(summary), path)
    assert path.read_text() == once
    assert not re.search(r"\n{4}", once)
    return once, ModelCard.load(path).data


def headings(text):
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_a_new_card_is_the_generated_one(card):
    text, data = card.read_text(), ModelCard.load(card).data
    plain = re.sub(r"<!-- jest_hf.*?-->\n+", "", text)
    assert re.sub(r"\n+", "\n", plain).strip() == re.sub(r"\n+", "\n", learner_card(JOINT).content).strip()
    assert data.to_dict() == learner_card(JOINT).data.to_dict()
    assert not list(card.parent.glob(".*"))


def test_what_was_generated_is_generated_anew(card):
    text, data = rewrite(card)
    assert merge_card(learner_card(LATER)) == text
    assert "| 400 " in text and "| 300 " not in text
    assert {result.metric_value for result in data.eval_results} == {0.55, 0.8}


def test_sections_come_and_go(card):
    text, data = rewrite(card, replace(JOINT, metrics={}, flops=None, wall_time=None, hardware=None))
    assert headings(text) == ["Curation", "How to use", "Limitations", "Citations"]
    assert data.eval_results is None
    text, _ = rewrite(card)
    assert headings(text) == HEADINGS


def test_own_sections_stay_where_they_are(card):
    text = card.read_text()
    compute = text.index("<!-- jest_hf:compute")
    about = text.index("<!-- jest_hf:about")
    text = (
        f"{text[:about]}A word before.\n\n{text[about:compute]}## My data\n\n"
        f"```bash\n# Compute\n## Evaluation\n```\n\n{text[compute:]}"
    )
    card.write_text(text + "\n## Thanks\n\nTo all.\n")
    text, _ = rewrite(card)
    text = text.replace("```bash\n# Compute\n## Evaluation\n```\n\n", "")
    assert headings(text) == ["Curation", "My data", *HEADINGS[1:], "Thanks"]
    assert text.index("A word before.") < text.index("# someone/jest-tiny")
    assert "| 400 " in text and text.count("To all.") == 1


def test_an_edited_section_is_kept_with_a_warning(card, monkeypatch):
    warnings = []
    monkeypatch.setattr(card_file.logger, "warning_once", warnings.append)
    rewrite(card)
    assert not warnings
    edit(card, "- No study of biases", "- It cannot count.\n- No study of biases")
    text, _ = rewrite(card)
    assert "- It cannot count.\n- No study of biases" in text
    assert headings(text) == HEADINGS and "| 400 " in text
    assert "section(s) limitations of the card were edited" in warnings[0]


@pytest.mark.parametrize("gone", ["begin", "end", "both"])
def test_a_section_without_its_comments_is_the_users(card, gone):
    text = card.read_text()
    section = next(found for found in SECTION.finditer(text) if found["name"] == "compute")[0]
    begin, end = re.findall(r"<!-- jest_hf.*?-->\n", section)
    left = section
    for comment in {"begin": [begin], "end": [end], "both": [begin, end]}[gone]:
        left = left.replace(comment, "")
    card.write_text(text.replace(section, left + "My own words.\n\n"))
    text, _ = rewrite(card, replace(LATER, hardware="another machine"))
    assert headings(text).count("Compute") == 1 and "another machine" not in text
    assert "My own words." in text and "2 CPU cores" in text and "| 400 " in text


def test_all_comments_removed_make_it_the_users_card(card):
    card.write_text(re.sub(r"<!-- jest_hf.*?-->\n+", "", card.read_text()))
    text, data = rewrite(card)
    assert headings(text) == HEADINGS and text.count("# someone/jest-tiny\n") == 1
    assert "| 300 " in text and "| 400 " not in text
    assert {result.metric_value for result in data.eval_results} == {0.41, 0.7}


def test_a_stray_comment_swallows_nothing(card):
    text = card.read_text()
    section = next(found for found in SECTION.finditer(text) if found["name"] == "limitations")[0]
    begin = re.match(r"<!-- .*?-->\n", section)[0]
    card.write_text(text.replace(section, f"{begin}\nMy limits are my own.\n\n"))
    text, _ = rewrite(card)
    assert "My limits are my own." in text and headings(text) == HEADINGS


def test_a_card_that_was_never_ours(tmp_path):
    path = tmp_path / "README.md"
    mine = "# Mine\n\nIt is good.\n\n```bash\n## Compute\n```\n\n## Limitations\n\nNone that I know.\n"
    path.write_text(f"---\nlicense: mit\ntags:\n- birds\ncustom: 1\n---\n{mine}")
    text, data = rewrite(path)
    assert mine.strip() in text and not re.search("^# someone", text, re.MULTILINE)
    text = text.replace("```bash\n## Compute\n```\n", "")
    assert headings(text) == ["Limitations", "Curation", "Compute", "Evaluation", "How to use", "Citations"]
    assert (data.license, data.custom, data.pipeline_tag) == ("mit", 1, "zero-shot-image-classification")
    assert set(data.tags) == {"birds", "jest", "jest_hf", "data-curation", "contrastive-learning"}


def test_metadata_alone_such_as_the_hub_makes(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n")
    text, data = rewrite(path)
    assert headings(text) == HEADINGS and data.license == "mit" and "\r" not in text


def test_metadata_of_both_hands(card):
    text = card.read_text()
    text = text.replace("license: apache-2.0", "license: mit\ngated: true").replace(
        "- jest_hf\n", "- jest_hf\n- birds\n"
    )
    text = text.replace("- someone/web-pairs", "- someone/web-pairs\n- me/more")
    own = "    - type: mine\n      value: 0.9\n"
    value = "      value: 0.41\n"
    assert value in text
    card.write_text(text.replace(value, f"{value}{own}"))
    for _ in range(2):
        text, data = rewrite(card)
        assert (data.license, data.gated) == ("mit", True)
        assert data.tags.count("birds") == 1 and "jest" in data.tags
        assert set(data.datasets) == {"someone/web-pairs", "me/more"}
        results = {result.metric_type: result.metric_value for result in data.eval_results}
        assert results == {"image_to_text_R@1": 0.55, "zero_shot_accuracy": 0.8, "mine": 0.9}


def test_a_result_that_the_user_corrected_stays(card):
    edit(card, "      value: 0.41\n", "      value: 0.42\n")
    _, data = rewrite(card)
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "image_to_text_R@1": 0.42,
        "zero_shot_accuracy": 0.8,
    }


def test_what_is_no_longer_so_is_no_longer_said(card):
    _, data = rewrite(card, replace(LATER, datasets=["other/pairs"], license=None, eval_dataset="other/test"))
    assert data.datasets == ["other/pairs"] and data.license is None
    assert {result.dataset_name for result in data.eval_results} == {"other/test"}


def test_what_peft_writes_is_nobodys_words(tmp_path):
    path = tmp_path / "README.md"
    form = ModelCard.from_template(ModelCardData(library_name="peft"))
    form.data["base_model"] = str(tmp_path)
    form.data["tags"] = [f"base_model:adapter:{tmp_path}", "base_model:adapter:someone/base", "lora"]
    form.text += "\n### Framework versions\n\n- PEFT 0.21.0"
    form.save(path)
    summary = replace(JOINT, adapter=True, base_model=str(tmp_path))
    for _ in range(2):
        text, data = rewrite(path, summary)
        assert str(tmp_path) not in text and "More Information Needed" not in text and not PEFT_NOTE.search(text)
        assert (data.library_name, data.base_model) == ("peft", None)
        assert {"jest", "lora", "base_model:adapter:someone/base"} <= set(data.tags)
        # As peft does, when it saves the adapter again.
        card = ModelCard.load(path)
        card.data["tags"], card.data["base_model"] = ["base_model:adapter:someone/base", "lora"], str(tmp_path)
        card.text += "\n### Framework versions\n\n- PEFT 0.21.0"
        card.save(path)
    assert "jest" in rewrite(path, summary)[1].tags


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("a: [", "are not YAML"),
        ("- a\n- b", "not a mapping"),
        ("model-index: 3", "model-index at the top"),
        ("model-index:\n- name: x", "model-index at the top"),
    ],
)
def test_metadata_that_cannot_be_read_are_refused_and_kept(tmp_path, metadata, message):
    path = tmp_path / "README.md"
    path.write_text(f"---\n{metadata}\n---\nMine.\n")
    with pytest.raises(ValueError, match=message):
        write_card(learner_card(JOINT), path)
    assert path.read_text() == f"---\n{metadata}\n---\nMine.\n"
