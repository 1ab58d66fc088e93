"""Cost estimate: the hours, GPUs, money and tokens that a run will take, and the size of the parity
set, before it is paid for.

The figures come from a probe, a small run on images drawn at random, or from a former run. A probe
takes every flag of a run.

Examples:

    python jobs/plan.py --probe 400 --images s3://bucket/images --output s3://bucket/probe \\
        --lvlm.model A --svlm.model B
    python jobs/plan.py s3://bucket/probe --count 10000000 --cards 64 --cards-per-node 8 \\
        --usd-per-card-hour 1.90
    python jobs/plan.py runs/demo --count 1000000 --usd-per-million-input-tokens 2.5 \\
        --usd-per-million-output-tokens 10
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from mpa_ray import cli
from mpa_ray.cli import run_first
from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.report.run_folder import config_of
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.planning.plan import Hardware, all_gpus, forecast, table, with_prices
from mpa_ray.tools.planning.probe import probe
from mpa_ray.tools.planning.rates import read_rates


def above_zero(kind: type) -> Callable[[str], float]:
    def read(text: str) -> float:
        if (value := kind(text)) > 0:
            return value
        raise ValueError

    read.__name__ = f"{kind.__name__} above zero"
    return read


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    number, amount = above_zero(int), above_zero(float)
    source.add_argument(
        "--probe",
        type=number,
        metavar="N",
        help="run N images first, with the flags of a run; --output is the probe's",
    )
    rates = (
        "the output folder of a finished run or probe; nothing is run. Without the flag, the"
        " first argument"
    )
    source.add_argument("--rates", metavar="RUN", help=rates)
    parser.add_argument(
        "--count",
        type=number,
        metavar="N",
        help="images to plan for; a probe knows how many there are",
    )
    parser.add_argument(
        "--cards", type=amount, metavar="C", help="GPUs of PA and PI (as the rates' run had)"
    )
    parser.add_argument("--workers", type=number, metavar="W", help="of PL (as the rates' run had)")
    parser.add_argument(
        "--cards-per-node", type=number, default=1, metavar="C", help="nodes are paid whole (1)"
    )
    parser.add_argument(
        "--usd-per-card-hour",
        type=amount,
        default=0.0,
        metavar="USD",
        help="without it, GPUs have no price",
    )
    parser.add_argument(
        "--usd-per-million-input-tokens",
        type=amount,
        metavar="USD",
        help="of an API as the L-VLM; else the run's own",
    )
    parser.add_argument(
        "--usd-per-million-cached-tokens",
        type=amount,
        metavar="USD",
        help="without it, they cost as the others",
    )
    parser.add_argument(
        "--usd-per-million-output-tokens", type=amount, metavar="USD", help="of an API as the L-VLM"
    )
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Config | None]:
    """The plan's own flags, and the configuration of the run that a probe is of.

    Raises:
        ConfigurationError: a flag is neither, or a setting of the run is wrong.
    """
    given, flags = arguments().parse_known_args(run_first(argv, "--rates"))
    if given.probe is not None:
        return given, cli.parse(Config(), flags)
    if flags:
        raise ConfigurationError(
            f"{flags[0]}: --rates takes no flags of a run; for other settings run a --probe"
        )
    return given, None


def measured(
    given: argparse.Namespace, asked_for: Config | None
) -> tuple[Config, float, int | None]:
    """The configuration of the run that tells the rates; the GPUs and the number of images to plan
    for, where nothing else is said.
    """
    if asked_for is not None:
        probed, listed = probe(asked_for, count=given.probe)
        return probed, all_gpus(asked_for), listed
    run = Folder.at(given.rates.removesuffix("/run.json"))
    if not run.exists("run.json"):
        raise ConfigurationError(
            f"--rates {run.uri}: there is no finished run; give the output folder of one, or run a"
            " --probe"
        )
    config = config_of(run)
    assert config is not None
    if config.rounds > 1:
        raise ConfigurationError(
            f"--rates {run.uri}: a run of {config.rounds} rounds has a rate in each; give"
            f" {run.uri}/rounds/1"
        )
    return config.model_copy(update={"output": run.uri}), all_gpus(config), None


if __name__ == "__main__":
    with exit_codes():
        given, asked_for = parse(sys.argv[1:])
        config, gpus, listed = measured(given, asked_for)
        images = given.count or listed
        if images is None:
            raise ConfigurationError("--count is not set; give the number of images to plan for")
        config = with_prices(
            config,
            input_tokens=given.usd_per_million_input_tokens,
            cached_tokens=given.usd_per_million_cached_tokens,
            output_tokens=given.usd_per_million_output_tokens,
        )
        hardware = Hardware(
            gpus=given.cards or gpus,
            workers=given.workers,
            gpus_per_node=given.cards_per_node,
            usd_per_gpu_hour=given.usd_per_card_hour,
        )
        rates = read_rates(Folder.at(config.output), config)
        print(
            table(
                forecast(rates, config, images=images, hardware=hardware), rates, config, hardware
            )
        )
