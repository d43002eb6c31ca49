"""Full changes of layers, and changes of normalisations."""

from __future__ import annotations

from tests.lycoris.conformance import Conformance


class TestFull(Conformance):
    algo = "full"


class TestNorm(Conformance):
    algo = "norm"
    kinds = ("layer_norm", "group_norm", "rms_norm")
