"""What the objective can be told beside weights: alpha, normalisation, shrinkage; checked on the rows themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.edlora.concept import save_concept
from mixshow.fusion.build import Normalisation, build_problems
from mixshow.fusion.inputs import shrunk
from mixshow.fusion.members import Member
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import CG, LBFGS, Exact, Solver
from mixshow.fusion.statistics import LayerStatistics
from mixshow.models import Base, load_base
from tests.tiny import tiny_concept

OUT, WIDTH = 4, 6
SOLVERS = [LBFGS(), LBFGS(precondition=True), CG(), Exact()]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problems(
    inputs: Sequence[Tensor], changes: Sequence[dict[str, Tensor]], **options: object
) -> dict[str, LayerProblem]:
    """Layers that read the same."""
    names = {name for each in changes for name in each}
    statistics = [dict.fromkeys(names, LayerStatistics.of_rows(x)) for x in inputs]
    options = {"weights": [1.0] * len(inputs), **options}
    return {each.name: each for each in build_problems(changes, statistics, **options)}  # type: ignore[arg-type]


def solved(inputs: Sequence[Tensor], changes: Sequence[Tensor], **options: object) -> Tensor:
    [problem] = problems(inputs, [{"layer": change} for change in changes], **options).values()
    return Exact().solve([problem])[0].change


@pytest.mark.parametrize("normalise", ["inputs", "changes"])
def test_normalised_a_concept_with_loud_inputs_does_not_win(normalise: Normalisation) -> None:
    inputs, changes = (
        [random(30, WIDTH, seed=1), random(40, WIDTH, seed=2)],
        [random(OUT, WIDTH, seed=s) for s in (3, 4)],
    )
    even = solved(inputs, changes, normalise=normalise)
    louder = [100 * inputs[0], inputs[1]]
    torch.testing.assert_close(solved(louder, changes, normalise=normalise), even)
    assert (solved(louder, changes) - changes[0]).norm() < 0.01 * (even - changes[0]).norm()


@pytest.mark.parametrize("normalise", ["inputs", "changes"])
@pytest.mark.parametrize("weights", [[1.0, 3.0], None])
def test_normalised_weights_are_those_of_the_rows(normalise: Normalisation, weights: list[float] | None) -> None:
    inputs, changes = (
        [5 * random(30, WIDTH, seed=1), random(40, WIDTH, seed=2)],
        [random(OUT, WIDTH, seed=s) for s in (3, 4)],
    )
    changes[1] *= 7
    loud = [float((x if normalise == "inputs" else x @ d.T).square().sum() / len(x)) for x, d in zip(inputs, changes)]
    given = [w / sum(weights) for w in weights] if weights else [3 / 7, 4 / 7]
    # Every row of a concept counts by its weight, its loudness, and one over the number of rows.
    scale = [(w / n / len(x)) ** 0.5 for w, n, x in zip(given, loud, inputs)]
    left = torch.cat([s * x for s, x in zip(scale, inputs)])
    right = torch.cat([s * x @ d.T for s, x, d in zip(scale, inputs, changes)])
    expected = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(solved(inputs, changes, weights=weights, normalise=normalise), expected)


def test_layers_that_read_the_same_are_normalised_together() -> None:
    """The second concept leaves k alone: it counts there with its loudness in q."""
    inputs = [random(30, WIDTH, seed=1), 3 * random(40, WIDTH, seed=2)]
    changes = [{"q": random(OUT, WIDTH, seed=3), "k": random(2, WIDTH, seed=4)}, {"q": random(OUT, WIDTH, seed=5)}]
    found = problems(inputs, changes, normalise="changes")
    assert found["q"].inputs is found["k"].inputs and found["k"].deltas[1] is None
    loud = [sum(float((x @ d.T).square().sum() / len(x)) for d in own.values()) for x, own in zip(inputs, changes)]
    weights = [1 / loud[0], 1 / loud[1]]
    assert found["q"].inputs.weights == pytest.approx([w / sum(weights) for w in weights])


def test_a_concept_that_changes_nothing_is_as_loud_as_the_others() -> None:
    inputs, change = [random(30, WIDTH, seed=s) for s in (1, 2)], random(OUT, WIDTH, seed=3)
    found = problems(inputs, [{"layer": change}, {}], normalise="changes")["layer"]
    assert found.inputs.weights == pytest.approx([0.5, 0.5])
    silent = problems([0 * inputs[0], 0 * inputs[1]], [{"layer": change}, {}], normalise="inputs")["layer"]
    assert silent.inputs.weights == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("shrinkage", [0.3, 1.0])
def test_shrunk_moments_keep_their_diagonals(solver: Solver, shrinkage: float) -> None:
    """Few rows; the dense reference solves with moments written out element by element."""
    inputs, changes = [random(3, WIDTH, seed=1), random(4, WIDTH, seed=2)], [random(OUT, WIDTH, seed=s) for s in (3, 4)]
    [problem] = problems(inputs, [{"layer": d} for d in changes], shrinkage=shrinkage).values()
    moments = [x.T @ x / len(x) for x in inputs]
    for moment in moments:
        moment[~torch.eye(WIDTH, dtype=torch.bool)] *= 1 - shrinkage
    expected = sum(d @ g for d, g in zip(changes, moments)) @ torch.linalg.inv(moments[0] + moments[1])  # type: ignore[operator]
    [outcome] = solver.solve([problem])
    torch.testing.assert_close(outcome.change, expected, rtol=1e-6, atol=1e-8)
    for x, d, after in zip(inputs, changes, outcome.after):  # what is reported is what happens to the rows
        assert after == pytest.approx(float((x @ (expected - d).T).square().sum() / len(x)), rel=1e-5)
    assert outcome.objective_after <= problem.objective(changes[0])


def test_shrinking_treats_the_anchor_alike_and_nothing_is_nothing() -> None:
    moment = LayerStatistics.of_rows(random(5, WIDTH, seed=1))
    mean = moment.mean
    assert shrunk(mean, 0.0) is mean
    [problem] = build_problems(
        [{"layer": random(OUT, WIDTH, seed=2)}], [{"layer": moment}], weights=[1], anchor={"layer": moment},
        anchor_weight=2.0, shrinkage=1.0,
    )  # fmt: skip
    torch.testing.assert_close(problem.matrix, 3 * moment.mean.diagonal().diag())


def test_alpha_scales_what_a_concept_changes(tiny: Base) -> None:
    concept = tiny_concept(tiny, "duck")
    whole, half = Member(concept, unet=0.5).changes(tiny), Member(concept, unet=0.5, alpha=0.5).changes(tiny)
    assert whole.keys() == half.keys()
    for path, change in half.items():
        torch.testing.assert_close(change, 0.5 * whole[path])
    assert Member(concept, alpha=0).changes(tiny) == {}


def test_options_reach_the_objective(
    tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("duck", "fox")):
        save_concept(tiny_concept(tiny, name, seed=seed), f"{name}.safetensors")
    Path("fuse.yml").write_text(
        f"base: {tiny_folder}\nconcepts: [{{file: duck.safetensors}}, {{file: fox.safetensors, alpha: 0.5}}]\n"
        "output: fused\nrefine: {method: none}\nreport: {heldout: false}\nanchor: {captions: ['a dog']}\n"
        "statistics: {steps: 1, text_prompts: ['a {concept}'], picture_prompts: ['{concept}']}\n"
    )
    weights = []
    for more in ([], ["statistics.normalise=changes"], ["statistics.normalise=inputs"], ["statistics.shrinkage=0.5"]):
        assert main(["fuse", "fuse.yml", *more]) == 0
        weights.append(load_base("fused").unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight)
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    report = json.loads(Path("fused/fusion_report.json").read_text())
    assert [each["alpha"] for each in report["concepts"]] == [1.0, 0.5]
    assert main(["fuse", "fuse.yml", "statistics.shrinkage=1.5", "statistics.normalise=loud"]) == EXIT_USER_ERROR
    assert "normalise" in capsys.readouterr().err
