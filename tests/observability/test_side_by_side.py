"""Several pieces of work at the same time, and what ends them."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from mpa_ray.observability.side_by_side import is_interrupted, side_by_side


def test_results_come_in_order_and_no_more_run_at_once_than_may() -> None:
    running, most, lock = 0, [], threading.Lock()

    def work(item: int) -> int:
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return item * item

    assert side_by_side(work, range(8), at_once=3) == [item * item for item in range(8)]
    assert max(most) == 3


def test_one_that_fails_lets_the_others_finish_and_no_other_begin() -> None:
    second_runs, done = threading.Event(), []

    def work(item: int) -> None:
        if item == 0:
            second_runs.wait(30)
            raise ValueError("the first")
        second_runs.set()
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ValueError, match="the first"):
        side_by_side(work, range(9), at_once=2)
    assert 1 in done and 8 not in done


def _slowly(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.5)
    return batch


def test_ctrl_c_ends_datasets_in_other_threads(
    ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    begun, ended = threading.Semaphore(0), []

    def work(item: int) -> None:
        rows = 0
        try:
            for batch in (
                ray.data.range(400, override_num_blocks=400)
                .map_batches(_slowly, batch_size=None)
                .iter_batches(batch_size=None)
            ):
                rows += len(batch["id"])
                begun.release()
        finally:
            ended.append(rows)

    def press() -> None:
        for _ in range(2):
            begun.acquire()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(3), at_once=2)
    assert len(ended) == 2 and max(ended) < 400, "both were ended, and the third was not begun"
    assert not is_interrupted()
    assert ray.data.range(8).count() == 8, "what comes next runs"
    assert "Traceback" not in "".join(capfd.readouterr())
