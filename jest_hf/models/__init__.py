# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The dual-encoder view of Hugging Face models, cheaper views of their images, and small models from a size name."""

from jest_hf.models.adapters import add_adapter, add_reference_adapter, as_reference, base_model, has_adapter
from jest_hf.models.build import build_siglip
from jest_hf.models.dual_encoder import (
    IMAGE_KEYS,
    DualEncoder,
    DualEncoderOutput,
    embedding_width,
    expose_temperature,
    family_of,
    has_logit_bias,
    without_temperature,
)
from jest_hf.models.load import load_model
from jest_hf.models.resize import resize_patch_kernel
from jest_hf.models.towers import accept_views
from jest_hf.models.views import View


__all__ = [
    "IMAGE_KEYS",
    "DualEncoder",
    "DualEncoderOutput",
    "View",
    "accept_views",
    "add_adapter",
    "add_reference_adapter",
    "as_reference",
    "base_model",
    "build_siglip",
    "embedding_width",
    "expose_temperature",
    "without_temperature",
    "family_of",
    "has_adapter",
    "has_logit_bias",
    "load_model",
    "resize_patch_kernel",
]
