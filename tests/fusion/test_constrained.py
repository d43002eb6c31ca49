"""Hard constraints on keys and values: against dense KKT systems, with dependent rows, and in a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.fusion.constraints import ConstrainedProblem, constrained_problems
from mixshow.fusion.fuse import fuse
from mixshow.fusion.kept import token_rows
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.solvers import Constrained, Status
from mixshow.models import Base, encode_prompts
from tests.fusion.test_fuse import EXACT, SMALL
from tests.fusion.test_recipe import stage  # noqa: F401
from tests.fusion.test_solvers import OUT, WIDTH, delta, problem, rows
from tests.tiny import tiny_concept


def constrained(
    constraints: list[Tensor], *, ordinary: Tensor, ridge: float = 1e-2, left_alone: bool = False
) -> ConstrainedProblem:
    """One concept per list of rows; with `left_alone` the last one does not change the layer."""
    count = len(constraints)
    plain = problem(
        [rows(30, 10 + i) for i in range(count)], [delta(20 + i) for i in range(count)], ordinary,
        anchor_weight=0.3, ridge=ridge,
    )  # fmt: skip
    if left_alone:
        plain = dataclasses.replace(plain, deltas=[*plain.deltas[:-1], None])
    [built] = constrained_problems([plain], [{"layer": each} for each in constraints])
    assert isinstance(built, ConstrainedProblem) and built.metric is plain.matrix
    return built


def kkt(case: ConstrainedProblem, ordinary: Tensor, ridge: float) -> Tensor:
    """Stationarity and constraints as one dense system, solved with the minimum norm."""
    moment = 0.3 * ordinary.T @ ordinary / len(ordinary)
    matrix = moment + ridge * moment.trace() / WIDTH * torch.eye(WIDTH, dtype=torch.float64)
    count = len(case.all_rows)
    system = torch.zeros(WIDTH + count, WIDTH + count, dtype=torch.float64)
    system[:WIDTH, :WIDTH], system[:WIDTH, WIDTH:], system[WIDTH:, :WIDTH] = matrix, case.all_rows.T, case.all_rows
    right = torch.cat([torch.zeros(WIDTH, OUT, dtype=torch.float64), case.outputs])
    return torch.linalg.lstsq(system, right, driver="gelsd", rcond=1e-10).solution[:WIDTH].T


@pytest.mark.parametrize("ridge", [1e-2, 0.0])
@pytest.mark.parametrize("rank", [WIDTH, 6])
@pytest.mark.parametrize("counts", [(2, 3), (1, 0), (4, 8)])
def test_matches_the_dense_kkt_system(ridge: float, rank: int, counts: tuple[int, int]) -> None:
    ordinary = rows(40, 1, rank=rank)
    constraints = [rows(count, 2 + i) for i, count in enumerate(counts)]
    case = constrained(constraints, ordinary=ordinary, ridge=ridge)
    [outcome] = Constrained().solve([case])
    expected = kkt(case, ordinary, ridge)
    assert (outcome.change - expected).norm() <= 1e-7 * expected.norm()
    assert outcome.status is Status.CONSTRAINED and outcome.constraints is not None
    assert (outcome.constraints.rows, outcome.constraints.rank) == (sum(counts), sum(counts))
    assert outcome.constraints.residual < 1e-8
    for i, own in enumerate(constraints):
        torch.testing.assert_close(own @ outcome.change.T, own @ delta(20 + i).T)


def test_dependent_constraints_are_dropped() -> None:
    ordinary, first, second = rows(40, 1), rows(2, 2), rows(3, 3)
    [plain] = Constrained().solve([constrained([first, second], ordinary=ordinary)])
    mixed = torch.cat([second, second, second.sum(0, keepdim=True), 1e-9 * rows(1, 5) + second[:1]])
    [repeated] = Constrained().solve([constrained([first, mixed], ordinary=ordinary)])
    torch.testing.assert_close(repeated.change, plain.change, rtol=1e-6, atol=1e-8)
    assert repeated.constraints is not None and plain.constraints is not None
    assert (repeated.constraints.rows, repeated.constraints.rank) == (10, 5)
    assert repeated.constraints.residual < 1e-7 and repeated.constraints.condition < 1e4


def test_contradicting_constraints_are_met_in_the_middle_and_said() -> None:
    row, ordinary = rows(1, 2), rows(40, 1)
    case = constrained([row, row], ordinary=ordinary)
    [outcome] = Constrained().solve([case])
    torch.testing.assert_close(row @ outcome.change.T, row @ (delta(20) + delta(21)).T / 2)
    assert outcome.status is Status.CONTRADICTION and "merge.prompts" in outcome.advice
    assert outcome.constraints is not None and outcome.constraints.rank == 1
    wanted = torch.cat([row @ delta(20).T, row @ delta(21).T])
    found = (row @ outcome.change.T).expand(2, -1)
    assert outcome.constraints.residual == pytest.approx(float((found - wanted).norm() / wanted.norm()))


def test_a_concept_that_leaves_the_layer_alone_wants_no_change() -> None:
    own, other = rows(2, 2), rows(2, 3)
    [outcome] = Constrained().solve([constrained([own, other], ordinary=rows(40, 1), left_alone=True)])
    assert (other @ outcome.change.T).norm() < 1e-8
    torch.testing.assert_close(own @ outcome.change.T, own @ delta(20).T)


def test_no_other_change_that_meets_the_constraints_does_less_to_ordinary_inputs() -> None:
    case = constrained([rows(3, 2)], ordinary=rows(40, 1))
    [outcome] = Constrained().solve([case])
    free = torch.eye(WIDTH, dtype=torch.float64) - torch.linalg.pinv(case.all_rows) @ case.all_rows
    for seed in range(10):
        other = outcome.change + 1e-2 * delta(seed) @ free
        assert case.unmet(other) < 1e-8 and case.objective(other) > outcome.objective_after


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


def test_rows_are_those_of_the_concepts_tokens(tiny: Base, members: list[Member]) -> None:
    layers = changed_layers(tiny, members, Stage.KEY_VALUE)
    prompts = ["a photo of <duck1> <duck2>", "<duck1> <duck2> in the rain"]
    with members[0].in_place(tiny) as tuned:
        found = token_rows(tuned, layers, prompts, ["<duck1>", "<duck2>"])
        words = token_rows(tuned, layers, ["a dog"], [])
        states, other = encode_prompts(tuned, prompts), encode_prompts(tuned, ["a dog"])
    for layer in layers:
        expected = torch.cat([states[0, layer.text_layer, 4:6], states[1, layer.text_layer, 1:3]])
        torch.testing.assert_close(found[layer.path], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(words[layer.path], other[0, layer.text_layer, 1:3], rtol=1e-4, atol=1e-5)


def test_in_a_model_keys_and_values_of_tokens_are_kept_exactly(tiny: Base, members: list[Member]) -> None:
    prompt = "photo of a {concept}"
    objective = Objective(1e-2, 0.3, ["", "a photo of a dog"])
    normal = fuse(tiny, members, SMALL, objective, EXACT, keep_metrics=True)
    merged = fuse(
        tiny, members, SMALL, dataclasses.replace(objective, constraint_prompts=[prompt]),
        {**EXACT, Stage.KEY_VALUE: Constrained()}, keep_metrics=True,
    )  # fmt: skip
    layers = changed_layers(tiny, members, Stage.KEY_VALUE)
    for member in members:
        wanted, text = member.changes(tiny), prompt.replace("{concept}", member.concept.text)
        with member.in_place(tiny) as tuned:
            found = token_rows(tuned, layers, [text], member.concept.embeddings)
        for layer in layers:
            row = found[layer.path].double()
            expected = row @ wanted[layer.path].double().T
            torch.testing.assert_close(row @ merged.changes[layer.path].T, expected, rtol=1e-4, atol=1e-6)
    paths = {layer.path for layer in layers}
    for path, change in normal.changes.items():
        assert torch.equal(change, merged.changes[path]) == (path not in paths)
        torch.testing.assert_close(merged.metrics[path], normal.metrics[path])


def test_the_command_reports_the_constraints(
    stage: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fuse", "fuse.yml", "method=constrained", "format=lora", "report.heldout=false"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    for layer in report["layers"].values():
        assert ("constraints" in layer) == (layer["stage"] == "keys and values")
        if "constraints" in layer:
            assert layer["constraints"]["rows"] == layer["constraints"]["rank"] == 4  # two tokens of two concepts
            assert layer["constraints"]["residual"] < 1e-4 and layer["status"] == "constrained"
    assert report["options"]["refine"]["method"] == "none"
    bad = ["method=constrained", "anchor.weight=0", "merge.prompts=[photo]"]
    assert main(["fuse", "fuse.yml", *bad]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "merge.prompts[0]" in said
    assert main(["fuse", "fuse.yml", *bad[:2]]) == EXIT_USER_ERROR
    assert "anchor.weight: expected more than 0" in capsys.readouterr().err
