"""Writes a run's report: `index.html`, further pages of its gallery, and the pages on which samples
are rated.
"""

import re
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.images.draw import draw
from mpa_ray.report import facts, page, thumbnails
from mpa_ray.report.rating_questions import AFTER, BEFORE, QUESTIONS, about, fingerprint
from mpa_ray.report.run_folder import Place
from mpa_ray.report.run_record import RunRecord
from mpa_ray.report.samples import Sample, judged, pictures, place_of, quarantined, shown
from mpa_ray.report.selection import Selection, select
from mpa_ray.report.text import embedded
from mpa_ray.report.thumbnails import Step, Thumbnails
from mpa_ray.report.views import overview
from mpa_ray.storage.folder import Folder

SAMPLES, RATED = 2000, 100
# Of a page, for everything that is not a sample.
_RESERVED = 700_000
# So many thumbnails tell how large the others will be; where they mislead, there is a page more.
_PROBED = 48
_MARGIN = 1.08
_FURTHER = re.compile(r"(samples|review|check)(-\d+)?\.html")


def write_report(
    run: Folder,
    *,
    record: RunRecord | None = None,
    to: Folder | None = None,
    samples: int = SAMPLES,
    rated: int = RATED,
    seed: int = 0,
) -> list[str]:
    """Write the report of a run, finished or under way. A report that is there is replaced.

    Args:
        run: the run's output folder.
        record: what is about to be written as run.json; None reads it, or what is there of it.
        to: where the pages go; None is report/ in the run.
        samples: of the gallery, drawn by verdict; some more show what was learned and forgotten.
        rated: samples of each group of the rating study, and of the page that checks the parity
            set.
        seed: of what is drawn.

    Returns:
        The names of the pages.

    Raises:
        ConfigurationError: the folder holds no run, or a number is no number of samples.
    """
    for flag, value in (("--samples", samples), ("--rated", rated)):
        if value < 0:
            raise ConfigurationError(f"{flag} {value}: give 0 or more")
    found = facts.read(run, record)
    selection = select(run, samples=samples, review=rated, seed=seed)
    pages = _rating_pages(run, found, selection, rated=rated, seed=seed)
    pages |= _gallery_pages(run, found, selection, samples=samples, seed=seed, rating=sorted(pages))
    target = to or run.child("report")
    for name in target.names(".html"):
        if _FURTHER.fullmatch(name) and name not in pages:
            target.delete(name)
    # index.html last: it links to the others.
    for name in sorted(pages, key=lambda name: name == "index.html"):
        target.write_bytes(name, pages[name])
    return list(pages)


def _gallery_pages(
    run: Folder,
    found: facts.Facts,
    selection: Selection,
    *,
    samples: int,
    seed: int,
    rating: list[str],
) -> dict[str, bytes]:
    drawn, drawn_quarantined = selection.gallery(samples)
    rows = judged(run, drawn) | quarantined(run, drawn_quarantined)
    # In an order that mixes all kinds, so that each page is a sample of the whole.
    order = sorted(rows, key=lambda place: draw("/".join(place), f"order/{seed}"))
    items = [(rows[place]["image_uri"], shown(rows[place], found.root)) for place in order]
    chunks = _paged(items, _fitting(run, rows, items, thumbnails.GALLERY, found.settings))
    names = ["index.html", *(f"samples-{number}.html" for number in range(2, len(chunks) + 1))]
    common = {
        "facts": found,
        "pages": names,
        "drawn": {
            kind: (quota, selection.kinds[kind].seen)
            for kind, quota in selection.quotas(samples).items()
        },
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    view = overview(run, found, selection)
    made = {
        "index.html": page.render(
            "report.html",
            ("gallery.js",),
            data=chunks[0],
            number=1,
            rating=rating,
            **common,
            **view,
        )
    }
    for number, chunk in enumerate(chunks[1:], start=2):
        made[names[number - 1]] = page.render(
            "samples.html", ("gallery.js",), data=chunk, number=number, **common
        )
    return made


def _rating_pages(
    run: Folder, found: facts.Facts, selection: Selection, *, rated: int, seed: int
) -> dict[str, bytes]:
    """review.html, blind, with samples before and after PI; check.html with samples of the parity
    set and all that is known of them.
    """
    after = selection.study[AFTER].places()
    groups = {
        "review": list(dict.fromkeys([*selection.study[BEFORE].places(), *after])),
        "check": after,
    }
    made = {}
    for name, places in groups.items():
        rows = judged(run, places)
        if not rows:
            continue
        blind = name == "review"
        order = sorted(rows, key=lambda place: draw(place[1], f"order/{seed}"))
        items = [
            (rows[place]["image_uri"], _to_rate(rows[place], found.root, blind=blind))
            for place in order
        ]
        chunks = _paged(items, _fitting(run, rows, items, thumbnails.RATING, found.settings))
        names = [f"{name}.html", *(f"{name}-{number}.html" for number in range(2, len(chunks) + 1))]
        study = {
            "run": found.digest,
            "blind": blind,
            "drawn": rated,
            "seed": seed,
            "questions": QUESTIONS,
        }
        for number, chunk in enumerate(chunks, start=1):
            context = {"blind": blind, "pages": names, "number": number, "about": about(found.task)}
            made[names[number - 1]] = page.render(
                "review.html", ("review.js",), data=study | chunk, **context
            )
    return made


def _to_rate(row: Sample, root: str | None, *, blind: bool) -> Sample:
    """What a rater gets. A blind one gets nothing that tells the group, the models' answers, or the
    file's name, not even hidden.
    """
    mark = fingerprint(row["question"], row["answer"])
    sample = {
        "id": row["sample_id"],
        "fingerprint": mark,
        "question": row["question"],
        "answer": row["answer"],
    }
    return (
        sample
        if blind
        else sample | {"lvlm": row["lvlm_answer"], "svlm": row["svlm_answer"]} | place_of(row, root)
    )


def _fitting(
    run: Folder,
    rows: dict[Place, Sample],
    items: Sequence[tuple[str, Sample]],
    steps: Sequence[Step],
    settings: Config | None,
) -> Thumbnails:
    """Thumbnails at the best step with which all samples fit on one page, as some of them tell, or
    at the smallest.
    """
    settings = settings or Config()
    limits = {
        "max_image_bytes": settings.max_image_bytes,
        "max_image_pixels": settings.max_image_pixels,
    }
    probe = pictures(run, dict(islice(rows.items(), _PROBED)), steps[0], **limits)
    texts = sum(_size(sample) for _, sample in items)
    for step in steps:
        expected = fmean(probe.smaller(step).sizes() or [0]) * len({uri for uri, _ in items})
        if texts + _MARGIN * expected <= page.LARGEST - _RESERVED:
            break
    return pictures(run, rows, step, **limits)


def _size(sample: Sample) -> int:
    # `image` is added later: its key and a number.
    return len(embedded(sample).encode("utf-8", "replace")) + 20


def _paged(items: Iterable[tuple[str, Sample]], images: Thumbnails) -> list[dict[str, Any]]:
    """Samples and their images, cut into pages; an image that several samples of a page share is
    there once.
    """
    pages: list[dict[str, Any]] = [{"samples": [], "images": []}]
    places: dict[str, int] = {}
    left = page.LARGEST - _RESERVED
    for uri, sample in items:
        image = images.base64(uri)
        size = _size(sample) + (len(image) + 3 if image and uri not in places else 0)
        if size > left and pages[-1]["samples"]:
            pages.append({"samples": [], "images": []})
            places = {}
            left = page.LARGEST - _RESERVED
            size = _size(sample) + (len(image) + 3 if image else 0)
        left -= size
        if image and uri not in places:
            places[uri] = len(pages[-1]["images"])
            pages[-1]["images"].append(image)
        pages[-1]["samples"].append(sample | {"image": places.get(uri, -1)})
    return pages
