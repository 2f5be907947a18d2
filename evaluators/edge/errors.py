"""What can be wrong with a payload."""

from __future__ import annotations


class PayloadError(ValueError):
    """A payload that cannot be what the device sent for this configuration; the message says why."""
