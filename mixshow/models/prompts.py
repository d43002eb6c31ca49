"""From prompts to what the UNet reads of them: text states per cross-attention layer, and what XL bases add."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixshow.core.attachment import Attachment

if TYPE_CHECKING:
    from mixshow.models.base import Base


@dataclasses.dataclass(frozen=True, eq=False)
class PromptStates:
    """What the UNet reads of prompts. Indexing, joining and expanding go over the leading axes.

    Attributes:
        states: `[prompts, layers, tokens, width]`, or `[prompts, tokens, width]`, the same for all layers.
        pooled: one summary per prompt, `[prompts, pooled width]`, of bases whose UNet takes it (XL); else None.
        pixels: of the picture per latent position; such UNets are told the picture's size too.

    Example:
        >>> text = PromptStates(torch.zeros(2, 16, 77, 8))
        >>> list(text.for_unet(torch.zeros(2, 4, 8, 8))), len(text[:1].expanded(5))
        (['encoder_hidden_states'], 5)
    """

    states: Tensor
    pooled: Tensor | None = None
    pixels: int = 1

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Any) -> PromptStates:
        pooled = None if self.pooled is None else self.pooled[index]
        return dataclasses.replace(self, states=self.states[index], pooled=pooled)

    @staticmethod
    def joined(parts: Sequence[PromptStates]) -> PromptStates:
        """Several batches as one."""
        return _combined(torch.cat, parts)

    @staticmethod
    def stacked(parts: Sequence[PromptStates]) -> PromptStates:
        """Single prompts (without the leading axis) as one batch."""
        return _combined(torch.stack, parts)

    def expanded(self, count: int) -> PromptStates:
        """One prompt for a whole batch; takes no memory."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return dataclasses.replace(self, states=self.states.expand(count, *self.states.shape[1:]), pooled=pooled)

    def unflattened(self, *sizes: int) -> PromptStates:
        """The leading axis as several."""
        pooled = None if self.pooled is None else self.pooled.unflatten(0, sizes)
        return dataclasses.replace(self, states=self.states.unflatten(0, sizes), pooled=pooled)

    def to(self, dtype: torch.dtype) -> PromptStates:
        pooled = None if self.pooled is None else self.pooled.to(dtype)
        return dataclasses.replace(self, states=self.states.to(dtype), pooled=pooled)

    def for_unet(self, latents: Tensor) -> dict[str, Any]:
        """The UNet's keywords for latents `[prompts, channels, height, width]`.

        XL's size conditions (arXiv 2307.01952) say that the picture was made at this size and not cropped.
        """
        if self.pooled is None:
            return {"encoder_hidden_states": self.states}
        height, width = (side * self.pixels for side in latents.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=latents.device)
        added = {"text_embeds": self.pooled, "time_ids": sizes.expand(len(latents), -1)}
        return {"encoder_hidden_states": self.states, "added_cond_kwargs": added}


def _combined(combine: Any, parts: Sequence[PromptStates]) -> PromptStates:
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return dataclasses.replace(
        parts[0], states=combine([part.states for part in parts]), pooled=combine(pooled) if pooled else None
    )


def prompt_ids(base: Base, texts: Sequence[str], *, pad: bool = True, encoder: str = "text_encoder") -> Tensor:
    """Token ids of texts that are already bound to a layer.

    Args:
        pad: to the model's full length; without, all texts must have equally many tokens.
        encoder: whose tokenizer; they differ in the padding token only.

    Returns:
        `[texts, tokens]` on the text encoder's device; longer prompts are cut at the model's length.
    """
    batch = base.tokenizers[encoder](
        list(texts),
        padding="max_length" if pad else False,
        truncation=True,
        max_length=base.topology.max_tokens,
        return_tensors="pt",
    )
    return batch.input_ids.to(base.text_encoder.device)


def text_states(base: Base, texts: Sequence[str], *, pad: bool = True, clip_skip: int = 0) -> PromptStates:
    """States of texts that are already bound to a layer, `[texts, tokens, width]`.

    With two text encoders (XL) these are both encoders' last but one layers side by side, and the second encoder's
    projected summary is the pooled state. Where the base was trained with zeros for dropped prompts, the empty text is
    zeros.

    Args:
        pad: as in `prompt_ids`.
        clip_skip: of how many more layers at the encoders' ends the states leave out; see `clip_skip_problem`.
    """
    encoded = encoded_texts(base, texts, pad=pad, clip_skip=clip_skip)
    if not base.zero_empty_prompt or encoded.pooled is None:
        return encoded
    filled = torch.tensor([bool(text) for text in texts], device=encoded.states.device)
    states = torch.where(filled[:, None, None], encoded.states, 0)
    return PromptStates(states, torch.where(filled[:, None], encoded.pooled, 0))


def encoded_texts(base: Base, texts: Sequence[str], *, pad: bool = True, clip_skip: int = 0) -> PromptStates:
    """What the text encoders themselves make of texts, empty ones too; see `text_states`."""
    if base.text_encoder_2 is None:
        ids = prompt_ids(base, texts, pad=pad)
        if clip_skip:
            return PromptStates(_without_last(base.text_encoder, ids, clip_skip))
        return PromptStates(base.text_encoder(ids)[0])
    outputs = [
        encoder(prompt_ids(base, texts, pad=pad, encoder=name), output_hidden_states=True)
        for name, encoder in base.text_encoders.items()
    ]
    states = torch.cat([output.hidden_states[-2 - clip_skip] for output in outputs], dim=-1)
    return PromptStates(states, outputs[-1].text_embeds)


def _without_last(encoder: Any, ids: Tensor, layers: int) -> Tensor:
    """The states of a text encoder without its last layers, normalised as the last one's are.

    Asked for its hidden states, transformers leaves hooks behind in the encoder.
    """
    transformer = getattr(encoder, "text_model", encoder)  # libraries differ in where it is
    found: list[Any] = []
    with Attachment() as attachment:
        layer = transformer.encoder.layers[-1 - layers]
        attachment.add_hook(layer.register_forward_hook(lambda _, __, output: found.append(output)))
        encoder(ids)
    states: Tensor = transformer.final_layer_norm(found[0][0] if isinstance(found[0], tuple) else found[0])
    return states


def clip_skip_problem(base: Base, clip_skip: int) -> str | None:
    """Why a base's text encoders cannot leave out so many more of their last layers; None when they can.

    0 is what the base was trained with: the last layer of 1.x, the last but one of XL. At least one layer stays.
    """
    layers = min(int(encoder.config.num_hidden_layers) for encoder in base.text_encoders.values())
    most = layers - (1 if base.text_encoder_2 is None else 2)
    if 0 <= clip_skip <= most:
        return None
    return f"clip_skip: expected 0 to {most} for the text encoder of model '{base.source}', found {clip_skip}"


def prompt_states(base: Base, prompts: Sequence[str], *, chunk: int | None = None, clip_skip: int = 0) -> PromptStates:
    """All that the UNet reads of prompts, for every cross-attention layer.

    A prompt without concept tokens is the same for all layers and is encoded once. The pooled state belongs to no
    layer: it is the mean over the layers' readings of the prompt.

    Args:
        prompts: texts, concept tokens written as the vocabulary knows them (`<pip1> <pip2>`).
        chunk: texts encoded at a time; None: all at once.
        clip_skip: see `text_states`.

    Returns:
        States `[prompts, layers, tokens, width]`, and what else the base's UNet takes.
    """
    layers = base.topology.layers
    texts: dict[str, int] = {}
    rows = []  # for each prompt and layer, the row of its text among the distinct ones
    for prompt in prompts:
        bound = range(layers) if base.vocabulary.used_in(prompt) else [0] * layers
        rows.append([texts.setdefault(base.vocabulary.bind(prompt, layer), len(texts)) for layer in bound])
    distinct = list(texts)
    chunk = chunk or len(distinct)
    encoded = PromptStates.joined(
        [
            text_states(base, distinct[start : start + chunk], clip_skip=clip_skip)
            for start in range(0, len(distinct), chunk)
        ]
    )
    pooled = encoded.pooled
    if pooled is not None:
        pooled = torch.stack([pooled[row[0]] if len(set(row)) == 1 else pooled[row].mean(0) for row in rows])
    states = encoded.states[torch.tensor(rows, device=encoded.states.device)]
    return PromptStates(states, pooled, base.topology.latent_factor)


def encode_prompts(base: Base, prompts: Sequence[str], *, chunk: int | None = None) -> Tensor:
    """The text states alone of `prompt_states`, `[prompts, layers, tokens, width]`."""
    return prompt_states(base, prompts, chunk=chunk).states
