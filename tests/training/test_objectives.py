"""What training minimizes: the files behind `pl.objective`, and a second objective, which trains
through the same loop as Eq. 3 does.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from conftest import parity_rows
from mpa_ray import demo
from mpa_ray.config import (
    Config,
    ModelSection,
    TrainingSection,
    changes,
    identity,
    of_identity,
    parse,
)
from mpa_ray.config.objectives import OBJECTIVES, ObjectiveName
from mpa_ray.errors import ConfigurationError
from mpa_ray.parity_leveler import level
from mpa_ray.storage.folder import Folder
from mpa_ray.training import objectives
from mpa_ray.training.collator import IGNORED, Collator
from mpa_ray.training.objective import Batch, Objective, answer_logits, objective_loader
from mpa_ray.training.objectives import answer_nll
from mpa_ray.training.train_loop import learning_rate
from mpa_ray.training.training_data import Sample, TrainingSet

SMOOTHING = 0.2
RATE = 1e-3
LIMITS = {"max_pixels": 512 * 28 * 28, "max_image_pixels": 10**7, "max_image_bytes": 10**7}


def load(model: Any, collator: Collator, settings: TrainingSection) -> Objective:
    """An objective as its file would define it: upper-case answers, with smoothed labels. It sees
    the S-VLM before training and the settings.
    """
    assert not hasattr(model, "module") and settings.precision == "float32"

    def collate(samples: list[Sample], *, learned: int | None = None) -> Batch:
        upper = [replace(sample, answer=sample.answer.upper()) for sample in samples]
        return collator(upper, learned=learned)

    return Objective(collate=collate, loss=smoothed_loss)


def smoothed_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
    logits, targets = answer_logits(model, batch)
    loss = torch.nn.functional.cross_entropy(
        logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=SMOOTHING
    )
    return loss, int((targets != IGNORED).sum())


def smoothed_by_hand(model: Any, batch: Batch) -> torch.Tensor:
    """The same of one sample, from the logits of the whole sequence, token by token."""
    labels = batch["labels"][0].tolist()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    log_p = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
    return sum(
        -(1 - SMOOTHING) * log_p[place - 1, token] - SMOOTHING * log_p[place - 1].mean()
        for place, token in enumerate(labels)
        if token != IGNORED
    )


def curve_by_hand(folder: Folder, settings: TrainingSection) -> list[float]:
    """The loss per sample of each step, with torch alone."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mpa_ray.models.chat_template import end_tokens

    model = AutoModelForImageTextToText.from_pretrained(demo.SVLM, dtype=torch.float32)
    collator = Collator(AutoProcessor.from_pretrained(demo.SVLM), end_tokens=end_tokens(model))
    collate = load(model, collator, settings).collate
    samples = TrainingSet([folder], holdout=0.0, **LIMITS)
    order, losses = samples.order(0), []
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    steps = len(order) // settings.batch_size
    for step in range(steps):
        batch = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        loss = sum(smoothed_by_hand(model, collate([samples[n]])) for n in batch) / len(batch)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, settings)
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("workers", [1, 2])
def test_another_objective_trains_through_the_same_loop(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Two steps of three samples: of two workers, one learns two and the other one, beside a
    micro-batch that teaches nothing.
    """
    monkeypatch.setitem(sys.modules, f"{objectives.__name__}.smoothed", sys.modules[__name__])
    folder = Folder.at(tmp_path / "parity")
    folder.write_table("part-00000000.parquet", parity_rows(6))
    settings = TrainingSection(
        workers=workers,
        gpus_per_worker=0,
        precision="float32",
        batch_size=3,
        micro_batch_size=1,
        learning_rate=RATE,
        holdout=0.0,
    )
    config = Config(
        svlm=ModelSection(model=str(demo.SVLM), max_pixels=LIMITS["max_pixels"]),
        # Not validated: the name is in no table.
        pl=settings.model_copy(update={"objective": "smoothed"}),
    )
    target = Folder.at(tmp_path / "model")
    level(config, [folder], name="run", target=target, work=Folder.at(tmp_path / "work"))
    log = target.read_json("training_log.json")
    losses = [row[log["columns"].index("loss_per_sample")] for row in log["rows"]]
    assert losses == pytest.approx(curve_by_hand(folder, settings), rel=1e-3)
    assert losses[1] != pytest.approx(losses[0], rel=1e-2), "the first step changed nothing"


def test_every_name_has_a_file_and_every_file_a_name() -> None:
    files = {path.stem for path in Path(objectives.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(OBJECTIVES) == set(get_args(ObjectiveName))
    assert all(callable(objective_loader(name)) for name in OBJECTIVES)
    assert objective_loader(TrainingSection().objective) is answer_nll.load


def test_another_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse.validate({"pl": {"objective": "dpo"}})
    [line] = str(refused.value).splitlines()
    assert line.startswith("pl.objective: ") and line.endswith("; it is 'dpo'")
    assert all(f"'{name}'" in line for name in OBJECTIVES)


def test_a_run_from_before_the_setting_has_equation_3() -> None:
    before = identity(Config())
    assert before.pop("pl.objective") == "answer_nll"
    assert changes(of_identity(before), Config()) == {}


def test_the_objective_is_what_comes_out_and_not_how_fast() -> None:
    other = TrainingSection().model_copy(update={"objective": "smoothed"})
    assert changes(Config(), Config().model_copy(update={"pl": other})) == {
        "pl.objective": ("answer_nll", "smoothed")
    }
