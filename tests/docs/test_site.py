# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The pages that the site makes: each public name with its signature and docstring. `make docs` builds the site."""

from __future__ import annotations

import importlib
import inspect
import re
import sys

import pytest

from tests.docs.pages import ROOT


sys.path.insert(0, str(ROOT / "docs" / "_ext"))
import api_pages  # noqa: E402
import site_pages  # noqa: E402


def test_every_public_module_has_a_page():
    faces = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "jest_hf").rglob("__init__.py")
        if "__all__" in path.read_text()
    }
    assert faces <= set(api_pages.FACES)
    assert {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} == set(api_pages.FACES)
    index = (ROOT / "docs" / "index.md").read_text()
    assert re.findall(r"^api/(.*)$", index, re.MULTILINE) == list(api_pages.FACES)


@pytest.mark.parametrize("face", api_pages.FACES)
def test_a_page_has_every_name(face):
    page = api_pages.api_page(face)
    for name in importlib.import_module(face).__all__:
        assert re.search(rf"^`+{{py:\w+}} {name}\b|^`{name}`: see ", page, re.MULTILINE), name


@pytest.mark.parametrize("face", api_pages.FACES)
def test_public_names_have_docstrings(face):
    for name, value in api_pages.exported(face).items():
        if api_pages.is_class(value) or inspect.isroutine(value):
            assert value.__doc__, name


def test_a_module_that_is_not_public_has_no_page():
    with pytest.raises(ValueError, match=r"jest_hf\.cli"):
        api_pages.api_page("jest_hf.cli")


class Sample:
    """A class for the tests."""

    def method(self, width: int, name: str | None = "a", *rest: float, size=inspect.getdoc) -> list[str]:
        """Do something."""

    def without(self):
        return None

    @classmethod
    def made(cls) -> Sample:
        """Make one."""

    @property
    def size(self) -> int:
        """How large."""


def test_a_class_is_described_with_its_documented_members():
    text = api_pages.described("Sample", Sample, "jest_hf")
    assert text.startswith("````{py:class} Sample()\n:module: jest_hf\n\nA class for the tests.\n")
    signature = "method(width: int, name: str | None = 'a', *rest: float, size=getdoc) -> list[str]"
    assert f"```{{py:method}} {signature}\n\nDo something." in text
    assert "```{py:method} made() -> Sample\n:classmethod:\n\nMake one." in text
    assert "```{py:property} size\n:type: int\n\nHow large." in text
    assert "without" not in text and text.endswith("\n````")


def test_sections_become_fields():
    docstring = inspect.cleandoc("""
        Do something.

        Args:
            image (`torch.Tensor` of shape `[b, D]`): Embeddings.
            ranks, device: As elsewhere.
            *parts (`str`, *optional*, defaults to `"a"`):
                Two lines
                of text: with a colon.

        Returns:
            `torch.Tensor`: The loss.

        Raises:
            ValueError: for shapes that do not fit.

        The end.
    """)
    assert [line for line in api_pages.sections(docstring).splitlines() if line] == [
        "Do something.",
        ":param image: (`torch.Tensor` of shape `[b, D]`) Embeddings.",
        ":param ranks,device: As elsewhere.",
        r':param \*parts: (`str`, *optional*, defaults to `"a"`)',
        "    Two lines",
        "    of text: with a colon.",
        ":returns: `torch.Tensor`: The loss.",
        ":raises ValueError: for shapes that do not fit.",
        "The end.",
    ]


def test_cross_references_become_links_where_a_page_has_the_name():
    def linked(text: str) -> str:
        return api_pages.cross_references(text, Sample)

    assert linked("[`JESTTrainer`]") == "{py:obj}`JESTTrainer <jest_hf.JESTTrainer>`"
    assert linked("[`~selection.Chunk`]") == "{py:obj}`Chunk <jest_hf.selection.Chunk>`"
    assert linked("[`JESTDataCollator.at_view`]").endswith(" <jest_hf.JESTDataCollator.at_view>`")
    assert linked("[`JESTDataCollator.none`] [`something`]") == "`JESTDataCollator.none` `something`"
    assert linked("[`~transformers.Trainer.train`]") == (
        "[`train`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.Trainer.train)"
    )
    assert linked("[`a`](b.md)") == "[`a`](b.md)"


def test_links_of_the_top_folder_lead_to_pages_of_the_site():
    def moved(text: str) -> str:
        return site_pages.with_links_of_the_site(text)

    assert (
        moved("[a](docs/method.md#losses) ![b](docs/images/demo.png)") == "[a](method.md#losses) ![b](images/demo.png)"
    )
    assert moved("[a](CONTRIBUTING.md#tests) [b](#here)") == "[a](contributing.md#tests) [b](#here)"
    assert moved("[a](examples/recipes) [LICENSE](LICENSE)") == "a (`examples/recipes`) LICENSE"
    assert moved("[a](https://arxiv.org/abs/2406.17711)") == "[a](https://arxiv.org/abs/2406.17711)"
