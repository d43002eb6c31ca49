"""The configuration of a single-file checkpoint's models, from the names and shapes of its tensors.

Such files hold the weights of the original code ("LDM", SGM) and no configuration. What shapes do not tell, a `Family`
does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mixshow.core.errors import MixshowError
from mixshow.models.kinds import TEXT_TO_IMAGE

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_HEAD = 64  # width of a head of every CLIP, and of UNets with linear projections


@dataclasses.dataclass(frozen=True)
class Family:
    """What a kind of checkpoint has in common beside its shapes.

    Attributes:
        text_encoders: where the text encoders' tensors are, by their names in a base.
        heads: of every attention of the UNet; None: heads are 64 channels wide.
        side: of its native pictures, in latent positions.
        latent_scale: factor on latents.
        velocity_side: `side` of models that predict velocities.
        scheduler: diffusers' class in the published folders.
    """

    name: str
    text_encoders: Mapping[str, str]
    heads: int | None
    side: int
    latent_scale: float
    velocity_side: int
    scheduler: str = "DDIMScheduler"


_CLIP, _OPEN_CLIP = "transformer.", "model."
SD1 = Family("Stable Diffusion 1.x", {"text_encoder": f"cond_stage_model.{_CLIP}"}, 8, 64, 0.18215, 64)
SD2 = Family("Stable Diffusion 2.x", {"text_encoder": f"cond_stage_model.{_OPEN_CLIP}"}, None, 64, 0.18215, 96)
XL = Family(
    "Stable Diffusion XL",
    {"text_encoder": f"conditioner.embedders.0.{_CLIP}", "text_encoder_2": f"conditioner.embedders.1.{_OPEN_CLIP}"},
    None,
    128,
    0.13025,
    128,
    "EulerDiscreteScheduler",
)
SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip


def family_of(shapes: Shapes, source: str) -> Family:
    """Which kind of checkpoint this is.

    Raises:
        MixshowError: it is none, or of another kind.
    """
    problem = None
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        problem = "tensors of something else"
        if any(name.startswith(("lora_", "lycoris_", "oft_")) for name in shapes):
            problem = "a network (LoRA, LyCORIS), which goes on top of a base"
    elif "edm_mean" in shapes:
        problem = "an EDM model (Playground)"
    for family in (XL, SD2, SD1):
        if problem is None and all(_has(shapes, prefix) for prefix in family.text_encoders.values()):
            return family
    if problem is None:
        refiner = _has(shapes, f"conditioner.embedders.0.{_OPEN_CLIP}")
        problem = "XL's refiner; take the base model" if refiner else "a UNet without text encoders of a known kind"
    raise MixshowError(f"{source}: {TEXT_TO_IMAGE} in one file, found {problem}")


@contextlib.contextmanager
def naming_what_is_missing(source: str, family: Family) -> Iterator[None]:
    """Turn the lookup of a tensor that a file does not have into one line."""
    try:
        yield
    except KeyError as error:
        raise MixshowError(f"{source}: the tensor {error} of a {family.name} checkpoint is missing") from error


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def unet_config(shapes: Shapes, family: Family) -> dict[str, Any]:
    """Keywords of diffusers' UNet."""
    own = below(shapes, UNET)
    levels: list[dict[str, int]] = [{"blocks": 0, "width": 0, "depth": 0}]
    for number in range(1, _count(own, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{number}."
        if f"{block}0.op.weight" in own:
            levels.append({"blocks": 0, "width": 0, "depth": 0})
            continue
        level = levels[-1]
        level["blocks"] += 1
        level["width"] = own[f"{block}0.out_layers.3.weight"][0]
        level["depth"] = _count(own, re.escape(block) + r"1\.transformer_blocks\.(\d+)\.")
    attends = [level["depth"] > 0 for level in levels]
    widths = [level["width"] for level in levels]
    middle = _count(own, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    keys = next((shape for name, shape in own.items() if name.endswith("attn2.to_k.weight")), (0, 0))
    linear = len(own.get("middle_block.1.proj_in.weight", ())) == 2
    config = {
        "in_channels": own["input_blocks.0.0.weight"][1],
        "out_channels": own["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": levels[0]["blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        # The middle block takes the last level's depth, which has no other use where that level attends to nothing.
        "transformer_layers_per_block": [level["depth"] or 1 for level in levels[:-1]] + [middle or 1],
        "cross_attention_dim": keys[1],
        "attention_head_dim": family.heads or [width // _HEAD for width in widths],  # diffusers' name for head counts
        "use_linear_projection": linear,
        "sample_size": family.side,
    }
    label = own.get("label_emb.0.0.weight")
    if label is None:
        return config
    if family is not XL:
        return config | {"class_embed_type": "projection"}
    pooled = below(shapes, family.text_encoders["text_encoder_2"])["text_projection"][1]
    return config | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (label[1] - pooled) // 6,  # height and width thrice: original, corner, target
        "projection_class_embeddings_input_dim": label[1],
    }


def check_autoencoder(shapes: Shapes, source: str) -> None:
    """Raises MixshowError where a file has no autoencoder, neither among other tensors nor alone."""
    if f"{VAE if _has(shapes, VAE) else ''}encoder.conv_in.weight" not in shapes:
        raise MixshowError(f"{source}: it holds no autoencoder; name another place to take one from (vae)")


def vae_config(shapes: Shapes, family: Family) -> dict[str, Any]:
    """Keywords of diffusers' autoencoder."""
    own = below(shapes, VAE) if _has(shapes, VAE) else shapes
    levels = range(_count(own, r"encoder\.down\.(\d+)\."))
    return {
        "in_channels": own["encoder.conv_in.weight"][1],
        "out_channels": own["decoder.conv_out.weight"][0],
        "latent_channels": own["decoder.conv_in.weight"][1],
        "block_out_channels": [own[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in levels],
        "layers_per_block": _count(own, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "scaling_factor": family.latent_scale,
        "sample_size": family.side * 2 ** (len(levels) - 1),
    }


def text_config(shapes: Shapes, prefix: str, *, last_left_out: bool = False) -> dict[str, Any]:
    """Keywords of a text encoder's configuration, of CLIP's or OpenCLIP's names.

    Args:
        last_left_out: the UNet reads the last but one layer, so that the last is not part of the model.
    """
    own = below(shapes, prefix)
    if prefix.endswith(_OPEN_CLIP):
        vocabulary, width = own["token_embedding.weight"]
        inner, positions = own["transformer.resblocks.0.mlp.c_fc.weight"][0], own["positional_embedding"][0]
        layers = _count(own, r"transformer\.resblocks\.(\d+)\.") - last_left_out
        projection, activation = own.get("text_projection", (width, width))[1], "gelu"
    else:
        own = below(own, "text_model.") or own
        vocabulary, width = own["embeddings.token_embedding.weight"]
        inner, positions = own["encoder.layers.0.mlp.fc1.weight"][0], own["embeddings.position_embedding.weight"][0]
        layers, projection = _count(own, r"encoder\.layers\.(\d+)\."), width
        activation = "quick_gelu"
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": width // _HEAD, "max_position_embeddings": positions, "projection_dim": projection,
        "hidden_act": activation,
    }  # fmt: skip


def below(shapes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in shapes.items() if name.startswith(prefix)}


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers a pattern finds in the names, counted from 0."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return max(found) + 1 if found else 0
