"""A table for a terminal of any width: it does without some columns before any of them is cut off."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

_BETWEEN = 3  # places between two columns


class FittingTable(Table):
    """A table of texts. Rich takes the room that is missing from the columns that may be folded, down to nothing.

    Args:
        title: above it.
        spare: headings of columns that it can do without, the first one first.
    """

    def __init__(self, title: str, spare: Sequence[str] = ()) -> None:
        super().__init__(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
        self.spare, self.caption_justify = tuple(spare), "left"

    @property
    def least_width(self) -> int:
        """Places that it needs with nothing cut off; columns that may be folded need their ``min_width``."""
        widths = [
            max(map(cell_len, map(str, [column.header, *column.cells]))) if column.no_wrap else column.min_width or 1
            for column in self.columns
        ]
        return sum(widths) + _BETWEEN * (len(widths) - 1)

    def without(self, headings: Sequence[str]) -> FittingTable:
        """The same without some columns; its caption says which."""
        kept = [column for column in self.columns if column.header not in headings]
        found = FittingTable(str(self.title or ""), self.spare)
        for column in kept:
            found.add_column(
                column.header,
                justify=column.justify,
                no_wrap=column.no_wrap,
                overflow=column.overflow,
                min_width=column.min_width,
            )
        for row, cells in zip(self.rows, zip(*(column.cells for column in kept), strict=True), strict=True):
            found.add_row(*cells, style=row.style, end_section=row.end_section)
        said = f"no room here for {', '.join(headings)}"
        found.caption = f"{self.caption}\n{said}" if self.caption else said
        return found

    def print_on(self, console: Console) -> None:
        """Print it with as many columns as there is room for; what cannot be left out goes on in the next line."""
        shown, left_out = self, list[str]()
        there = {column.header for column in self.columns}
        for heading in (each for each in self.spare if each in there):
            if shown.least_width <= console.width:
                break
            left_out.append(heading)
            shown = self.without(left_out)
        console.width = max(console.width, shown.least_width)
        console.print(shown)
