"""All solvers find the minimum of the stated objective: well-posed, rank-deficient, anchored, weighted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.build import build_problems
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import CG, LBFGS, Exact, Solver, Status
from mixshow.fusion.statistics import SINGLE_RESOLUTION, LayerStatistics

OUT, WIDTH = 5, 12
SOLVERS = [LBFGS(), LBFGS(precondition=True), CG(), Exact()]


def rows(count: int, seed: int, *, rank: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, WIDTH, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank, generator=generator, dtype=torch.float64) @ basis


def delta(seed: int) -> Tensor:
    return torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(
    inputs: list[Tensor], deltas: list[Tensor], anchor: Tensor | None = None, **options: object
) -> LayerProblem:
    options = {"weights": [1.0] * len(inputs), **options}
    statistics = [{"layer": LayerStatistics.of_rows(x)} for x in inputs]
    base = None if anchor is None else {"layer": LayerStatistics.of_rows(anchor)}
    [built] = build_problems([{"layer": d} for d in deltas], statistics, anchor=base, **options)  # type: ignore[arg-type]
    return built


def reference(
    inputs: list[Tensor], deltas: list[Tensor], weights: list[float], *, ridge: float = 0.0,
    anchor: Tensor | None = None, mu: float = 0.0,
) -> Tensor:  # fmt: skip
    """The least-squares problem written out row by row, solved by lstsq (minimum norm)."""
    scale = [(w / sum(weights) / len(x)) ** 0.5 for w, x in zip(weights, inputs)]
    left = [s * x for s, x in zip(scale, inputs)]
    right = [s * x @ d.T for s, x, d in zip(scale, inputs, deltas)]
    if anchor is not None:
        left.append((mu / len(anchor)) ** 0.5 * anchor)
        right.append(torch.zeros(len(anchor), OUT, dtype=torch.float64))
    if ridge:
        trace = sum(float(part.square().sum()) for part in left)
        left.append((ridge * trace / WIDTH) ** 0.5 * torch.eye(WIDTH, dtype=torch.float64))
        right.append(torch.zeros(WIDTH, OUT, dtype=torch.float64))
    return torch.linalg.lstsq(torch.cat(left), torch.cat(right), driver="gelsd", rcond=1e-9).solution.T


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("rank", [WIDTH, 4])
def test_matches_least_squares_on_the_rows(solver: Solver, ridge: float, rank: int) -> None:
    inputs, deltas = [rows(40, 1, rank=rank), rows(60, 1, rank=rank)], [delta(3), delta(4)]
    [outcome] = solver.solve([problem(inputs, deltas, ridge=ridge, weights=[1.0, 2.0])])
    expected = reference(inputs, deltas, [1.0, 2.0], ridge=ridge)
    assert (outcome.change - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("solver", SOLVERS)
def test_anchor_counts_as_rows_that_want_no_change(solver: Solver) -> None:
    inputs, deltas, ordinary = [rows(40, 1)], [delta(3)], rows(30, 9)
    [outcome] = solver.solve([problem(inputs, deltas, ordinary, anchor_weight=0.7)])
    expected = reference(inputs, deltas, [1.0], anchor=ordinary, mu=0.7)
    torch.testing.assert_close(outcome.change, expected, rtol=1e-7, atol=1e-9)


def test_the_stronger_the_anchor_the_less_ordinary_outputs_move() -> None:
    ordinary = rows(30, 9)
    moved = [
        float(
            (
                Exact().solve([problem([rows(8, 1)], [delta(3)], ordinary, anchor_weight=mu)])[0].change @ ordinary.T
            ).norm()
        )
        for mu in (0.01, 0.1, 1.0, 10.0)
    ]
    assert moved == sorted(moved, reverse=True)


def test_a_vanishing_ridge_tends_to_the_minimum_change() -> None:
    inputs, deltas = [rows(40, 1, rank=4), rows(40, 2, rank=4)], [delta(3), delta(4)]
    [smallest] = Exact().solve([problem(inputs, deltas)])
    distances = []
    for ridge in (1e-2, 1e-4, 1e-6, 1e-8):
        [outcome] = Exact().solve([problem(inputs, deltas, ridge=ridge)])
        assert outcome.status is Status.SOLVED
        distances.append(float((outcome.change - smallest.change).norm() / smallest.change.norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-5
    assert smallest.status is Status.MINIMUM_CHANGE and smallest.rank == 8


def test_without_ridge_directions_that_no_input_has_stay_unchanged() -> None:
    inputs = [rows(40, 1, rank=4)]
    outside = torch.linalg.svd(inputs[0])[2][4:]
    for solver in SOLVERS:
        [outcome] = solver.solve([problem(inputs, [delta(3)])])
        assert (outcome.change @ outside.T).norm() < 1e-7


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_other_change_has_a_lower_objective(solver: Solver) -> None:
    case = problem([rows(20, 1), rows(20, 2)], [delta(3), delta(4)], rows(20, 5), anchor_weight=0.2, ridge=1e-3)
    [outcome] = solver.solve([case])
    others = [delta(3), delta(4), (delta(3) + delta(4)) / 2, torch.zeros(OUT, WIDTH, dtype=torch.float64)]
    others += [outcome.change + 1e-3 * delta(seed) for seed in range(20)]
    assert all(outcome.objective_after <= case.objective(other) for other in others)
    assert outcome.objective_after == pytest.approx(case.objective(outcome.change))


def test_many_steps_on_rank_deficient_inputs_do_no_harm() -> None:
    # Rounding errors once left the span and grew without bound after some 60 steps.
    case = problem([rows(200, 1, rank=WIDTH - 1) * torch.logspace(0, -3, WIDTH)], [delta(3)])
    [few], [many] = LBFGS(200, tolerance=0).solve([case]), LBFGS(1000, tolerance=0).solve([case])
    assert many.change.norm() <= 1.1 * few.change.norm()
    assert many.objective_after <= few.objective_before


def test_one_concept_gets_its_own_change() -> None:
    [outcome] = Exact().solve([problem([rows(40, 1)], [delta(3)])])
    torch.testing.assert_close(outcome.change, delta(3), rtol=1e-8, atol=1e-8)
    assert outcome.after[0] < 1e-12 * outcome.before[0]


def test_published_weights_are_shares_of_rows() -> None:
    inputs, deltas = [rows(10, 1), rows(90, 2)], [delta(3), delta(4)]
    [outcome] = Exact().solve([problem(inputs, deltas, weights=None)])
    torch.testing.assert_close(outcome.change, reference(inputs, deltas, [10, 90]), rtol=1e-6, atol=1e-8)
    # which is the plain least squares of all rows, one below the other
    x = torch.cat(inputs)
    y = torch.cat([inputs[0] @ deltas[0].T, inputs[1] @ deltas[1].T])
    torch.testing.assert_close(outcome.change, torch.linalg.lstsq(x, y).solution.T, rtol=1e-6, atol=1e-8)


def test_layers_that_share_inputs_share_one_problem_and_equal_separate_ones() -> None:
    shared = [LayerStatistics.of_rows(rows(30, 1)), LayerStatistics.of_rows(rows(30, 2))]
    statistics = [{"q": each, "k": each} for each in shared]
    deltas = [{"q": delta(1), "k": delta(2)}, {"q": delta(3)}]  # the second leaves k alone
    both = build_problems(deltas, statistics, weights=[1, 1])
    assert both[0].inputs is both[1].inputs
    outcomes = Exact().solve(both)
    for name, outcome in zip(("q", "k"), outcomes):
        alone = build_problems(
            [{name: d[name]} if name in d else {} for d in deltas], [{name: each} for each in shared], weights=[1, 1]
        )
        torch.testing.assert_close(outcome.change, Exact().solve(alone)[0].change)


def test_layers_solved_together_equal_layers_solved_alone() -> None:
    cases = [problem([rows(30, s), rows(30, s + 1)], [delta(s), delta(s + 1)], ridge=1e-2) for s in range(0, 10, 2)]
    for together, case in zip(LBFGS().solve(cases), cases):
        torch.testing.assert_close(together.change, LBFGS().solve([case])[0].change, rtol=1e-8, atol=1e-10)


def test_outcomes_say_what_to_do() -> None:
    opposed = problem([rows(30, 1), rows(30, 1)], [delta(3), -delta(3)])
    [outcome] = Exact().solve([opposed])
    assert "more weight" in outcome.advice
    [stopped] = LBFGS(2).solve([problem([rows(30, 1) * torch.logspace(0, -4, WIDTH)], [delta(3)])])
    assert stopped.status is Status.ITERATION_LIMIT and "ridge" in stopped.advice
    for solver in (LBFGS(6), CG(6)):
        [early] = solver.solve([problem([rows(60, 1)], [delta(3)])])
        assert early.status is Status.ITERATION_LIMIT and early.iterations == 6
        assert "solver.iterations" in early.advice


def assert_same_outputs(found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float) -> None:
    """What changes do to the inputs: along directions that hardly occur they may differ."""
    x = torch.cat(inputs)
    assert (x @ (found - expected).T).norm() <= tolerance * (x @ expected.T).norm()


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("anchored", [False, True])
def test_random_problems_agree_with_the_dense_reference(solver: Solver, seed: int, anchored: bool) -> None:
    """Any number of concepts, ranks, rows, weights; one concept leaves the layer alone."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    count = number(2, 5)
    inputs = [rows(number(3, 40), 10 * seed + i, rank=number(2, WIDTH + 1)) for i in range(count)]
    deltas = [delta(10 * seed + i) for i in range(count)]
    weights = [0.1 + float(torch.rand((), generator=draw)) for _ in range(count)]
    ordinary = rows(20, 99, rank=5) if anchored else None
    case = problem(inputs, deltas, ordinary, weights=weights, anchor_weight=0.4 if anchored else 0.0, ridge=1e-3)
    left_alone = LayerProblem("layer", case.inputs, [*case.deltas[:-1], None])
    deltas_alone = [*deltas[:-1], torch.zeros_like(deltas[-1])]
    for built, changes in ((case, deltas), (left_alone, deltas_alone)):
        [outcome] = solver.solve([built])
        expected = reference(inputs, changes, weights, ridge=1e-3, anchor=ordinary, mu=0.4)
        assert (outcome.change - expected).norm() <= 1e-6 * expected.norm()
        assert outcome.status in (Status.SOLVED, Status.CONVERGED)
        assert (outcome.rank, outcome.width) == (WIDTH, WIDTH)


@pytest.mark.parametrize("solver", [LBFGS(precondition=True), CG(2000), Exact()], ids=str)
@pytest.mark.parametrize("rank", [WIDTH, 8])
def test_ill_conditioned_inputs_without_ridge(solver: Solver, rank: int) -> None:
    """S of condition 1e8: the outputs are those of the least squares on the rows."""
    basis = torch.linalg.qr(torch.randn(WIDTH, rank, generator=torch.Generator().manual_seed(7)).double()).Q.T
    inputs = [rows(60, s) @ torch.eye(WIDTH, rank).double() * torch.logspace(0, -4, rank) @ basis for s in (1, 2)]
    deltas = [delta(3), delta(4)]
    [outcome] = solver.solve([problem(inputs, deltas)])
    assert outcome.rank == rank and 1e7 < outcome.condition < 1e10
    assert_same_outputs(outcome.change, reference(inputs, deltas, [1, 1]), inputs, 1e-6)
    [exact] = Exact().solve([problem(inputs, deltas)])
    assert outcome.objective_after <= exact.objective_after + 1e-9 * exact.objective_before


def test_a_preconditioner_needs_few_steps() -> None:
    inputs = [rows(60, s) * torch.logspace(0, -3, WIDTH) for s in (1, 2)]
    case = problem(inputs, [delta(3), delta(4)], ridge=1e-6)
    [plain], [quick] = LBFGS().solve([case]), LBFGS(precondition=True).solve([case])
    assert quick.status is Status.CONVERGED and quick.iterations <= 3 < plain.iterations


@pytest.mark.parametrize("solver", [LBFGS(), LBFGS(precondition=True), CG()], ids=str)
def test_noise_outside_of_the_inputs_span_is_not_waited_for(solver: Solver) -> None:
    """Products in single precision leave some there, which no step can take away."""
    deltas, statistics = [delta(3), delta(4)], []
    turn = torch.linalg.qr(rows(WIDTH, 5)).Q
    for seed in (1, 2):
        x = torch.nn.functional.pad(rows(40, seed)[:, :8], (0, WIDTH - 8)) @ turn  # all in one span of 8 directions
        x = x.float()
        statistics.append({"layer": LayerStatistics((x.T @ x).double(), len(x), SINGLE_RESOLUTION)})
    [built] = build_problems([{"layer": each} for each in deltas], statistics, weights=[1, 1])
    [outcome], [exact] = solver.solve([built]), Exact().solve([built])
    assert outcome.status is Status.CONVERGED and outcome.iterations < 100 and outcome.rank == 8
    assert (outcome.change - exact.change).norm() <= 1e-6 * exact.change.norm()


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_changes_that_are_no_numbers_are_refused(solver: Solver) -> None:
    with pytest.raises(MixshowError, match=r"'layer': what the concepts' networks add .* no numbers"):
        solver.solve([problem([rows(30, 1)], [delta(3) / 0], ridge=1e-2)])


def test_damaged_moments_are_refused() -> None:
    damaged = LayerStatistics(torch.full((WIDTH, WIDTH), float("nan"), dtype=torch.float64), 5)
    with pytest.raises(MixshowError, match=r"'layer': .* no numbers; .*record them again"):
        build_problems([{"layer": delta(1)}], [{"layer": damaged}], weights=[1])
    negative = LayerStatistics(-torch.eye(WIDTH, dtype=torch.float64), 5)
    with pytest.raises(MixshowError, match="negative squares"):
        build_problems([{"layer": delta(1)}], [{"layer": negative}], weights=[1])
    indefinite = 2 * torch.ones(WIDTH, WIDTH, dtype=torch.float64) - torch.eye(WIDTH, dtype=torch.float64)
    [case] = build_problems([{"layer": delta(1)}], [{"layer": LayerStatistics(indefinite, 5)}], weights=[1])
    with pytest.raises(MixshowError, match="negative eigenvalues"):
        LBFGS(precondition=True).solve([case])
