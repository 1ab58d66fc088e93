"""What is refused before a model loads."""

from pydantic import ValidationError

from mpa_ray import engines
from mpa_ray.config import LABELED_ARMS, Config, LocalModelSection, changes, of_identity
from mpa_ray.engines import api_key
from mpa_ray.errors import ConfigurationError
from mpa_ray.images.sources import refuse_output_among_images
from mpa_ray.models import checkpoint, families
from mpa_ray.observability.progress import say
from mpa_ray.steps.names import CONFIG
from mpa_ray.storage.folder import Folder
from mpa_ray.training import tracking


def check(config: Config, output: Folder) -> None:
    """Everything that can be refused before a model loads.

    Raises:
        ConfigurationError: with a line that names the thing and the fix.
    """
    check_output(config, output)
    check_inputs(config)
    refuse_output_among_images(config, output)


def check_inputs(config: Config) -> None:
    if config.images and not Folder.at(config.images).exists():
        raise ConfigurationError(
            f"images={config.images!r} does not exist; give a folder or prefix of images, Parquet"
            " files or tars"
        )
    tracking.check(config.pl.tracking)
    _check_models(config)


def _check_models(config: Config) -> None:
    asked = {"lvlm": config.lvlm} if config.asks_lvlm else {}
    for flag, model in {
        **asked,
        **{f"jury.{number}": juror for number, juror in enumerate(config.jury)},
    }.items():
        if model.kind.is_api:
            api_key.check_api(flag, model)
        elif not model.kind.loads_checkpoint:
            # What its model's name means is known to it alone.
            engines.load_user_engine(model.engine)
        else:
            checkpoint.check(f"{flag}.model", model.model)
            families.check(f"{flag}.model", model, trained=False)
    if not config.svlm.kind.loads_checkpoint:
        engines.load_user_engine(config.svlm.engine)
    checkpoint.check("svlm.model", config.svlm.model)
    families.check("svlm.model", config.svlm, trained=True)
    warn_of_size(config.svlm, families.count_parameters(config.svlm))


def check_output(config: Config, output: Folder) -> Config | None:
    """What the run in `output` was asked for; None where there is none yet."""
    if not output.exists():
        return None
    if not output.exists(CONFIG):
        if output.names():
            raise ConfigurationError(
                f"output={config.output!r} holds other files and no run; give an empty or new"
                " folder"
            )
        return None
    try:
        before = of_identity(output.read_json(CONFIG))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise ConfigurationError(
            f"output={config.output!r} holds a run of another version of mpa_ray (it differs in"
            f" {fields}); give another output"
        ) from error
    differing = changes(before, config, trained=trained_on_labels(output))
    if differing:
        listed = "; ".join(
            f"{name} was {was!r} and is {now!r}" for name, (was, now) in differing.items()
        )
        raise ConfigurationError(
            f"output={config.output!r} holds another run: {listed}. Give another output, or the"
            " settings of that run"
        )
    return before


def trained_on_labels(output: Folder) -> set[str]:
    """The comparisons on human labels whose training has begun."""
    return {
        arm
        for arm in LABELED_ARMS
        if output.exists(f"stages/train_{arm}.json") or output.exists(f"checkpoints/{arm}")
    }


def warn_of_size(svlm: LocalModelSection, parameters: int | None) -> None:
    warning = families.size_warning(svlm, parameters)
    if warning:
        say(warning)
