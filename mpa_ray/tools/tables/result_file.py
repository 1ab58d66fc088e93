"""How a benchmark's result is kept: a dated file that says on what, with what and how it was
measured.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mpa_ray.observability.versions import versions


def write(folder: Path, name: str, text: str, data: dict[str, Any]) -> Path:
    """Write <date>-<name>.md for people and .json for programs into `folder`; return the
    first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{time.strftime('%Y-%m-%d')}-{name}"
    header = machine() | {"command": " ".join(["python", *sys.argv])}
    lines = [
        f"# {name}, {time.strftime('%Y-%m-%d')}",
        "",
        *(f"- {key}: {value}" for key, value in header.items()),
        "",
        text.rstrip(),
        "",
    ]
    stem.with_suffix(".md").write_text("\n".join(lines))
    stem.with_suffix(".json").write_text(json.dumps(header | data, indent=2) + "\n")
    return stem.with_suffix(".md")


def machine() -> dict[str, str]:
    """Processor, memory, GPUs and versions of this machine."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "cards": "; ".join(gpus()) or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def gpus() -> list[str]:
    """Name and memory of each GPU of this machine."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return listed.stdout.strip().splitlines()
