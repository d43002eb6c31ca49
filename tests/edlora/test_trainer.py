"""The training loop: what it trains, what it leaves alone, and that stopping makes no difference."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.edlora.checkpoint import checkpoint_folders
from mixshow.edlora.concept import load_concept
from mixshow.edlora.layerwise import layerwise_states
from mixshow.edlora.step import LossOptions, training_loss


def values(trainer):
    tensors = {**trainer.network.file_tensors(), **trainer.embedding.by_token()}
    return {key: tensor.clone() for key, tensor in tensors.items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def hooks(base):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for model in base.models.values() for m in model.modules()
    )


class Stop(Exception):
    pass


def stop_at(step):
    def callback(at, base, network):
        if at == step:
            raise Stop

    return callback


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(make_trainer):
    whole = make_trainer(folder="whole")
    whole.fit()
    with pytest.raises(Stop):
        make_trainer(folder="parts", on_checkpoint=stop_at(2)).fit()
    rest = make_trainer(folder="parts")
    run = rest.fit()
    assert (run.first_step, run.steps) == (2, 4)
    assert run.loss == whole.loss
    assert_equal(values(whole), values(rest))


def test_training_changes_the_concept_and_leaves_the_base_as_it_was(make_trainer, tiny):
    before = {k: v.clone() for model in tiny.models.values() for k, v in model.state_dict().items()}
    attached = hooks(tiny)
    processors = {name: id(p) for name, p in tiny.unet.attn_processors.items()}
    trainer = make_trainer()
    start = values(trainer)
    trainer.fit()
    # The middle block's self-attention sees one position here, where queries and keys have no effect.
    blind = ("alpha", "mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
             "mid_block_attentions_0_transformer_blocks_0_attn1_to_k.lora_up.weight")  # fmt: skip
    assert not [k for k, v in values(trainer).items() if torch.equal(start[k], v) and not k.endswith(blind)]
    after = {k: v for model in tiny.models.values() for k, v in model.state_dict().items()}
    assert_equal(before, after)
    assert hooks(tiny) == attached
    assert {name: id(p) for name, p in tiny.unet.attn_processors.items()} == processors
    assert all(p.grad is None and not p.requires_grad for model in tiny.models.values() for p in model.parameters())


def test_everything_comes_off_after_an_error(make_trainer, tiny):
    attached = hooks(tiny)
    with pytest.raises(Stop):
        make_trainer(on_checkpoint=stop_at(2)).fit()
    assert hooks(tiny) == attached


def test_only_concept_rows_of_the_embedding_carry_optimizer_state(make_trainer, tiny):
    trainer = make_trainer(steps=1)
    trainer.fit()
    trained = trainer.optimizer.optimizer.state
    layers, width = tiny.topology.layers, tiny.topology.text_width
    assert trained[trainer.embedding.vectors]["exp_avg"].shape == (2, layers, width)
    table = tiny.text_encoder.get_input_embeddings().weight
    assert table not in trained
    own = {id(p) for p in [*trainer.embedding.parameters(), *trainer.network.parameters()]}
    assert {id(p) for p in trained} <= own


def test_embeddings_freeze_for_good_at_their_norm_also_over_a_resume(make_trainer):
    with pytest.raises(Stop):
        make_trainer(embedding_norm_stop=1e-3, on_checkpoint=stop_at(2)).fit()
    rest = make_trainer(embedding_norm_stop=1e-3)
    run = rest.fit()
    assert run.embeddings_frozen_at == 1
    once = make_trainer(folder="once", steps=4, embedding_norm_stop=1e-3)
    frozen = []
    once.on_checkpoint = lambda step, base, network: frozen.append(once.embedding.vectors.detach().clone())
    once.fit()
    assert torch.equal(frozen[0], frozen[1])
    assert torch.equal(once.embedding.vectors, rest.embedding.vectors)


def test_accumulation_over_two_passes_equals_one_pass_of_twice_the_size(make_trainer):
    loss = LossOptions()
    once = make_trainer(folder="once", steps=2, batch_size=4, loss=loss)
    twice = make_trainer(folder="twice", steps=2, batch_size=2, accumulation=2, loss=loss)
    assert once.fit().loss == pytest.approx(twice.fit().loss, rel=1e-5)
    for key, value in values(once).items():
        torch.testing.assert_close(value, values(twice)[key], rtol=1e-3, atol=1e-5)


def test_learning_rates_fall_linearly_and_separately(make_trainer):
    trainer = make_trainer()
    assert [g["lr"] for g in trainer.optimizer.optimizer.param_groups] == [1e-2, 1e-3, 1e-3]
    halfway = []
    trainer.on_checkpoint = lambda step, *_: halfway.append([g["lr"] for g in trainer.optimizer.optimizer.param_groups])
    trainer.fit()
    assert halfway[0] == pytest.approx([5e-3, 5e-4, 5e-4])
    assert halfway[1] == [0, 0, 0]


def test_gradient_checkpointing_changes_no_result(make_trainer, tiny):
    plain, saving = make_trainer(folder="a", steps=1), make_trainer(folder="b", steps=1, gradient_checkpointing=True)
    plain.fit(), saving.fit()
    assert not tiny.unet.is_gradient_checkpointing
    for key, value in values(plain).items():
        torch.testing.assert_close(value, values(saving)[key], rtol=1e-4, atol=1e-6)


def test_ctrl_c_writes_a_checkpoint_of_the_running_step_and_resumes(make_trainer):
    whole = make_trainer(folder="whole", checkpoint_every=100)
    whole.fit()
    trainer = make_trainer(folder="stopped", checkpoint_every=100)
    one_step, before = trainer._one_step, signal.getsignal(signal.SIGINT)

    def interrupted(base):
        loss = one_step(base)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    trainer._one_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert [step for step, _ in checkpoint_folders(trainer.folder)] == [3]
    rest = make_trainer(folder="stopped", checkpoint_every=100)
    rest.fit()
    assert_equal(values(whole), values(rest))


def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer()
    write, calls = os.replace, []

    def full(source, target):
        if "step_00004" in str(target):
            calls.append(target)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MixshowError, match="No space left"):
        trainer.fit()
    assert calls
    assert sorted(p.name for p in trainer.folder.iterdir()) == ["step_00002"]


def test_keeps_only_the_newest_checkpoints_and_they_hold_the_concept(make_trainer):
    trainer = make_trainer(checkpoint_every=1, keep=2)
    trainer.fit()
    folders = checkpoint_folders(trainer.folder)
    assert [step for step, _ in folders] == [3, 4]
    concept = load_concept(folders[-1][1] / "concept.safetensors")
    assert concept.text == "<pip1> <pip2>" and concept.metadata["step"] == 4


def test_a_broken_checkpoint_is_passed_over(make_trainer, caplog):
    make_trainer(checkpoint_every=2).fit()
    state = checkpoint_folders(make_trainer().folder)[-1][1] / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    assert make_trainer().fit().first_step == 2


def test_checkpoints_of_other_options_are_refused_and_a_new_start_removes_them(make_trainer):
    make_trainer(agreement={"seed": 0}).fit()
    with pytest.raises(MixshowError, match=r"seed: 0, now 1.*--no-resume"):
        make_trainer(agreement={"seed": 1}).fit()
    assert make_trainer(agreement={"seed": 1}).fit(resume=False).first_step == 0


def test_loss_that_is_no_number_stops_with_advice(make_trainer):
    trainer = make_trainer()
    trainer.embedding.vectors.data.fill_(float("nan"))
    with pytest.raises(MixshowError, match="no longer a number; lower"):
        trainer.fit()
    assert not checkpoint_folders(trainer.folder)


def test_training_learns(make_trainer, tiny):
    rates = {"embedding": 1e-2, "text_encoder": 1e-2, "unet": 1e-2}
    trainer = make_trainer(steps=12, rates=rates, checkpoint_every=100, loss=LossOptions())

    def loss_of_the_first_steps():
        trained, total = trainer.step, 0.0
        known, attachment = trainer.embedding.attach(tiny)
        with torch.no_grad(), attachment, trainer.network, layerwise_states(tiny.unet):
            for trainer.step in range(6):
                inputs = trainer._inputs(known, 0)
                total += training_loss(tiny.unet, trainer.schedule, inputs, LossOptions()).item()
        trainer.step = trained
        return total

    before = loss_of_the_first_steps()
    trainer.fit()
    assert loss_of_the_first_steps() < 0.98 * before
