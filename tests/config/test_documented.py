"""Every option of a scene stands in docs/composing.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from mixshow.config.condition import ConditionOptions
from mixshow.config.isolation import IsolateOptions
from mixshow.config.load import Section
from mixshow.config.passes import HiresOptions, ImageOptions
from mixshow.config.region import RegionOptions
from mixshow.config.scene import NetworkOptions, SceneOptions

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "composing.md").read_text(encoding="utf-8")
NAMED = {word for span in re.findall(r"`([^`]+)`", TEXT) for word in re.findall(r"\w+", span)}


@pytest.mark.parametrize(
    "section",
    [SceneOptions, RegionOptions, NetworkOptions, IsolateOptions, ImageOptions, HiresOptions, ConditionOptions],
)
def test_every_option_is_documented(section: type[Section]) -> None:
    missing = [field.name for field in dataclasses.fields(section) if field.name.removesuffix("_") not in NAMED]
    assert not missing
