"""Check a machine or cluster, and the settings of a run, before it starts: takes the flags of the
run; --quick leaves out the sum over the training group and the dry run.

Examples:

    python jobs/doctor.py
    python jobs/doctor.py --images s3://bucket/images --output s3://bucket/run1 --config my.yaml
    ray job submit --working-dir . -- python jobs/doctor.py --images s3://bucket/images \\
        --output s3://bucket/run1
"""

import os
import sys
from collections.abc import Iterator

from mpa_ray import cli
from mpa_ray.config import Config
from mpa_ray.errors import FAILED
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.tools.doctor.access import access
from mpa_ray.tools.doctor.cluster import cluster
from mpa_ray.tools.doctor.data import inputs, storage
from mpa_ray.tools.doctor.dry_run import dry_run
from mpa_ray.tools.doctor.finding import Finding
from mpa_ray.tools.doctor.group import training_group
from mpa_ray.tools.doctor.machine import checkpoints, gpu_software, gpus, machine, versions

CONFIG = Config()


def findings(config: Config, *, quick: bool) -> Iterator[Finding]:
    yield from versions(config)
    yield from machine()
    yield from gpus()
    yield from gpu_software(config)
    yield from checkpoints(config, trains_here="RAY_ADDRESS" not in os.environ)
    yield from inputs(config)
    yield from storage(config.output)
    yield from access(config)
    yield from cluster(config)
    if not quick:
        yield from training_group(config)
        yield from dry_run(config)


if __name__ == "__main__":
    with exit_codes():
        argv = [word for word in sys.argv[1:] if word != "--quick"]
        given = cli.parse(CONFIG, argv, about=__doc__, whole=False)
        failed = 0
        for found in findings(given, quick=len(argv) < len(sys.argv) - 1):
            print(found, flush=True)
            failed += found.state == "failed"
        if failed:
            print(f"{failed} failed: a run would not work", file=sys.stderr)
            sys.exit(FAILED)
        print("nothing failed")
