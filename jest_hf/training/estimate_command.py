# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf estimate`: what a run will cost, from configurations alone.

    jest-hf estimate --learner google/siglip2-base-patch16-224 --ref_model google/siglip2-so400m-patch14-224 \\
        --per_device_train_batch_size 256 --max_steps 5000 --rows 1000000
    jest-hf estimate --config examples/recipes/hub_siglip.yaml --rows 1000000 --json

The flags, and the names in a recipe, are those of `examples/run_jest.py`. Nothing is trained, no data are read, and of
models on the Hub `config.json` alone is downloaded.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import PretrainedConfig

from jest_hf.config import JESTConfig
from jest_hf.config.command_line import add_fields, fill, read_recipe
from jest_hf.config.options import JESTOptions
from jest_hf.flags import Parser
from jest_hf.models import FAMILIES
from jest_hf.models.build import SIZES, siglip_config
from jest_hf.models.load import load_config
from jest_hf.report.table import format_table
from jest_hf.training.estimate import Estimate, Models, estimate


@dataclass
class EstimateArguments:
    """The models and the size of a run; `JESTConfig` has all other options."""

    learner: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the learner. Default: a SigLIP model of --learner_size."},
    )
    learner_size: str = field(
        default="tiny", metadata={"help": f"Size of a learner with random weights: {', '.join(SIZES)}."}
    )
    image_size: int = field(
        default=32, metadata={"help": "Height and width of images in pixels, for a learner with random weights."}
    )
    patch_size: int = field(
        default=8, metadata={"help": "Height and width of a patch in pixels, for a learner with random weights."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that texts are padded to. Default: the learner's, or 20 with random weights."},
    )
    ref_model: str | None = field(
        default=None, metadata={"help": "Hub id or path of the reference. Default: a model like the learner."}
    )
    proxy_model: str | None = field(
        default=None, metadata={"help": "Hub id or path of the proxy. Default: a model like the reference."}
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains all weights."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers with a LoRA adapter. Default: PEFT's for the model."}
    )
    max_train_rows: int | None = field(
        default=None,
        metadata={"help": "Number of training rows, by its name in examples/run_jest.py. Default: --rows."},
    )
    rows: int | None = field(
        default=None,
        metadata={
            "help": "Number of training rows, for the reference cache and for --num_train_epochs. Default: unknown."
        },
    )
    devices: int = field(default=1, metadata={"help": "Number of devices that train together."})
    json: bool = field(default=False, metadata={"help": "Print JSON in place of the table."})


# Flags of `examples/run_jest.py` that change no cost: accepted, so that the command line of a run can be pasted.
NOT_USED = (
    *("dataset", "dataset_split", "dataset_where", "subset", "streaming", "eval_dataset", "eval_split", "eval_where"),
    *("test_dataset", "test_split", "test_where", "image_column", "caption_column", "scaled_jpeg_decoding"),
    *("vocab_size", "train_reference_on", "train_reference_split", "train_reference_where", "reference_steps"),
    *("reference_learning_rate", "compare_uniform_steps", "compare_uniform_learning_rate"),
    *("compare_learnability_steps", "compare_learnability_learning_rate"),
)
# Of the Trainer's options, those that change a cost. The others would set up devices and trackers.
_OF_TRAINER = (
    *("per_device_train_batch_size", "max_steps", "num_train_epochs", "gradient_checkpointing"),
    *("gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs"),
)
GROUPS = {
    "data": ("rows", "max_train_rows"),
    "models": (
        *("learner", "learner_size", "image_size", "patch_size", "max_length", "proxy_model", "lora_r"),
        "lora_target_modules",
    ),
    "reference": ("ref_model",),
    "training": ("devices",),
    "output": ("json",),
}
RENAMED: dict[str, str] = {}
_OPTIONS = {one.name for one in fields(JESTConfig) if one.init}
_COUNTED = (_OPTIONS & set(JESTOptions.__annotations__)) | (_OPTIONS & set(_OF_TRAINER))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser. A flag that is not given has no value, so that a recipe can set it."""
    add_fields(parser, (EstimateArguments, JESTConfig), GROUPS, hidden=_OPTIONS - _COUNTED)
    for name in NOT_USED:
        parser.add_argument(f"--{name}", nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> Estimate:
    """Print the estimate, and return it."""
    settings = dict(vars(options))
    path = settings.pop("config", None)
    if path is not None:
        parser = Parser()
        add_arguments(parser)
        settings = {**read_recipe(path, parser), **settings}
    script = fill(EstimateArguments, settings)
    args = JESTConfig(
        output_dir="jest-out",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        **{name: value for name, value in settings.items() if name in _COUNTED},
    )
    result = estimate(args, _models(script, args), n_rows=script.rows or script.max_train_rows, **_sizes(script))
    print(json.dumps(result.as_dict(), indent=1) if script.json else describe(result))
    return result


def _sizes(script: EstimateArguments) -> dict[str, Any]:
    for name in ("rows", "devices", "max_length", "max_train_rows"):
        value = getattr(script, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1.")
    return {"devices": script.devices, "text_length": script.max_length}


def _models(script: EstimateArguments, args: JESTConfig) -> Models:
    if script.learner is None:
        text = {"vocab_size": 2048, "max_position_embeddings": script.max_length or 20}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if script.learner_size not in SIZES:
            raise ValueError(f"--learner_size {script.learner_size} is not known; choose one of {', '.join(SIZES)}.")
        learner: PretrainedConfig = siglip_config(
            script.learner_size, {**text, **ids}, image_size=script.image_size, patch_size=script.patch_size
        )
    else:
        learner = _config("learner", script.learner)
    adapter = None
    if script.lora_r:
        from peft import LoraConfig
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        if not script.lora_target_modules and learner.model_type not in KNOWN:
            raise ValueError(
                f"--lora_r {script.lora_r} needs --lora_target_modules, since PEFT has no default for a "
                f"{learner.model_type} model; usual are q_proj v_proj."
            )
        adapter = LoraConfig(r=script.lora_r, target_modules=script.lora_target_modules)
    reference = learner
    if script.ref_model is not None and args.reference != "adapter":
        reference = _config("ref_model", script.ref_model)
    proxy = reference if script.proxy_model is None else _config("proxy_model", script.proxy_model)
    return Models(learner, reference, proxy, adapter)


def _config(flag: str, name: str) -> PretrainedConfig:
    try:
        config = load_config(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--{flag} {name} has no configuration that can be read: {error}") from error
    if config.model_type not in FAMILIES or not FAMILIES[config.model_type].towers:
        raise ValueError(
            f"--{flag} {name} is a {config.model_type} model, and the estimate is for dual encoders: "
            f"{', '.join(name for name, family in FAMILIES.items() if family.towers)}."
        )
    return config


def describe(result: Estimate) -> str:
    """Describe an estimate as a table, with the sizes below it."""
    rows: list[list[object]] = []
    for way in result.ways:
        saved = "never" if way.examples_share is None else f"{max(0.0, 1.0 - way.examples_share):.0%}"
        rows.append([way.name, way.setting, f"{way.flops_of_step:.3g}", f"{way.relative_to_iid:.2f}"])
        rows[-1] += [way.decoded_images, None if way.flops_of_run is None else f"{way.flops_of_run:.3g}"]
        rows[-1] += [None if way.relative_of_run is None else f"{way.relative_of_run:.2f}", saved]
    headers = ["run", "settings", "FLOPs/step", "IID steps", "images/step", "FLOPs of the run", "IID runs"]
    table = format_table([*headers, "fewer examples to break even"], rows)
    gigas = ", ".join(f"{name} {flops / 1e9:.4g}" for name, flops in result.forward.items())
    steps = "unknown (set --max_steps or --rows)" if result.n_steps is None else f"{result.n_steps:,}"
    lines = [
        f"GFLOPs of one example: {gigas}.",
        f"Sub-batch {result.sub_batch:,}, super-batch {result.super_batch:,} on {result.devices} device(s); steps: "
        f"{steps}.",
        "",
        table,
        "",
        f"The super-batch takes {result.super_batch_bytes / 1e6:,.1f} MB on each device.",
    ]
    if result.cache_bytes is None:
        lines.append("Set --rows for the size and the cost of the reference cache.")
    else:
        lines.append(
            f"The reference cache takes {result.cache_bytes / 1e6:,.1f} MB in float16 (jest-hf cache-reference) and "
            f"{2 * result.cache_bytes / 1e6:,.1f} MB in float32 (--cache_reference True), with one caption a row."
        )
    return "\n".join(lines)


__all__ = ["EstimateArguments", "NOT_USED", "add_arguments", "describe", "run"]
