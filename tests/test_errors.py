"""How a job ends: its lines on standard error, and its exit code."""

import pytest

from mpa_ray.config import parse
from mpa_ray.errors import FAILED, USAGE, ConfigurationError, RunError
from mpa_ray.observability.exit_codes import exit_codes

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u2066 a\nerror: fake line\r\u2028error:"
    " another\x85\x9b2J.tar"
)


def ended(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit code of a job that raises `error`, and its lines on standard error."""
    with pytest.raises(SystemExit) as caught, exit_codes():
        raise error
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith("\n")
    return caught.value.code, said.err[:-1].split("\n")


@pytest.mark.parametrize(("kind", "code"), [(ConfigurationError, USAGE), (RunError, FAILED)])
def test_a_name_in_an_error_cannot_act_on_the_terminal_or_forge_a_line(
    kind: type[Exception], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found, lines = ended(kind(f"{HOSTILE}: no tar"), capsys)
    assert found == code
    assert all(character.isprintable() for line in lines for character in line)
    assert [line.startswith("error: ") for line in lines] == [True] + [False] * (len(lines) - 1)
    assert "⟨U+001B⟩]0;owned⟨U+0007⟩" in lines[0] and "⟨U+202E⟩gnp.exe" in lines[0]


def test_each_problem_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigurationError("seed: no number", f"{HOSTILE}: no tar", "the third")
    assert str(error).startswith("seed: no number\n") and str(error).endswith("\nthe third")
    _, lines = ended(error, capsys)
    problems = [line for line in lines if line.startswith("error: ")]
    assert (
        len(problems) == 3
        and problems[0] == "error: seed: no number"
        and problems[2] == "error: the third"
    )


def test_each_problem_of_a_configuration_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse.validate({"pl": {"wokers": 2}, f"no\n{HOSTILE}": 1, "seed": "x\nerror: fake"})
    _, lines = ended(caught.value, capsys)
    assert len([line for line in lines if line.startswith("error: ")]) == 3
    assert all(character.isprintable() for line in lines for character in line)
