"""How numbers of things are said."""


def counted(count: int, things: str) -> str:
    """``1 trial``, ``2 trials``, ``1,250 images``.

    Args:
        count: how many.
        things: in the plural, which ends in an s.
    """
    return f"{count:,} {things.removesuffix('s') if count == 1 else things}"
