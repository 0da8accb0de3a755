# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Names that have moved can still be imported from their old place, with a warning that names the new one."""

from __future__ import annotations

import importlib

import pytest

from jest_hf.moved import moved


CAPTIONS = "jest_hf.data.captions"
# By old module: every public name that it had in the version before, and the module that has the name now.
MOVED = {
    "jest_hf.collator": {
        "JESTDataCollator": "jest_hf.data.collator",
        "REF_PREFIX": "jest_hf.batch",
        "CAPTION_COLUMNS": CAPTIONS,
        "BrokenCaption": CAPTIONS,
        "TextEncoder": CAPTIONS,
        "choose_caption": CAPTIONS,
        "draw_caption": CAPTIONS,
        "text_length": CAPTIONS,
        "tokenizer_definition": CAPTIONS,
        "usable_captions": CAPTIONS,
    },
    "jest_hf.presets": {"DEFAULTS": "jest_hf.config.presets", "PRESETS": "jest_hf.config.presets"},
    "jest_hf.data.filters": {
        "CurationFilters": "jest_hf.curation",
        "FilterResult": "jest_hf.curation",
        "caption_column_of": "jest_hf.curation",
        "curate": "jest_hf.curation",
        "join": "jest_hf.curation",
        "measure_alignment": "jest_hf.curation",
        "measure_captions": "jest_hf.curation",
        "measure_images": "jest_hf.curation",
    },
    "jest_hf.selection": {
        "batch_loss": "jest_hf.report",
        "compare_selectors": "jest_hf.report",
        "source_shares": "jest_hf.report",
    },
    "jest_hf.objectives": {"objective_of": "jest_hf.training.objective"},
}
NAMES = [(old, name, new) for old, names in MOVED.items() for name, new in names.items()]


@pytest.mark.parametrize(("old", "name", "new"), NAMES, ids=[f"{old}.{name}" for old, name, _ in NAMES])
def test_the_old_place_gives_the_same_object_with_a_warning(old, name, new):
    with pytest.warns(FutureWarning) as caught:
        found = getattr(importlib.import_module(old), name)
    assert found is getattr(importlib.import_module(new), name)
    (warning,) = caught
    assert f"{old}.{name} has moved" in str(warning.message)
    assert str(warning.message).endswith(f"import it from {new}.")
    assert warning.filename == __file__  # the line to change, and not that of the alias


@pytest.mark.parametrize("old", MOVED)
def test_an_unknown_name_is_an_attribute_error_and_no_warning(old):
    module = importlib.import_module(old)
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'nonsense'"):
        _ = module.nonsense
    assert not hasattr(module, "nonsense")


def test_a_name_that_is_not_imported_gives_no_warning(recwarn):
    get = moved("old_place", {"sqrt": "math"})
    assert not recwarn
    with pytest.warns(FutureWarning, match="old_place.sqrt has moved"):
        assert get("sqrt")(9) == 3
