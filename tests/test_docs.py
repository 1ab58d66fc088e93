"""The guide: it builds without a warning, asks nothing of the network, and what it says of the code
is so.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mpa_ray
from mpa_ray.config import Config
from mpa_ray.config.describe import settings
from mpa_ray.schema import ANNOTATIONS, JUDGEMENTS, PARITY, QUARANTINE, Reason
from tests.documented import PAGES, ROOT

TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide, built with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    for name in ("settings", "jobs", "repository/index"):
        assert (site / f"{name}.html").is_file()


def test_every_page_is_in_the_navigation(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert [
        page.stem
        for page in (ROOT / "docs").glob("*.md")
        if page.stem != "index" and f'href="{page.stem}.html"' not in text
    ] == []


def test_no_page_asks_for_anything_outside(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        asked = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\s\">]+)",
            text,
        )
        assert not asked, f"{page.name}: {asked}"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(\"?(https?:)?//", sheet.read_text()), sheet.name


def test_every_setting_is_in_the_guide(site: Path) -> None:
    text = (site / "settings.html").read_text()
    for setting in settings(Config):
        assert f"<code>{setting.name.rpartition('.')[2]}</code>" in text, setting.name
    assert "512 visual tokens of Qwen2-VL" in text


def test_every_job_is_in_the_guide(site: Path) -> None:
    text = (site / "jobs.html").read_text()
    for job in (ROOT / "jobs").glob("*.py"):
        assert f'id="{job.stem}"' in text
    assert "--drop_below" in text


def test_the_output_page_names_every_column_and_reason() -> None:
    text = (ROOT / "docs/output.md").read_text()
    for schema in (ANNOTATIONS, JUDGEMENTS, PARITY, QUARANTINE):
        assert [name for name in schema.names if f"`{name}`" not in text] == []
    assert [str(reason) for reason in Reason if f"`{reason}`" not in text] == []


def test_the_python_page_names_what_can_be_imported() -> None:
    text = (ROOT / "docs/python.md").read_text()
    assert [name for name in mpa_ray.__all__ if not re.search(rf"\b{name}\b", text)] == []


def _literals() -> Iterator[str]:
    """The texts in the package's source; what is filled in is \\0."""
    for path in (ROOT / "mpa_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "\0"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _messages() -> list[str]:
    rows = [
        line.split(" | ")[0]
        for line in TROUBLESHOOTING.read_text().split("\n")
        if line.startswith("| `")
    ]
    return [row.removeprefix("| `").removesuffix("`") for row in rows]


@pytest.fixture(scope="module")
def literals() -> list[str]:
    return list(_literals())


@pytest.mark.parametrize("message", _messages())
def test_quoted_messages_are_still_said(message: str, literals: list[str]) -> None:
    pieces = [re.escape(piece.strip()) for piece in message.split("...") if piece.strip()]
    pattern = re.compile(r"(?s:.*?)".join(pieces))
    assert any(pattern.search(literal) for literal in literals)


def test_there_are_messages() -> None:
    assert len(_messages()) > 30


# A whole number: no part of a word, a date, or a longer number.
_NUMBER = re.compile(r"(?<![\w.,])(?<!\w-)\d+(?:,\d{3})*(?:\.\d+)?(?![\w.,-]*\w)")
# What a result was measured on, and with what.
_HEAD = re.compile(r"^(?:# |- (?:processor|memory|cards|versions|command):).*", re.MULTILINE)


def not_measured(figures: str, result: str) -> list[str]:
    """The numbers in `figures` that are none of the text `result`, as they stand there or with last
    decimals cut off.
    """
    measured = [number.replace(",", "") for number in _NUMBER.findall(_HEAD.sub("", result))]
    cut = {
        number[:end]
        for number in measured
        for end in range(number.find("."), len(number))
        if "." in number and number[end - 1] != "."
    }
    return [
        number
        for number in _NUMBER.findall(figures)
        if number.replace(",", "") not in cut.union(measured)
    ]


def test_a_figure_is_a_whole_number_and_not_rounded_up() -> None:
    result = (
        "# scale-64px, 2026-11-21\n\n- command: run --rows 77\n\n| 0.908 | 1,594.6 | 10.95,"
        " 284 MiB | 3x | 79.7% |\n\n+5.8 and 0.99.\n"
    )
    for figures in (
        "0.908; 0.90; 0.9",
        "1,594.6 or 1,594",
        "10.95 to 10",
        "284 MiB",
        "79.7%, 79%",
        "+5.8",
        "0.99",
        "no figure",
    ):
        assert not_measured(figures, result) == [], figures
    for figure in (
        "0.91",
        "0.95",
        "0.08",
        "594",
        "1",
        "28",
        "84",
        "9.7",
        "80",
        "5.80",
        "64",
        "21",
        "77",
        "3",
        "1,595",
        "15,946",
    ):
        assert not_measured(f"{figure}% of it", result) == [figure]


def test_figures_are_those_of_the_files() -> None:
    """Of the page of limits: every number of a row stands in each of the files that the row
    names.
    """
    rows = re.findall(
        r"^\|[^|]+\|([^|]+)\|([^|]*benchmarks/results/[^|]*)\|$",
        (ROOT / "docs/limits.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 4
    for figures, files in rows:
        for name in re.findall(r"\]\(\.\./(benchmarks/results/[^)]+)\)", files):
            assert not_measured(figures, (ROOT / name).read_text()) == [], name


def test_figures_of_readme_are_those_of_the_claim() -> None:
    [told] = re.findall(
        r"^Over three seeds (.+?) With models this small",
        (ROOT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    results = re.findall(r"\]\((benchmarks/results/[^)]+)\)", told)
    assert len(_NUMBER.findall(told)) > 5 and len(results) == 2
    assert (
        not_measured(
            re.sub(r"\]\([^)]+\)", "]", told),
            "\n".join((ROOT / name).read_text() for name in results),
        )
        == []
    )


def test_links_of_pages_that_lie_elsewhere_lead_somewhere() -> None:
    """mkdocs looks at those of the guide; these are read in the repository too."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            found = (page.parent / target).exists() or target in ("settings.md", "jobs.md")
            assert found, f"{page.relative_to(ROOT)}: {target}"


def test_mkdocs_settings_are_yaml() -> None:
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False
