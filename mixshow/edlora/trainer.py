"""The training loop: optimizer, learning rates, accumulation, processes, checkpoints, resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.core.progress import log, progress_bar
from mixshow.core.seeding import torch_generator
from mixshow.edlora.attention_maps import concept_positions
from mixshow.edlora.checkpoint import check_agreement, read_newest_checkpoint, remove_checkpoints, write_checkpoint
from mixshow.edlora.concept import NETWORK_OPTIONS, TEXT_WIDTHS, Concept
from mixshow.edlora.data import Encoded, LatentSource, TrainingData
from mixshow.edlora.embedding import ConceptEmbedding
from mixshow.edlora.interrupt import StepInterrupt
from mixshow.edlora.layerwise import layerwise_states
from mixshow.edlora.step import LossOptions, StepInputs, training_loss
from mixshow.edlora.trainer_options import TrainerOptions
from mixshow.lycoris.blocks import BlockLayout, rate_groups
from mixshow.lycoris.network import Network
from mixshow.models.base import Base
from mixshow.models.prompts import prompt_states
from mixshow.models.schedule import make_scheduler


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What a finished run has to say."""

    steps: int
    first_step: int
    loss: float | None
    embeddings_frozen_at: int | None


OnCheckpoint = Callable[[int, Base, Network], None]


class Trainer:
    """Trains an embedding and a network on a base that stays as it is.

    Everything attached comes off when `fit` ends, also after an error.
    """

    def __init__(
        self,
        base: Base,
        embedding: ConceptEmbedding,
        network: Network,
        data: TrainingData,
        options: TrainerOptions,
        loss_options: LossOptions,
        *,
        folder: Path,
        accelerator: Accelerator | None = None,
        metadata: Mapping[str, Any] | None = None,
        agreement: Mapping[str, Any] | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> None:
        """
        Args:
            folder: where checkpoints are written.
            metadata: of the concept file.
            agreement: options by name that a checkpoint must have been made with to be resumed.
            on_checkpoint: called on the main process with the step, the base that knows the concept, and the network.
        """
        self.base, self.embedding, self.network, self.data = base, embedding, network, data
        self.options, self.loss_options = options, loss_options
        self.folder, self.on_checkpoint = folder, on_checkpoint
        self.metadata, self.agreement = dict(metadata or {}), dict(agreement or {})
        self.accelerator = accelerator or Accelerator()
        self.latents = LatentSource(base, data)
        self.schedule = make_scheduler(base, "DDPM")
        network.num_train_timesteps = self.schedule.config.num_train_timesteps
        self.step = 0
        self.frozen_at: int | None = None
        self.loss: float | None = None
        self._groups = self._parameter_groups()
        self.optimizer = self.accelerator.prepare(
            torch.optim.AdamW(self._groups, betas=options.betas, weight_decay=options.weight_decay)
        )
        self.lr_schedule = get_scheduler(
            options.schedule,
            self.optimizer.optimizer,
            num_warmup_steps=options.warmup,
            num_training_steps=options.steps,
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [parameter for group in self._groups for parameter in group["params"]]

    def concept(self) -> Concept:
        """The concept as trained so far."""
        metadata = {**self.metadata, "step": self.step}
        if options := self.network.file_options():
            metadata[NETWORK_OPTIONS] = options
        if len(self.base.text_widths) > 1:
            metadata[TEXT_WIDTHS] = list(self.base.text_widths)
        return Concept(self.embedding.by_token(), self.network.file_tensors(), metadata)

    def fit(self, *, resume: bool = True) -> TrainingRun:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
            MixshowError: a checkpoint of other options; loss that is no number; a full disk.
        """
        if resume:
            self._resume()
        elif self.accelerator.is_main_process:
            remove_checkpoints(self.folder)
        first = self.step
        known, attachment = self.embedding.attach(self.base)
        with (
            attachment,
            self.network,
            layerwise_states(self.base.unet),
            self._memory_saving(),
            StepInterrupt() as interrupt,
        ):
            what, shown = f"training {' '.join(self.embedding.tokens)}", self.accelerator.is_main_process
            bar = progress_bar(self.options.steps, what, initial=first, enabled=shown)
            with bar:
                while self.step < self.options.steps:
                    loss = self._one_step(known)
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                    bar.update()
                    self._after_step(known, interrupt)
        return TrainingRun(self.step, first, self.loss, self.frozen_at)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        rates = self.options.rates
        groups = [
            {"name": "embedding", "params": list(self.embedding.parameters()), "lr": rates["embedding"]},
            {"name": "text_encoder", "params": self.network.parameters_of("lora_te"), "lr": rates["text_encoder"]},
            *self._unet_groups(rates["unet"]),
        ]
        for group in groups:
            for parameter in group["params"]:
                parameter.requires_grad_(group["lr"] > 0)
        return [group for group in groups if group["lr"] > 0 and group["params"]]

    def _unet_groups(self, rate: float) -> list[dict[str, Any]]:
        """One group, or one for each block."""
        if self.options.block_rates is None:
            return [{"name": "unet", "params": self.network.parameters_of("lora_unet"), "lr": rate}]
        adapters = {name: adapter for name, adapter in self.network.adapters.items() if name.startswith("lora_unet")}
        groups = rate_groups(adapters, BlockLayout.of(self.base.models), self.options.block_rates, rate)
        return [{**group, "name": f"unet, block {group['block']}"} for group in groups]

    def _one_step(self, base: Base) -> float:
        """One optimizer step; returns the mean loss over its pictures on this process."""
        total = 0.0
        for part in range(self.options.accumulation):
            inputs = self._inputs(base, part)
            with Attachment() as until_backward:
                with self.accelerator.autocast():
                    loss = training_loss(
                        base.unet, self.schedule, inputs, self.loss_options, until_backward=until_backward
                    )
                total += loss.item() / self.options.accumulation
                self.accelerator.backward(loss / self.options.accumulation)
        if not torch.isfinite(torch.tensor(total)):
            raise MixshowError(
                f"step {self.step + 1}: the loss is no longer a number; lower the learning rates (train.lr) or set "
                "train.clip_norm"
            )
        self._share_gradients()
        if self.options.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.optimizer.step()
        self.lr_schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss = total
        self._stop_embeddings_at_norm()
        return total

    def _inputs(self, base: Base, part: int) -> StepInputs:
        """Draw, encode and noise one forward pass; all of it follows from the seed and the samples' numbers."""
        accelerator, size = self.accelerator, self.options.batch_size
        pass_number = self.step * self.options.accumulation + part
        first = (pass_number * accelerator.num_processes + accelerator.process_index) * size
        numbers = range(first, first + size)
        draws = [self.data.draw(number) for number in numbers]
        encoded = self.latents.encode(draws)
        noised = [self._noised(entry, number) for entry, number in zip(encoded, numbers)]
        latents, noise, timesteps = (torch.stack(parts).to(base.device) for parts in zip(*noised))
        prompts = [draw.prompt for draw in draws]
        with accelerator.autocast():
            states = prompt_states(base, prompts)
        regularised = self.loss_options.attention_weight > 0
        return StepInputs(
            latents,
            noise,
            timesteps,
            states,
            torch.stack([entry.image_mask for entry in encoded]).to(base.device),
            _stacked([entry.subject_mask for entry in encoded], base.device),
            concept_positions(base, prompts, list(self.embedding.tokens)) if regularised else None,
        )

    def _noised(self, encoded: Encoded, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """A latent, its noise and its time step."""
        generator = torch_generator(self.options.seed, "noise", number)
        shape = encoded.mean.shape
        latent = encoded.mean + encoded.std * torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        noise = noise + self.options.noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        return latent, noise, torch.randint(self.schedule.config.num_train_timesteps, (), generator=generator)

    def _share_gradients(self) -> None:
        """Average gradients over processes; done here because hooks, not a wrapped forward, carry the parameters."""
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def _stop_embeddings_at_norm(self) -> None:
        limit = self.options.embedding_norm_stop
        if limit is None or self.frozen_at is not None:
            return
        if self.embedding.vectors.detach().norm(dim=-1).mean().item() >= limit:
            self._freeze_embeddings(self.step)

    def _freeze_embeddings(self, step: int) -> None:
        # Without a gradient AdamW leaves a parameter alone, its weight decay included.
        self.embedding.vectors.requires_grad_(False)
        self.frozen_at = step

    def _after_step(self, base: Base, interrupt: StepInterrupt) -> None:
        due = self.step % self.options.checkpoint_every == 0 or self.step == self.options.steps
        stop = interrupt.requested
        if self.accelerator.is_main_process and (due or stop):
            write_checkpoint(self.folder, self.step, self.concept(), self._state(), keep=self.options.keep)
        if stop:
            raise KeyboardInterrupt
        if due and self.accelerator.is_main_process and self.on_checkpoint is not None:
            self.network.eval()
            with torch.no_grad():
                self.on_checkpoint(self.step, base, self.network)
            self.network.train()
        if due:
            self.accelerator.wait_for_everyone()
        if interrupt.requested:  # asked for during the callback, whose checkpoint is written
            raise KeyboardInterrupt

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "frozen_at": self.frozen_at,
            "loss": self.loss,
            "agreement": self.agreement,
            "embedding": self.embedding.state_dict(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "schedule": self.lr_schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _resume(self) -> None:
        state = read_newest_checkpoint(self.folder)
        if state is None:
            return
        check_agreement(self.folder, state["agreement"], self.agreement)
        self.embedding.load_state_dict(state["embedding"])
        self.network.load_state_dict(state["network"])
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["schedule"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.loss = state["step"], state["loss"]
        if state["frozen_at"] is not None:
            self._freeze_embeddings(state["frozen_at"])
        log.info("resuming at step %d of %d", self.step, self.options.steps)

    def _memory_saving(self) -> Attachment:
        attachment = Attachment()
        if self.options.gradient_checkpointing:
            self.base.unet.enable_gradient_checkpointing()
            attachment.add(self.base.unet.disable_gradient_checkpointing)
        return attachment


def _stacked(masks: list[Tensor | None], device: torch.device) -> Tensor | None:
    present = [mask for mask in masks if mask is not None]
    return torch.stack(present).to(device) if len(present) == len(masks) else None
