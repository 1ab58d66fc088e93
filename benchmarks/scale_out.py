"""Scaling out: 1 to 32 engine actors whose replies take a fixed time, and how much of what they
could do together they do.

    python benchmarks/scale_out.py --actors 1 2 4 8 16 32

Each L-VLM actor has 16 images in flight and each of its two calls takes a second, so an actor can
do 8 images a second; for every 4 of them there is an S-VLM actor, which can do twice what comes.
Everything else is the product's: reading, decoding, judging, committing, Ray's scheduler. What is
reported is the rate between two moments of a run: from when every L-VLM actor has finished a part
until the first of them finds no new part, by the times of the commits. Actors take hardly any of
this machine's cores, so they may be more than it has. The report goes to benchmarks/results/.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import result_file
from mpa_ray import demo
from mpa_ray.config import Config, ModelSection
from mpa_ray.images.sources import source_of
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.stages import commits
from mpa_ray.steps.annotate_and_identify import annotate_and_identify
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease
from scale import generate

_IN_FLIGHT = 16
_SECONDS = 1.0
_IDEAL = _IN_FLIGHT / (2 * _SECONDS)
_IMAGES_PER_PART = 32
# Parts an actor does in a run: enough that starting and ending are the smaller part of it.
_PARTS = 16


def measure(images: Path, output: Path, actors: int) -> dict[str, Any]:
    """The steady rate of one run, in images a second."""
    lvlm = {"min_replicas": actors, "max_replicas": actors, "images_in_flight": _IN_FLIGHT}
    checkers = max(1, actors // 4)
    svlm = {"min_replicas": checkers, "max_replicas": checkers, "images_in_flight": 512}
    tiny = {"gpus_per_replica": 0, "cpus_per_replica": 0.01}
    config = Config(
        images=str(images),
        output=str(output),
        lvlm=ModelSection(model=str(demo.LVLM), engine="instant:lvlm", **tiny, **lvlm),
        svlm=ModelSection(model=str(demo.SVLM), engine="instant:svlm", **tiny, **svlm),
        images_per_part=_IMAGES_PER_PART,
    )
    folder = Folder.at(output)
    source = source_of(config, folder)
    began = time.monotonic()
    with ray_session():
        annotate_and_identify(config, folder, source, Lease())
    times = sorted(commit["committed"] for commit in commits.commits(folder))
    # Each actor holds two parts, and two more wait in its queue.
    first, last = 2 * actors, len(times) - 4 * actors
    steady = times[last] - times[first]
    rate = (last - first) * _IMAGES_PER_PART / steady
    return {
        "images": source.rows,
        "rate": rate,
        "steady_seconds": steady,
        "seconds": time.monotonic() - began,
    }


def in_a_process(images: Path, output: Path, actors: int) -> dict[str, Any]:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "INSTANT_SECONDS": str(_SECONDS)}
    command = [sys.executable, __file__, "--measure", str(images), str(output), str(actors)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def report(results: dict[int, list[dict[str, Any]]], note: str) -> str:
    lines = [
        "| Actors | Images/s | They could do | Efficiency, median | of each round | Steady for, s"
        " |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for actors, rounds in results.items():
        ideal = actors * _IDEAL
        rate, steady = (
            median(found[name] for found in rounds) for name in ("rate", "steady_seconds")
        )
        each = ", ".join(result_file.cut(found["rate"] / ideal, 3) for found in rounds)
        lines.append(
            f"| {actors} | {result_file.cut(rate, 1)} | {ideal:.0f} |"
            f" {result_file.cut(rate / ideal, 3)} | {each} | {steady:.0f} |"
        )
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--note", default="", help="a line for the report, such as what else the machine was doing"
    )
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        images, output, actors = given.measure
        print(json.dumps(measure(Path(images), Path(output), int(actors))))
        return
    results: dict[int, list[dict[str, Any]]] = {actors: [] for actors in given.actors}
    with tempfile.TemporaryDirectory() as scratch:
        for actors in given.actors:
            generate(Path(scratch) / f"images-{actors}", actors * _PARTS * _IMAGES_PER_PART)
        for number in range(given.rounds):
            for actors, rounds in results.items():
                rounds.append(
                    in_a_process(
                        Path(scratch) / f"images-{actors}",
                        Path(scratch) / f"run-{actors}-{number}",
                        actors,
                    )
                )
                print(number + 1, actors, json.dumps(rounds[-1]), flush=True)
    print(
        result_file.write(
            "scale-out",
            report(results, given.note),
            {"rounds": {str(actors): found for actors, found in results.items()}},
        )
    )


if __name__ == "__main__":
    main()
