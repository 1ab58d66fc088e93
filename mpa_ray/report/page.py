"""A page from its template: one file with its style, script and data in it, under a policy that
lets nothing else run or load.

Text gets into a page in two ways, and both make it text: through the templates, which escape
everything, and as JSON data, which the scripts show through `textContent` alone. Should something
get past both, the policy names the hashes of our own script and style, forbids every request, and
lets no script turn text into markup (`require-trusted-types-for`).
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mpa_ray.observability.progress import duration
from mpa_ray.observability.text_table import dollars
from mpa_ray.report import charts
from mpa_ray.report.text import embedded, visible

LARGEST = 9_500_000
"""Bytes of a page, at most; mail and chat take files of 10 MB."""

_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; base-uri"
    " 'none'; form-action 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)


def render(
    template: str, scripts: tuple[str, ...] = (), *, data: Any = None, **context: Any
) -> bytes:
    """The page of `template`.

    Args:
        template: a name in this folder.
        scripts: names in this folder; they share one scope, in this order, after what every page
            has.
        data: what the scripts find in the element `data`.
        context: what the template shows.
    """
    script = "\n".join(_source(name) for name in ("theme.js", *scripts))
    style = _source("style.css")
    policy = _POLICY.format(script=_hash(script), style=_hash(style))
    text = (
        _environment()
        .get_template(template)
        .render(
            # Both are our own files, and neither holds what could end its element; a test keeps it
            # so.
            policy=policy,
            script=Markup(script),
            style=Markup(style),
            data=embedded(data),
            **context,
        )
    )
    return text.encode("utf-8", "replace")


@cache
def _source(name: str) -> str:
    return files("mpa_ray.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mpa_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "n": lambda value: f"{value:,.0f}",
        "p1": lambda value: f"{value:.1f}",
        "signed": lambda value: f"{value:+.1f}".replace("-", "−"),
        "duration": duration,
        "dollars": dollars,
        "visible": visible,
    }
    environment.globals |= {"charts": charts, "abs": abs}
    # Everything that is shown is text from somewhere: what would hide or reorder it is made
    # visible.
    environment.finalize = lambda value: (
        value if isinstance(value, Markup) else visible(value) if isinstance(value, str) else value
    )
    return environment
