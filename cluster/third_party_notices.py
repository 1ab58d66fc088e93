"""Write THIRD_PARTY_NOTICES.md: the licences of what a set-up and the images install, by the
packages' own metadata.

    .venv/bin/python cluster/third_party_notices.py

Run it in a set-up of the CPU (`make venv`) after setup.cfg or constraints.txt has changed.
"""

import configparser
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOTICES = ROOT / "THIRD_PARTY_NOTICES.md"
# These name no licence.
_VAGUE = {"", "dual license", "osi approved", "unknown"}
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying)[^/]*$", re.IGNORECASE)
_TEXTS = {
    "Apache-2.0": ("Apache License", "Version 2.0"),
    "MIT": ("Permission is hereby granted, free of charge",),
}
_NOT_PERMISSIVE = re.compile(r"GPL|MPL|Mozilla|Proprietary|End User")

HEAD = """\
# Third-party notices

mpa_ray is under Apache-2.0 (LICENSE). It installs the packages below, each under its own licence,
as its metadata states it; their licence texts are in their `*.dist-info` folders. Whoever passes on
an image that was built from `cluster/` passes on these packages too.
`cluster/third_party_notices.py` writes this file.

The DejaVu fonts of the demo are in the package, with their licence beside them
(`mpa_ray/demo/fonts`).
"""


def direct() -> dict[str, set[str]]:
    """The packages that setup.cfg names: "" for what every set-up has, and each extra."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    sections = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {
        extra: {line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"}
        for extra, text in sections.items()
    }


def names_of(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def installed_for(requirements: Iterable[str]) -> dict[str, Distribution]:
    """What is installed of `requirements` and of what they need, by name."""
    found: dict[str, Distribution] = {}
    todo, seen = [Requirement(text) for text in requirements], set()
    while todo:
        wanted = todo.pop()
        key = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = importlib.metadata.distribution(wanted.name)
        except PackageNotFoundError:
            continue
        needed = map(Requirement, found[key[0]].requires or ())
        extras = ["", *wanted.extras]
        todo += [
            other
            for other in needed
            if other.marker is None
            or any(other.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return found


def licence_of(package: Distribution) -> str:
    """By its SPDX expression, its licence field, its classifiers, or the text of its licence."""
    metadata = package.metadata
    field = (metadata.get("License") or "").strip()
    kinds = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or ()
        if text.startswith("License ::")
    ]
    stated = [
        metadata.get("License-Expression") or "",
        field if len(field) < 70 and "Copyright" not in field else "",
        " / ".join(kinds),
    ]
    found = next((text for text in stated if text.lower() not in _VAGUE), "")
    return found or next(_by_text(package), "not stated")


def _by_text(package: Distribution) -> Iterator[str]:
    for file in package.files or ():
        if file.parts[0].endswith(".dist-info") and _LICENCE_FILE.search(file.name):
            text = " ".join(file.read_text().split())
            yield from (
                f"{name} (the text of its licence)"
                for name, words in _TEXTS.items()
                if all(word in text for word in words)
            )


def table(packages: dict[str, Distribution], named: set[str]) -> str:
    rows = ["| package | licence | |", "| --- | --- | --- |"]
    for name, package in sorted(packages.items()):
        licence = licence_of(package).replace("|", "\\|")
        rows.append(f"| {name} | {licence} | {'named in setup.cfg' if name in named else ''} |")
    return "\n".join(rows)


def notices() -> str:
    """The text of THIRD_PARTY_NOTICES.md."""
    requirements = direct()
    named = names_of(line for lines in requirements.values() for line in lines)
    of_images = installed_for(
        line for extra, lines in requirements.items() if extra != "dev" for line in lines
    )
    of_development = installed_for(requirements["dev"])
    only_development = {
        name: package for name, package in of_development.items() if name not in of_images
    }
    pinned = {
        line.partition("==")[0].strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and line[0] != "#"
    }
    elsewhere = sorted(
        (named | {canonicalize_name(name) for name in pinned})
        - of_images.keys()
        - of_development.keys()
    )
    asks = [
        f"{name} ({licence_of(package)})"
        for name, package in sorted(of_images.items())
        if _NOT_PERMISSIVE.search(licence_of(package))
    ]
    return "\n".join(
        [
            HEAD,
            "Licences with conditions of their own when an image is passed on:"
            f" {', '.join(asks)}.\n",
            f"## What a run needs\n\n{table(of_images, named)}\n",
            f"## For development alone\n\n{table(only_development, named)}\n",
            "## Not in a set-up of the CPU\n\nNamed in setup.cfg or constraints.txt, for GPUs or"
            " further extras."
            f" NVIDIA's libraries are under NVIDIA's own licences.\n\n{', '.join(elsewhere)}.",
            "",
        ]
    )


if __name__ == "__main__":
    NOTICES.write_text(notices())
    print(f"wrote {NOTICES}")
