# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Load models whole, and without running code from a repository.

A model is loaded as the class it was saved as: a dual encoder with both towers, other models with their head. Tensors
that are missing in its files would keep random values, and only a log line would tell: here they are an error. All
configurations, processors and models that are loaded by name come through this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoProcessor, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from jest_hf.models.families import FAMILIES, embeds_pairs, family_of
from jest_hf.models.sharding import partitioned_if_possible


logger = logging.get_logger(__name__)

_SHOWN = 3


def load_config(name: str | Path) -> PretrainedConfig:
    """Return the configuration of a model, by Hub id or local path.

    Raises:
        ValueError: for a configuration whose class is code in the repository, which is never run.
    """
    return _without_code(AutoConfig.from_pretrained, name)


def load_processor(name: str | Path, setting: str | None = None) -> Any:
    """Return the processor, image processor or tokenizer of a model.

    Args:
        name (`str` or `Path`): Hub id or local path.
        setting (`str`, *optional*): Option and value in error messages. Default: the name.

    Raises:
        ValueError: for a folder or repository without a processor, and for a processor whose class is code in the
            repository, which is never run.
    """
    try:
        return _without_code(AutoProcessor.from_pretrained, name)
    except (ValueError, KeyError) as error:
        if "which is never run" in str(error):
            raise
        raise ValueError(
            f"{setting or repr(str(name))} has no processor, image processor or tokenizer that can be read; save one "
            "there with save_pretrained, or name another model."
        ) from error


def load_model(name: str | Path, setting: str | None = None, **options: Any) -> PreTrainedModel:
    """Load a learner, proxy or reference.

    Args:
        name (`str` or `Path`): Hub id or local path.
        setting (`str`, *optional*): Option and value in error messages, such as `"ref_model='owner/name'"`. Default:
            the name.
        **options: Options of `from_pretrained`.

    Raises:
        ValueError: for a backbone without a head, which has no loss, for a class that neither belongs to transformers
            nor is registered with `AutoModel`, for a class that is code in the repository, and for files that lack
            tensors of the model or have tensors of other shapes.
    """
    config = load_config(name)
    saved_as = (config.architectures or ["nothing"])[0]
    known = getattr(transformers, saved_as, None)
    has_head = "For" in saved_as or saved_as.endswith("LMHeadModel")
    registered = known is None and saved_as == _automatic(config)
    load = None
    if has_head and known is not None:
        load, build = known.from_pretrained, known
    elif registered or (config.model_type in FAMILIES and not has_head):
        load, build = AutoModel.from_pretrained, AutoModel.from_config
    if load is not None:
        setting = setting or repr(str(name))
        try:
            with partitioned_if_possible(partial(build, config)):
                model, found = _without_code(load, name, output_loading_info=True, **options)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"{setting} has tensors of other shapes than its config.json says (the log has their names); repair "
                "config.json, or name another model."
            ) from error
        check_loaded(found["missing_keys"], found["unexpected_keys"], setting)
        return model
    if known is None and config.architectures:
        raise ValueError(
            f"{str(name)!r} was saved as {saved_as}, which is no class of transformers; load it with its own class "
            "and pass the model, or register the class with AutoModel.register."
        )
    if embeds_pairs(known):
        family_of(config)  # raises, and names the supported ones
    raise ValueError(
        f"{str(name)!r} was saved as {saved_as}, which has no loss of its own; use a dual encoder, or a model "
        "such as ...ForImageClassification, ...ForSequenceClassification or ...ForCausalLM."
    )


def check_loaded(missing: Iterable[str], unexpected: Iterable[str], setting: str) -> None:
    """Refuse a model some of whose tensors were not in its files; warn of tensors that the model does not have.

    Args:
        missing (iterable of `str`): Names of tensors of the model that the files lack.
        unexpected (iterable of `str`): Names of tensors in the files that the model lacks.
        setting (`str`): Option and value in the messages, such as `"ref_model='owner/name'"`.

    Raises:
        ValueError: if tensors are missing.
    """
    lacking, extra = sorted(missing), sorted(unexpected)
    if not lacking:
        if extra:
            logger.warning(f"{setting}: {_listed(extra)} in the files belong to no part of the model.")
        return
    # A wrapper (DDP, torch.compile, another model) puts its name before all names.
    prefixes = {name.removesuffix(lacking[0]) for name in extra if name.endswith(f".{lacking[0]}")}
    way_out = "save the whole model with save_pretrained"
    if prefixes:
        way_out = f"the names in the files begin with {min(prefixes)!r}: save the model without its wrapper"
    raise ValueError(
        f"{setting} lacks {_listed(lacking)} of the model, which would keep random values; {way_out}, or name another "
        "model."
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'} ({shown}{', ...' if len(names) > _SHOWN else ''})"


def _without_code(load: Callable[..., Any], name: str | Path, **options: Any) -> Any:
    """Call a `from_pretrained`, which must neither run code from a repository nor offer to do it."""
    try:
        return load(name, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{str(name)!r} needs Python code from its repository, which is never run here; load the model or the "
            "processor yourself, and pass the object."
        ) from error


def _automatic(config: PretrainedConfig) -> str | None:
    """Return the name of the class that `AutoModel` loads; a user can register a class of their own there."""
    return getattr(MODEL_MAPPING[type(config)], "__name__", None) if type(config) in MODEL_MAPPING else None


def restore_renamed(model: nn.Module, folder: str | Path) -> bool:
    """Load the weights of a checkpoint into a model whose `save_pretrained` writes them under other names.

    transformers 5 saves some models (ViT) with the parameter names of earlier versions, while its Trainer resumes by
    the names in the model: it keeps the start weights of parameters that it does not find, and only logs this.

    Args:
        model (`torch.nn.Module`): The model to load into.
        folder (`str` or `Path`): The checkpoint.

    Returns:
        `bool`: whether the names differ, and the weights were loaded. Otherwise the model is not changed.
    """
    files = list(Path(folder).glob("model*.safetensors"))
    if not isinstance(model, PreTrainedModel) or not files:
        return False
    saved: set[str] = set()
    for path in files:
        with safe_open(path, "pt") as file:
            saved |= set(file.keys())
    if saved <= model.state_dict().keys():
        return False
    loaded = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict())
    return True


__all__ = ["check_loaded", "load_config", "load_model", "load_processor", "restore_renamed"]
