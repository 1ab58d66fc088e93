"""A probe: a small run of the real pipeline on images drawn at random, from which `plan` tells what
the whole will take.

It is a run like any other, in an output of its own, and resumes where it stopped. It has one
replica of each model, trains MPA's own S-VLM on what it found, and asks no benchmark.
"""

import random
from collections.abc import Iterable
from typing import TypeVar

from mpa_ray import pipeline
from mpa_ray.config import Config, EvaluateSection, LocalModelSection
from mpa_ray.errors import ConfigurationError, NothingToTeach
from mpa_ray.images import manifest
from mpa_ray.images.finding import find, root_of
from mpa_ray.observability.progress import Tally, say
from mpa_ray.report.run_folder import config_of
from mpa_ray.schema import MANIFEST
from mpa_ray.steps import checks
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.planning.rates import PARTS_NEEDED

# So many parts tell how a rate scatters.
_PARTS = 16
_SAMPLED = "probe.json"

T = TypeVar("T")


def probe(config: Config, *, count: int) -> tuple[Config, int]:
    """Run the probe of a run, in `config.output`. Return the configuration it ran with, what
    the cluster decided filled in, and how many images were listed in all.

    Raises:
        ConfigurationError: the run cannot be probed, or not in this output.
        RunError: the probe could not continue.
    """
    unfit = {
        "annotations": config.annotations,
        "parity": config.parity,
        "rounds": config.rounds > 1 and config.rounds,
    }
    for name, value in unfit.items():
        if value:
            raise ConfigurationError(
                f"{name}={value!r}: a probe is of one round that starts from images; plan by"
                " --rates of a former run"
            )
    small, output = _small(config, count), Folder.at(config.output)
    checks.check(small, output)
    listed = config.demo.images or _draw(small, output, count=count)
    try:
        pipeline.run(small)
    except NothingToTeach as error:
        say(str(error))
        return small, listed
    return config_of(output) or small, listed


def _small(config: Config, count: int) -> Config:
    def alone(model: LocalModelSection) -> LocalModelSection:
        return model.model_copy(update={"min_replicas": 1, "max_replicas": 1})

    # A part below the images in flight would leave the engine idle, as parts of a whole run do not.
    in_flight = max(model.in_flight for model in (config.lvlm, *config.jury, config.svlm))
    images_per_part = min(config.images_per_part, max(in_flight, -(-count // _PARTS)))
    if count < PARTS_NEEDED * images_per_part:
        raise ConfigurationError(
            f"--probe {count}: with {in_flight} images in flight it takes"
            f" {PARTS_NEEDED * images_per_part} to tell a rate; give so many, or"
            " lower images_in_flight"
        )
    changes = {
        "lvlm": alone(config.lvlm),
        "svlm": alone(config.svlm),
        "jury": tuple(map(alone, config.jury)),
        "evaluate": EvaluateSection(),
        "ablations": (),
        # A few bad images of few are no reason to stop; the plan says how many there are.
        "max_quarantined": 1.0,
        "images_per_part": images_per_part,
        "demo": config.demo.model_copy(update={"images": min(config.demo.images, count)}),
    }
    return config.model_copy(update=changes)


def _draw(config: Config, output: Folder, *, count: int) -> int:
    """List `config.images` and write the probe's manifest: `count` of them, in a random order.
    Return how many there are.
    """
    folder = output.child("manifest")
    if manifest.load(folder, source=config.images) and folder.exists(_SAMPLED):
        return folder.read_json(_SAMPLED)["listed"]
    drawn, listed = sample(
        find(config.images, image_roots=config.image_roots),
        count,
        seed=config.seed,
        what=config.images,
    )
    tables = manifest.cut(
        drawn,
        images_per_part=config.images_per_part,
        bytes_per_part=config.bytes_per_part,
        max_image_bytes=config.max_image_bytes,
    )
    manifest.write(
        tables, folder, source=config.images, root=root_of(config.images), schema=MANIFEST
    )
    folder.write_json(_SAMPLED, {"listed": listed, "drawn": len(drawn)})
    say(f"probe: {len(drawn):,} of {listed:,} images, drawn at random")
    return listed


def sample(stream: Iterable[T], count: int, *, seed: int, what: str) -> tuple[list[T], int]:
    """`count` of a stream, each as likely as any other, in a random order; and how many there were
    (Vitter's algorithm R).
    """
    generator = random.Random(seed)
    drawn: list[T] = []
    tally = Tally(f"listing {what}", unit="images")
    for item in stream:
        tally.add(1)
        place = generator.randrange(tally.count)
        if len(drawn) < count:
            drawn.append(item)
        elif place < count:
            drawn[place] = item
    generator.shuffle(drawn)
    return drawn, tally.count
