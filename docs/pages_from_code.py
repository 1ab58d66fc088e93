"""What mkdocs builds beside the pages that are written by hand: every setting and every job from
the code, and the pages of other folders.

A page links to a file outside docs/ as it lies in the repository, so that the link works there too.
In the guide such a file is a page of its own where it is Markdown, and its bare name where it is
not.
"""

import posixpath
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

from mpa_ray.config import Config
from mpa_ray.config.describe import Setting, settings

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("README.md", "benchmarks/results/*.md", "cluster/README.md", "cluster/*/README.md")
_LINK = re.compile(r"(?P<before>!?\[[^\]\n]*\])\((?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages of docs/ that mkdocs.yml does not name come last in the navigation, so that none is
    left out.
    """
    named = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    others = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name not in named)
    if others:
        config.nav = [*config.nav, {"More": others}]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the pages of other folders."""
    files.append(File.generated(config, "settings.md", content=settings_page()))
    files.append(File.generated(config, "jobs.md", content=jobs_page()))
    for path in _outside():
        files.append(
            File.generated(config, f"repository/{path.relative_to(ROOT)}", abs_src_path=str(path))
        )
    return files


def _outside() -> Iterator[Path]:
    yield from (
        path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern)) if path.suffix == ".md"
    )


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ lead to the page that the file has become; where it has become none,
    its name is left.
    """
    pages = {str(path.relative_to(ROOT)) for path in _outside()}
    here = page.file.src_uri
    source = here.removeprefix("repository/") if here.startswith("repository/") else f"docs/{here}"

    def fixed(found: re.Match[str]) -> str:
        path = found["path"]
        if "://" in path or path.startswith(("/", "mailto:")):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target.startswith("docs/"):
            site = target.removeprefix("docs/")
        elif target in pages:
            site = f"repository/{target}"
        elif (ROOT / target).exists():
            return found["before"].lstrip("!").strip("[]")
        else:
            return found[0]
        link = posixpath.relpath(site, posixpath.dirname(here) or ".") + (found["anchor"] or "")
        return f"{found['before']}({link})"

    return _LINK.sub(fixed, markdown)


def settings_page() -> str:
    """docs/settings.md: a table a section."""
    parts = [
        "# Every setting\n\nMade from `mpa_ray/config/`. The same names serve Python,"
        " YAML and flags: `lvlm.model` in YAML is"
        " `--lvlm.model` on the command line; in a flag, dashes stand for underscores too"
        " (`--pl.learning-rate`). A flag goes over"
        " YAML, YAML over a preset, a preset over the job's own configuration.\n",
        "## The run\n\n"
        + _table([setting for setting in settings(Config) if "." not in setting.name]),
    ]
    seen: dict[type[BaseModel], list[str]] = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            seen.setdefault(field.annotation, []).append(name)
    for section, names in seen.items():
        title = " and ".join(f"`{name}`" for name in names) + (
            " and each of `jury`" if "lvlm" in names else ""
        )
        about = " ".join((section.__doc__ or "").split())
        parts.append(f"## {title}\n\n{about}\n\n" + _table(list(settings(section))))
    return "\n".join(parts)


def _table(found: list[Setting]) -> str:
    rows = ["| setting | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for setting in found:
        default = f"`{setting.default}`" if setting.default else ""
        rows.append(
            f"| `{setting.name}` | {_cell(setting.kind)} | {_cell(default)} |"
            f" {_cell(setting.meaning)} |"
        )
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def jobs_page() -> str:
    """docs/jobs.md: what each job says of itself and its flags."""
    parts = [
        "# Every job\n\nMade from the jobs' own `--help`. The five `mpa_` jobs take every"
        " [setting](settings.md).\n"
    ]
    for path in sorted((ROOT / "jobs").glob("*.py")):
        names: dict[str, Any] = runpy.run_path(str(path))
        parts.append(f"## {path.stem}\n\n```text\n{_help(names, path)}\n```\n")
    return "\n".join(parts)


def _help(names: dict[str, Any], path: Path) -> str:
    if "arguments" not in names:
        return names["__doc__"].strip()
    parser = names["arguments"]()
    parser.prog = f"python jobs/{path.name}"
    return parser.format_help().strip()
