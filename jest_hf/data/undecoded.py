# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of `datasets` without decoding, and streams in which one broken row is that row alone.

`datasets` decodes the images of a stream before `map`, `filter`, `rename_column` and the like, and a corrupt image
then ends the stream. Here the images stay encoded until a function of the user looks at them
([`~jest_hf.images.lazy.LazyImage`]), and a row for which such a function raises goes on as a broken one. That takes
a newer `datasets` (4.8.5 and 5.2 were tried); with earlier versions streams with such functions are read as they are.

A stream of `datasets` is a chain of iterables. The chain is copied, with other features and guarded functions. Parts
of an unknown kind, functions of whole tables (`with_format("arrow")`) and asynchronous functions stay as they are.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import datasets
from datasets import iterable_dataset as chains
from datasets.features.features import _visit, require_decoding
from torch.utils.data import ChainDataset

from jest_hf.data.broken import BROKEN, BrokenRow, reason_of
from jest_hf.data.columns import with_image
from jest_hf.images.lazy import LazyImage
from jest_hf.images.reading import BrokenImage, encoded_of


# Earlier versions of `datasets` make tables of all rows, where neither lazy images nor reasons can be.
GUARDS = "force_convert_to_arrow" in inspect.signature(chains.RebatchedArrowExamplesIterable).parameters
KEPT = "__kept__"  # the column of what the function of a filter returns
_OWN = (BROKEN, KEPT)


def undecoded(dataset: Any) -> Any:
    """Return the same data without decoding. Changes the schema and copies no data.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The data, without a format. Streams of `datasets`
            in a torch `ChainDataset` are found; other data are returned as they are.

    Returns:
        Data of the same kind. Of a `datasets.Dataset`, images and other media are `{"bytes", "path"}`. Of a stream,
        images are [`~jest_hf.images.lazy.LazyImage`], and a row that could not be read has a text in the column
        `__broken__`.
    """
    if isinstance(dataset, datasets.IterableDataset):
        return _undecoded_stream(dataset)
    if type(dataset) is ChainDataset:  # torch's sum of two streams
        return ChainDataset([undecoded(one) for one in dataset.datasets])
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    for name, feature in dataset.features.items():
        if (silent := _silent(feature)) is not feature:
            dataset = dataset.cast_column(name, silent)
    nested = {name: feature for name, feature in dataset.features.items() if require_decoding(feature)}
    if nested:  # `cast_column` would write the whole column anew, though it stays as it is
        dataset = copy.deepcopy(dataset)
        dataset._info.features.update({name: _visit(feature, _silent) for name, feature in nested.items()})
    return dataset


def as_read(row: Mapping[str, Any], image_column: str | None) -> Mapping[str, Any]:
    """Return a row of a stream of [`undecoded`] with encoded images, or as a [`~jest_hf.data.broken.BrokenRow`]."""
    if isinstance(row, BrokenRow) or row.get(BROKEN) is not None:
        return row if isinstance(row, BrokenRow) else BrokenRow(row[BROKEN])
    return with_image({name: encoded_of(value) for name, value in row.items() if name not in _OWN}, image_column)


def each_row(dataset: Iterable[Any]) -> Iterator[Any]:
    """The rows of a torch stream, with a broken row for each error of its iterator."""
    rows = iter(dataset)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(rows, Generator):
                raise RuntimeError(
                    f"the stream is a generator, which cannot go on after an error ({reason_of(error)}); catch errors "
                    "of single rows inside of it and yield None in their place: such rows are skipped and counted."
                ) from error
            row = BrokenRow(reason_of(error))
        yield BrokenRow("the data set returns None for the row") if row is None else row


class UndecodedImage(datasets.Image):  # type: ignore[misc]  # datasets has no types
    """The feature of images that are decoded when a function reads them."""

    def encode_example(self, value: Any) -> Any:
        """As in the base class, or the reason why `value` is no image."""
        try:
            return super().encode_example(value)
        except MemoryError:
            raise
        except Exception as error:
            return BrokenImage(reason_of(error))

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        """Return an image that is not decoded yet."""
        return value if isinstance(value, BrokenImage) else LazyImage(value, self.mode)


class UndecodedFeatures(datasets.Features):  # type: ignore[misc]
    """Features whose images stay encoded, and in which a row may be broken.

    Args:
        features (mapping): Features by column.
        at_once (`bool`, *optional*, defaults to `False`): Whether to decode images nevertheless: their pixels are
            made tensors next. A row with a corrupt one is then broken.
    """

    def __init__(self, features: Mapping[str, Any], at_once: bool = False) -> None:
        super().__init__(features)
        self.at_once = at_once

    def __reduce__(self) -> Any:  # the base class makes plain features of a copy
        return UndecodedFeatures, (dict(self), self.at_once)

    def encode_example(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row in the form of a table; a row that does not fit the features is broken."""
        extra = {name: example[name] for name in _OWN if name in example}
        if example.get(BROKEN) is None:
            for name in self:  # the features of webdataset are those of its first rows
                example = with_image(example, name)
            try:
                return {**super().encode_example({name: _plain(value) for name, value in example.items()}), **extra}
            except MemoryError:
                raise
            except Exception as error:
                extra[BROKEN] = reason_of(error)
        return {**dict.fromkeys(self), **extra}

    def decode_example(self, example: Mapping[str, Any], token_per_repo_id: Any = None) -> dict[str, Any]:
        """Return a row with images that are not decoded yet."""
        extra = {name: value for name, value in example.items() if name not in self}
        known = {name: value for name, value in example.items() if name in self}
        row = {**super().decode_example(known, token_per_repo_id=token_per_repo_id), **extra}
        return self._decoded(row) if self.at_once and row.get(BROKEN) is None else row

    def decode_batch(self, batch: Mapping[str, Any], token_per_repo_id: Any = None) -> dict[str, Any]:
        """As `decode_example`, of a batch of rows."""
        columns: dict[str, Any] = super().decode_batch(batch, token_per_repo_id=token_per_repo_id)
        if not self.at_once or not any(isinstance(one, LazyImage) for column in columns.values() for one in column):
            return columns
        n = len(next(iter(columns.values())))
        rows = [self._decoded({name: column[place] for name, column in columns.items()}) for place in range(n)]
        return {name: [row.get(name) for row in rows] for name in [*columns, BROKEN]}

    def _decoded(self, row: dict[str, Any]) -> dict[str, Any]:
        for name, value in row.items():
            if isinstance(value, LazyImage):
                try:
                    value.decode()
                except BrokenImage as reason:
                    return {**row, name: None, BROKEN: str(reason)}
        return row


def _plain(value: Any) -> Any:
    """A value in which images that no function has read are `{"bytes", "path"}`."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    found = encoded_of(value)
    return (
        {"bytes": found["bytes"], "path": found["path"]} if found is not value and isinstance(found, dict) else found
    )


@dataclass
class Guarded:
    """A function of `map` or `filter` that leaves broken rows out, and makes a row for which it raises a broken one.

    Args:
        function (`Callable`): The function of the user, or of `datasets` itself.
        columns (`list[str]`, *optional*): The columns that are its arguments; by default the whole row.
        batched (`bool`): Whether it takes a batch of rows. If it raises, it is called anew for each row.
        filters (`bool`): Whether it returns which rows to keep.
    """

    function: Callable[..., Any]
    columns: list[str] | None
    batched: bool
    filters: bool

    def __call__(self, row: dict[str, Any], *indices: Any, **options: Any) -> Any:
        if self.batched:
            return self._batch(row, indices, options)
        if row.get(BROKEN) is not None:
            return self._broken(None)
        return self._tried(row, indices, options)

    def _tried(self, row: dict[str, Any], indices: Any, options: Any) -> Any:
        try:
            return self._called(row, indices, options)
        except MemoryError:
            raise
        except Exception as error:
            if _is_of_datasets(self.function):  # a column that is not there is no matter of one row
                raise
            return self._broken(reason_of(error))

    def _called(self, row: dict[str, Any], indices: Any, options: Any) -> Any:
        seen = {name: value for name, value in row.items() if name not in _OWN}
        seen = row if len(seen) == len(row) else seen
        arguments = [seen] if self.columns is None else [seen[name] for name in self.columns]
        found = self.function(*arguments, *indices, **options)
        if self.filters:
            return {KEPT: found}
        if found is not seen:
            return found
        if seen is not row:
            _replace(row, {**seen, **{name: row[name] for name in _OWN if name in row}})
        return row  # `datasets` sees by identity that columns are to be removed

    def _broken(self, reason: str | None) -> dict[str, Any]:
        new: dict[str, Any] = {} if reason is None else {BROKEN: reason}
        return {**new, KEPT: True} if self.filters else new

    def _batch(self, batch: dict[str, Any], indices: Any, options: Any) -> Any:
        n = len(next(iter(batch.values()), ()))
        reasons = list(batch[BROKEN]) if BROKEN in batch else [None] * n
        if not any(reasons):
            try:
                return self._called(batch, indices, options)
            except MemoryError:
                raise
            except Exception:
                if _is_of_datasets(self.function):
                    raise
        found, in_place = [], False
        for place, reason in enumerate(reasons):
            one = {name: values[place : place + 1] for name, values in batch.items()}
            if reason is None:
                new = self._tried(one, [[numbers[place]] for numbers in indices], options)
                if new is one or BROKEN not in new:
                    in_place |= new is one
                    found.append((dict(new), one, len(next(iter(new.values()), [None]))))
                    continue
                reason = new[BROKEN]
            found.append(({BROKEN: [reason], **({KEPT: [True]} if self.filters else {})}, one, 1))
        names = list(dict.fromkeys(name for new, _, _ in found for name in new))
        merged = {
            name: [value for new, one, size in found for value in new.get(name, one.get(name) or [None] * size)]
            for name in names
        }
        if not in_place:
            return merged
        _replace(batch, merged)
        return batch


def _replace(row: dict[str, Any], new: dict[str, Any]) -> None:
    """Give a dict the contents of another one, which may be itself."""
    contents = dict(new)
    row.clear()
    row.update(contents)


class Selected(chains.SelectColumnsIterable):  # type: ignore[misc]
    """Chosen columns, also of broken rows, which may lack some."""

    def __iter__(self) -> Iterator[Any]:
        for key, row in self.ex_iterable:
            for name in self.column_names:
                row = with_image(row, name)
            own = {name: row[name] for name in _OWN if name in row}
            if row.get(BROKEN) is not None:
                row = defaultdict(lambda: None, row)
            yield key, {name: row[name] for name in self.column_names} | own

    def shuffle_data_sources(self, *arguments: Any, **options: Any) -> Selected:
        """As in the base class."""
        return Selected(self.ex_iterable.shuffle_data_sources(*arguments, **options), self.column_names)

    def shard_data_sources(self, *arguments: Any, **options: Any) -> Selected:
        """As in the base class."""
        return Selected(self.ex_iterable.shard_data_sources(*arguments, **options), self.column_names)

    def reshard_data_sources(self) -> Selected:
        """As in the base class."""
        return Selected(self.ex_iterable.reshard_data_sources(), self.column_names)


def _undecoded_stream(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    if not GUARDS:
        features = dataset.features
        return (
            dataset
            if features is None
            else dataset.cast(datasets.Features({name: _visit(one, _silent) for name, one in features.items()}))
        )
    new = dataset.with_format(None)  # a copy
    new._info = new._info.copy()
    if new._info.features is not None:
        new._info.features = _undecoded_features(_without_other_media(new._info.features))
    new._ex_iterable = _guarded(new._ex_iterable)
    new._prepare_ex_iterable_for_iteration()  # the state of the new chain
    return new


def _guarded(part: Any) -> Any:
    """Return a copy of a part of a chain, and of all before it, with undecoded images and guarded functions."""
    part = copy.copy(part)
    if hasattr(part, "ex_iterable"):
        part.ex_iterable = _guarded(part.ex_iterable)
    if hasattr(part, "ex_iterables"):
        part.ex_iterables = [_guarded(one) for one in part.ex_iterables]
    kind, formatting = type(part), getattr(part, "formatting", None)
    is_table = formatting is not None and formatting.is_table
    if kind is chains.FormattedExamplesIterable and is_table:  # a table has no decoded images
        part._features = part._features and UndecodedFeatures(
            {name: _visit(one, _silent) for name, one in part._features.items()}
        )
    elif kind is chains.FormattedExamplesIterable:
        part._features = _undecoded_features(part._features, at_once=formatting is not None and formatting.is_tensor)
    elif kind is chains.SelectColumnsIterable:
        return Selected(part.ex_iterable, part.column_names)
    elif kind is chains.MappedExamplesIterable and not is_table:
        part._features = _undecoded_features(part._features)
        if getattr(part.function, "func", None) is chains._apply_async:  # the decoding in threads
            part.function, part.decoding_pool = partial(_decode, part._features), None
        elif not inspect.iscoroutinefunction(part.function):
            part.function = Guarded(part.function, part.input_columns, part.batched, filters=False)
            part.input_columns = None
    elif kind is chains.FilteredExamplesIterable and not is_table:
        return part if inspect.iscoroutinefunction(part.mask_function) else _guarded_filter(part)
    return part


def _guarded_filter(part: Any) -> Any:
    """Return a filter in two parts: one calls the function, and the other drops rows."""
    before = part.ex_iterable
    asked = chains.MappedExamplesIterable(
        before,
        function=Guarded(part.mask_function, part.input_columns, part.batched, filters=True),
        with_indices=part.with_indices,
        batched=part.batched,
        batch_size=part.batch_size,
        fn_kwargs=part.fn_kwargs,
        formatting=part.formatting,
        features=UndecodedFeatures({**before.features, KEPT: datasets.Value("bool")}) if before.is_typed else None,
    )
    return chains.FilteredExamplesIterable(asked, function=_is_wanted)


def _is_wanted(row: Mapping[str, Any]) -> bool:
    return bool(row[KEPT])


def _decode(features: datasets.Features, row: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = features.decode_example(row)
    return decoded


def _undecoded_features(features: datasets.Features | None, at_once: bool = False) -> datasets.Features | None:
    if features is None:
        return None
    return UndecodedFeatures({name: _visit(one, _undecoded_image) for name, one in features.items()}, at_once)


def _undecoded_image(feature: Any) -> Any:
    if type(feature) is not datasets.Image:
        return feature
    return UndecodedImage(**{one.name: getattr(feature, one.name) for one in fields(feature) if one.init})


def _without_other_media(features: datasets.Features) -> datasets.Features:
    """Features without the decoding of sounds and videos, which no function reads."""
    return datasets.Features(
        {
            name: _visit(one, lambda feature: feature if isinstance(feature, datasets.Image) else _silent(feature))
            for name, one in features.items()
        }
    )


def _silent(feature: Any) -> Any:
    """The same feature without decoding."""
    if hasattr(feature, "decode_example") and getattr(feature, "decode", False):
        feature = copy.copy(feature)
        feature.decode = False
    return feature


def _is_of_datasets(function: Any) -> bool:
    function = function.func if isinstance(function, partial) else function
    return str(getattr(function, "__module__", "")).startswith("datasets.")


__all__ = ["BROKEN", "KEPT", "Guarded", "UndecodedFeatures", "UndecodedImage", "as_read", "each_row", "undecoded"]
