"""The check every run must pass, whatever happened to it: nothing lost, nothing twice, every folder
says the same.
"""

from collections import Counter
from typing import Any

import pyarrow as pa

from mpa_ray.images import manifest
from mpa_ray.schema import Verdict
from mpa_ray.storage.folder import Folder


def column(folder: Folder, name: str) -> list[str]:
    """One column of all Parquet files of a folder."""
    return [value for table in folder.tables([name]) for value in table.column(0).to_pylist()]


def assert_accounted_for(output: Folder) -> None:
    """inputs = annotations + quarantine, ids unique, judgements = annotations, parity = what the
    judgements say.
    """
    listed = manifest.load(output.child("manifest"))
    assert listed is not None
    inputs = [
        image_id
        for part in range(listed.parts)
        for image_id in listed.part(part).column("image_id").to_pylist()
    ]
    annotated, rejected = (
        column(output.child("annotations"), "image_id"),
        rows(output.child("quarantine")),
    )
    whole = [row["image_id"] for row in rejected if row["sample_id"] is None]
    asked = [row["image_id"] for row in rejected if row["sample_id"] is not None]
    assert not {*annotated, *asked} & set(whole), "an image at fault was asked about"
    assert len(whole) == len(set(whole)), "an image is quarantined twice"
    assert Counter(inputs) == Counter({*annotated, *asked, *whole}), "inputs and outputs differ"
    samples = column(output.child("annotations"), "sample_id")
    every = [*samples, *(row["sample_id"] for row in rejected if row["sample_id"] is not None)]
    assert len(every) == len(set(every)), "a sample is there twice"
    assert sorted(samples) == sorted(column(output.child("judgements"), "sample_id"))
    verdicts = zip(
        column(output.child("judgements"), "sample_id"),
        column(output.child("judgements"), "verdict"),
        strict=True,
    )
    assert sorted(column(output.child("parity"), "sample_id")) == sorted(
        sample for sample, verdict in verdicts if verdict == Verdict.PARITY
    )


def rows(folder: Folder) -> list[dict[str, Any]]:
    """All rows of a folder."""
    return [row for table in folder.tables() for row in table.to_pylist()]


def as_table(folder: Folder) -> pa.Table:
    return pa.concat_tables(folder.tables())
