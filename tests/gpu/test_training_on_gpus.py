"""Training on a CUDA GPU: steps of Qwen2-VL-2B's true shape in bf16, saved and served, and their
memory beside what placement counts. `pytest -m gpu` runs it; the same functions train a tiny model
on the CPU too, so that they are known to work before there is a GPU.
"""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from conftest import parity_rows
from mpa_ray import engines
from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.models import checkpoint
from mpa_ray.models.gpu_memory import fewest_workers
from mpa_ray.parity_leveler import level
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts

STAGES = [2, 3]
# CUDA's context, which its allocator does not count.
OF_CUDA_GIB = 0.5
SIZES = [
    pytest.param("overhead", 0, id="cpu", marks=pytest.mark.slow),
    pytest.param("qwen2-vl-2b", 1, id="gpu", marks=pytest.mark.gpu),
]
ROWS = parity_rows(8).to_pylist()


def section(model: Path, gpus: int, **changes: Any) -> ModelSection:
    settings: dict[str, Any] = {
        "model": str(model),
        "gpus_per_replica": gpus,
        "max_model_len": 1024,
        "images_in_flight": 8,
    }
    return ModelSection(**settings | changes)


def settings(stage: int, gpus: int) -> TrainingSection:
    return TrainingSection(
        holdout=0.0,
        zero_stage=stage,
        gpus_per_worker=gpus,
        precision="bfloat16",
        batch_size=8,
        micro_batch_size=4,
        # By heart: random weights are full of near-ties, and what is served must know its answers.
        learning_rate=1e-4 if gpus else 3e-3,
        epochs=24,
        checkpoint_every=10**6,
    )


def build(name: str, folder: str, gpus: int) -> None:
    import random_model

    random_model.build(random_model.SIZES[name], Path(folder), device="cuda" if gpus else "cpu")


def in_a_process(work: Any, *arguments: Any, gpus: float) -> Any:
    """What `work` returns in a process of its own, which leaves the GPU when it ends."""
    import ray

    return ray.get(ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1)(work).remote(*arguments))


@pytest.fixture(scope="module")
def made(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a model of random weights, once."""
    found: dict[str, Path] = {}

    def model(name: str, gpus: int) -> Path:
        if name not in found:
            found[name] = tmp_path_factory.mktemp(name) / "model"
            in_a_process(build, name, str(found[name]), gpus, gpus=gpus)
        return found[name]

    return model


def _answers(model: ModelSection) -> list[tuple[str, int]]:
    """What an engine says about ROWS, and how long its prompts were."""
    import io

    from PIL import Image

    from mpa_ray.engines import Sampling

    loaded = engines.load(model)

    async def work() -> list[tuple[str, int]]:
        replies = [
            await loaded.ask(
                Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"),
                prompts.ANSWERING.format(question=row["question"]),
                image_id=row["image_id"],
                sampling=Sampling(max_tokens=4),
            )
            for row in ROWS
        ]
        return [(reply.text.strip(), reply.prompt_tokens) for reply in replies]

    try:
        return asyncio.run(work())
    finally:
        loaded.close()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("size", "gpus"), SIZES)
def test_what_is_trained_is_saved_and_served(
    made: Any, size: str, gpus: int, stage: int, tmp_path: Path
) -> None:
    model, trained = made(size, gpus), tmp_path / "trained"
    rows = parity_rows(8)
    Folder.at(tmp_path / "parity").write_table("part-00000000.parquet", rows)
    level(
        Config(svlm=section(model, gpus), pl=settings(stage, gpus)),
        [Folder.at(tmp_path / "parity")],
        name=f"stage-{stage}",
        target=Folder.at(trained),
        work=Folder.at(tmp_path / "work"),
    )
    log = Folder.at(trained).read_json("training_log.json")
    losses = [loss for _, loss, _ in log["rows"]]
    assert len(losses) == 24 and losses[-1] < 0.5 * losses[0], losses
    assert checkpoint.same_tensors(str(model), str(trained))

    ours = in_a_process(_answers, section(trained, gpus, engine="vllm"), gpus=gpus)
    theirs = in_a_process(_answers, section(trained, gpus, engine="transformers"), gpus=gpus)
    assert [tokens for _, tokens in ours] == [tokens for _, tokens in theirs]
    same = sum(one == other for (one, _), (other, _) in zip(ours, theirs, strict=True))
    assert same >= 0.75 * len(ROWS), (ours, theirs)


def _peak(model: ModelSection, training: TrainingSection) -> tuple[int, float]:
    """Parameters, and GiB at the peak of two optimizer steps beside what was there before the model
    was loaded.
    """
    import os

    from test_training_state import process_group_of_one

    import torch_figures
    from mpa_ray.config.hyperparameters import with_hyperparameters

    process_group_of_one()
    on_gpu = bool(training.gpus_per_worker)
    if on_gpu:
        del os.environ["DS_ACCELERATOR"]
    training = with_hyperparameters(training, model.model)
    where = torch_figures.Where(device="cuda" if on_gpu else "cpu", tiny=not on_gpu)
    parameters = 0

    def steps() -> None:
        nonlocal parameters
        from mpa_ray.models.chat_template import end_tokens
        from mpa_ray.training import set_up
        from mpa_ray.training.collator import Collator
        from mpa_ray.training.objectives.answer_nll import answer_loss
        from mpa_ray.training.train_loop import take_step

        set_up._choose_device(training)
        network, processor, _ = set_up.load_svlm(model, training.precision)
        parameters = sum(weight.numel() for weight in network.parameters())
        network = set_up._with_settings(network, training)
        collator = Collator(processor, end_tokens=end_tokens(network))
        engine = set_up._deepspeed_engine(network, training, 1)
        micro_batches = [collator(_samples()[start : start + 4]) for start in (0, 4)]
        for _ in range(2):
            take_step(engine, answer_loss, micro_batches, scale=1 / 8, rate=1e-5)

    held = torch_figures.peak_bytes(steps, where)
    gc.collect()
    return parameters, held / 2**30


def _samples() -> list[Any]:
    import io

    from PIL import Image

    from mpa_ray.training.training_data import Sample

    # As large as max_pixels lets a photo be.
    return [
        Sample(
            image=Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((616, 616)),
            question=row["question"],
            answer=row["answer"],
        )
        for row in ROWS
    ]


def smallest_gpu(parameters: int, stage: int) -> float:
    """GiB of the smallest GPU that placement trains such a model on alone, to an eighth."""
    return next(
        eighths / 8
        for eighths in range(1, 8 * 500)
        if fewest_workers(parameters, stage=stage, gpu_gib=eighths / 8, most=1)
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("size", "gpus"), SIZES)
def test_a_gpu_that_placement_takes_for_large_enough_is(
    made: Any, size: str, gpus: int, stage: int
) -> None:
    given = section(made(size, gpus), gpus), settings(stage, gpus)
    parameters, peak = in_a_process(_peak, *given, gpus=gpus)
    assert peak >= 14 * parameters / 2**30, "what Adam keeps was not there"
    assert peak + OF_CUDA_GIB * gpus <= smallest_gpu(parameters, stage)
