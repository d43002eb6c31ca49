"""Biases and normalisations are fused by the same least squares as weights, checked on problems written out by row."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.edlora.concept import Concept
from mixshow.fusion.baselines import weight_average, weighted_sum
from mixshow.fusion.build import build_problems
from mixshow.fusion.collect import Collection, key_value_statistics
from mixshow.fusion.distill import distill
from mixshow.fusion.fuse import fuse
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.layers import Stage, layers_of, put_in_place
from mixshow.fusion.lessons import DistillPlan
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.recorder import StatisticsRecorder
from mixshow.fusion.solvers import CG, LBFGS, Exact, Solver
from mixshow.fusion.statistics import LayerStatistics, input_rows
from mixshow.lycoris import create_network, load_network
from mixshow.models import Base, encode_prompts
from tests.tiny import tiny_concept

OUT, WIDTH = 4, 6
SOLVERS = [Exact(), LBFGS(tolerance=1e-14), LBFGS(precondition=True), CG()]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_squares(
    inputs: list[Tensor], changes: list[Tensor], weights: list[float], ridge: float, trace: float
) -> Tensor:
    """`D [out, in + 1]` from rows with a 1 appended; `trace` of S over its size is the ridge's unit."""
    left, right = [], []
    for x, change, weight in zip(inputs, changes, weights):
        rows = F.pad(x, (0, 1), value=1.0) * (weight / len(x)) ** 0.5
        left.append(rows)
        right.append(rows @ change.T)
    size = left[0].shape[1]
    left.append((ridge * trace) ** 0.5 * torch.eye(size, dtype=torch.float64))
    right.append(torch.zeros(size, len(changes[0]), dtype=torch.float64))
    return torch.linalg.lstsq(torch.cat(left), torch.cat(right), driver="gelsd").solution.T


def mean_eigenvalue(inputs: list[Tensor], weights: list[float]) -> float:
    squares = [weight * (x.square().sum() / len(x) + 1) for x, weight in zip(inputs, weights)]
    return float(sum(squares)) / (inputs[0].shape[1] + 1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_weight_and_bias_are_one_least_squares_problem(solver: Solver, ridge: float) -> None:
    """Rows away from the origin; the second concept leaves the bias alone."""
    inputs = [random(30, WIDTH, seed=1) + 1.0, random(50, WIDTH, seed=2) - 0.5]
    deltas = [random(OUT, WIDTH + 1, seed=3), random(OUT, WIDTH, seed=4)]
    statistics = [{"layer": LayerStatistics.of_rows(x, extended=True)} for x in inputs]
    [problem] = build_problems([{"layer": d} for d in deltas], statistics, weights=[3, 1], ridge=ridge)
    [outcome] = solver.solve([problem])
    weights = [0.75, 0.25]
    expected = least_squares(
        inputs, [deltas[0], F.pad(deltas[1], (0, 1))], weights, ridge, mean_eigenvalue(inputs, weights)
    )
    torch.testing.assert_close(outcome.change, expected, rtol=1e-6, atol=1e-8)
    errors = F.pad(inputs[1], (0, 1), value=1.0) @ (expected - F.pad(deltas[1], (0, 1))).T
    assert outcome.after[1] == pytest.approx(float(errors.square().sum() / 50), rel=1e-5)
    assert (outcome.width, outcome.rank) == (WIDTH + 1, WIDTH + 1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("constant", [False, True])
def test_normalisations_are_one_problem_per_channel(solver: Solver, ridge: float, constant: bool) -> None:
    """A channel that is constant everywhere leaves its scale and shift undetermined; the least change is taken."""
    inputs, deltas = [random(20, 3, seed=1), random(40, 3, seed=2) + 0.3], [random(3, 2, seed=s) for s in (3, 4)]
    if constant:
        inputs = [torch.cat([x[:, :2], torch.full_like(x[:, 2:], 0.5)], dim=1) for x in inputs]
    statistics = [{"norm": LayerStatistics.of_rows(x, elementwise=True, extended=True)} for x in inputs]
    [problem] = build_problems([{"norm": d} for d in deltas], statistics, weights=[1, 1], ridge=ridge)
    [outcome] = solver.solve([problem])
    unit = sum(mean_eigenvalue([x[:, [c]] for x in inputs], [0.5, 0.5]) for c in range(3)) / 3
    for channel in range(3):
        expected = least_squares(
            [x[:, [channel]] for x in inputs], [d[[channel]] for d in deltas], [0.5, 0.5], ridge, unit
        )
        torch.testing.assert_close(outcome.change[[channel]], expected, rtol=1e-6, atol=1e-8)
    assert (outcome.width, outcome.rank) == (6, 5 if constant and not ridge else 6)


def test_solvers_take_all_kinds_together() -> None:
    x = random(30, WIDTH, seed=1) + 1.0
    kinds = {"weight": (OUT, WIDTH), "both": (OUT, WIDTH + 1), "norm": (WIDTH, 2), "scale": (WIDTH, 1)}
    moments = {
        "weight": LayerStatistics.of_rows(x),
        "both": LayerStatistics.of_rows(x, extended=True),
        "norm": LayerStatistics.of_rows(x, elementwise=True, extended=True),
        "scale": LayerStatistics.of_rows(x, elementwise=True),
    }
    deltas = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(kinds.items())}
    problems = build_problems([deltas], [moments], weights=[1])
    for solver in SOLVERS:
        for outcome in solver.solve(problems):
            torch.testing.assert_close(outcome.change, deltas[outcome.name], rtol=1e-6, atol=1e-8)


def test_statistics_without_the_constant_input_are_refused() -> None:
    statistics = {"layer": LayerStatistics.of_rows(random(30, WIDTH, seed=1))}
    with pytest.raises(
        MixshowError, match=r"'layer': .*\(7 columns, with the bias, against 6\); record the statistics"
    ):
        build_problems([{"layer": random(OUT, WIDTH + 1, seed=2)}], [statistics], weights=[1])


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.LayerNorm(6), (2, 5, 6)),
        (nn.LayerNorm((3, 2)), (4, 3, 2)),
        (nn.GroupNorm(3, 6), (2, 6, 4, 4)),
        (nn.RMSNorm(6), (7, 6)),
    ],
)
def test_rows_of_a_normalisation_are_its_normalised_input(norm: nn.Module, shape: tuple[int, ...]) -> None:
    norm.double().requires_grad_(False)
    for i, parameter in enumerate(norm.parameters()):
        parameter.copy_(random(*parameter.shape, seed=i))
    x = random(*shape, seed=5) + 2.0
    rows, bias = input_rows(norm, x), getattr(norm, "bias", None)
    output = rows * norm.weight.flatten() + (0 if bias is None else bias.flatten())
    expected = norm(x).movedim(1, -1) if isinstance(norm, nn.GroupNorm) else norm(x)
    torch.testing.assert_close(output, expected.reshape(output.shape))
    with StatisticsRecorder({"norm": norm}, extended=["norm"], double=True) as recorder:
        norm(x[:1])
        norm(x[1:])
    found = recorder.statistics()["norm"]
    torch.testing.assert_close(found.moment[:, 0, 0], rows.square().sum(0))
    torch.testing.assert_close(found.moment[:, 0, 1], rows.sum(0))
    assert found.rows == len(rows) and bool((found.moment[:, 1, 1] == len(rows)).all())


def test_a_layer_with_a_constant_input_shares_with_none_without() -> None:
    layers = nn.ModuleDict({name: nn.Linear(WIDTH, OUT) for name in ("plain", "biased", "other")}).double()
    layers["norm"] = nn.LayerNorm(WIDTH).double()
    x = random(9, WIDTH, seed=1)
    with StatisticsRecorder(dict(layers.items()), extended=["biased", "other"], double=True) as recorder:
        for layer in layers.values():
            layer(x)
    found = recorder.statistics()
    rows = F.pad(x, (0, 1), value=1.0)
    assert found["biased"] is found["other"]
    torch.testing.assert_close(found["biased"].moment, rows.T @ rows)
    torch.testing.assert_close(found["plain"].moment, x.T @ x)
    assert found["norm"].moment.shape == (WIDTH, 1, 1)


# --- whole models

SMALL = Collection(text_prompts=["a photo of {concept}"], picture_prompts=["{concept}"], steps=2)
EXACT = dict.fromkeys(Stage, Exact())


@pytest.fixture(scope="module")
def biased(tiny: Base) -> Member:
    """A concept that changes weights, biases and normalisations of both models."""
    preset = {
        "unet_target_module": ["BasicTransformerBlock"],
        "unet_target_name": [r"down_blocks\.0\.resnets\.0$", "conv_norm_out", "conv_out"],
        "text_encoder_target_module": ["CLIPAttention"],
    }
    network = create_network(tiny.models, algo="full", preset=preset, train_norm=True)
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return Member(dataclasses.replace(tiny_concept(tiny, "owl"), network=network.file_tensors()))


def prediction(base: Base) -> Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return base.unet(latents, torch.tensor(500), encoder_hidden_states=encode_prompts(base, ["a dog"])[:, 0]).sample


def test_what_a_member_changes_is_what_its_network_does(tiny: Base, biased: Member) -> None:
    network = load_network(tiny.models, biased.concept.network)
    partly = Member(biased.concept, text_encoder=0.5, unet=0.5)
    network.multiplier = 0.5
    with network:
        expected = prediction(tiny)
    before = {name: model.state_dict() for name, model in tiny.models.items()}
    before = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    modules = {layer.path: layer.module for layer in layers_of(tiny).values()}
    with put_in_place(modules, partly.changes(tiny)):
        torch.testing.assert_close(prediction(tiny), expected, rtol=1e-4, atol=1e-5)
    with put_in_place(modules, {k: v for k, v in partly.changes(tiny).items() if v.dim() != 2 or v.shape[1] > 2}):
        assert not torch.allclose(prediction(tiny), expected, rtol=1e-2, atol=1e-3)  # normalisations count
    for name, model in tiny.models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())


def test_a_single_concept_keeps_its_biases_and_normalisations(tiny: Base, biased: Member) -> None:
    fusion = fuse(tiny, [biased], SMALL, Objective(1e-10), EXACT)
    own = biased.changes(tiny)
    assert fusion.changes.keys() == own.keys()
    assert changed_layers(tiny, [biased], Stage.TEXT)[0].extended
    for path, outcome in fusion.outcomes.items():
        assert outcome.after[0] <= 1e-6 * outcome.before[0], path
    norm = "mid_block.attentions.0.transformer_blocks.0.norm1"
    torch.testing.assert_close(fusion.changes[norm].float(), own[norm], rtol=1e-3, atol=1e-4)


def test_held_out_a_concept_fused_alone_is_its_own_model(tiny: Base, biased: Member) -> None:
    collection = Collection(picture_prompts=["{concept}", "a photo of {concept}"], steps=2)
    fusion = fuse(tiny, [biased], collection, Objective(1e-10), EXACT)
    held_out = HeldOut(tiny, [biased], HeldOutPlan(prompts=["a picture of {concept}"], captions=["a boy"], steps=2))
    modules = {layer.path: layer.module for layer in layers_of(tiny).values()}
    weights = {k: v[:, : modules[k].weight.numel() // len(v)] for k, v in fusion.changes.items()}
    errors = []
    for each in (fusion, dataclasses.replace(fusion, changes=weights)):
        fused, attachment = each.attach(tiny)
        with attachment:
            errors += held_out.score(fused).errors.values()
    assert errors[0] < 0.1 and errors[1] > 3 * errors[0]


def test_beside_a_concept_that_changes_no_bias(tiny: Base, biased: Member) -> None:
    members = [biased, Member(tiny_concept(tiny, "duck"))]
    fusion = fuse(tiny, members, SMALL, Objective(1e-2, 0.3, ["a dog"]), EXACT)
    own = [member.changes(tiny) for member in members]
    assert fusion.changes.keys() == own[0].keys() | own[1].keys()
    average = weight_average(tiny, members).changes
    for path, outcome in fusion.outcomes.items():
        assert outcome.objective_after <= outcome.objective_before
        assert outcome.change.shape == average[path].shape
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    torch.testing.assert_close(average[path][:, -1], own[0][path][:, -1].double() / 2)


def test_refining_moves_weights_and_keeps_biases(tiny: Base, biased: Member) -> None:
    start = weighted_sum(tiny, [biased])
    plan = DistillPlan(steps=1, batch_size=1, prompts=["{concept}"], captions=["a dog"], walk_steps=1)
    refined = distill(tiny, [biased], start, plan)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    for key, change in refined.changes.items():
        assert change.shape == start.changes[key].shape
    assert torch.equal(refined.changes[path][:, -1], start.changes[path][:, -1])
    assert not torch.equal(refined.changes[path], start.changes[path])


def test_keys_and_values_with_a_bias(tiny: Base) -> None:
    """Stable Diffusion's have none; the statistics know both forms all the same."""
    [plain, biased] = [
        dataclasses.replace(layer, extended=extended)
        for layer, extended in zip(changed_layers(tiny, [Member(tiny_concept(tiny, "fox"))], Stage.KEY_VALUE), (0, 1))
    ]
    found = key_value_statistics(tiny, [plain, biased], ["a dog", "a boy"], every_position=True)
    rows = encode_prompts(tiny, ["a dog", "a boy"])[:, plain.text_layer].flatten(0, 1).double()
    torch.testing.assert_close(found[plain.path].moment, rows.T @ rows)
    torch.testing.assert_close(found[biased.path].moment[-1, :-1], rows.sum(0))
    assert plain.text_layer == biased.text_layer and isinstance(found[plain.path], LayerStatistics)


def test_a_concept_without_a_network_changes_nothing(tiny: Base) -> None:
    member = Member(Concept(tiny_concept(tiny, "cat").embeddings, {}))
    assert member.changes(tiny) == {} and member.changed_biases(tiny) == set()
