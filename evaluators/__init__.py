"""Scores one split: trains it, sends it through real bytes, measures it. Knows nothing of a search."""

__project__ = "splitsearch"
