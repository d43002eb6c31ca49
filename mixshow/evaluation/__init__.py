"""Measuring: intervals, identity, reports."""
