"""Typed option sections, and reading them from YAML with overrides. Config stops at the recipes."""

from mixshow.config.load import Section, build, dump, load, option, read_yaml

__all__ = ["Section", "build", "dump", "load", "option", "read_yaml"]
