"""A small procedural data set in the layout of StreetHazards: `python -m dataset.demo`."""

from dataset.demo.writer import write_demo

__all__ = ["write_demo"]
