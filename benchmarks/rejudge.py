"""How long re-judging takes: a run folder of generated judgements, judged again by each matcher. No
model, no Ray.

    python benchmarks/rejudge.py --rows 1000000

Six answers of ten are drawn from a vocabulary of 3,000 words, its n-th word n times as rarely as
its first; the others are texts that occur once, such as "Route 48213". The L-VLM repeats the
annotation's answer in 7 rows of 10, and where it does, the S-VLM does in 7 of 10. The report goes
to benchmarks/results/.
"""

import argparse
import random
import resource
import tempfile
import time
from collections import defaultdict
from itertools import accumulate
from statistics import median

import pyarrow as pa

import result_file
from mpa_ray.images.parts import part_name
from mpa_ray.parity_identifier import judge
from mpa_ray.schema import JUDGEMENTS
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.matchers import MATCHERS
from mpa_ray.tools.rejudge import rejudge

_ROWS_PER_PART = 256
_VOCABULARY = 3000


class Answers:
    """Draws answers as a scene-text run has them: some come up all the time, many once."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._words = [
            f"{self._rng.choice(['', 'the ', 'A '])}word{number}" for number in range(_VOCABULARY)
        ]
        self._weights = list(accumulate(1 / (rank + 1) for rank in range(_VOCABULARY)))

    def draw(self) -> str:
        if self._rng.random() < 0.6:
            return self._rng.choices(self._words, cum_weights=self._weights)[0]
        return f"Route {self._rng.randrange(10**6)}"

    def repeated(self, answer: str, share: float) -> str:
        return answer if self._rng.random() < share else self.draw()


def generate(run: Folder, rows: int) -> None:
    """judgements/ of `rows` rows, in parts as a run writes them, judged by `exact`."""
    answers = Answers(seed=0)
    for number in range(-(-rows // _ROWS_PER_PART)):
        part = []
        for row in range(number * _ROWS_PER_PART, min(rows, (number + 1) * _ROWS_PER_PART)):
            answer = answers.draw()
            lvlm_answer = answers.repeated(answer, 0.7)
            asked = MATCHERS["exact"](lvlm_answer, answer)
            svlm_answer = answers.repeated(answer, 0.7) if asked else None
            verdict = judge(
                answer=answer,
                lvlm_answer=lvlm_answer,
                svlm_answer=svlm_answer,
                matches=MATCHERS["exact"],
            )
            part.append(
                {
                    "image_id": f"{row:032x}",
                    "image_uri": f"s3://bucket/images/{row:08d}.jpg",
                    "sample_id": f"{row:032x}-0",
                    "question": f"What is written on sign {row % 977}?",
                    "answer": answer,
                    "annotation_text": f"Question: What is written on sign {row % 977}?, Answer:"
                    f" {answer}",
                    "lvlm_answer": lvlm_answer,
                    "svlm_answer": svlm_answer,
                    "verdict": str(verdict),
                }
            )
        run.write_table(
            f"judgements/{part_name(number)}", pa.Table.from_pylist(part, schema=JUDGEMENTS)
        )


def cpu_seconds() -> float:
    """What this process and its ended children have used; unlike the clock, it hardly depends on
    what else the machine does.
    """
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def report(
    rows: int, seconds: dict[str, list[float]], cpu: dict[str, list[float]], note: str
) -> str:
    lines = [
        f"{rows:,} generated rows in parts of {_ROWS_PER_PART}, on a local disk, without parity/"
        " images. Timed is the whole call: start",
        "of the worker processes, reading every part, judging, writing every part. Repeats stand"
        " in the order they ran.",
        "",
        "| Matcher | Seconds | CPU seconds | Rows a second (median) |",
        "|---|---|---|---|",
    ]
    for name, times in seconds.items():
        listed = [", ".join(f"{time:.1f}" for time in measured) for measured in (times, cpu[name])]
        lines.append(f"| {name} | {listed[0]} | {listed[1]} | {rows / median(times):,.0f} |")
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--note", default="", help="a line for the report, such as what else the machine was doing"
    )
    given = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        run = Folder.at(f"{scratch}/run")
        generate(run, given.rows)
        for repeat in range(given.repeats):
            for matcher in MATCHERS:
                output = Folder.at(f"{scratch}/{matcher}-{repeat}")
                started, used = time.monotonic(), cpu_seconds()
                rejudge(
                    run, matcher=matcher, output=output, parity=False, processes=given.processes
                )
                seconds[matcher].append(time.monotonic() - started)
                cpu[matcher].append(cpu_seconds() - used)
                output.delete_folder()
    data = {"rows": given.rows, "seconds": seconds, "cpu_seconds": cpu}
    print(result_file.write("rejudge", report(given.rows, seconds, cpu, given.note), data))


if __name__ == "__main__":
    main()
