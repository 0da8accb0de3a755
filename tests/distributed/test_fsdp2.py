# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""FSDP2, which accelerate does not launch on CPUs: its own sharding, called directly, over gloo."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModel

from jest_hf.distributed import Ranks
from jest_hf.losses import backward_in_chunks, sigmoid_contrastive_loss, softmax_contrastive_loss
from jest_hf.models import DualEncoder, View, accept_views, expose_temperature
from jest_hf.models.sharding import prepare_for_fsdp2
from jest_hf.reference import place_reference
from jest_hf.training.update import chunks_by_view, rows_at_view
from tests.distributed.processes import run
from tests.helpers import tiny_clip, tiny_clip_processor, tiny_siglip, tiny_siglip_processor


WORLD_SIZE = 2


def fsdp2_accelerator():
    """What accelerate's FSDP2 reads of an Accelerator, with the settings of the preset."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
    )
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        distributed_type=DistributedType.FSDP,
        is_fsdp2=True,
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
        process_index=dist.get_rank(),
        num_processes=dist.get_world_size(),
        wait_for_everyone=dist.barrier,
        torch_device_mesh=None,
        device=torch.device("cpu"),
    )


MODELS = {
    "Siglip": (tiny_siglip, tiny_siglip_processor, sigmoid_contrastive_loss),
    "CLIP": (tiny_clip, tiny_clip_processor, softmax_contrastive_loss),  # its temperature has no dimension
}


def scored_and_learned(family, fully_sharded, folder):
    """Score 8 examples with learner and reference, then learn from them; each rank holds an equal part of them."""
    ranks = Ranks.world()
    build, processor, loss_of = MODELS[family]
    learner, reference = build(0), build(1).eval().requires_grad_(False)
    for model in (learner, reference):
        expose_temperature(model)
    if fully_sharded:
        accelerator = fsdp2_accelerator()
        reference = place_reference(reference, accelerator, "sharded")
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        prepare_for_fsdp2(learner)
        fsdp2_prepare_model(accelerator, learner)
        assert {type(model).__name__ for model in (learner, reference)} == {f"FSDP{family}Model"}
        assert {type(weight).__name__ for weight in learner.parameters()} == {"DTensor"}
        assert sum(weight.to_local().numel() for weight in reference.parameters()) < 0.6 * reference.num_parameters()

    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(3)
    batch = {
        "pixel_values": torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "input_ids": torch.randint(3, 14, (8, 8), generator=generator),
        "attention_mask": torch.ones(8, 8, dtype=torch.int64),
        "example_id": torch.arange(8),
    }
    batch["input_ids"][:, -1] = 2  # where CLIP reads the caption
    batch = {name: value.chunk(ranks.size)[ranks.rank] for name, value in batch.items()}
    view = DualEncoder(learner.config, processor())
    scored = [view.score(model, batch, batch_size=2) for model in (learner, reference)]

    learner.train()
    output = view(learner, batch)
    loss = loss_of(output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias, ranks=ranks)
    loss.backward()
    optimizer.step()
    weights = {
        name: (weight.full_tensor() if fully_sharded else weight).detach().flatten()
        for name, weight in learner.named_parameters()
    }
    if fully_sharded:
        saved_and_loaded(learner, weights, accelerator, folder)
    embedded = [ranks.gather_rows(part) for one in scored for part in (one.image, one.text)]
    temperatures = [value for one in scored for value in (one.logit_scale, one.logit_bias)]
    return embedded, temperatures, loss.detach(), weights


def saved_and_loaded(learner, weights, accelerator, folder):
    """Save as the Trainer does, for others and for itself, and load both."""
    from accelerate.utils.fsdp_utils import load_fsdp_model, save_fsdp_model

    PartialState(cpu=True)  # or its logger raises
    plugin = accelerator.state.fsdp_plugin
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    state = get_model_state_dict(learner, options=options)
    save_fsdp_model(plugin, accelerator, learner, folder)
    if accelerator.is_main_process:
        learner.save_pretrained(folder, state_dict=state)
        scale = AutoModel.from_pretrained(folder).logit_scale
        assert scale.shape == MODELS[type(learner).__name__[4:-5]][0]().logit_scale.shape
        saved = {name: weight.flatten() for name, weight in AutoModel.from_pretrained(folder).named_parameters()}
        torch.testing.assert_close(saved, weights, atol=0, rtol=0)
    dist.barrier()
    with torch.no_grad():
        for weight in learner.parameters():
            weight.zero_()
    load_fsdp_model(plugin, accelerator, learner, folder)
    loaded = {name: weight.full_tensor().detach().flatten() for name, weight in learner.named_parameters()}
    torch.testing.assert_close(loaded, weights, atol=0, rtol=0)


@pytest.mark.parametrize("family", list(MODELS))
def test_fsdp2_scores_and_learns_as_one_process_does(tmp_path, family):
    alone = run(1, scored_and_learned, family, False, None)[0]
    for sharded in run(WORLD_SIZE, scored_and_learned, family, True, str(tmp_path)):
        torch.testing.assert_close(sharded, alone, atol=1e-5, rtol=1e-5)


def learned_at_views(fully_sharded, shares, fraction, n_chunks):
    """Gradients over unequal numbers of rows, in chunks or not; and how many of them this rank had at the view."""
    ranks, view = Ranks.world(), View.parse("image:8")
    learner = tiny_siglip(0)
    expose_temperature(learner)
    accept_views(learner)
    if fully_sharded:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        prepare_for_fsdp2(learner)
        fsdp2_prepare_model(fsdp2_accelerator(), learner)
    generator = torch.Generator().manual_seed(3)
    batch = {
        "pixel_values": torch.randint(0, 256, (sum(shares), 3, 16, 16), dtype=torch.uint8, generator=generator),
        "input_ids": torch.randint(3, 14, (sum(shares), 8), generator=generator),
    }
    counts = [rows_at_view(fraction, n_rows, min(shares)) for n_rows in shares]
    parts = [
        part.split([m, n - m])
        for part, m, n in zip(torch.arange(sum(shares)).split(shares), counts, shares, strict=True)
    ]
    own = range(len(shares)) if ranks.size == 1 else [ranks.rank]  # one process has the rows of all
    order = torch.cat([parts[rank][full] for full in (0, 1) for rank in own])
    batch, n_at_view = {name: value[order] for name, value in batch.items()}, sum(counts[rank] for rank in own)
    read = DualEncoder(learner.config, tiny_siglip_processor())
    chunks = [slice(0, len(order))]
    if n_chunks is not None and ranks.size > 1:
        chunks = chunks_by_view(fraction, len(order), min(shares), n_chunks)
    loss = backward_in_chunks(
        lambda rows: read(learner, batch, rows, view, n_at_view),
        len(order),
        chunks,
        loss=functools.partial(sigmoid_contrastive_loss, ranks=ranks),
    )
    gradients = [weight.grad.full_tensor() if fully_sharded else weight.grad for weight in learner.parameters()]
    return loss, gradients, (n_at_view, len(order) - n_at_view)


# By themselves ranks of 6 and 5 rows would have 1 and 0 of them at the view, those of 5 and 4 rows 1 and 0 in full.
@pytest.mark.parametrize("n_chunks", [None, 2])
@pytest.mark.parametrize(
    ("shares", "fraction", "made"),
    [
        ([7, 6], 0.5, [(4, 3), (3, 3)]),
        ([4, 3], 0.5, [(2, 2), (2, 1)]),
        ([6, 5], 0.1, [(0, 6), (0, 5)]),
        ([5, 4], 0.9, [(5, 0), (4, 0)]),
    ],
)
def test_fsdp2_learns_at_views_from_unequal_numbers_of_rows(shares, fraction, made, n_chunks):
    loss, gradients, _ = run(1, learned_at_views, False, shares, fraction, n_chunks)[0]
    sharded = run(WORLD_SIZE, learned_at_views, True, shares, fraction, n_chunks)
    assert [counts for _, _, counts in sharded] == made
    for rank in sharded:
        torch.testing.assert_close(rank[:2], (loss, gradients), atol=1e-5, rtol=1e-4)
