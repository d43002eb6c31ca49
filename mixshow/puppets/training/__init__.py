"""Trains everything the built-in base consists of, stage by stage, from nothing."""
