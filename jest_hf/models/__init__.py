# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The dual-encoder view of Hugging Face models, cheaper views of their images, and small models from a size name."""

from jest_hf.batch import IMAGE_KEYS
from jest_hf.images.resize import resize_patch_kernel
from jest_hf.images.views import View
from jest_hf.models.adapters import add_adapter, add_reference_adapter, as_reference, base_model, has_adapter
from jest_hf.models.build import build_siglip
from jest_hf.models.dual_encoder import DualEncoder, DualEncoderOutput, expose_temperature
from jest_hf.models.families import (
    FAMILIES,
    Family,
    check_view,
    embedding_width,
    family_of,
    has_logit_bias,
    without_temperature,
)
from jest_hf.models.load import load_model
from jest_hf.models.reader import Reader
from jest_hf.models.towers import accept_views


__all__ = [
    "FAMILIES",
    "Family",
    "check_view",
    "IMAGE_KEYS",
    "DualEncoder",
    "DualEncoderOutput",
    "Reader",
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
