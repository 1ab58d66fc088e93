"""The commands of cluster/README.md, and what tests do with them."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"


def commands(program: str | None = None) -> list[str]:
    """The lines of the README's blocks of commands; of one program, if named."""
    blocks = re.findall(r"```bash\n(.*?)```", (CLUSTER / "README.md").read_text(), re.DOTALL)
    return [
        line
        for block in blocks
        for line in block.splitlines()
        if program is None or shlex.split(line)[0] == program
    ]


def aws(line: str) -> Any:
    """Does what an `aws SERVICE OPERATION --option value ...` would do, by boto3. Gives back the
    answer, or what --query picks of it.
    """
    import boto3
    from botocore import xform_name

    words = shlex.split(line.partition(" > ")[0])
    service, operation, options = (
        words[1],
        words[2],
        dict(zip(words[3::2], words[4::2], strict=True)),
    )
    query = options.pop("--query", None)
    options.pop("--output", None)
    client = boto3.client(service, region_name="us-east-1")
    method = next(
        name for name in client.meta.method_to_api_mapping if name == operation.replace("-", "_")
    )
    shape = client.meta.service_model.operation_model(
        client.meta.method_to_api_mapping[method]
    ).input_shape
    members = {"--" + xform_name(name, "-"): name for name in shape.members}
    answer = getattr(client, method)(
        **{members[option]: _value(value) for option, value in options.items()}
    )
    return answer[query] if query else answer


def _value(text: str) -> Any:
    if text.startswith("file://"):
        return (ROOT / text.removeprefix("file://")).read_text()
    return json.loads(text) if text.startswith("[") else text


def click_contexts(line: str) -> Iterator[Any]:
    """A `ray ...` command as its own parser reads it: the contexts of the command and its
    subcommands. Nothing is run.

    Raises:
        click.UsageError: there is no such command or option, or an argument is missing.
    """
    from click import Group
    from ray.scripts.scripts import cli

    command, words = cli, shlex.split(line)
    name, rest, parent = words[0], words[1:], None
    while True:
        context = command.make_context(name, rest, parent=parent)
        yield context
        if not isinstance(command, Group):
            return
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        parent = context
