# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel reduces logits as the literal matrices do: on a CUDA device, or else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jest_hf.selection import PairwiseScores, gumbel_noise, pair_terms, select_jointly
from tests.selection import literal
from tests.selection.models import learner_and_reference


if not torch.cuda.is_available():
    # The interpreter needs the variable where triton is imported.
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(
            "triton was imported without TRITON_INTERPRET=1: set it, or run this file alone", allow_module_level=True
        )
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed; it comes with torch for CUDA")

from jest_hf.selection import fused  # noqa: E402


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def bfloat16_in_the_interpreter(monkeypatch):
    """Triton's interpreter keeps bfloat16 as integers of the same bits, and multiplies these: give it the values."""
    if torch.cuda.is_available():
        return
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(self, *operands_and_settings):
        for operand in operands_and_settings[:2]:
            if operand.data.dtype == np.uint16:
                operand.data = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return multiply(self, *operands_and_settings)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def reduced_in_float64(candidates: torch.Tensor, drawn: torch.Tensor, bias: float, softmax: bool) -> torch.Tensor:
    logits = candidates.double() @ drawn.double().T + bias
    return logits.logsumexp(dim=1) if softmax else F.softplus(logits).sum(dim=1)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (128, 128, 32), (129, 257, 33), (300, 5, 70)])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (30.0, -12.0), (3.0, -40.0)])
def test_reductions_are_those_of_the_matrix(softmax, dtype, n, m, width, scale, bias):
    generator = torch.Generator().manual_seed(n)
    candidates = F.normalize(torch.randn(n, width, generator=generator)).to(DEVICE, dtype)
    drawn = F.normalize(torch.randn(m, width, generator=generator)).mul_(scale).to(DEVICE, dtype)
    reduced = fused.reduce_logits(candidates, drawn, bias, softmax=softmax)
    expected = reduced_in_float64(candidates, drawn, bias, softmax)
    torch.testing.assert_close(reduced.double(), expected, rtol=2e-5, atol=1e-5 if softmax else 1e-12)


def test_parts_of_larger_tensors_and_no_candidates():
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(70, 48, generator=generator).to(DEVICE)
    image, text = both.chunk(2, dim=1)  # not contiguous, as what a draw collects
    reduced = fused.reduce_logits(image[10:], text[:10], -1.0, softmax=True)
    torch.testing.assert_close(
        reduced.double(), reduced_in_float64(image[10:], text[:10], -1.0, True), rtol=1e-5, atol=1e-5
    )
    assert fused.reduce_logits(image[:0], text[:10], -1.0, softmax=False).shape == (0,)


def test_a_broken_candidate_breaks_no_other():
    candidates = torch.zeros(200, 4, device=DEVICE)
    candidates[7] = torch.nan
    for softmax in (False, True):
        broken = ~fused.reduce_logits(candidates, torch.ones(3, 4, device=DEVICE), 0.0, softmax=softmax).isfinite()
        assert broken.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_a_draw_with_the_kernel_is_that_of_the_literal_algorithm(loss, monkeypatch):
    monkeypatch.setattr(pair_terms, "_fused_kernel", lambda embeddings, precision: fused.reduce_logits)
    learner, reference = learner_and_reference("clusters", 301)
    noise = gumbel_noise(3, 67, 8, 301)
    scores = PairwiseScores.from_embeddings(learner.to(DEVICE), reference.to(DEVICE), loss=loss)
    losses = literal.signed_losses(learner, reference, "learnability", loss)
    assert select_jointly(scores, 67, 8, noise=noise).tolist() == literal.select_jointly(losses, 67, 8, noise)


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from jest_hf.selection import fused

sizes = {"CANDIDATES": fused._CANDIDATES, "DRAWN": fused._DRAWN, "WIDTH": fused._WIDTH}
for dtype, precision in (("bf16", "ieee"), ("fp32", "tf32")):
    for softmax in (False, True):
        types = {name: "constexpr" if name.isupper() else "i32" for name in fused._kernel.arg_names}
        types |= {"candidates": f"*{dtype}", "drawn": f"*{dtype}", "reduced": "*fp32", "bias": "fp32"}
        source = ASTSource(fused._kernel, types, {"SOFTMAX": softmax, "PRECISION": precision, **sizes})
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8})
        assert "mma.sync" in compiled.asm["ptx"]  # by tensor cores
"""


def test_it_compiles_for_a_gpu(tmp_path):
    """Without one too: the interpreter accepts what the compiler refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
