"""Option files of Mix-of-Show, turned into the values of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixshow.core.errors import MixshowError, OptionsError, did_you_mean
from mixshow.core.files import read_json

_TRANSFORMS = {"HumanResizeCropFinalV3": "human_crop", "ResizeFillMaskNew": "fill_mask"}
# Transforms that say nothing we do not always do.
_IMPLIED_TRANSFORMS = ("ToTensor", "Normalize")
# Keys that the published program reads nowhere, or that choose between implementations of the same thing.
_WITHOUT_MEANING = {
    "datasets.train.name",
    "datasets.val_vis.name",
    "datasets.val_vis.latent_size",
    "datasets.val_vis.batch_size_per_gpu",
    "datasets.val_vis.replace_mapping",
    "models.enable_edlora",
    "models.enable_xformers",
    "train.optim_g.type",
    "train.optim_g.lr",
    "train.unet_kv_drop_rate",
    "train.scheduler",
    "val.val_during_save",
    "val.compose_visualize",
    "logger.print_freq",
    "path.pretrain_network",
}


def is_published(contents: Mapping[str, Any]) -> bool:
    """Whether an options file has the published shape rather than ours."""
    return "datasets" in contents and "models" in contents


def published_train_options(contents: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values of our training options for a published training file.

    Files that it points to and that are missing stay as paths in the result, so that all of them can be named
    together; the concept list must be readable only where it exists.

    Raises:
        OptionsError: keys we do not know, values of other kinds, or a file for another command.
    """
    if "train" not in contents or "train" not in (contents.get("datasets") or {}):
        raise OptionsError(
            source,
            [
                "expected a file for training, found a published test file (no datasets.train); for pictures of "
                "a trained concept use 'mixshow sample'"
            ],
        )
    reader = _Reader(contents, source)
    values = _values(reader)
    reader.finish()
    return values


def read_concept_list(path: Path | str) -> list[tuple[Path, float, float, str]]:
    """A published list of concepts to fuse: `(path, unet_alpha, text_encoder_alpha, concept_name)` each.

    Raises:
        MixshowError: not readable, or not of that form.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        found = "an empty one" if entries == [] else type(entries).__name__
        raise MixshowError(f"{path}: expected a list of concepts, found {found}")
    result = []
    problems = []
    for number, entry in enumerate(entries):
        try:
            name, alphas = (
                str(entry.get("concept_name", "")),
                (entry.get("unet_alpha", 1.0), entry.get("text_encoder_alpha", 1.0)),
            )
            result.append((Path(str(entry["lora_path"])), float(alphas[0]), float(alphas[1]), name))
        except (AttributeError, KeyError, TypeError, ValueError):
            problems.append(
                f"[{number}]: expected lora_path, unet_alpha, text_encoder_alpha and concept_name, found {entry!r}"
            )
    if problems:
        raise OptionsError(str(path), problems)
    return result


class _Reader:
    """Takes values by dotted path, remembering what was asked for and what was wrong."""

    def __init__(self, contents: Mapping[str, Any], source: str) -> None:
        self.leaves = dict(_leaves(contents))
        self.source = source
        self.problems: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        return self.leaves.pop(key, default)

    def take_as(self, kind: Callable[[Any], Any], key: str, default: Any = None) -> Any:
        value = self.take(key, default)
        if value is None:
            return None
        try:
            return kind(value)
        except (TypeError, ValueError):
            self.problems.append(
                f"{key}: expected {'a number' if kind is float else 'a whole number'}, found {value!r}"
            )
            return default

    def finish(self) -> None:
        known = _WITHOUT_MEANING
        unknown = [key for key in self.leaves if key not in known]
        self.problems += [
            f"{key}: not an option of published training files{did_you_mean(key, known)}" for key in unknown
        ]
        if self.problems:
            raise OptionsError(self.source, self.problems)


def _leaves(value: Mapping[str, Any], where: str = "") -> list[tuple[str, Any]]:
    """`(dotted path, value)` of everything that is no mapping; token replacements stay whole."""
    found = []
    for key, item in value.items():
        path = f"{where}.{key}" if where else str(key)
        if isinstance(item, Mapping) and key != "replace_mapping":
            found += _leaves(item, path)
        else:
            found.append((path, item))
    return found


def _values(reader: _Reader) -> dict[str, Any]:
    name = str(reader.take("name", "concept"))
    masked, weight = (
        reader.take("models.use_mask_loss", False),
        reader.take_as(float, "models.attn_reg_weight") or 0.0,
    )
    values = {
        "base": reader.take("models.pretrained_path"),
        "output": f"experiments/{name}",
        "seed": reader.take_as(int, "manual_seed", 0),
        "concept": {
            "tokens": reader.take("models.new_concept_token"),
            "initialiser": reader.take("models.initializer_token"),
        },
        "data": _data(reader),
        "network": {"algo": "locon"} | {model: _part(reader, model) for model in ("text_encoder", "unet")},
        "train": _loop(reader),
        "loss": {
            "mask": masked,
            "noise_offset": reader.take_as(float, "models.noise_offset") or 0.0,
            "attention_weight": weight,
            "attention_form": "identity" if reader.take("models.reg_full_identity", False) else "outside",
        },
        "checkpoint": {"every": reader.take_as(lambda value: int(float(value)), "logger.save_checkpoint_freq", 10000)},
        "sample": _sample(reader),
    }
    return values


def _part(reader: _Reader, model: str) -> dict[str, Any] | None:
    where = f"models.finetune_cfg.{model}"
    rank = reader.take_as(int, f"{where}.lora_cfg.rank", 4)
    alpha = reader.take_as(float, f"{where}.lora_cfg.alpha", 1.0)
    placement = reader.take(f"{where}.lora_cfg.where")
    if not reader.leaves.get(f"{where}.enable_tuning", True):
        return None
    # Published alpha multiplies the change as it is; ours is divided by the rank.
    return {"placement": placement, "rank": rank, "alpha": alpha * rank}


def _loop(reader: _Reader) -> dict[str, Any]:
    rates = {}
    for ours, theirs in (("embedding", "text_embedding"), ("text_encoder", "text_encoder"), ("unet", "unet")):
        rate = reader.take_as(float, f"models.finetune_cfg.{theirs}.lr", 0.0)
        rates[ours] = rate if reader.take(f"models.finetune_cfg.{theirs}.enable_tuning", True) else 0.0
    precision = reader.take("mixed_precision", "no")
    return {
        "repeats": reader.take_as(int, "datasets.train.dataset_enlarge_ratio", 1),
        "batch_size": reader.take_as(int, "datasets.train.batch_size_per_gpu", 1),
        "accumulation": reader.take_as(int, "gradient_accumulation_steps", 1),
        "mixed_precision": "fp32" if precision in (None, False, "no") else precision,
        "lr": rates,
        "schedule": "linear",
        "weight_decay": reader.take_as(float, "train.optim_g.weight_decay", 0.01),
        "betas": reader.take("train.optim_g.betas", [0.9, 0.999]),
        "embedding_norm_stop": reader.take_as(float, "train.emb_norm_threshold"),
        "gradient_checkpointing": reader.take("models.gradient_checkpoint", False),
    }


def _data(reader: _Reader) -> dict[str, Any]:
    use_caption, use_mask = (
        reader.take("datasets.train.use_caption", False),
        reader.take("datasets.train.use_mask", False),
    )
    entry = _concept_entry(reader)
    values: dict[str, Any] = {
        "images": entry.get("instance_data_dir"),
        "masks": entry.get("mask_dir") if use_mask else None,
        "captions": entry.get("caption_dir") if use_caption else None,
        "prompt": entry.get("instance_prompt", "<TOK>"),
        "transform": "centre_crop",
    }
    for step in reader.take("datasets.train.instance_transform", []) or []:
        _transform(dict(step), values, reader)
    mapping = reader.take("datasets.train.replace_mapping") or {}
    for word in mapping:
        if word != "<TOK>":
            reader.problems.append(f"datasets.train.replace_mapping: only <TOK> can be replaced, found '{word}'")
    return values


def _concept_entry(reader: _Reader) -> Mapping[str, Any]:
    given = reader.take("datasets.train.concept_list")
    if isinstance(given, str) and not Path(given).is_file():
        # Named with the other missing paths: it stands in the place of the pictures it would tell.
        return {"instance_data_dir": given, "mask_dir": given, "caption_dir": given}
    try:
        entries = read_json(given) if isinstance(given, str) else given
    except MixshowError as error:
        reader.problems.append(str(error))
        return {}
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], Mapping):
        reader.problems.append("datasets.train.concept_list: expected a list of one mapping with instance_data_dir")
        return {}
    return entries[0]


def _transform(step: dict[str, Any], values: dict[str, Any], reader: _Reader) -> None:
    kind = step.get("type")
    if kind in _TRANSFORMS:
        values |= {
            "transform": _TRANSFORMS[kind],
            "size": step.get("size"),
            "crop_probability": step.get("crop_p", 0.5),
        }
        if "scale_ratio" in step:
            values["scale"] = step["scale_ratio"]
    elif kind == "ShuffleCaption":
        values |= {"shuffle_tags": True, "keep_tags": step.get("keep_token_num", 1)}
    elif kind == "EnhanceText":
        values["templates"] = step.get("enhance_type", "object")
    elif kind in ("Resize", "CenterCrop"):
        values["size"] = step.get("size")
    elif kind == "RandomHorizontalFlip":
        values["flip"] = step.get("p", 0.5) > 0
    elif kind not in _IMPLIED_TRANSFORMS:
        reader.problems.append(
            f"datasets.train.instance_transform: '{kind}' is unknown{did_you_mean(str(kind), _TRANSFORMS)}"
        )


def _sample(reader: _Reader) -> dict[str, Any]:
    prompts = reader.take("datasets.val_vis.prompts")
    count = reader.take_as(int, "datasets.val_vis.num_samples_per_prompt", 1)
    return {
        "prompts": prompts if prompts is not None else [],
        "seeds": list(range(count)),
        "steps": reader.take_as(int, "val.sample.num_inference_steps", 50),
        "guidance": reader.take_as(float, "val.sample.guidance_scale", 7.5),
        "strengths": reader.take("val.alpha_list", [0, 0.7, 1.0]),
    }
