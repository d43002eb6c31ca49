"""Solving in sequence through options and the command: where it is the default, what is reported, kept and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TypeVar, cast

import pytest

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.config.fuse import FuseOptions, load_fuse_options
from mixshow.config.load import build
from mixshow.core.processes import Processes
from mixshow.edlora.concept import save_concept
from mixshow.fusion.layers import Stage
from mixshow.fusion.own_and_fused import pictures_together, running_bytes, waiting_bytes
from mixshow.models import Base
from mixshow.recipes import memory
from mixshow.recipes.fuse import prepare
from mixshow.recipes.fuse_memory import points_that_fit
from mixshow.recipes.statistics import collection_for
from tests.fusion.test_recipe import stage  # noqa: F401
from tests.tiny import tiny_concept

T = TypeVar("T")


def options(**values: object) -> FuseOptions:
    given = {"base": "puppets", "concepts": [{"file": "a.safetensors"}], "output": "out", **values}
    return build(FuseOptions, given, "test")


def test_sequence_is_the_default_where_it_serves() -> None:
    assert options().collects == "sequential"
    assert options(concepts=[{"file": "a", "statistics": "a.stats.safetensors"}]).collects == "independent"
    assert options(method="subspace").collects == options(refine={"method": "rerecord"}).collects == "independent"
    for given in ({"shrinkage": 0.5}, {"row_weights": "sensitivity"}):
        assert options(statistics=given).collects == "independent"
    assert options(statistics={"collect": "progressive"}).collects == "progressive"


def test_the_command_solves_in_sequence(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    more = ["refine.method=none", "statistics.points=1"]
    assert main(["fuse", "fuse.yml", *more]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert report["options"]["statistics"]["points"] == 1
    assert report["seconds"]["solving in order"] > 0 and "statistics: spatial layers" not in report["seconds"]
    assert load_fuse_options("fuse.yml").collects == "sequential"
    capsys.readouterr()
    bad = ["statistics.collect=sequential", "statistics.shrinkage=0.5", "method=subspace"]
    assert main(["fuse", "fuse.yml", *bad]) == EXIT_USER_ERROR
    assert "sequential does not go with method=subspace, statistics.shrinkage=0.5" in capsys.readouterr().err
    assert main(["fuse", "fuse.yml", "statistics.points=0"]) == EXIT_USER_ERROR
    assert "statistics.points: expected at least 1" in capsys.readouterr().err
    assert main(["fuse", "fuse.yml", "--dry-run", *more]) == 0
    assert "solving layers in order" in capsys.readouterr().out


def test_there_are_as_many_points_as_fit(
    stage: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = load_fuse_options("fuse.yml")
    base, members, usual = prepare(given, "fuse.yml")
    parts = [*base.models.values(), base.vae]
    model = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    collection = collection_for(usual)
    one = waiting_bytes(base, collection, 1)
    passing = 2 * pictures_together(base, collection) * running_bytes(base, collection)
    assert usual.statistics.points == 96
    for left, expected in ((2 * 1.25 * 10.5 * one, 10), (2 * one, 2), (-one, 2), (1000 * one, 96)):
        monkeypatch.setattr(memory, "free_memory", lambda _, left=left: (0, int(model + 2 * passing + left)))
        assert points_that_fit(base, members, given) == expected
        assert prepare(load_fuse_options("fuse.yml", ["statistics.points=7"]), "")[2].statistics.points == 7


@dataclasses.dataclass(frozen=True)
class WithASmallerOne(Processes):
    """This process, as one that stands beside another which has memory for three points."""

    def gathered(self, own: T) -> list[T]:
        return [own, cast(T, 3)] if isinstance(own, int) else [own]


def test_processes_solve_on_as_many_points_as_fit_into_each(
    stage: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Processes, "launched", lambda: WithASmallerOne(0, 1))
    assert main(["fuse", "fuse.yml", "refine.method=none", "report.heldout=false"]) == 0
    assert json.loads((stage / "fused" / "fusion_report.json").read_text())["options"]["statistics"]["points"] == 3


@pytest.mark.parametrize("collect", ["sequential", "independent"])
@pytest.mark.parametrize("strengths", [("unet: 0", "unet: 0"), ("alpha: 0", "alpha: 1"), ("alpha: 0", "unet: 0")])
def test_networks_without_strength_leave_their_layers_alone(
    stage: Path,  # noqa: F811
    collect: str,
    strengths: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    duck, fox = strengths
    concepts = f"concepts=[{{file: duck.safetensors, {duck}}}, {{file: fox.pth, {fox}}}]"
    given = ["fuse", "fuse.yml", concepts, f"statistics.collect={collect}", "report.heldout=false"]
    assert main(given) == 0
    layers = json.loads((stage / "fused" / "fusion_report.json").read_text())["layers"]
    assert any(each["stage"] == Stage.SPATIAL.value for each in layers.values()) == (fox == "alpha: 1")
    assert main([*given, "output=other", "--dry-run"]) == 0
    assert ("distilling" in capsys.readouterr().out) == (fox == "alpha: 1")


def test_networks_of_nothing_but_layers_in_sequence(stage: Path, tiny: Base) -> None:  # noqa: F811
    """Then nothing is recorded at all."""
    for number, name in enumerate(("duck", "fox")):
        concept = tiny_concept(tiny, name, seed=number)
        network = {key: value for key, value in concept.network.items() if "_attn1_to_q." in key}
        save_concept(dataclasses.replace(concept, network=network), f"{name}_only.safetensors")
    concepts = "concepts=[{file: duck_only.safetensors}, {file: fox_only.safetensors}]"
    assert main(["fuse", "fuse.yml", concepts, "refine.method=none"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert report["layers"] and all(name.endswith("attn1.to_q") for name in report["layers"])
    assert main(["fuse", "fuse.yml", concepts, "--dry-run"]) == 0


def test_kept_statistics_solve_it_again_apart(stage: Path) -> None:  # noqa: F811
    assert main(["fuse", "fuse.yml", "refine.method=none", "statistics.keep=true", "report.heldout=false"]) == 0
    assert main(["fuse", "fused", "--reweight", "duck=2"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert report["options"]["statistics"]["collect"] == "independent"
