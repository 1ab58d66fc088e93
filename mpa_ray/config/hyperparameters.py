"""Table 11: the hyperparameters of the paper, by S-VLM."""

from mpa_ray.config.training import TrainingSection

_OTHERS = (16, 1e-5)


def with_hyperparameters(settings: TrainingSection, svlm: str) -> TrainingSection:
    """`settings` with batch size and learning rate filled in from Table 11 where they are not
    set.
    """
    # The folder nearest to the model tells: what lies above it may be called after another one.
    names = reversed(svlm.lower().split("/"))
    batch_size, learning_rate = next(
        (values for name in names for part, values in TABLE_11.items() if part in name), _OTHERS
    )
    return settings.model_copy(
        update={
            "batch_size": settings.batch_size or batch_size,
            "learning_rate": settings.learning_rate or learning_rate,
        }
    )


# Table 11 of the paper: the part of a model's name that tells it, batch size, learning rate.
TABLE_11 = {
    "qwen2-vl-2b": (16, 1e-5),
    "internvl2-2b": (16, 4e-5),
    "internvl2-4b": (6, 4e-5),
    "smolvlm-500m": (16, 1e-4),
    "tinyllava-2": (16, 1e-4),
}
