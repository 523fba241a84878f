"""The picture in docs/ARCHITECTURE.md, generated from the table of layers and pipes: `python -m cli.picture` updates
it."""

from __future__ import annotations

from pathlib import Path

from bus.topology import PIPES, ROWS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ARCHITECTURE.md"
BEGIN = "<!-- picture: made by `python -m cli.picture`; a test holds it current -->\n"
END = "<!-- end of picture -->\n"


def picture() -> str:
    """A Mermaid graph of the layers and pipes, and a table with the contract of each pipe."""
    pairs = sorted({tuple(sorted((pipe.producer, pipe.consumer), key=_height)) for pipe in PIPES})
    optional = {row.name for row in ROWS if row.optional}
    graph = ["```mermaid", "graph BT", "  device([TAP or virtual wire]) <--> link"]
    graph += [f"  {lower} <{'-.' if optional & {lower, upper} else '--'}-> {upper}" for lower, upper in pairs]
    graph += ["  sockets <--> application([applications])", "```", ""]
    table = ["| from | to | what |", "|---|---|---|"]
    table += [f"| {pipe.producer} | {pipe.consumer} | {pipe.contract} |" for pipe in PIPES]
    return "\n".join([*graph, *table]) + "\n"


def _height(layer: str) -> int:
    return [row.name for row in ROWS].index(layer)


def updated(page: str) -> str:
    """The page with the picture of the present table."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + picture() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
