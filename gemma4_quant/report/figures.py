"""Figures: a plot in two widths, for screens and for telephones, with its text alternative."""

from collections.abc import Callable
from dataclasses import dataclass

from gemma4_quant.report.plots.marks import NARROW, WIDE, Picture, document, markup
from gemma4_quant.report.tables import Table


@dataclass(frozen=True)
class Figure:
    """A plot for people who see it and for those who do not.

    wide, narrow: SVG markup, safe to put into a page. description: what it shows, in a sentence or two.
    table: the numbers that it is drawn from.
    """

    name: str
    title: str
    description: str
    wide: str
    narrow: str
    table: Table


def figure(name: str, title: str, description: str, table: Table, draw: Callable[[float], Picture]) -> Figure:
    """Draw a plot in both widths; `name` is unique in its page."""
    wide, narrow = (
        markup(document(draw(width), title, description, f"{name}-{kind}"))
        for width, kind in ((WIDE, "wide"), (NARROW, "narrow"))
    )
    return Figure(name, title, description, wide, narrow, table)
