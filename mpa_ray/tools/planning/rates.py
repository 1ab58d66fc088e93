"""The rates that a run tells of runs like it, by its commits (`mpa_ray.stages.commits`) and the
records of its steps.

What PA and PI take whatever the number of images, loading models above all, is told apart from what
they take for each:

    seconds = startup + images * seconds_per_image
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpa_ray.config import Config
from mpa_ray.engines import ledger
from mpa_ray.errors import ConfigurationError
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY, Verdict
from mpa_ray.stages import step_times as stages
from mpa_ray.stages.commits import TOKEN_COLUMNS, Commit, add_up
from mpa_ray.stages.commits import commits as commits_of
from mpa_ray.storage.folder import Folder

PARTS_NEEDED = 5
_STRETCHES = 10
# Fewer say next to nothing of their scatter.
_FEWEST = 3
# Less is nothing beside what parts take; a call that was killed is known but for its last seconds.
_CLOCKS_DIFFER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a run says of runs like it.

    Attributes:
        images: how many it has done.
        annotations, parity, quarantined: of them.
        startup_s: seconds of PA and PI before images flow: the models are loaded.
        stretches: (seconds, images) of up to ten stretches of PA and PI, after the start.
        tokens: name of a token count -> its mean for an annotation of each part; small parts are
            put together.
        stages: what each finished step said, by name, in the order in which they ran.
        paid: the accounts of paid models, by step; those of jurors are `jury_<n>`.
    """

    images: int
    annotations: int
    parity: int
    quarantined: int
    startup_s: float
    stretches: list[tuple[float, int]]
    tokens: dict[str, list[float]]
    stages: dict[str, dict[str, Any]]
    paid: dict[str, dict[str, Any]]

    @property
    def seconds_per_image(self) -> float:
        return sum(seconds for seconds, _ in self.stretches) / sum(
            images for _, images in self.stretches
        )


def rates_of(
    commits: Sequence[Commit],
    *,
    stages: dict[str, dict[str, Any]],
    paid: dict[str, dict[str, Any]],
) -> Rates:
    """The rates that a run's commits and finished steps tell.

    Raises:
        ConfigurationError: fewer than five parts were committed after one another, all but a few of
            them are small, or the machines' clocks differ.
    """
    _refuse_other_clocks(commits, stages)
    startups, gaps = [], []
    for call in sorted({commit["call"] for commit in commits}):
        ours = sorted(
            (commit["committed"] - call, commit["images"])
            for commit in commits
            if commit["call"] == call
        )
        after = [
            (when - before, images) for (before, _), (when, images) in itertools.pairwise(ours)
        ]
        if after:
            gaps += after
            startups.append(
                ours[0][0]
                - ours[0][1]
                * sum(seconds for seconds, _ in after)
                / sum(images for _, images in after)
            )
    if len(gaps) < PARTS_NEEDED - 1:
        raise ConfigurationError(
            f"{len(commits)} parts are committed, and at least {PARTS_NEEDED} of one call tell a"
            " rate; take a longer run, or more images for the probe"
        )
    timed = [np.sum(gaps[which], axis=0) for which in _of_like_size([images for _, images in gaps])]
    told = [
        add_up(commits[which]) for which in _of_like_size([commit["images"] for commit in commits])
    ]
    annotated = [counts for counts in told if counts["annotations"]]
    if min(len(timed), len(annotated)) < _FEWEST:
        raise ConfigurationError(
            f"the {len(commits)} parts that are committed differ too much in their numbers of"
            " images to tell a rate; take a longer run, or"
            " more images for the probe"
        )
    cuts = np.array_split(np.array(timed), min(_STRETCHES, len(timed)))
    return Rates(
        images=sum(commit["images"] for commit in commits),
        annotations=sum(commit["annotations"] for commit in commits),
        parity=sum(commit["verdicts"].get(str(Verdict.PARITY), 0) for commit in commits),
        quarantined=sum(sum(commit["quarantined"].values()) for commit in commits),
        startup_s=max(0.0, sum(startups) / len(startups)),
        stretches=[(float(cut[:, 0].sum()), int(cut[:, 1].sum())) for cut in cuts],
        tokens={
            name: [counts["tokens"][name] / counts["annotations"] for counts in annotated]
            for name in TOKEN_COLUMNS
        },
        stages=stages,
        paid=paid,
    )


def _refuse_other_clocks(commits: Sequence[Commit], stages: dict[str, dict[str, Any]]) -> None:
    """The times of commits are those of the machines that wrote them; what a call took is the
    driver's.
    """
    took = stages.get(ANNOTATE_AND_IDENTIFY, {}).get("calls", [])
    for commit in commits:
        after = commit["committed"] - commit["call"]
        longest = max(
            (seconds for began, seconds in took if abs(began - commit["call"]) < _CLOCKS_DIFFER_S),
            default=after,
        )
        if not -_CLOCKS_DIFFER_S < after < longest + _CLOCKS_DIFFER_S:
            raise ConfigurationError(
                f"part {commit['part']} was committed {after:,.0f} s after its call began, which"
                f" took {longest:,.0f} s: the clocks"
                " of the machines differ, and no rate can be told from them; set them (NTP), and"
                " take another run"
            )


def _of_like_size(images: Sequence[int]) -> list[slice]:
    """Neighbouring parts, put together until they have more than half the images of the largest
    part.

    Parts of large images, which end by their bytes, have fewer, and each would count as much as the
    others. What is left at the end, where the last part is shorter, is left out.
    """
    found: list[slice] = []
    start = held = 0
    largest = max(images, default=0)
    for end, count in enumerate(images, 1):
        held += count
        if 2 * held > largest:
            found.append(slice(start, end))
            start, held = end, 0
    return found


def read_rates(run: Folder, config: Config) -> Rates:
    """The rates of the run in a folder. `config` is its own; `rates_of` says what is raised."""
    return rates_of(
        list(commits_of(run)), stages=stages.records(run), paid=ledger.accounts(config, run)
    )
