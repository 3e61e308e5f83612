"""Tables in Markdown."""

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with one line for the head and one for each row."""
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    # A cell is one line, and a bar in its text would end it.
    escaped = [" ".join(cell.replace("|", "\\|").split()) for cell in cells]
    return "| " + " | ".join(escaped) + " |"
