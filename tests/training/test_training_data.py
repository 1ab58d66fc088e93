"""Which rows are trained on, in which order, and reading ahead: nothing lost, nothing twice, no
thread left waiting.
"""

import gc
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conftest import parity_rows
from mpa_ray.config import TrainingSection
from mpa_ray.errors import RunError
from mpa_ray.images.draw import draw, is_held_out
from mpa_ray.schema import PARITY
from mpa_ray.storage.folder import Folder
from mpa_ray.training import training_data
from mpa_ray.training.batches import Batches
from mpa_ray.training.training_data import Sample, TrainingSet, read_ahead

LIMITS = {"max_pixels": 10**6, "max_image_pixels": 10**6, "max_image_bytes": 10**6}
IDS = [f"{number:032x}-0" for number in range(4000)]


def training_set(*folders: Path, holdout: float = 0.0, **limits: int) -> TrainingSet:
    return TrainingSet(
        [Folder.at(folder) for folder in folders], holdout=holdout, **(LIMITS | limits)
    )


def test_draws_belong_to_the_sample_for_ever() -> None:
    # Written down: who changes it moves samples between training and the held-out rows of runs that
    # continue.
    assert draw("0123-0", "holdout") == pytest.approx(0.6894006831608711, abs=1e-12)
    assert draw("0123-0", "other") != draw("0123-0", "holdout")


def test_draws_are_even_and_independent() -> None:
    first, second = (
        np.array([draw(name, "a") for name in IDS]),
        np.array([draw(name, "b") for name in IDS]),
    )
    assert first.min() >= 0 and first.max() < 1
    assert np.abs(np.histogram(first, 10, (0, 1))[0] - 400).max() < 100
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_held_out_shares_nest() -> None:
    shares = {
        share: {name for name in IDS if is_held_out(name, share)} for share in (0.0, 0.1, 0.3, 0.49)
    }
    assert shares[0.0] == set()
    assert shares[0.1] < shares[0.3] < shares[0.49]
    assert len(shares[0.1]) == pytest.approx(400, abs=80)


def test_all_rows_but_the_held_out_are_there_once(parity_folder: Path) -> None:
    rows = parity_rows(24).to_pylist()
    samples = training_set(parity_folder, holdout=0.3)
    kept = [row for row in rows if not is_held_out(row["sample_id"], 0.3)]
    assert 0 < len(samples) == len(kept) < 24
    found = [samples[index] for index in range(len(samples))]
    assert [(sample.question, sample.answer) for sample in found] == [
        (row["question"], row["answer"]) for row in kept
    ]
    assert all(sample.image.mode == "RGB" for sample in found)


def test_several_folders_and_none(parity_folder: Path, tmp_path: Path) -> None:
    assert len(training_set(parity_folder, parity_folder)) == 48
    empty = training_set(tmp_path / "nowhere")
    assert len(empty) == 0 and len(empty.order(0)) == 0


def test_images_are_shrunk_to_the_models_bound(parity_folder: Path) -> None:
    image = training_set(parity_folder, max_pixels=1000)[0].image
    assert image.width * image.height <= 1000


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    rows = parity_rows(2).to_pylist()
    rows[1]["image"]["bytes"] = b"no longer an image"
    Folder.at(tmp_path).write_table(
        "part-00000000.parquet", pa.Table.from_pylist(rows, schema=PARITY)
    )
    samples = training_set(tmp_path)
    assert samples[0].question == rows[0]["question"]
    with pytest.raises(
        RunError,
        match=f"part-00000000.parquet, sample {rows[1]['sample_id']}: its image cannot be read",
    ):
        samples[1]


@pytest.fixture
def many_files(tmp_path: Path) -> TrainingSet:
    rows = parity_rows(60)
    for number in range(15):
        Folder.at(tmp_path).write_table(f"part-{number:08d}.parquet", rows.slice(4 * number, 4))
    return training_set(tmp_path)


def test_an_order_has_every_index_once_and_depends_on_the_seed_alone(
    many_files: TrainingSet, tmp_path: Path
) -> None:
    order = many_files.order(3)
    assert sorted(order.tolist()) == list(range(60))
    assert order.tolist() == training_set(tmp_path).order(3).tolist()
    assert order.tolist() != many_files.order(4).tolist()
    assert order.tolist() != sorted(order.tolist())


def test_neighbours_come_from_few_files(
    many_files: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "_WINDOW", 10)
    order = many_files.order(0)
    files = order // 4
    # Ten rows of files of four: three files, or four where both ends are cut.
    assert all(len(set(files[start : start + 10].tolist())) <= 4 for start in range(0, 60, 10))
    assert files[:10].tolist() != sorted(files[:10].tolist()), "within a window files are mixed"
    assert Counter(files.tolist()) == Counter({number: 4 for number in range(15)})
    assert len({tuple(many_files.order(seed)[:10] // 4) for seed in range(5)}) == 5, (
        "and files come in another order each time"
    )


def test_few_files_are_kept_open(many_files: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "_OPEN_FILES", 3)
    questions = [many_files[index].question for index in range(60)]
    assert len(many_files._open) == 3
    assert questions == parity_rows(60).column("question").to_pylist()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


def join_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(10)
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 2, 100])
def test_reading_ahead_gives_all_items_in_order(depth: int) -> None:
    assert list(read_ahead(lambda: iter(range(50)), depth)) == list(range(50))
    assert list(read_ahead(lambda: iter(()), depth)) == []
    join_threads()


def test_reading_ahead_stays_so_far_ahead() -> None:
    made: list[int] = []
    full = threading.Event()

    def make() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            # One is taken, two are made ahead.
            if number == 2:
                full.set()
            yield number

    items = read_ahead(make, 2)
    assert next(items) == 0
    assert full.wait(10)
    assert len(made) == 3
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]
    join_threads()


def test_errors_come_after_the_items_before_them() -> None:
    def make() -> Iterator[int]:
        yield 1
        yield 2
        raise RunError("the third cannot be read")

    items = read_ahead(make, 1)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(RunError, match="the third cannot be read"):
        next(items)
    join_threads()


def test_an_error_before_the_first_item_is_raised_too() -> None:
    def make() -> Iterator[int]:
        raise KeyboardInterrupt
        yield 1

    with pytest.raises(KeyboardInterrupt):
        next(read_ahead(make, 4))
    join_threads()


@pytest.mark.parametrize("depth", [1, 4])
def test_who_stops_early_leaves_no_thread_waiting(depth: int) -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    for taken in range(4):
        items = read_ahead(endless, depth)
        for _ in range(taken):
            next(items)
        items.close()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        for _ in read_ahead(endless, depth):
            raise ZeroDivisionError
    gc.collect()
    join_threads()


def test_an_error_while_stopping_leaves_no_thread_waiting() -> None:
    def make() -> Iterator[int]:
        yield from range(3)
        raise RunError("nobody hears this")

    items = read_ahead(make, 1)
    next(items)
    items.close()  # type: ignore[attr-defined]
    join_threads()


def test_images_are_decoded_side_by_side(
    many_files: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three threads meet at a barrier: with fewer it would break."""
    indices = [7, 3, 21, 3, 59, 0]
    wanted = [many_files[index] for index in indices]
    decode_and_fit, all_three = training_data.decode.decode_and_fit, threading.Barrier(3)

    def decode(*arguments: Any, **limits: Any) -> Any:
        all_three.wait(timeout=60)
        return decode_and_fit(*arguments, **limits)

    monkeypatch.setattr(training_data.decode, "decode_and_fit", decode)
    with ThreadPoolExecutor(3) as pool:
        found = many_files.read(indices, pool)
    assert [(s.question, s.image.tobytes()) for s in found] == [
        (s.question, s.image.tobytes()) for s in wanted
    ]


@pytest.mark.parametrize("cores", [1, 3])
def test_a_worker_s_batches_do_not_depend_on_its_cores(many_files: TrainingSet, cores: int) -> None:
    import torch

    made: list[str] = []

    def collate(samples: list[Sample], *, learned: int | None = None) -> dict[str, Any]:
        made.extend(sample.question for sample in samples)
        widths = [sample.image.width for sample in samples]
        return {
            "input_ids": torch.tensor(widths),
            "pixel_values": torch.tensor(widths, dtype=torch.float32),
            "labels": torch.full((len(samples),), learned or 0),
        }

    batches = Batches(
        samples=many_files,
        order=np.arange(12),
        collate=collate,
        settings=TrainingSection(
            gpus_per_worker=0, cpus_per_worker=cores, batch_size=4, micro_batch_size=2
        ),
        rank=0,
        workers=1,
        dtype=torch.bfloat16,
    )
    steps = list(batches.after(4))
    assert [len(micro_batches) for _, micro_batches in steps] == [2, 2]
    assert sorted(made) == sorted(many_files[index].question for index in range(4, 12))
    kinds = {name: value.dtype for name, value in steps[0][1][0].items()}
    assert kinds == {
        "input_ids": torch.int64,
        "pixel_values": torch.bfloat16,
        "labels": torch.int64,
    }
