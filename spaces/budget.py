"""``Budget``: how much training a score is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from spaces.errors import SpecError, nearest

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
        until: where training stops, a name of ``RUNGS``. Up to there it is what it is on the way to ``full``.
        shared: AE ratio and bit-width of all that one training of a cut answers for; with none, each configuration is
            trained by itself.

    Raises:
        SpecError: a value outside these bounds.
    """

    images: int
    reconstruction_steps: int
    epochs: int
    head_steps: int = 0
    until: str = "full"
    shared: tuple[tuple[float, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared", tuple((float(ratio), int(bits)) for ratio, bits in self.shared))
        for name, least in (("images", 1), ("reconstruction_steps", 0), ("epochs", 0), ("head_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(name, value, f"a whole number from {least} is needed")
        if self.until not in RUNGS:
            raise SpecError("until", self.until, nearest(str(self.until), RUNGS))

    @property
    def rungs(self) -> dict[str, Budget]:
        """The ways to stop early and this budget itself, by name, from the cheapest; no two do the same.

        A training that answers for many is not stopped for the sake of one.
        """
        if self.shared:
            return {"full": self}
        names = ["start"] if self.reconstruction_steps or self.epochs else []
        names += ["reconstruction"] if self.reconstruction_steps and self.epochs else []
        return {**{name: replace(self, until=name) for name in names}, "full": self}

    def to_dict(self) -> dict[str, Any]:
        """By attribute. JSON-ready."""
        return asdict(self)
