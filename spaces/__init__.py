"""Values that everything else passes around: configurations, search spaces, partition points, errors."""

__project__ = "splitsearch"
