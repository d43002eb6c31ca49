"""Statistics equal what plain sums over rows give, and are shared where layers read the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.fusion.recorder import StatisticsRecorder
from mixshow.fusion.statistics import LayerStatistics, input_rows


class Attention(nn.Module):
    """Queries, keys and values of one input, and an output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        other = x if other is None else other
        return self.out(self.q(x) + (self.k(other) + self.v(other)).mean(-2, keepdim=True))


def recorded(model: nn.Module, *inputs: tuple[Tensor, ...]) -> dict[str, LayerStatistics]:
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    with StatisticsRecorder(modules, double=True) as recorder, torch.no_grad():
        for each in inputs:
            model(*each)
    return recorder.statistics()


def test_moment_is_the_sum_over_all_rows_of_all_calls() -> None:
    first, second = torch.randn(2, 5, 6), torch.randn(3, 6)
    found = recorded(Attention(), (first,), (second,))["q"]
    rows = torch.cat([first.flatten(0, 1), second]).double()
    assert found.rows == 13
    torch.testing.assert_close(found.moment, rows.T @ rows)
    torch.testing.assert_close(found.mean, rows.T @ rows / 13)


def test_statistics_add() -> None:
    first, second = torch.randn(7, 4), torch.randn(5, 4)
    total = LayerStatistics.of_rows(first) + LayerStatistics.of_rows(second)
    whole = LayerStatistics.of_rows(torch.cat([first, second]))
    torch.testing.assert_close(total.moment, whole.moment)
    assert total.rows == whole.rows == 12


def test_layers_with_the_same_input_share_one_moment() -> None:
    found = recorded(Attention(), (torch.randn(4, 6),), (torch.randn(4, 6),))
    assert found["q"] is found["k"] is found["v"]
    assert found["out"] is not found["q"]
    assert found["q"].rows == 8


def test_keys_and_values_of_another_input_share_theirs() -> None:
    found = recorded(Attention(), (torch.randn(4, 6), torch.randn(3, 6)))
    assert found["k"] is found["v"] and found["k"] is not found["q"]
    assert (found["q"].rows, found["k"].rows) == (4, 3)


def test_layers_that_part_later_keep_only_what_was_common() -> None:
    model, x, y, z = Attention(), torch.randn(4, 6), torch.randn(4, 6), torch.randn(2, 6)
    found = recorded(model, (x,), (y, z), (x,))
    for name, inputs in {"q": (x, y, x), "k": (x, z, x), "v": (x, z, x)}.items():
        rows = torch.cat(inputs).double()
        torch.testing.assert_close(found[name].moment, rows.T @ rows)
        assert found[name].rows == len(rows)


def test_an_input_changed_in_place_is_not_taken_for_the_same() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.ones(1, 3)
    with StatisticsRecorder({"first": first, "second": second}) as recorder, torch.no_grad():
        first(x)
        x.mul_(2)
        second(x)
    found = recorder.statistics()
    assert found["second"].moment[0, 0] == 4 and found["first"].moment[0, 0] == 1


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"kernel_size": 1}, {"dilation": 2}])
def test_convolution_rows_are_the_unfolded_input(options: dict[str, int]) -> None:
    conv = nn.Conv2d(**{"in_channels": 3, "out_channels": 5, "kernel_size": 3, "bias": False, **options})
    x = torch.randn(2, 3, 8, 8)
    rows = input_rows(conv, x)
    expected = conv(x).movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(rows @ conv.weight.flatten(1).T, expected, atol=1e-5, rtol=1e-4)
    found = recorded(nn.Sequential(conv), (x,))["0"]
    torch.testing.assert_close(found.moment, rows.double().T @ rows.double(), atol=1e-6, rtol=1e-6)
    assert found.rows == len(rows)


def test_memory_does_not_grow_with_calls() -> None:
    model = Attention()
    with StatisticsRecorder({"q": model.q}) as recorder, torch.no_grad():
        for _ in range(20):
            model(torch.randn(50, 6))
    assert recorder.statistics()["q"].moment.shape == (6, 6)


def test_hooks_come_off_also_after_an_error() -> None:
    model = Attention()
    with pytest.raises(ValueError), StatisticsRecorder({"q": model.q}):
        raise ValueError
    assert not model.q._forward_pre_hooks


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(MixshowError, match="cannot be fused"):
        input_rows(nn.Conv2d(4, 4, 3, groups=2), torch.zeros(1, 4, 8, 8))
