"""Tables, intervals and amounts as text, for terminals and pages."""

from collections.abc import Iterable, Sequence


def dollars(amount: float) -> str:
    """$0.0123, $12.34"""
    return f"${amount:,.4f}" if amount < 1 else f"${amount:,.2f}"


def interval(bounds: Sequence[float] | None) -> str:
    """A 95% interval in percent; scores of a whole set have none."""
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else "-"


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows as columns, the first to the left, those whose cells are figures to the right."""
    rows = [list(row) for row in rows]
    columns = [list(column) for column in zip(*rows, strict=True)]
    to_the_right = [
        bool(number) and all(_is_figure(cell) for cell in column[1:])
        for number, column in enumerate(columns)
    ]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        ).rstrip()
        for row in rows
    )


def _is_figure(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-").replace(",", "").replace(".", "", 1).isdigit()
