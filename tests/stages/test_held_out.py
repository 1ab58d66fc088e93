"""Held-out rows asked again, by engines that are here, in Ray."""

from pathlib import Path

import pytest
from PIL import Image
from run_folders import judged, rows_of, write_run

from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.engines import Reply, RequestRejected, Sampling
from mpa_ray.errors import RunError
from mpa_ray.schema import Verdict
from mpa_ray.stages.held_out import compare_on_held_out
from mpa_ray.storage.folder import Folder


class Engine:
    """Says yes; refuses what it is asked about "no"."""

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        if "(no)" in prompt:
            raise RequestRejected("too long")
        return Reply(
            text="yes", prompt_tokens=9, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    def close(self) -> None:
        pass


class Stopping(Engine):
    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        raise RunError("the budget is spent")


def refusing(model: ModelSection) -> Engine:
    return Engine()


def stopping(model: ModelSection) -> Engine:
    return Stopping()


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """Forty rows that the L-VLM answers with "yes"; of each four the S-VLM did so too in two, and
    the engine will refuse two.
    """
    rows = []
    for number in range(40):
        right, refused = number % 2 == 0, number % 4 >= 2
        svlm, verdict = ("yes", Verdict.SVLM_CORRECT) if right else ("nothing", Verdict.PARITY)
        question = f"What is number {number}? ({'no' if refused else 'yes'})"
        uri = f"{tmp_path}/images/{number}.png"
        rows.append(
            judged(
                uri, question=question, answer="yes", lvlm="yes", svlm=svlm, verdict=str(verdict)
            )
        )
    return write_run(tmp_path / "run", [rows[:20], rows[20:]])


def config(engine: str) -> tuple[ModelSection, Config]:
    model = ModelSection(
        model="x",
        engine=f"test_held_out:{engine}",
        gpus_per_replica=0,
        cpus_per_replica=0.5,
        images_in_flight=4,
    )
    return model, Config(svlm=model, pl=TrainingSection(holdout=0.49))


def test_a_row_that_the_engine_refuses_is_neither_learned_nor_forgotten(
    ray_session: None, run: Folder
) -> None:
    model, settings = config("refusing")
    counts = compare_on_held_out(model, name="mpa", config=settings, output=run)
    found = rows_of(run.child("holdout/mpa"))
    assert counts["learned"] > 0 and counts["kept"] > 0 and counts["unanswered"] > 0
    assert (counts["forgotten"], counts["still_wrong"]) == (0, 0) and sum(counts.values()) == len(
        found
    )
    assert all(
        (row["change"] == "unanswered") == ("(no)" in row["question"]) == (row["after"] is None)
        for row in found
    )


def test_an_engine_that_cannot_continue_ends_it(ray_session: None, run: Folder) -> None:
    model, settings = config("stopping")
    with pytest.raises(
        RunError, match="the budget is spent. The held-out rows were not all asked again"
    ):
        compare_on_held_out(model, name="mpa", config=settings, output=run)
