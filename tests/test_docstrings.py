# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The `Args:` sections of public docstrings name the parameters of the signature: all of them, and nothing else.

A subclass of a class of another package may leave out what it only passes on: the other package documents it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator

import pytest


FACES = (
    "jest_hf",
    "jest_hf.selection",
    "jest_hf.losses",
    "jest_hf.models",
    "jest_hf.data",
    "jest_hf.evaluation",
    "jest_hf.reference",
    "jest_hf.report",
    "jest_hf.hub",
    "jest_hf.distributed",
    "jest_hf.objectives",
    "jest_hf.config",
    "jest_hf.curation",
)
# `name (...): text` or `one, two: text`; the lines of an explanation are indented further.
ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \(.*?\))?:(?:\s|$)")


def documented(docstring: str | None) -> list[str] | None:
    """Return the names in the `Args:` section of a docstring, without stars; `None` if there is no such section."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    if "Args:" not in lines:
        return None
    section: list[str] = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        section.append(line)
    names = []
    for line in inspect.cleandoc("\n".join(["", *section])).splitlines():
        if found := ENTRY.match(line):
            names += [name.strip("*") for name in found["names"].split(", ")]
    return names


def parameters(function: Callable[..., object]) -> set[str]:
    """Return the names of the parameters of a function, a method or a class."""
    return set(inspect.signature(function).parameters) - {"self", "cls"}


def passed_on(function: Callable[..., object]) -> set[str]:
    """Return the parameters of a class that a base class in another package has too, and the names for all of them."""
    bases = inspect.getmro(function)[1:] if inspect.isclass(function) else ()
    foreign = [
        base for base in bases if not base.__module__.startswith("jest_hf") and inspect.isfunction(base.__init__)
    ]
    inherited = {name for base in foreign for name in parameters(base.__init__)}
    rest = {name for name, one in inspect.signature(function).parameters.items() if one.kind is one.VAR_KEYWORD}
    return inherited | rest | {"args", "kwargs"} if foreign else set()


def public_callables() -> Iterator[tuple[str, Callable[..., object]]]:
    """Every callable in the `__all__` of a face, and the public methods that its classes define."""
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value):
                continue
            yield f"{face}.{name}", value
            if inspect.isclass(value) and value.__module__.startswith("jest_hf"):
                for method, function in vars(value).items():
                    function = getattr(function, "__func__", function)
                    if not method.startswith("_") and inspect.isfunction(function):
                        yield f"{face}.{name}.{method}", function


WITH_ARGS = {name: value for name, value in public_callables() if documented(value.__doc__) is not None}


@pytest.mark.parametrize("name", WITH_ARGS)
def test_the_args_section_names_the_parameters_of_the_signature(name):
    names, value = documented(WITH_ARGS[name].__doc__), WITH_ARGS[name]
    assert len(names) == len(set(names))
    assert set(names) - parameters(value) - passed_on(value) == set(), "documented, and not in the signature"
    assert parameters(value) - set(names) - passed_on(value) == set(), "in the signature, and not documented"


def test_the_faces_have_documented_callables():
    assert {name.rsplit(".", 1)[0] for name in WITH_ARGS} >= set(FACES) - {"jest_hf.config"}


def test_names_are_read_from_every_form_of_an_entry():
    text = """
    Do something.

    Args:
        one (`int`, *optional*, defaults to `{"a": 1}`): First.
            more: of the same.
        two, three (`str`):
            Second and third.
        **options: The rest.

    Returns:
        other: nothing.
    """
    assert documented(text) == ["one", "two", "three", "options"]
    assert documented("Nothing.") is None
