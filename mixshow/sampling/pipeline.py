"""Regional composition as a pipeline of diffusers, over the same sampler as `mixshow compose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.models import Base, ConceptVocabulary, PromptReading, load_base, make_scheduler, save_base
from mixshow.sampling.compose import guidance_map, plan_of
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import DEFAULT_SCHEDULER, latent_size
from mixshow.sampling.guide import Guide, Together
from mixshow.sampling.isolation import Isolation
from mixshow.sampling.plain_regions import check_regions, edges_of, region_of
from mixshow.sampling.regions import Edges, Region
from mixshow.sampling.scene import Scene
from mixshow.sampling.staging import Staging

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]


class RegionalPipeline(DiffusionPipeline):
    """Pictures with regions that have prompts of their own, as a pipeline of diffusers.

    Offloading, schedulers, progress bars and `torch.compile` of its UNet work as in other pipelines. Concept tokens of
    fused folders are read layer-wise.

    Example:
        >>> pipe = RegionalPipeline.from_pretrained("experiments/fused")                          # doctest: +SKIP
        >>> picture = pipe(
        ...     "two puppets on a stage", width=256, height=128,
        ...     regions=[{"box": [0, 0, 0.5, 1], "prompt": "a photo of <pip1> <pip2>"}],
        ... ).images[0]
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["tokenizer_2", "text_encoder_2"]  # noqa: RUF012  # diffusers' own form
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        unet: Any,
        scheduler: Any,
        tokenizer_2: Any = None,
        text_encoder_2: Any = None,
        concepts: Mapping[str, Any] | None = None,
        force_zeros_for_empty_prompt: bool = True,
    ) -> None:
        """
        Args:
            concepts: the contents of `new_concept_cfg.json`: concept tokens that the tokenizers hold.
            force_zeros_for_empty_prompt: XL: zeros in place of empty prompts.
        """
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            tokenizer_2=tokenizer_2,
            text_encoder_2=text_encoder_2,
        )
        self.register_to_config(
            concepts=dict(concepts or {}), force_zeros_for_empty_prompt=force_zeros_for_empty_prompt
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.base.topology.latent_factor)
        self._interrupt = False

    @classmethod
    def from_pretrained(  # type: ignore[override, unused-ignore]
        cls, source: str | Path, *, vae: str | Path | None = None, torch_dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a base or a fused model, with its own scheduler.

        Args:
            source: a diffusers folder, a hub id, a single file, or `"puppets"`.
            vae: another place to take the autoencoder from.
            torch_dtype: of all models; XL's autoencoder stays float32 beside float16.

        Raises:
            MixshowError: as `load_base`.
        """
        return cls.from_base(load_base(source, vae=vae, dtype=torch_dtype))

    @classmethod
    def from_base(cls, base: Base) -> Self:
        """A pipeline over a loaded base, sharing its models. What is attached to these acts in it."""
        name = base.scheduler_config.get("_class_name", DEFAULT_SCHEDULER)
        return cls(
            base.tokenizer,
            base.text_encoder,
            base.vae,
            base.unet,
            make_scheduler(base, name),
            base.tokenizer_2,
            base.text_encoder_2,
            concepts=base.vocabulary.to_config(),
            force_zeros_for_empty_prompt=base.zero_empty_prompt,
        )

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write a diffusers folder with its concept tokens, which any program of this field reads; see `save_base`."""
        save_base(self.base, save_directory)

    @property
    def base(self) -> Base:
        """The components as mixshow's other parts take them."""
        return Base(
            self.tokenizer,
            self.text_encoder,
            self.vae,
            self.unet,
            dict(self.scheduler.config),
            ConceptVocabulary.from_config(self.config.concepts, "concepts"),
            source=type(self).__name__,
            tokenizer_2=self.tokenizer_2,
            text_encoder_2=self.text_encoder_2,
            zero_empty_prompt=self.text_encoder_2 is not None and self.config.force_zeros_for_empty_prompt,
        )

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to stop behind that step."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        regions: Sequence[Region | Mapping[str, Any]] = (),
        *,
        negative_prompt: str | None = None,
        base_prompt: str | None = None,
        background_prompt: str | None = None,
        region_schedule: Sequence[tuple[float, float]] = (),
        edges: Edges | str | None = None,
        isolation: Isolation | None = None,
        guard: bool = False,
        conditions: Sequence[Guide] = (),
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        guidance_rescale: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        reading: PromptReading | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make pictures.

        Args:
            prompt: for the whole picture; what no region covers follows it.
            regions: `Region` values or plain ones, see `region_of`.
            base_prompt: what regions' base ratios follow; None: the prompt.
            background_prompt: what places that no region covers follow; None: the prompt.
            region_schedule: see `Scene`.
            edges: `"hard"` or `"soft"`; None: hard when every region is a box.
            isolation: keeps regions apart in self-attention.
            guard: regions' concept tokens are attended to from their regions only.
            conditions: of `adapter_condition` and `control_condition`; what they add is summed.
            height: pixels; None: the model's native side.
            width: as the height.
            guidance_scale: classifier-free guidance; 1: none.
            guidance_rescale: how far it is brought back to the contrast of the plain prediction, 0 to 1.
            generator: of the start noise and of what some schedulers add at every step; one for all pictures or a list
                of one for each.
            latents: start noise of unit variance instead, `[pictures, channels, height, width]`.
            reading: how prompts are read: weights, windows, skipped layers; None: as diffusers does.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: False: a tuple.
            callback_on_step_end: called with the pipeline, the step's number, its timestep and `{"latents": ...}`; the
                latents that it returns are gone on with.

        Raises:
            MixshowError: a size that does not fit, an area outside of the picture, a concept token that is not known.
        """
        self._interrupt = False
        base = self.base
        grid = latent_size(base, width, height)
        factor = base.topology.latent_factor
        size = (grid[1] * factor, grid[0] * factor)
        negative = negative_prompt or ""
        made = [region_of(region, size, negative) for region in regions]
        check_regions(base, made, size, (prompt, negative, base_prompt or "", background_prompt or ""))
        if set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise MixshowError(
                f"callback_on_step_end_tensor_inputs: expected some of {self._callback_tensor_inputs}, found "
                f"{list(callback_on_step_end_tensor_inputs)}"
            )
        scene = Scene(
            prompt,
            size,
            negative,
            tuple(made),
            edges=edges_of(edges, made),
            base_prompt=base_prompt,
            background_prompt=background_prompt,
            schedule=tuple(region_schedule),
            steps=num_inference_steps,
            isolation=isolation,
            guard=guard,
            guidance=guidance_scale,
            rescale=guidance_rescale,
            reading=reading or PromptReading(),
        )
        try:
            if latents is None:
                shape = (num_images_per_prompt, base.topology.latent_channels, *grid)
                latents = randn_tensor(shape, generator=generator, device=base.device, dtype=base.unet.dtype)
            latents = self._denoised(base, scene, latents, generator, Together(conditions), callback_on_step_end)
            images = latents if output_type == "latent" else base.decode_latents(latents)
        finally:
            self.maybe_free_model_hooks()
        found = images if output_type == "latent" else self.image_processor.postprocess(images, output_type)
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    def _denoised(
        self,
        base: Base,
        scene: Scene,
        noise: Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        condition: Guide,
        callback: StepCallback | None,
    ) -> Tensor:
        plan, device = plan_of(scene), base.device
        staging = Staging(base, scene, plan)
        if staging.one_by_one and len(noise) > 1:
            raise MixshowError(
                f"num_images_per_prompt: expected 1 where regions are found from attention, found {len(noise)}"
            )
        states = plan.encode(base, guided=scene.guided, reading=scene.reading)
        whole = states[:, plan.base_text : plan.base_text + 1]
        guidance: float | Tensor = scene.guidance
        if not scene.guided_alike:
            guidance = guidance_map(plan, scene.guidance, (noise.shape[2], noise.shape[3])).to(device)
        self.scheduler.set_timesteps(scene.steps, device=device)
        with (
            staging.attach(states.states),
            self.progress_bar(total=len(self.scheduler.timesteps)) as bar,
        ):

            def behind(step: dict[str, Any]) -> None:
                bar.update()
                if callback is not None:
                    told = callback(self, step["step"], step["timestep"], {"latents": step["latents"]})
                    step["latents"] = (told or {}).get("latents", step["latents"])
                if self._interrupt:
                    raise _Interrupted(step["latents"])

            try:
                return denoise(
                    base,
                    self.scheduler,
                    noise.to(device, torch.float32),
                    whole[-1].expanded(len(noise)),
                    whole[0].expanded(len(noise)) if scene.guided else None,
                    guidance=guidance,
                    rescale=scene.rescale,
                    condition=condition,
                    before_step=staging.begin_step,
                    callback=behind,
                    generators=None if generator is None else _listed(generator),
                )
            except _Interrupted as stopped:
                return stopped.latents


class _Interrupted(Exception):
    """A callback asked to stop; carries what there is by then."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


def _listed(generator: torch.Generator | list[torch.Generator]) -> list[torch.Generator]:
    return generator if isinstance(generator, list) else [generator]
