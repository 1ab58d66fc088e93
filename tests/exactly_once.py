"""One call of a run, up to the end of the Parity Identifier, in a process of its own that is killed
at a moment of the test's choice.

All of it is the product's code but Ray: parts go through the real stages one after the other
(`in_process`), in an order of their own.
"""

import hashlib
import os
import signal
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from in_process import Dataset
from PIL import Image

from mpa_ray import pipeline
from mpa_ray.config import ModelSection, parse
from mpa_ray.engines import Reply, RequestRejected, Sampling
from mpa_ray.errors import RunError
from mpa_ray.images import parts
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.placement import capacity
from mpa_ray.placement.place import Placement
from mpa_ray.steps import checks, train_arm
from mpa_ray.storage import folder
from mpa_ray.storage.folder import Folder

PA_OVER = 0
"""The exit status of a call that came to the end of the stage."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a call ends before its time.

    Attributes:
        at: "write", "replace", "request" (killed before that one), "budget" (the engine cannot
            continue) or "" (not at all).
        count: which of them.
        order: seed of the order of the parts.
    """

    at: str = ""
    count: int = 0
    order: int = 0


_end = End()
_counted: dict[str, int] = {}


def _kill_at(what: str) -> None:
    _counted[what] = _counted.get(what, 0) + 1
    if _end.at == what and _counted[what] == _end.count:
        os.kill(os.getpid(), signal.SIGKILL)


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


class Engine:
    """Replies that follow from the picture, the model and the request alone. Some cannot be parsed
    or stored, some are rejected.
    """

    def __init__(self, model: ModelSection) -> None:
        self._name = model.model

    async def ask(
        self, image: Image.Image, prompt: str, *, image_id: str, sampling: Sampling
    ) -> Reply:
        _kill_at("request")
        if _end.at == "budget" and _counted["request"] >= _end.count:
            raise RunError("the budget is spent")
        drawn = hashlib.sha256(
            f"{self._name} {prompt} {sampling.seed}".encode() + image.tobytes()
        ).digest()
        if drawn[0] < 12:
            raise RequestRejected("too long")
        text = "yes" if drawn[1] < 160 else "no"
        if "Question: " in prompt:
            text = (
                f"Question: Is it {digest(image)}, {drawn[2] % 40}?, Answer: yes"
                if drawn[1] > 25
                else "I cannot say."
            )
        if drawn[3] < 6:
            text += "\ud83d"
        return Reply(
            text=text, prompt_tokens=9, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    def close(self) -> None:
        pass


def load(model: ModelSection) -> Engine:
    return Engine(model)


class _Over(Exception):
    """The stage is over; what follows is not of interest."""


def call(settings: dict[str, Any], end: End, log: str) -> None:
    """One call. Ends the process with a job's exit status, or with SIGKILL."""
    global _end
    _end = end
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    parts.dataset_of = partial(Dataset, seed=end.order)
    pipeline.ray_session = nullcontext
    # No model is loaded, and there is no cluster.
    checks._check_models = pipeline.refuse_unshared = capacity.wait_for = capacity.shortage = (
        lambda *_, **__: None
    )
    capacity.placed = lambda config, asked: Placement(config=config, record={}, lines=[])
    train_arm.refuse_nothing = _over
    folder.os = _Os()
    for name in ("write_bytes", "create_json", "delete"):
        setattr(Folder, name, _may_be_killed(getattr(Folder, name)))
    with exit_codes():
        try:
            pipeline.run(parse.validate(settings))
        except _Over:
            return


def _over(*_: Any) -> Any:
    raise _Over


def _may_be_killed(operation: Any) -> Any:
    def killed(*arguments: Any, **options: Any) -> Any:
        _kill_at("write")
        return operation(*arguments, **options)

    return killed


class _Os:
    """`os`, in which a call can be killed between a file's content and its name."""

    def __getattr__(self, name: str) -> Any:
        if name in ("replace", "link"):
            _kill_at("replace")
        return getattr(os, name)
