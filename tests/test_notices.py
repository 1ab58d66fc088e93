"""THIRD_PARTY_NOTICES.md: every package that setup.cfg names is in it, and each package installed
for a run has a licence.
"""

import re
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from cluster import third_party_notices as notices

ROWS = dict(
    re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|", notices.NOTICES.read_text(), re.MULTILINE)
)


def test_every_direct_dependency_is_named() -> None:
    named = notices.names_of(line for lines in notices.direct().values() for line in lines)
    text = notices.NOTICES.read_text()
    assert [name for name in sorted(named) if name not in ROWS and f"{name}," not in text] == []
    assert len(named) > 30 and named & ROWS.keys() > notices.names_of(notices.direct()[""])


def test_every_package_has_a_licence() -> None:
    assert [name for name, licence in ROWS.items() if licence == "not stated"] == []
    assert ROWS["num2words"] == "LGPL" and ROWS["oss-harmony"].startswith("Apache-2.0")


@pytest.mark.parametrize(
    ("metadata", "text", "licence"),
    [
        ("License-Expression: MIT\nLicense: X\n", "", "MIT"),
        (
            "License: BSD-3-Clause\nClassifier: License :: OSI Approved :: BSD License\n",
            "",
            "BSD-3-Clause",
        ),
        (
            "License: Dual License\nClassifier: License :: OSI Approved :: BSD License\n",
            "",
            "BSD License",
        ),
        (
            "License: Copyright (c) Somebody\nClassifier: License :: OSI Approved :: BSD License\n",
            "",
            "BSD License",
        ),
        (
            "",
            "Apache License\n   Version 2.0, January 2004",
            "Apache-2.0 (the text of its licence)",
        ),
        ("", "All rights reserved", "not stated"),
    ],
)
def test_where_a_licence_is_found(metadata: str, text: str, licence: str, tmp_path: Path) -> None:
    folder = tmp_path / "some-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: some\nVersion: 1.0\n{metadata}")
    (folder / "LICENSE").write_text(text)
    (folder / "RECORD").write_text("some-1.0.dist-info/LICENSE,,\n")
    assert notices.licence_of(PathDistribution(folder)) == licence


def test_what_packages_need_is_found_with_its_extras() -> None:
    found = notices.installed_for(["ray[data]", "no-such-package==1.0"])
    assert {"ray", "pyarrow", "click"} <= found.keys() and "no-such-package" not in found
