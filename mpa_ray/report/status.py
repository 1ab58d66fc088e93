"""What a run has done so far and how long it will take, told from outside by its output alone: no
Ray, no model, nothing is written.
"""

import time

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.observability.progress import duration, training_line
from mpa_ray.report import run_folder
from mpa_ray.stages import commits, step_times
from mpa_ray.stages.commits import Commit, Counts
from mpa_ray.storage.folder import Folder

# The rate is that of the newest so many seconds of work: clusters grow and shrink.
_RECENT_S = 600.0


def status(output: Folder, *, now: float | None = None) -> str:
    """The lines that say how far the run in `output` is; of a run of rounds, all rounds together
    and then each that has begun.

    Args:
        output: of the run.
        now: in seconds since the epoch; the clock's, where none is given.

    Raises:
        ConfigurationError: there is no run.
    """
    if not output.exists("config.json"):
        raise ConfigurationError(
            f"--output {output.uri}: there is no run; give the output folder of one"
        )
    now = time.time() if now is None else now
    rounds = run_folder.round_folders(output)
    lines = [f"run: {output.uri}" + ("  (finished)" if output.exists("run.json") else "")]
    lines += _data(
        output, [commit for folder in rounds or [output] for commit in commits.commits(folder)], now
    )
    lines += _stages(output, now)
    for number, folder in enumerate(rounds, 1):
        # The lists of all rounds are there from the beginning.
        if folder.exists("config.json"):
            ended = "  (finished)" if folder.exists("run.json") else ""
            lines.append(f"round {number} of at most {len(rounds)}: {folder.uri}{ended}")
            lines += [
                f"  {line}"
                for line in [
                    *_data(folder, list(commits.commits(folder)), now),
                    *_stages(folder, now),
                ]
            ]
    return "\n".join(lines)


def _data(output: Folder, found: list[Commit], now: float) -> list[str]:
    if parity := output.read_json("config.json").get("parity"):
        rows = (
            f" of {output.read_json('run.json')['annotations']:,} rows"
            if output.exists("run.json")
            else ""
        )
        return [f"parity set{rows}: {parity}"]
    counts = commits.add_up(found)
    return [_images(output, counts, found, now), *_quarantined(counts), *_verdicts(counts)]


def _images(output: Folder, counts: Counts, found: list[Commit], now: float) -> str:
    listed = manifest.load(output.child("manifest"))
    if listed is None:
        return (
            f"images: {counts['images']:,} done; the list of images is not finished"
            if not found
            else f"images: {counts['images']:,} done"
        )
    line = (
        f"images: {counts['images']:,} of {listed.images:,} in {len(found):,} of"
        f" {listed.parts:,} parts"
    )
    rate = recent_rate(found)
    # Rounds may end before all images are done.
    if counts["images"] == listed.images or not rate or output.exists("run.json"):
        return line
    ago = now - max(commit["committed"] for commit in found)
    return (
        f"{line}, {rate:.1f}/s, {duration((listed.images - counts['images']) / rate)} to go;"
        f" newest part {duration(ago)} ago"
    )


def recent_rate(found: list[Commit]) -> float:
    """Images a second over the newest ten minutes of the newest call; 0 where fewer than two parts
    tell.
    """
    if not found:
        return 0.0
    call = max(commit["call"] for commit in found)
    times = sorted(
        (commit["committed"], commit["images"]) for commit in found if commit["call"] == call
    )
    recent = [(when, images) for when, images in times if when >= times[-1][0] - _RECENT_S]
    elapsed = recent[-1][0] - recent[0][0]
    # The first of them ends where the time that is measured begins.
    return sum(images for _, images in recent[1:]) / elapsed if elapsed > 0 else 0.0


def _quarantined(counts: Counts) -> list[str]:
    return [f"quarantined: {count:,} {reason}" for reason, count in counts["quarantined"].items()]


def _verdicts(counts: Counts) -> list[str]:
    total = max(1, counts["annotations"])
    return [
        f"verdict: {count:,} {name} ({100 * count / total:.1f}%)"
        for name, count in counts["verdicts"].items()
        if count
    ]


def _stages(output: Folder, now: float) -> list[str]:
    """What is done, in the order in which it ran, and how far a training is."""
    lines = [
        f"done: {name} in {duration(found['seconds'])}"
        for name, found in step_times.records(output).items()
    ]
    if todo := step_times.to_do(output):
        lines.append(f"to do: {', '.join(todo)}")
    work = output.child("checkpoints")
    for arm in work.folders():
        if work.exists(f"{arm}/progress.json"):
            state = work.read_json(f"{arm}/progress.json")
            # A training that was interrupted leaves its last words.
            ago = f"; written {duration(now - state['written'])} ago" if "written" in state else ""
            lines.append(f"training {arm}: {training_line(state)}{ago}")
    return lines
