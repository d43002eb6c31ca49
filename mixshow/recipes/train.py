"""One options file -> one trained concept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from mixshow.config.load import dump, load, read_yaml, to_plain
from mixshow.config.train import NetworkOptions, TrainOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.core.progress import log
from mixshow.core.seeding import torch_generator
from mixshow.edlora.concept import save_concept
from mixshow.edlora.data import TrainingData
from mixshow.edlora.embedding import ConceptEmbedding
from mixshow.edlora.initialiser import initial_vectors, parse_initialiser, parse_tokens
from mixshow.edlora.pictures import Picture
from mixshow.edlora.placement import placed_targets
from mixshow.edlora.processes import make_accelerator
from mixshow.edlora.step import LossOptions
from mixshow.edlora.trainer import OnCheckpoint, Trainer, TrainingRun
from mixshow.edlora.trainer_options import TrainerOptions
from mixshow.edlora.transforms import TransformOptions
from mixshow.formats.published_options import is_published, published_train_options
from mixshow.lycoris import Network, create_network
from mixshow.models.base import Base, load_base
from mixshow.recipes.blocks import block_targets
from mixshow.recipes.grids import grid_writer
from mixshow.recipes.train_check import check, check_blocks, missing_paths

CONCEPT_FILE, OPTIONS_FILE = "concept.safetensors", "options.yml"


def train(
    path: Path, overrides: Sequence[str] = (), *, dry_run: bool = False, resume: bool = True
) -> TrainingRun | None:
    """Train the concept an options file describes.

    Returns:
        What the run has to say; None for a dry run.

    Raises:
        OptionsError: everything that is wrong with the options, the data and the paths, before anything is loaded.
    """
    options = read_options(path, overrides)
    if dry_run:
        print(OmegaConf.to_yaml(OmegaConf.create(to_plain(options))), end="")
    missing = missing_paths(options)
    if dry_run and missing:  # what a file needs elsewhere makes it no worse a file
        print("\n".join(f"missing: {line}" for line in missing))
    pictures, prompts, problems = check(options)
    table, wrong_blocks = check_blocks(options)
    problems += wrong_blocks
    if dry_run and table:
        print(table)
    if problems or (missing and not dry_run):
        raise OptionsError(str(path), [*([] if dry_run else missing), *problems])
    if dry_run:
        return None
    return train_concept(options, pictures, prompts, resume=resume)


def read_options(path: Path, overrides: Sequence[str]) -> TrainOptions:
    """Our options from a file of ours or a published one."""
    contents = read_yaml(path)
    if is_published(contents):
        contents = published_train_options(contents, str(path))
    return load(TrainOptions, path, overrides, values=contents)


def train_concept(
    options: TrainOptions, pictures: Sequence[Picture], prompts: Sequence[str], *, resume: bool = True
) -> TrainingRun:
    """Load the base, train, and write the concept file with its options beside it."""
    accelerator = make_accelerator(_precision(options))
    reduced = {"fp16": torch.float16, "bf16": torch.bfloat16}
    # On a GPU the frozen weights take the smaller type; what is trained stays float32 everywhere.
    dtype = (
        reduced.get(accelerator.mixed_precision, torch.float32) if accelerator.device.type != "cpu" else torch.float32
    )
    base = load_base(options.base, vae=options.vae, device=accelerator.device, dtype=dtype)
    _check_size(options.data.size, base)
    tokens = parse_tokens(options.concept.tokens)
    embedding = ConceptEmbedding(initial_vectors(base, tokens, options.concept.initialiser, seed=options.seed))
    network = make_network(base, options.network, seed=options.seed)
    data = TrainingData(
        pictures,
        tokens,
        transform=options.data.transform,
        options=TransformOptions(options.data.size, options.data.crop_probability, options.data.scale),
        flip=options.data.flip,
        variants=options.data.variants,
        templates=options.data.templates,
        shuffle_tags=options.data.shuffle_tags,
        keep_tags=options.data.keep_tags,
        seed=options.seed,
    )
    steps = _steps(options, len(pictures), accelerator.num_processes)
    resolved = to_plain(options)
    trainer = Trainer(
        base,
        embedding.to(base.device),
        network,
        data,
        _trainer_options(options, steps),
        LossOptions(
            masked=options.loss.mask,
            unmasked_weight=options.loss.unmasked_weight,
            attention_weight=options.loss.attention_weight,
            attention_identity=options.loss.attention_form == "identity",
            min_snr=options.loss.min_snr,
        ),
        folder=options.output / "checkpoints",
        accelerator=accelerator,
        metadata={
            "base": base.source,
            "topology": base.topology.fingerprint(),
            "algo": options.network.algo,
            "class_word": parse_initialiser(options.concept.initialiser, tokens)[-1],
            "options": resolved,
        },
        agreement={
            name: value
            for section, values in resolved.items()
            if section not in ("output", "checkpoint", "sample")
            for name, value in _flat(section, values)
        }
        | {"steps": steps, "processes": accelerator.num_processes},
        on_checkpoint=_grids(options, prompts),
    )
    if accelerator.is_main_process:
        dump(options, options.output / OPTIONS_FILE)
    run = trainer.fit(resume=resume)
    if accelerator.is_main_process:
        save_concept(trainer.concept(), options.output / CONCEPT_FILE)
        log.info("%s: %s", options.output / CONCEPT_FILE, json.dumps(_summary(run)))
    return run


def make_network(base: Base, options: NetworkOptions, *, seed: int) -> Network:
    """A fresh network over all models, with each model's placement and rank."""
    adapters: dict[str, Any] = {}
    for model, root in base.models.items():
        part = options.part("unet" if model == "unet" else "text_encoder")
        if part is None:
            continue
        names = placed_targets(model, root, part.placement, base.models)
        network = create_network(
            base.models,
            algo=options.algo,
            targets=block_targets(base.models, names, options) if model == "unet" else names,
            dim=part.rank or options.rank,
            alpha=part.alpha,
            generator=torch_generator(seed, "network", model),
            **options.options,
        )
        adapters |= dict(network.adapters.items())
    return Network(base.models, adapters)


def _trainer_options(options: TrainOptions, steps: int) -> TrainerOptions:
    loop = options.train
    return TrainerOptions(
        steps=steps,
        batch_size=loop.batch_size,
        rates={"embedding": loop.lr.embedding, "text_encoder": loop.lr.text_encoder, "unet": loop.lr.unet},
        block_rates=None if options.network.blocks is None else options.network.blocks.rates,
        accumulation=loop.accumulation,
        schedule=loop.schedule,
        warmup=loop.warmup,
        weight_decay=loop.weight_decay,
        betas=loop.betas,
        clip_norm=loop.clip_norm,
        embedding_norm_stop=loop.embedding_norm_stop,
        noise_offset=options.loss.noise_offset,
        gradient_checkpointing=loop.gradient_checkpointing,
        checkpoint_every=options.checkpoint.every,
        keep=options.checkpoint.keep,
        seed=options.seed,
    )


def _steps(options: TrainOptions, pictures: int, processes: int) -> int:
    loop = options.train
    if loop.steps is not None:
        return loop.steps
    assert loop.repeats is not None
    return max(1, pictures * loop.repeats // (loop.batch_size * loop.accumulation * processes))


def _precision(options: TrainOptions) -> str:
    if options.train.mixed_precision == "fp16" and not torch.cuda.is_available():
        log.warning("train.mixed_precision: fp16 needs a GPU, none is here; training in full precision")
        return "no"
    return "no" if options.train.mixed_precision == "fp32" else options.train.mixed_precision  # accelerate's word


def _check_size(size: int, base: Base) -> None:
    multiple = base.topology.size_multiple
    if size % multiple:
        nearest = max(multiple, round(size / multiple) * multiple)
        raise MixshowError(
            f"data.size: expected a multiple of {multiple} pixels for base '{base.source}', found {size}; "
            f"take {nearest}"
        )


def _grids(options: TrainOptions, prompts: Sequence[str]) -> OnCheckpoint | None:
    if not prompts:
        return None
    return grid_writer(
        options.output / "grids",
        prompts,
        seeds=options.sample.seeds,
        strengths=options.sample.strengths,
        negative_prompt=options.sample.negative_prompt,
        size=options.sample.size or options.data.size,
        steps=options.sample.steps,
        guidance=options.sample.guidance,
        scheduler=options.sample.scheduler,
    )


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """`(dotted name, value)` of everything in a section."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [entry for key, item in value.items() for entry in _flat(f"{name}.{key}", item)]


def _summary(run: TrainingRun) -> dict[str, Any]:
    return {
        "steps": run.steps,
        "loss": run.loss and round(run.loss, 5),
        "embeddings_frozen_at": run.embeddings_frozen_at,
    }
