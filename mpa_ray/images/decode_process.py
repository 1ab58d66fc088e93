"""Decodes images for `mpa_ray.images.guarded_decode`, in a process that may be lost.

    python -m mpa_ray.images.decode_process MEMORY_BYTES

On standard input: a line of JSON (size, core_seconds, seconds, and the arguments of
`decode_and_fit`), then the encoded bytes. On standard output: a line of JSON (width and height, or
reason and detail), then the pixels as RGB. The kernel ends this process when an image takes its
core for too long (SIGPROF) or is not done in time (SIGALRM), and refuses it memory beyond the
bound; it needs nobody to watch it.
"""

import json
import os
import resource
import signal
import sys

from mpa_ray.images.decode import UnreadableImage, decode_and_fit
from mpa_ray.schema import Reason


def serve(memory: int) -> None:
    """Answer until standard input ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a library prints must not get between the replies.
    os.dup2(2, 1)
    with open("/proc/self/statm") as statm:
        own = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + memory, own + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request.pop("size"))
        # Their default action ends the process, in the middle of a decoder too.
        signal.setitimer(signal.ITIMER_PROF, request.pop("core_seconds"))
        signal.setitimer(signal.ITIMER_REAL, request.pop("seconds"))
        reply, pixels = _answer(data, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n" + pixels)
        replies.flush()


def _answer(data: bytes, limits: dict[str, int]) -> tuple[dict[str, object], bytes]:
    try:
        image = decode_and_fit(data, **limits)
        return {"width": image.width, "height": image.height}, image.tobytes()
    except UnreadableImage as error:
        return {"reason": str(error.reason), "detail": error.detail}, b""
    except MemoryError:
        return {"reason": str(Reason.DECODER_MEMORY), "detail": "out of memory"}, b""


if __name__ == "__main__":
    serve(int(sys.argv[1]))
