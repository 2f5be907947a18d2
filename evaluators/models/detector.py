"""An ultralytics detector as a network among others: it answers with one of its heads and learns with both.

Trained with two heads side by side, such a network needs but one of them to answer. ultralytics removes the other when
it is done training; here it stays, for fine-tuning, and is left out whenever nothing is learned. Otherwise it would be
counted, and timed where torch runs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


class TwoHeads:
    """Goes before the class of ultralytics' last layer, whose one-to-many head runs only while ``learns`` is set."""

    training: bool
    end2end: bool
    learns = False

    @property
    def one2many(self) -> dict[str, Any]:
        """Boxes' and classes' part of that head; None where it is not to run, as ultralytics has it."""
        both: dict[str, Any] = super().one2many  # type: ignore[misc]
        return both if self.learns or self.training or not self.end2end else dict.fromkeys(both)


def prepare_detector(model: Any, arguments: Any) -> None:
    """Make ultralytics' ``DetectionModel`` answer by its one-to-one head, if it has one.

    Args:
        model: changed in place.
        arguments: ultralytics' own settings, which its loss asks for.
    """
    model.args = arguments
    head = model.model[-1]
    # Its anchors are otherwise kept from one call to the next, and an export would leave stand-ins for them behind.
    head.dynamic = True
    model.end2end = hasattr(head, "one2one_cv2")
    if model.end2end:
        head.__class__ = type(f"TwoHeads{type(head).__name__}", (TwoHeads, type(head)), {})


def has_one_to_one_head(network: nn.Module) -> bool:
    """Whether an ultralytics network answers without a suppression of boxes found twice."""
    return bool(getattr(network, "end2end", False))


@contextlib.contextmanager
def both_heads(network: nn.Module) -> Iterator[None]:
    """Runs both heads of whatever detectors are in the network."""
    found = [module for module in network.modules() if isinstance(module, TwoHeads)]
    try:
        for module in found:
            module.learns = True
        yield
    finally:
        for module in found:
            module.learns = False
