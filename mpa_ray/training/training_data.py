"""What the Parity Leveler reads: rows of Parquet folders, by index, in an order that depends on the
seed alone.

Order and position do not depend on the number of workers, so a restart on another number resumes at
the sample where the last one stopped.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from mpa_ray.errors import RunError
from mpa_ray.images import decode
from mpa_ray.images.draw import is_held_out
from mpa_ray.storage.folder import Folder

# Rows are shuffled among so many neighbours in a shuffled order of files, and so many files are
# kept open for them.
_WINDOW = 2048
_OPEN_FILES = 128
_READERS = 32

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample; the image is decoded, upright and within the S-VLM's pixel bound."""

    image: Image.Image
    question: str
    answer: str


class TrainingSet:
    """The rows of several PARITY folders that are not held out, by index. Only their places are in
    memory.
    """

    def __init__(
        self,
        folders: list[Folder],
        *,
        holdout: float,
        max_pixels: int,
        max_image_pixels: int,
        max_image_bytes: int,
    ) -> None:
        self._files = [(folder, name) for folder in folders for name in folder.names(".parquet")]
        self._limits = {
            "max_pixels": max_pixels,
            "max_image_pixels": max_image_pixels,
            "max_image_bytes": max_image_bytes,
        }
        self._open: OrderedDict[int, pa.Table] = OrderedDict()

        def rows_of(file: tuple[Folder, str]) -> np.ndarray:
            folder, name = file
            ids = folder.read_table(name, ["sample_id"]).column(0).to_pylist()
            return np.array(
                [
                    row
                    for row, sample_id in enumerate(ids)
                    if not is_held_out(sample_id or "", holdout)
                ],
                dtype=np.int32,
            )

        with ThreadPoolExecutor(_READERS) as pool:
            rows = list(pool.map(rows_of, self._files))
        self._file = np.repeat(np.arange(len(rows), dtype=np.int32), [len(found) for found in rows])
        self._row = np.concatenate(rows) if rows else np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._row)

    def order(self, seed: int) -> np.ndarray:
        """All indices, shuffled; neighbours come from few files, so that reading them does not open
        every file for every batch.
        """
        rng = np.random.default_rng(seed)
        rank = rng.permutation(len(self._files))
        by_file = np.argsort(rank[self._file], kind="stable")
        windows = [
            rng.permutation(by_file[start : start + _WINDOW])
            for start in range(0, len(by_file), _WINDOW)
        ]
        return np.concatenate(windows) if windows else by_file

    def read(self, indices: Sequence[int], pool: Executor) -> list[Sample]:
        """The samples at `indices`, in that order; `pool` decodes their images. The rows are read
        here, one after the other.

        Raises:
            RunError: a row's image, which was readable when it was annotated, no longer is.
        """
        return list(pool.map(self._sample, indices, [self._stored(index) for index in indices]))

    def __getitem__(self, index: int) -> Sample:
        """Raises what `read` does."""
        return self._sample(index, self._stored(index))

    def _stored(self, index: int) -> dict[str, Any]:
        table = self._table(int(self._file[index]))
        row: dict[str, Any] = table.slice(int(self._row[index]), 1).to_pylist()[0]
        return row

    def _sample(self, index: int, row: dict[str, Any]) -> Sample:
        try:
            image = decode.decode_and_fit(row["image"]["bytes"], **self._limits)
        except decode.UnreadableImage as error:
            folder, name = self._files[self._file[index]]
            raise RunError(
                f"{folder.uri}/{name}, sample {row['sample_id']}: its image cannot be read"
                f" ({error}); remove the row and run again"
            ) from error
        return Sample(image=image, question=row["question"], answer=row["answer"])

    def _table(self, file: int) -> pa.Table:
        if file not in self._open:
            folder, name = self._files[file]
            self._open[file] = folder.read_table(name)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file]


def read_ahead(make: Callable[[], Iterator[T]], depth: int) -> Iterator[T]:
    """The items of `make()`, made in a thread up to `depth` ahead; its errors are raised here."""
    end: Any = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        items = pool.submit(make).result()
        # One thread, so that the calls of `next` come one after the other.
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
