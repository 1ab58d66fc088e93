"""The guide: it builds without a warning, asks nothing of the network, and what it says of the code is so."""

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
from mpa_ray.schema import ANNOTATIONS, JUDGEMENTS, PARITY, QUARANTINE, Reason
from mpa_ray.settings import settings
from tests.documented import PAGES, ROOT

TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide, built with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
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
    assert [page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "index" and f'href="{page.stem}.html"' not in text] == []


def test_no_page_asks_for_anything_outside(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        asked = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", text)
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
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _messages() -> list[str]:
    rows = [line.split(" | ")[0] for line in TROUBLESHOOTING.read_text().split("\n") if line.startswith("| `")]
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


def test_figures_are_those_of_the_files() -> None:
    """Of the page of limits: every number of a row stands in the file that the row names."""
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|[^|]*\]\(\.\./(benchmarks/results/[^)]+)\)", (ROOT / "docs/limits.md").read_text(), re.MULTILINE)
    assert len(rows) > 4
    for figures, name in rows:
        text = (ROOT / name).read_text()
        assert [number for number in re.findall(r"\d[\d,.]*\d|\d", figures) if number not in text] == [], name


def test_links_of_pages_that_lie_elsewhere_lead_somewhere() -> None:
    """mkdocs looks at those of the guide; these are read in the repository too."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            found = (page.parent / target).exists() or target in ("settings.md", "jobs.md")
            assert found, f"{page.relative_to(ROOT)}: {target}"


def test_mkdocs_settings_are_yaml() -> None:
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False
