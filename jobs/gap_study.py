"""What the parity samples of a run show the S-VLM to lack (Table 8), judged by the run's L-VLM
where no rule decides.

Examples:

    python jobs/gap_study.py runs/demo
    python jobs/gap_study.py s3://bucket/run1 --samples 1000 \\
        --lvlm.model Qwen/Qwen2-VL-7B-Instruct --lvlm.gpus_per_replica 1
"""

import argparse
import sys
from collections.abc import Sequence

from pydantic import Field

from mpa_ray.cli import parse_section, run_first
from mpa_ray.config import Config, ModelSection, Section
from mpa_ray.engines.api_key import check_api
from mpa_ray.errors import ConfigurationError
from mpa_ray.models.checkpoint import check
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.report.run_folder import config_of
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.gap_study import study, table


class GapStudy(Section):
    """A study of knowledge gaps (Table 8)."""

    run: str = ""
    """The output folder of a run, local, s3:// or gs://; also without the flag, as the first
    argument.
    """
    output: str = ""
    """Where gaps.json and gaps.parquet go. Without it, studies/ in the run."""
    samples: int = Field(default=100, ge=1)
    """Parity samples that are drawn; the paper looked at 100."""
    seed: int = 0
    """Of what is drawn."""
    examples: int = Field(default=5, ge=0)
    """At most so many of each category in gaps.json."""
    lvlm: ModelSection = ModelSection()
    """The judge: the run's L-VLM, or another one."""


def parse(argv: Sequence[str]) -> tuple[GapStudy, Config]:
    """The job and the run's configuration, whose L-VLM is the judge where no other is given."""
    argv = run_first(argv, "--run")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run", default="")
    run = first.parse_known_args(argv)[0].run
    config = config_of(Folder.at(run)) if run else None
    default = GapStudy(run=run, lvlm=config.lvlm if config else ModelSection())
    often = (
        *("run", "output", "samples", "seed", "examples"),
        *("lvlm.model", "lvlm.engine", "lvlm.gpus_per_replica", "lvlm.base_url"),
    )
    job = parse_section(default, argv, about=__doc__ or "", often=often)
    if config is None:
        raise ConfigurationError(
            f"--run {run!r}: holds no config.json; give the output folder of a run"
        )
    return job, config


if __name__ == "__main__":
    with exit_codes():
        given, run_config = parse(sys.argv[1:])
        if given.lvlm.engine == "openai":
            check_api("lvlm", given.lvlm)
        else:
            check("lvlm.model", given.lvlm.model)
        run_folder = Folder.at(given.run)
        target = Folder.at(given.output) if given.output else run_folder.child("studies")
        record = study(
            run_folder,
            target,
            config=run_config,
            lvlm=given.lvlm,
            samples=given.samples,
            seed=given.seed,
            examples=given.examples,
        )
        print(table(record))
