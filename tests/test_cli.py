"""The command line as people type it: what is read from it, and that bad input costs one line, exit
code 2 and no model.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mpa_ray import cli
from mpa_ray.config import Config, ModelSection, TrainingSection, identity
from mpa_ray.config.describe import settings
from mpa_ray.config.parse import merge
from mpa_ray.errors import ConfigurationError

ROOT = Path(__file__).parent.parent
JOB = Config(
    lvlm=ModelSection(model="a/large", max_replicas=8),
    svlm=ModelSection(model="a/small"),
    pl=TrainingSection(workers=3),
)
GIVEN = ["--images", "photos", "--output", "out"]


def parse(*argv: str) -> Config:
    return cli.parse(JOB, [*GIVEN, *argv])


def refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(*argv)
    return str(caught.value)


def write_yaml(folder: Path, tree: Any) -> str:
    path = folder / "settings.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return str(path)


def test_flags_have_the_names_of_the_configuration() -> None:
    config = parse(
        "--pl.learning_rate",
        "2e-5",
        "--pl.zero-stage=3",
        "--lvlm.gpus_per_replica",
        "0.5",
        "--seed",
        "-1",
        "--task",
        "chartqa",
    )
    assert (
        config.pl.learning_rate,
        config.pl.zero_stage,
        config.lvlm.gpus_per_replica,
        config.seed,
    ) == (2e-5, 3, 0.5, -1)
    assert (config.task, config.images, config.output) == (
        "chartqa",
        os.path.abspath("photos"),
        os.path.abspath("out"),
    )


def test_switches_lists_and_mappings() -> None:
    assert parse("--identify.exhaustive").identify.exhaustive is True
    assert parse("--identify.exhaustive", "false").identify.exhaustive is False
    assert parse("--identify.exhaustive", "--identify.no_exhaustive").identify.exhaustive is False
    assert parse("--identify.no-exhaustive").identify.exhaustive is False
    assert parse("--ablations", "consistent").ablations == ("consistent",)
    assert parse("--ablations", "consistent", "no_pi_all", "--seed", "3").ablations == (
        "consistent",
        "no_pi_all",
    )
    assert parse("--ablations", "[consistent, no_pi_all]").ablations == ("consistent", "no_pi_all")
    options = parse(
        "--lvlm.engine_options", "{gpu_memory_utilization: 0.9, quantization: fp8}"
    ).lvlm.engine_options
    assert options == {"gpu_memory_utilization": 0.9, "quantization": "fp8"}


@pytest.mark.parametrize(
    "text",
    [
        "123",
        "true",
        "1e5",
        "null",
        "[a]",
        "{a: b}",
        " x ",
        "a=b",
        "",
        "ünïcödé",
        "-dash",
        "two\nlines",
    ],
)
def test_text_stays_the_text_it_is(text: str) -> None:
    assert parse("--prompt", text).prompt == text
    assert parse(f"--svlm.revision={text}").svlm.revision == text


def test_the_last_of_two_equal_flags_holds() -> None:
    assert parse("--seed", "1", "--seed", "2").seed == 2


def test_flags_go_over_yaml_over_preset_over_job(tmp_path: Path) -> None:
    file = write_yaml(
        tmp_path, {"svlm": {"model": "yaml/model"}, "pl": {"zero_stage": 1, "workers": 5}}
    )
    config = parse("--pl.workers", "7", "--config", file, "--preset", "smolvlm-500m")
    assert config.svlm.model == "yaml/model", "YAML over the preset"
    assert (config.pl.workers, config.pl.zero_stage) == (7, 1), (
        "a flag over YAML, and YAML where there is no flag"
    )
    assert config.lvlm.max_replicas == 8, "the job, where nothing else is said"
    assert parse("--preset", "smolvlm-500m").svlm.model == "HuggingFaceTB/SmolVLM-500M-Instruct"


def test_yaml_and_flags_hold_the_same(tmp_path: Path) -> None:
    tree = {
        "pl": {"learning_rate": 2e-5, "replay": 0.25},
        "ablations": ["consistent"],
        "identify": {"exhaustive": True},
    }
    flags = [
        "--pl.learning_rate",
        "2e-5",
        "--pl.replay",
        "0.25",
        "--ablations",
        "consistent",
        "--identify.exhaustive",
    ]
    assert identity(parse("--config", write_yaml(tmp_path, tree))) == identity(parse(*flags))


def test_merging_goes_section_by_section() -> None:
    assert merge({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "b": {"z": 1}}) == {
        "a": {"x": 1, "y": 3},
        "b": {"z": 1},
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lvlm.modle", "x"], "lvlm.modle: unknown setting; did you mean lvlm.model?"),
        (
            ["--pl.learning-rat", "1"],
            "pl.learning_rat: unknown setting; did you mean pl.learning_rate?",
        ),
        (["--sede", "1"], "sede: unknown setting; did you mean seed?"),
        (["--zzz"], "zzz: unknown setting"),
        (["--workers", "2"], "workers: unknown setting; did you mean pl.workers?"),
        (
            ["--svlm.temperature", "1"],
            "svlm.temperature: unknown setting; did you mean annotate.temperature?",
        ),
        (["--lvml.model", "x"], "lvml: unknown setting; did you mean lvlm?"),
        (
            ["--seed", "abc"],
            "seed: Input should be a valid integer, unable to parse string as an integer; it is"
            " 'abc'",
        ),
        (
            ["--seed", "1.5"],
            "seed: Input should be a valid integer, got a number with a fractional part; it is 1.5",
        ),
        (["--seed"], "--seed needs a value; give it as --seed VALUE"),
        (["--pl.workers", "0"], "pl.workers: Input should be greater than 0; it is 0"),
        (
            ["--lvlm.dtype", "int8"],
            "lvlm.dtype: Input should be 'auto', 'bfloat16', 'float16' or 'float32'; it is 'int8'",
        ),
        (
            ["--identify.exhaustive", "perhaps"],
            "identify.exhaustive: Input should be a valid boolean",
        ),
        (["--ablations", "all"], "ablations.0: Input should be 'no_pi_same_size'"),
        (["--lvlm.engine_options", "{a: 1"], "--lvlm.engine_options='{a: 1': not YAML"),
        (
            ["--lvlm.engine_options", "fp8"],
            "lvlm.engine_options: Input should be a valid dictionary; it is 'fp8'",
        ),
        (
            ["--lvlm", "x", "--lvlm.model", "y"],
            "--lvlm.model: lvlm was given a value of its own before",
        ),
        (
            ["--pl.lr", "1"],
            "pl.lr: unknown setting; did you mean pl.learning_rate or pl.lora_rank?",
        ),
        (["--lr", "1"], "lr: unknown setting; did you mean pl.learning_rate or pl.lora_rank?"),
        (["--pl.rank", "1"], "pl.rank: unknown setting; did you mean pl.lora_rank?"),
        (["--batchsize", "1"], "batchsize: unknown setting; did you mean pl.batch_size?"),
        (
            ["--seed", "1", "stray"],
            "--seed takes one value, and 'stray' stands after it; a value with spaces is put into"
            " quotes",
        ),
        (["--output", "my", "run"], "--output takes one value, and 'run' stands after it"),
        (["--preset"], "--preset needs a value"),
        (["--preset", "dmo"], "--preset dmo: there is no such preset; take one of "),
        (["--config"], "--config needs a value"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: there is no such file"),
        (["--config", "/"], "--config /: cannot be read: Is a directory; give a YAML file"),
        (["--prompt", "\udcff"], "--prompt='\\udcff' is not UTF-8"),
        (
            ["--demo.images", "9"],
            f"images='{os.path.abspath('photos')}' and demo.images=9 exclude each other",
        ),
        (
            ["--pl.replay", "0.5", "--pl.train_on", "all"],
            "pl: replay=0.5 and train_on='all' exclude each other",
        ),
    ],
)
def test_a_bad_flag_is_one_line(argv: list[str], message: str) -> None:
    said = refused(*argv)
    assert said.startswith(message)
    assert "\n" not in said


def test_a_value_before_any_flag() -> None:
    with pytest.raises(ConfigurationError, match="'photos' comes before any flag"):
        cli.parse(JOB, ["photos"])


@pytest.mark.parametrize(
    ("tree", "lines"),
    [
        ({"lvlm": {"modle": "x"}}, ["lvlm.modle: unknown setting; did you mean lvlm.model?"]),
        (
            {"seed": "abc", "foo": 1},
            ["seed: Input should be a valid integer", "foo: unknown setting"],
        ),
        ({"pl": 3}, ["pl: Input should be a valid dictionary"]),
        ({"pl": None}, ["pl: Input should be a valid dictionary"]),
        ("- a\n- b", ["--config FILE: expected settings as `name: value`, found list"]),
        ("", ["--config FILE: expected settings as `name: value`, found NoneType"]),
        ("a: [", ["--config FILE: not YAML"]),
        ("a: \x00", ["--config FILE: not YAML"]),
    ],
)
def test_bad_yaml_is_a_line_a_problem(tmp_path: Path, tree: Any, lines: list[str]) -> None:
    file = write_yaml(tmp_path, tree)
    said = refused("--config", file).replace(file, "FILE").splitlines()
    assert len(said) == len(lines)
    assert all(
        line.startswith(start) for line, start in zip(sorted(said), sorted(lines), strict=True)
    )


def test_yaml_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes(b"a: \xff")
    assert "not YAML" in refused("--config", str(tmp_path / "settings.yaml"))


def test_python_objects_in_yaml_are_never_made(tmp_path: Path) -> None:
    file = write_yaml(tmp_path, f"prompt: !!python/object/apply:os.mkdir [{tmp_path}/made]")
    assert "not YAML" in refused("--config", file)
    assert not (tmp_path / "made").exists()


def test_missing_settings_are_a_line_each() -> None:
    with pytest.raises(ConfigurationError) as caught:
        cli.parse(JOB, [])
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == [
        "--images",
        "--output",
    ]


def helped(capsys: pytest.CaptureFixture[str], flag: str, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.parse(
            JOB,
            [*argv, flag],
            about="What it does.\n\nExamples:\n\n    python jobs/x.py --images a\n",
        )
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_fits_a_screen_and_has_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = helped(capsys, "--help")
    for text in (
        "python jobs/x.py --images a",
        "--lvlm.model ",
        "(a/large)",
        "--preset NAME",
        "--config FILE",
        "--help-all",
    ):
        assert text in shown
    assert len(shown.splitlines()) < 90
    assert "--pl.warmup" not in shown


def test_every_setting_is_in_the_whole_help(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = helped(capsys, "--help-all", "--config", write_yaml(tmp_path, {"pl": {"warmup": 0.25}}))
    for name in identity(JOB):
        assert f"--{name} " in shown.replace("\n", " "), name
    assert "(0.25)" in shown, "as the command line has it"


def test_what_is_set_often_are_settings() -> None:
    assert set(cli.OFTEN) <= {setting.name for setting in settings(Config)}


HEAVY = ("torch", "vllm", "ray", "deepspeed", "transformers", "datasets")

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, folders to refuse, and heavy packages that end the process with 99 when somebody
    imports them.
    """
    folder = tmp_path_factory.mktemp("cli")
    for name in ("images", "empty", "no_model", "full", "heavy"):
        (folder / name).mkdir()
    Image.new("RGB", (32, 32)).save(folder / "images/a.png")
    (folder / "full/notes.txt").write_text("mine")
    for name in HEAVY:
        (folder / "heavy" / f"{name}.py").write_text(
            f"import os\nprint('imported {name}', flush=True)\nos._exit(99)\n"
        )
    return folder


@pytest.fixture(scope="module")
def job(place: Path) -> Command:
    """Runs jobs/mpa_textvqa.py there, with whole settings and `argv` after them."""

    def run(
        *argv: str, settings: tuple[str, ...] = ("images", "output", "lvlm.model", "svlm.model")
    ) -> subprocess.CompletedProcess[str]:
        values = {
            "images": "images",
            "output": "out",
            "lvlm.model": "a/large",
            "svlm.model": "a/small",
        }
        flags = [text for name in settings for text in (f"--{name}", values[name])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(place / "heavy"), str(ROOT)])
        }
        command = [sys.executable, str(ROOT / "jobs/mpa_textvqa.py"), *flags, *argv]
        return subprocess.run(
            command,
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_the_probe_works(job: Command, place: Path) -> None:
    """Good input goes as far as importing Ray, so what stays before that was refused by itself."""
    ended = job("--output", "probe")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (99, "imported ray")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--images", "empty"], ["/empty' holds no image", "are taken"]),
        (["--images", "nowhere"], ["/nowhere' does not exist", "give a folder"]),
        (
            ["--svlm.model", "no_model"],
            [
                "svlm.model='no_model' is no model folder",
                "give a folder in the Hugging Face layout",
            ],
        ),
        (
            ["--lvlm.model", "/no/such/model"],
            ["lvlm.model='/no/such/model'", "neither a folder nor a hub name"],
        ),
        (
            ["--output", "full"],
            ["/full' holds other files and no run", "give an empty or new folder"],
        ),
        (["--output", "images/a.png"], ["images/a.png is a file", "give a folder"]),
        (
            ["--output", "bad.yaml/out"],
            ["bad.yaml/out' cannot be made or written: Not a directory", "give a folder"],
        ),
        (["--pl.wokers", "2"], ["pl.wokers: unknown setting", "did you mean pl.workers?"]),
        (["--pl.workers", "two"], ["pl.workers", "valid integer", "'two'"]),
        (
            ["--pl.replay", "0.5", "--pl.train_on", "all"],
            ["replay=0.5 and train_on='all' exclude each other", "set replay=0"],
        ),
        (
            ["--demo.images", "9"],
            ["/images' and demo.images=9 exclude each other", "remove one of the two"],
        ),
        (["--config", "bad.yaml"], ["seed", "valid integer", "'abc'"]),
        (["--config", "unknown.yaml"], ["pl.wokers: unknown setting", "did you mean pl.workers?"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    job: Command, place: Path, argv: list[str], said: list[str]
) -> None:
    (place / "bad.yaml").write_text("seed: abc")
    (place / "unknown.yaml").write_text("pl: {wokers: 2}")
    ended = job(*argv)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(text in line for text in said), line
    assert not (place / "out/config.json").exists(), "a refused run leaves the output free"


def test_no_output_is_refused(job: Command) -> None:
    ended = job(settings=("images", "lvlm.model", "svlm.model"))
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: --output is not set; give it on the command line, in --config, or take a"
        " --preset\n",
    )


def test_an_output_that_holds_another_run_is_refused(job: Command, place: Path) -> None:
    assert job("--output", "taken").returncode == 99
    before = (place / "taken/config.json").read_bytes()
    ended = job("--output", "taken", "--seed", "7", "--annotate.temperature", "0.5")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    for text in (
        f"output='{place}/taken' holds another run",
        "seed was 0 and is 7",
        "annotate.temperature was 0.7 and is 0.5",
    ):
        assert text in ended.stderr
    assert (place / "taken/config.json").read_bytes() == before
    assert job("--output", "taken", "--lvlm.images_in_flight", "2").returncode == 99, (
        "the same run, at another speed, continues"
    )


def test_an_output_of_before_a_setting_was_there_resumes(job: Command, place: Path) -> None:
    assert job("--output", "old").returncode == 99
    settings = json.loads((place / "old/config.json").read_text())
    del settings["bytes_per_part"]
    (place / "old/config.json").write_text(json.dumps(settings))
    assert job("--output", "old").returncode == 99
    ended = job("--output", "old", "--bytes_per_part", "1000")
    assert ended.returncode == 2 and "bytes_per_part was 268435456 and is 1000" in ended.stderr


OWN_TASK = {
    "name": "signs",
    "prompt": "Reply: Question: <question>, Answer: <answer>",
    "metric": "exact_match",
}


def test_a_run_with_a_task_of_ones_own_resumes(job: Command, place: Path) -> None:
    (place / "signs.yaml").write_text(yaml.safe_dump({"task": OWN_TASK}))
    (place / "others.yaml").write_text(yaml.safe_dump({"task": OWN_TASK | {"metric": "anls"}}))
    for _ in range(2):
        ended = job("--output", "signs", "--config", "signs.yaml")
        assert ended.returncode == 99, ended.stderr
    ended = job("--output", "signs", "--config", "others.yaml")
    assert ended.returncode == 2 and "task.metric was 'exact_match' and is 'anls'" in ended.stderr


def test_an_output_of_before_paths_were_absolute_resumes(job: Command, place: Path) -> None:
    """However the folder is spelled; and what was listed is not listed again."""
    assert job("--output", "spelled").returncode == 99
    for name in ("config.json", "manifest/index.json"):
        record = place / "spelled" / name
        record.write_text(record.read_text().replace(f'"{place}/images"', '"images"'))
    listed = place / "spelled/manifest/00000.parquet"
    before = listed.stat().st_mtime_ns
    for spelling in ("images", "images/", "./images", f"{place}/images", f"file://{place}/images"):
        ended = job("--output", "spelled/", "--images", spelling)
        assert ended.returncode == 99, ended.stderr
    assert listed.stat().st_mtime_ns == before
    assert f'"{place}/images"' in (place / "spelled/config.json").read_text()


def test_an_output_of_another_version_is_refused(job: Command, place: Path) -> None:
    (place / "version").mkdir(exist_ok=True)
    (place / "version/config.json").write_text('{"gone.setting": 1, "seed": 0}')
    ended = job("--output", "version")
    assert (
        ended.returncode == 2
        and "of another version of mpa_ray (it differs in gone); give another output"
        in ended.stderr
    )


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "mpa_ray").rglob("*.py")
    # The demo's models are made with torch.
    if "demo" not in path.parts
)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"""
import importlib, sys
for name in {MODULES!r}:
    importlib.import_module(name)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
