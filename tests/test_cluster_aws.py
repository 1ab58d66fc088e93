"""`ray up` on AWS, by the README's own commands, against moto: rights, nodes, and what they may
touch.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import s3 as server
from cluster_readme import CLUSTER, aws, commands
from mpa_ray.errors import StorageError
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import lease

moto = pytest.importorskip("moto", reason="moto is not installed (it is in the dev extra)")

CONFIGURATIONS = ["aws-l40s.yaml", "aws-p5.yaml"]


def policy(name: str) -> dict[str, Any]:
    return json.loads((CLUSTER / name).read_text())


@pytest.mark.parametrize("name", ["iam-storage.json", "iam-launcher.json"])
def test_policies_are_sound_and_name_their_actions(name: str) -> None:
    parliament = pytest.importorskip(
        "parliament", reason="parliament is not installed (it is in the dev extra)"
    )
    for statement in policy(name)["Statement"]:
        actions = (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in actions), (
                "these cannot be narrowed"
            )
    findings = parliament.analyze_policy_string((CLUSTER / name).read_text()).findings
    # It wants all kinds of resources of RunInstances in one statement; apart, the condition on
    # instances does not bind the others.
    real = [
        found
        for found in findings
        if not all(part["action"] == "ec2:RunInstances" for part in found.detail)
    ]
    assert not real


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An AWS account in which the README's `aws` commands were given, as someone who may what
    iam-launcher.json says. The id of the security group.
    """
    import boto3
    from moto import settings
    from moto.core.responses import ActionAuthenticatorMixin

    for name, value in {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": server.KEY,
        "AWS_SECRET_ACCESS_KEY": server.SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        boto3.setup_default_session()
        for line in commands("aws"):
            answer = aws(line)
            if "create-key-pair" in line:
                (tmp_path / ".ssh" / "mpa-ray.pem").write_text(answer)
        group = boto3.client("ec2", region_name="us-east-1").describe_security_groups(
            GroupNames=["mpa-ray"]
        )["SecurityGroups"][0]
        assert [rule.get("FromPort") for rule in group["IpPermissions"] if rule["IpRanges"]] == [
            22
        ], "ssh alone from outside"
        # moto knows which actions are allowed, but not on which of EC2's resources.
        allowed = [
            {"Effect": "Allow", "Action": part["Action"], "Resource": "*"}
            for part in policy("iam-launcher.json")["Statement"]
        ]
        key = _key_for(
            {"Version": "2012-10-17", "Statement": allowed},
            boto3.client("iam", region_name="us-east-1"),
        )
        for name, value in key.items():
            monkeypatch.setenv(name, value)
        boto3.setup_default_session()
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
        monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
        yield group["GroupId"]
    boto3.setup_default_session()


def _key_for(document: dict[str, Any], iam: Any) -> dict[str, str]:
    """Credentials of a new user who may what `document` says, as environment variables."""
    iam.create_user(UserName="somebody")
    iam.put_user_policy(
        UserName="somebody", PolicyName="rights", PolicyDocument=json.dumps(document)
    )
    key = iam.create_access_key(UserName="somebody")["AccessKey"]
    return {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
    }


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ray_up_starts_every_kind_of_node_with_the_launchers_rights(
    name: str, account: str
) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache
    from ray.autoscaler._private.util import prepare_config, validate_config

    for cache in (client_cache, resource_cache):
        # They hold the credentials of whoever asked before.
        cache.cache_clear()
    config = prepare_config(
        yaml.safe_load((CLUSTER / name).read_text().replace("sg-0123456789abcdef0", account))
    )
    validate_config(config)
    config = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    gpus = {}
    for kind, node_type in config["available_node_types"].items():
        (node,) = provider.create_node(
            node_type["node_config"], {"ray-node-type": "worker", "ray-user-node-type": kind}, 1
        ).values()
        gpus[kind] = node_type["resources"].get("GPU", 0)
        assert node.iam_instance_profile["Arn"].endswith(
            ":instance-profile/mpa-ray-head" if kind == "head" else "/mpa-ray-worker"
        )
        assert (
            node.metadata_options["HttpTokens"] == "required"
            and node.metadata_options["HttpPutResponseHopLimit"] == 1
        )
        assert (node.instance_lifecycle == "spot") == (kind in ("cpu", "svlm", "lvlm"))
        assert node_type.get("labels", {}).get("ray.io/market-type", "on-demand") == (
            node.instance_lifecycle or "on-demand"
        )
        assert node_type["min_workers"] == 0
        provider.terminate_node(node.id)
    assert not provider.non_terminated_nodes({})
    assert gpus in ({"head": 0, "cpu": 0, "svlm": 1, "lvlm": n, "training": n} for n in (4, 8))


def test_the_launcher_may_nothing_else(account: str) -> None:
    import boto3
    from botocore.exceptions import ClientError

    for call in (
        lambda: boto3.client("s3").list_buckets(),
        lambda: boto3.client("ec2", region_name="us-east-1").stop_instances(
            InstanceIds=["i-0123456789abcdef0"]
        ),
        lambda: boto3.client("iam").create_user(UserName="another"),
    ):
        with pytest.raises(ClientError, match="AccessDenied|not authorized"):
            call()


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 that keeps to iam-storage.json, as a node of ours sees it; and a client who may
    everything.
    """
    import boto3

    port = server.free_port()
    with (tmp_path / "log").open("wb") as log:
        command = [
            sys.executable,
            "-c",
            "from moto.server import main; main()",
            "-H",
            "127.0.0.1",
            "-p",
            str(port),
        ]
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=log,
            stderr=log,
        )
    try:
        for name, value in server.settings(port).items():
            monkeypatch.setenv(name, value)
        _wait_for(port, process, tmp_path / "log")
        for bucket in ("your-images", "your-models", "your-output", "elsewhere"):
            boto3.client("s3").create_bucket(Bucket=bucket)
            boto3.client("s3").put_object(Bucket=bucket, Key="images/a.jpg", Body=b"a")
        for name, value in _key_for(policy("iam-storage.json"), boto3.client("iam")).items():
            monkeypatch.setenv(name, value)
        address = f"http://127.0.0.1:{port}/moto-api/reset-auth"
        urllib.request.urlopen(
            urllib.request.Request(address, data=b"0", headers={"Content-Type": "text/plain"})
        ).close()
        s3.client.cache_clear()
        yield
    finally:
        process.kill()
        process.wait()
        s3.client.cache_clear()


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_a_node_may_what_a_run_does_and_no_more(guarded: None) -> None:
    import pyarrow as pa
    from botocore.exceptions import ClientError

    assert [key for key, _ in s3.keys("your-images", "images/")] == ["images/a.jpg"]
    assert s3.read("your-images", "images/a.jpg") == (1, b"a")
    with pytest.raises(FileNotFoundError):
        s3.read("your-images", "images/gone.jpg")
    run = Folder.at("s3://your-output/runs/1")
    with lease(run) as held:
        held.check()
        run.write_json("run.json", {"a": 1})
        run.write_table("annotations/part-00000000.parquet", pa.table({"a": [1]}))
        assert run.exists("run.json") and not run.exists("config.json")
        assert run.child("annotations").names(".parquet") == ["part-00000000.parquet"]
        run.delete("run.json")
    for bucket, key in (
        ("your-images", "private.jpg"),
        ("your-output", "elsewhere/x"),
        ("elsewhere", "images/a.jpg"),
    ):
        with pytest.raises(StorageError, match="refused"):
            s3.read(bucket, key)
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.client().put_object(Bucket="your-images", Key="images/b.jpg", Body=b"b")
