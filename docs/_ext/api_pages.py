# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The API pages, as MyST Markdown: a module's docstring, and each name in its `__all__` with signature and docstring.

Docstrings are Markdown in the Hugging Face form: `Args:` with entries ``name (`type`, *optional*): text``, and cross
references such as [`JESTTrainer`] and [`~transformers.Trainer`].
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
import types
import warnings
from typing import Any


# The modules whose `__all__` is public, in the order of the site: one file each in docs/api/.
FACES = (
    "jest_hf",
    "jest_hf.selection",
    "jest_hf.losses",
    "jest_hf.objectives",
    "jest_hf.models",
    "jest_hf.data",
    "jest_hf.curation",
    "jest_hf.reference",
    "jest_hf.evaluation",
    "jest_hf.report",
    "jest_hf.hub",
    "jest_hf.distributed",
    "jest_hf.config",
)

# Pages of other projects, for cross references to their names.
_TRANSFORMERS = "https://huggingface.co/docs/transformers/main_classes"
EXTERNAL = {
    "datasets.Dataset": "https://huggingface.co/docs/datasets/package_reference/main_classes",
    "datasets.IterableDataset": "https://huggingface.co/docs/datasets/package_reference/main_classes",
    "transformers.PreTrainedModel": f"{_TRANSFORMERS}/model",
    "transformers.PretrainedConfig": f"{_TRANSFORMERS}/configuration",
    "transformers.Trainer": f"{_TRANSFORMERS}/trainer",
    "transformers.TrainerCallback": f"{_TRANSFORMERS}/callback",
    "transformers.TrainingArguments": f"{_TRANSFORMERS}/trainer",
}

SECTIONS = ("Args", "Attributes", "Example", "Examples", "Raises", "Returns", "Yields")
ENTRY = re.compile(r"(?P<name>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \((?P<type>.*?)\))?:(?: (?P<text>.*))?")
REFERENCE = re.compile(r"\[`(?P<tilde>~?)(?P<name>[\w.]+)`\](?![\[(])")


def api_page(name: str) -> str:
    """
    All of a page but its heading.

    Args:
        name (`str`): One of `FACES`.

    Raises:
        ValueError: for a module that is not in `FACES`.
    """
    if name not in FACES:
        raise ValueError(f"docs/api/{name}.md stands for no public module; the public ones are {', '.join(FACES)}.")
    module = importlib.import_module(name)
    parts = [markdown(inspect.getdoc(module) or "", module)]
    for public, value in exported(name).items():
        home = home_of(public, value)
        if home == name:
            parts.append(described(public, value, name))
        else:
            parts.append(f"`{public}`: see {{py:obj}}`{home}.{public}`.")
    return "\n\n".join(parts) + "\n"


@functools.cache
def exported(face: str) -> dict[str, Any]:
    """The names in a module's `__all__` and their values, old names that warn where they have moved included."""
    module = importlib.import_module(face)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return {name: getattr(module, name) for name in module.__all__}


def home_of(name: str, value: Any) -> str:
    """The module on whose page an exported name is described: of several that export it, the first of `FACES`."""
    return next(face for face in FACES if exported(face).get(name) is value)


@functools.cache
def links() -> dict[str, str]:
    """Names by which docstrings may refer to what the pages describe, and the full name there."""
    found: dict[str, str] = {}
    for face in FACES:
        for name, value in exported(face).items():
            full = f"{home_of(name, value)}.{name}"
            definition = f"{getattr(value, '__module__', face)}.{name}"
            for alias in (name, f"{face}.{name}", f"{face.removeprefix('jest_hf.')}.{name}", definition):
                found.setdefault(alias, full)
    return found


# One object


def described(name: str, value: Any, module: str) -> str:
    """An exported function, class or constant as a directive of Sphinx's Python domain."""
    if is_class(value):
        return class_directive(name, value, module)
    if inspect.isroutine(value):
        return directive("function", name + signature_of(value), markdown(inspect.getdoc(value) or "", value), module)
    return directive("data", name, "", module, value=short(value))


def is_class(value: Any) -> bool:
    """Whether a value is a class; Python 3.10 takes `list[int]` for one, too."""
    return inspect.isclass(value) and not isinstance(value, types.GenericAlias)


def class_directive(name: str, value: type, module: str) -> str:
    """A class with those of its own public methods and properties that have a docstring."""
    parts = [markdown(inspect.cleandoc(value.__doc__ or ""), value)]
    for member, raw in vars(value).items():
        is_property = isinstance(raw, property | functools.cached_property)
        function = getattr(raw, "fget", None) or getattr(raw, "func", None) if is_property else getattr(value, member)
        if member.startswith("_") or not inspect.isroutine(function) or not function.__doc__:
            continue
        text = markdown(inspect.cleandoc(function.__doc__), value)
        if is_property:
            parts.append(directive("property", member, text, type=annotation(function.__annotations__.get("return"))))
        else:
            flags = {"classmethod": isinstance(raw, classmethod), "staticmethod": isinstance(raw, staticmethod)}
            without_self = not any(flags.values())
            parts.append(directive("method", member + signature_of(function, without_self), text, **flags))
    return directive("class", name + constructor_of(value), "\n\n".join(part for part in parts if part), module)


def directive(kind: str, signature: str, body: str, module: str | None = None, **options: Any) -> str:
    """A directive in MyST; its fence is longer than any fence in `body`."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"^`{3,}", body, re.MULTILINE))])
    head = [f":{key}:" if value is True else f":{key}: {value}" for key, value in options.items() if value]
    if module is not None:
        head.insert(0, f":module: {module}")
    return "\n".join([f"{fence}{{py:{kind}}} {signature}", *head, "", body, fence])


def short(value: Any) -> str:
    """A constant in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
    return textwrap.shorten(repr(value), 200, placeholder=" ...")


# Signatures


def constructor_of(value: type) -> str:
    """The arguments of a class. Of a configuration that extends another library's, its own options alone."""
    if getattr(value, "_is_protocol", False):
        return ""
    foreign = {
        field.name
        for base in value.__mro__
        if dataclasses.is_dataclass(base) and not base.__module__.startswith("jest_hf")
        for field in dataclasses.fields(base)
    }
    signature = inspect.signature(value)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name not in foreign]
    return written(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


def signature_of(function: Any, without_self: bool = False) -> str:
    """The signature of a function, or of a method `without_self`."""
    signature = inspect.signature(function)
    return written(signature.replace(parameters=list(signature.parameters.values())[without_self:]))


def written(signature: inspect.Signature) -> str:
    """A signature with its annotations as they are in the source, and defaults that are functions by their names."""
    empty = inspect.Signature.empty
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.annotation is not empty:
            parameter = parameter.replace(annotation=_As(annotation(parameter.annotation)))
        if inspect.isroutine(parameter.default):
            parameter = parameter.replace(default=_As(parameter.default.__qualname__))
        parameters.append(parameter)
    returns = "" if signature.return_annotation is empty else f" -> {annotation(signature.return_annotation)}"
    return str(inspect.Signature(parameters)) + returns


def annotation(value: Any) -> str:
    """An annotation as it is in the source."""
    value = getattr(value, "__forward_arg__", value)  # NamedTuple wraps strings
    return value if isinstance(value, str) else inspect.formatannotation(value)


class _As:
    """A text that is written without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


# Docstrings


def markdown(text: str, owner: Any) -> str:
    """A docstring as MyST: sections as field lists or bold words, cross references as links."""
    return cross_references(sections(text), owner)


def sections(text: str) -> str:
    """`Args:` and the like as field lists; options under `> Parameters that ...` as well."""
    out: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        title = line.removesuffix(":")
        if line.endswith(":") and title in SECTIONS:
            end = at + 1
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
                end += 1
            out += section(title, textwrap.dedent("\n".join(lines[at + 1 : end])).strip("\n").splitlines())
            at = end
        elif line.startswith("> Parameters "):
            out.append(f"**{line[2:]}**")
            at += 1
        elif (entry := ENTRY.fullmatch(line)) and entry["type"] and at + 1 < len(lines) and lines[at + 1][:1] == " ":
            end = at + 1
            while end < len(lines) and (lines[end].startswith(" ") or ENTRY.fullmatch(lines[end])):
                end += 1
            out += fields("param", lines[at:end])
            at = end
        else:
            out.append(line)
            at += 1
    return "\n".join(out)


def section(title: str, lines: list[str]) -> list[str]:
    """One section."""
    if title == "Args":
        return ["", *fields("param", lines), ""]
    if title == "Attributes":
        return ["", *fields("ivar", lines), ""]
    if title == "Raises":
        return ["", *fields("raises", lines), ""]
    if title in ("Returns", "Yields"):
        return ["", f":{title.lower()}: {lines[0]}", *(f"    {line}" for line in lines[1:]), ""]
    return ["", f"**{title}**", "", *lines, ""]


def fields(kind: str, lines: list[str]) -> list[str]:
    """Entries ``name (`type`): text`` as fields."""
    out: list[str] = []
    for line in lines:
        entry = None if line.startswith(" ") else ENTRY.fullmatch(line)
        if entry is None:
            out.append(f"    {line.strip()}" if not line.startswith("    ") else line)
        else:
            # Sphinx takes a word before a space for a type.
            names = entry["name"].replace("*", r"\*").replace(", ", ",")
            kept = f" ({entry['type']})" if entry["type"] else ""
            out += [f":{kind} {names}:{kept} {entry['text'] or ''}".rstrip()]
    return out


def cross_references(text: str, owner: Any) -> str:
    """[`name`] and [`~module.name`] as links where a page describes the name, as code where none does."""

    def replace(match: re.Match) -> str:
        name = match["name"]
        label = name.rpartition(".")[2] if match["tilde"] else name
        for known, page in EXTERNAL.items():
            if name == known or name.startswith(f"{known}."):
                return f"[`{label}`]({page}#{name})"
        full = target_of(name, owner)
        return f"{{py:obj}}`{label} <{full}>`" if full else f"`{label}`"

    return REFERENCE.sub(replace, text)


def target_of(name: str, owner: Any) -> str | None:
    """The full name of what a cross reference means; `None` for what no page describes."""
    if name in links():
        return links()[name]
    head, _, member = name.rpartition(".")
    head = head or getattr(owner, "__name__", "")
    full = links().get(head)
    if full is None:
        return None
    module, _, public = full.rpartition(".")
    own = vars(exported(module)[public])
    return f"{full}.{member}" if member in own and own[member].__doc__ else None
