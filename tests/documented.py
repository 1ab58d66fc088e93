"""What README.md and the guide tell people to type: their fenced blocks, and how each is to be
tried.

A block is run as it stands, unless the line before it says otherwise, with the reason:

    <!-- parse: reason -->      its commands are parsed by what they start, up to where
                                something outside is needed
    <!-- slow: reason -->       it is run, by a slow test
    <!-- outside: reason -->    nothing of ours is in it; its syntax alone is looked at

Blocks that nobody types (output, trees of files) are ```text.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# cluster/README.md has commands of other tools: tests/test_cluster_files.py tries them.
PAGES = tuple(path for pattern in ("README.md", "docs/*.md") for path in sorted(ROOT.glob(pattern)))
SORTS = ("parse", "slow", "outside")
LANGUAGES = ("sh", "python", "yaml", "json", "text")

_FENCE = re.compile(r"^ *```(?P<language>[\w-]*)(?: +title=\"(?P<title>[^\"]+)\")? *$")
_MARK = re.compile(rf"^ *<!-- (?P<sort>{'|'.join(SORTS)}): (?P<reason>.+) -->$")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file, from the root of the repository.
        line: where it begins.
        language: as the fence says; empty where it does not.
        title: the name of the file that it is, where it is one.
        sort: "run", "parse", "slow" or "outside".
        text: of the block.
    """

    page: str
    line: int
    language: str
    title: str | None
    sort: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found, lines, sort = [], path.read_text().split("\n"), "run"
    number = 0
    while number < len(lines):
        if mark := _MARK.match(lines[number]):
            sort = mark["sort"]
        elif fence := _FENCE.match(lines[number]):
            begin = number
            number += 1
            while lines[number].strip() != "```":
                number += 1
            indent = len(lines[begin]) - len(lines[begin].lstrip())
            text = "\n".join(line[indent:] for line in lines[begin + 1 : number])
            found.append(
                Block(
                    str(path.relative_to(ROOT)),
                    begin + 1,
                    fence["language"],
                    fence["title"],
                    sort,
                    text,
                )
            )
            sort = "run"
        elif lines[number].strip():
            sort = "run"
        number += 1
    return found


def prose(path: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    """What stands in backticks in the text of a page."""
    return _SPAN.findall(prose(path))
