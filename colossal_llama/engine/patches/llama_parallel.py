"""Patches of a parallelised LLaMA: exact loss, and document masking.

ColossalAI's `HybridParallelPlugin` replaces two of a LLaMA's forward functions when a dimension of
parallelism is on. Both are replaced here by functions that compute what the model computes on one
process; the faults of the originals are stated at each.

For transformers 4.51 and ColossalAI 0.5.0: the originals are copies of that LLaMA. Imported only
where `3d` divides a model or its sequences.

    sequence of 8 tokens, --sp 2         rank 0: t0 t1 t2 t3        rank 1: t4 t5 t6 t7
    labels, shifted before sharding      rank 0: t1 t2 t3 t4        rank 1: t5 t6 t7 –
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from colossalai.shardformer import ShardConfig
from colossalai.shardformer.layer._operation import all_to_all_comm, reduce_forward
from colossalai.shardformer.layer.loss import cross_entropy_1d
from colossalai.shardformer.modeling.llama import LlamaPipelineForwards
from colossalai.shardformer.policies import llama as llama_policy
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention

from colossal_llama.model.kernels.apply import fused_linear_cross_entropy
from colossal_llama.model.kernels.linear_cross_entropy import next_token_labels
from colossal_llama.model.kernels.per_token_loss import LossOutput, states_at
from colossal_llama.utils.labels import IGNORED_LABEL


def install_sharded_forwards() -> None:
    """Replaces ColossalAI's functions by those of this file; idempotent.

    Call it before the plugin wraps a model.
    """
    LlamaPipelineForwards.llama_for_causal_lm_forward = staticmethod(causal_lm_forward)
    llama_policy.get_llama_flash_attention_forward = attention_forward


def causal_lm_forward(
    self: LlamaForCausalLM,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    target_positions: torch.Tensor | None = None,
    logit_positions: torch.Tensor | None = None,
    hidden_states: torch.Tensor | None = None,
    stage_manager: Any = None,
    stage_index: list[int] | None = None,
    shard_config: ShardConfig | None = None,
    **_: object,
) -> CausalLMOutputWithPast | dict[str, torch.Tensor]:
    """Patch: the loss of a parallelised model is inexact.

    Cause: ColossalAI computes cross-entropy, and the sum of a sequence's losses, in the precision
    of the weights: in bf16 a count of 4,095 targets becomes 4,096, and the loss has 8 bits. Remedy:
    this forward function, which computes them in fp32. It is called on each pipeline stage; all but
    the last return hidden states.
    """
    outputs = LlamaPipelineForwards.llama_model_forward(
        self.model,
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        stage_manager=stage_manager,
        hidden_states=hidden_states,
        stage_index=stage_index,
        shard_config=shard_config,
        force_sp_gather=False,
    )
    if stage_manager is not None and not stage_manager.is_last_stage():
        return outputs
    hidden = outputs[0]
    if labels is None:
        return CausalLMOutputWithPast(logits=_logits(self, hidden, position_ids, shard_config, logit_positions))
    loss, token_losses = _mean_loss(self, hidden, labels, shard_config, target_positions)
    return LossOutput(loss=loss, token_losses=token_losses)


def _logits(
    model: LlamaForCausalLM,
    hidden: torch.Tensor,
    position_ids: torch.Tensor | None,
    shards: ShardConfig,
    positions: torch.Tensor | None,
) -> torch.Tensor:
    """Logits (fp32 under tensor parallelism), the same on every rank that shares the batch.

    Args:
        model: its output layer holds this rank's rows of the vocabulary.
        hidden: (rows, length, width), or this rank's sequence shard in mode all_to_all.
        position_ids: (rows, length), of whole sequences; None where none is divided.
        shards: parallelism of the model.
        positions: of the flattened rows, whose logits are asked for; None for all.
    """
    if position_ids is not None and hidden.shape[1] != position_ids.shape[1]:
        group = shards.sequence_parallel_process_group
        sequence_shards = [torch.empty_like(hidden) for _ in range(shards.sequence_parallel_size)]
        dist.all_gather(sequence_shards, hidden.contiguous(), group=group)
        hidden = torch.cat(sequence_shards, dim=1)
    logits = model.lm_head(states_at(hidden, positions))
    if not shards.enable_tensor_parallelism:
        return logits
    group, columns = shards.tensor_parallel_process_group, model.lm_head.out_features
    first = dist.get_rank(group) * -(-columns // dist.get_world_size(group))
    whole = logits.new_zeros(*logits.shape[:-1], columns, dtype=torch.float32)
    whole[..., first : first + logits.shape[-1]] = logits
    dist.all_reduce(whole, group=group)
    return whole


def _mean_loss(
    model: LlamaForCausalLM,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    shards: ShardConfig,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over all targets of the batch, and the loss of each token.

    Both are the same on every rank that shares the batch.

    Args:
        model: its output layer holds this rank's rows of the vocabulary.
        hidden: (rows, length, width), or this rank's sequence shard in mode all_to_all.
        labels: (rows, length), of whole sequences.
        shards: parallelism of the model.
        positions: of the targets, so that a fused loss skips the others; see
            `colossal_llama.model.kernels.apply`.
    """
    shifted = next_token_labels(labels)
    targets = (shifted != IGNORED_LABEL).sum().clamp(min=1)
    is_sequence_sharded = hidden.shape[1] != labels.shape[1]
    group, ranks = shards.sequence_parallel_process_group, shards.sequence_parallel_size
    if is_sequence_sharded:
        shifted, positions = shifted.chunk(ranks, dim=1)[dist.get_rank(group)], None
    loss, token_losses = _summed_loss(model, hidden, shifted.reshape(-1), shards, positions)
    token_losses = token_losses.view(shifted.shape)
    if is_sequence_sharded:
        sequence_shards = [torch.empty_like(token_losses) for _ in range(ranks)]
        dist.all_gather(sequence_shards, token_losses.contiguous(), group=group)
        token_losses = torch.cat(sequence_shards, dim=1)
        # The plugin averages gradients over data-parallel and sequence-parallel ranks alike; the
        # scale undoes the latter.
        loss = reduce_forward(loss, group, grad_scale=ranks)
    return loss / targets, token_losses


def _summed_loss(
    model: LlamaForCausalLM,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    shards: ShardConfig,
    positions: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy (fp32) of this rank's tokens over the whole vocabulary.

    Returns:
        The sum over the tokens, and the loss of each without gradient, 0 without a target.
    """
    if getattr(model, "fuses_loss", False):
        flat = hidden.reshape(-1, hidden.shape[-1])
        mean, losses = fused_linear_cross_entropy(flat, model.lm_head.weight, labels, positions)
        return mean * (labels != IGNORED_LABEL).sum(), losses
    logits = model.lm_head(hidden).float()
    logits = logits.reshape(-1, logits.shape[-1])
    if not shards.enable_tensor_parallelism:
        losses = cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")
        return losses.sum(), losses.detach()
    group, columns = shards.tensor_parallel_process_group, model.lm_head.out_features
    # Before `cross_entropy_1d`, which overwrites its logits.
    losses = _split_token_losses(logits.detach(), labels, group, columns)
    loss = cross_entropy_1d(logits, labels, process_group=group, vocab_size=columns, dtype=torch.float32, mode="sum")
    return loss, losses


def _split_token_losses(
    logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup, columns: int
) -> torch.Tensor:
    """Loss of each token where every rank has its columns of the logits.

    ColossalAI's function returns their sum only.

    Args:
        logits: (tokens, columns of this rank) in fp32; the last rank's lack the padding.
        labels: (tokens,), indices into the columns of all ranks.
        group: ranks in the order of their columns.
        columns: number over all ranks, padding included.
    """
    largest = logits.max(dim=-1).values
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    columns_per_rank = -(-columns // dist.get_world_size(group))
    mine = labels - dist.get_rank(group) * columns_per_rank
    is_mine = (mine >= 0) & (mine < logits.shape[-1])
    wanted = logits.gather(1, torch.where(is_mine, mine, 0).unsqueeze(1)).squeeze(1)
    sums = torch.stack([(logits - largest.unsqueeze(1)).exp().sum(dim=-1), torch.where(is_mine, wanted, 0.0)])
    dist.all_reduce(sums, group=group)
    return torch.where(labels == IGNORED_LABEL, 0.0, sums[0].log() + largest - sums[1])


def attention_forward(
    shard_config: ShardConfig, sp_mode: str | None = None, sp_size: int | None = None, sp_group: Any = None
) -> Callable:
    """Patch: under sequence parallelism attention ignores document boundaries.

    Cause: ColossalAI builds a mask of length × length and scores of the same size, or calls kernels
    of its own; both mask padding only, so documents spliced into one row attend to each other.
    Remedy: this forward function of an attention layer, which calls the model's attention function.
    """
    return partial(_attention_forward, sp_group=sp_group if sp_mode == "all_to_all" else None)


def _attention_forward(
    self: LlamaAttention,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor,
    sp_group: Any = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention over whole sequences with this rank's heads.

    `sp_group` exchanges sequence shards with all heads for whole sequences with this rank's heads
    (all-to-all; DeepSpeed Ulysses, https://arxiv.org/abs/2309.14509).
    """
    states = [project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj)]
    if sp_group is not None:  # (rows, length / ranks, heads x width) -> (rows, length, heads / ranks x width)
        states = [all_to_all_comm(each, sp_group) for each in states]
    rows, length, _width = states[0].shape
    query, key, value = (each.view(rows, length, -1, self.head_dim).transpose(1, 2) for each in states)
    query, key = modeling_llama.apply_rotary_pos_emb(query, key, *position_embeddings)
    attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    dropout = self.attention_dropout if self.training else 0.0
    output, _ = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling)
    output = output.reshape(rows, length, -1).contiguous()
    if sp_group is not None:
        output = all_to_all_comm(output, sp_group, scatter_dim=1, gather_dim=2)
    return self.o_proj(output), None
