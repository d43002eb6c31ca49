"""Attention of the concept tokens, recorded while the UNet runs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.models.base import Base
from mixshow.models.prompts import prompt_ids
from mixshow.models.topology import cross_attention_layers


class AttentionRecorder:
    """Collects, by resolution, the probabilities with which pixels attend to chosen token positions."""

    def __init__(self, positions: Tensor) -> None:
        """
        Args:
            positions: `[batch, tokens]`, places in the prompts to record.
        """
        self.positions = positions
        self._sums: dict[int, list[Tensor]] = {}  # pixels -> sums over heads, `[batch, pixels, tokens]`
        self._heads: dict[int, int] = {}

    def attach(self, unet: UNet2DConditionModel) -> Attachment:
        """Record in all cross-attention layers until the handle is detached."""
        attachment = Attachment()
        for path in cross_attention_layers(unet):
            module = unet.get_submodule(path)
            attachment.add(partial(module.set_processor, module.processor))
            module.set_processor(_RecordingProcessor(self))
        return attachment

    def record(self, probabilities: Tensor, heads: int) -> None:
        """Keep one layer's probabilities, `[batch * heads, pixels, tokens]`."""
        by_head = probabilities.unflatten(0, (-1, heads))
        columns = self.positions[:, None, None, :].expand(-1, *by_head.shape[1:3], -1)
        pixels = by_head.shape[2]
        self._sums.setdefault(pixels, []).append(by_head.gather(3, columns).sum(dim=1))
        self._heads[pixels] = self._heads.get(pixels, 0) + heads

    def maps(self, height: int, width: int) -> list[Tensor]:
        """Averages over layers and heads, one `[batch, tokens, h, w]` per resolution, finest first.

        Args:
            height: of the latent; `width` likewise.
        """
        result = []
        for pixels in sorted(self._sums, reverse=True):
            factor = math.sqrt(height * width / pixels)
            rows = math.ceil(height / factor - 1e-6)
            mean = torch.stack(self._sums[pixels]).sum(dim=0) / self._heads[pixels]
            result.append(mean.transpose(1, 2).unflatten(2, (rows, pixels // rows)))
        return result


class _RecordingProcessor:
    """Plain attention that also hands its probabilities to a recorder."""

    def __init__(self, recorder: AttentionRecorder) -> None:
        self.recorder = recorder

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [batch, pixels, channels]
        encoder_hidden_states: Tensor | None = None,  # [batch, tokens, width]
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        assert encoder_hidden_states is not None
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self.recorder.record(probabilities, attn.heads)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probabilities.to(value), value))))


def concept_positions(base: Base, prompts: list[str], tokens: list[str]) -> Tensor:
    """Where the concept tokens stand in each prompt (as the first layer reads it), `[prompts, tokens]`.

    Raises:
        MixshowError: a prompt does not hold them within the model's length.
    """
    ids = prompt_ids(base, [base.vocabulary.bind(prompt, 0) for prompt in prompts])
    wanted = torch.tensor([base.vocabulary.ids[token][0] for token in tokens], device=ids.device)
    found = ids[:, None, :] == wanted[None, :, None]  # [prompts, tokens, places]
    for prompt, present in zip(prompts, found.any(dim=2).all(dim=1).tolist()):
        if not present:
            raise MixshowError(
                f"caption '{prompt}': expected {' '.join(tokens)} within the first {base.topology.max_tokens} tokens; "
                "put them nearer to the front"
            )
    return found.int().argmax(dim=2)
