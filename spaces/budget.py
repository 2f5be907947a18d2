"""``Budget``: how much training a score is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from spaces.errors import SpecError

RUNGS = {"start": 0.0, "reconstruction": 0.5, "full": 1.0}
"""How far each is, by name: the closed-form start, a bottleneck trained for its features, all of the training."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much training a score is worth: a rung.

    Attributes:
        images: training images that a candidate learns from, at least 1.
        reconstruction_steps: steps in which the bottleneck alone learns to rebuild the features; 0 leaves the
            closed-form start as it is.
        epochs: of fine-tuning afterwards; 0 leaves that out.
        head_steps: steps in which a distilled head learns the features of its point before all that; the network's own
            head needs none.

    Raises:
        SpecError: a value outside these bounds.
    """

    images: int
    reconstruction_steps: int
    epochs: int
    head_steps: int = 0

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("reconstruction_steps", 0), ("epochs", 0), ("head_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(name, value, f"a whole number from {least} is needed")

    @property
    def rungs(self) -> dict[str, Budget]:
        """Cheaper budgets on the way to this one and this one, by name, from the cheapest; none twice."""
        start = replace(self, reconstruction_steps=0, epochs=0)
        cheaper = {budget: name for name, budget in (("reconstruction", replace(self, epochs=0)), ("start", start))}
        found = {name: budget for budget, name in cheaper.items() if budget != self}
        return {**dict(sorted(found.items(), key=lambda each: RUNGS[each[0]])), "full": self}

    def to_dict(self) -> dict[str, int]:
        """By attribute. JSON-ready."""
        return asdict(self)
