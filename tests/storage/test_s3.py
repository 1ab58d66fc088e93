"""Images in S3: odd key names, what is missing, what fails, and how many requests it takes."""

import io
import os
import tarfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpa_ray.errors import ConfigurationError, StorageError
from mpa_ray.images import manifest
from mpa_ray.images.decode import UnreadableImage, image_id_of
from mpa_ray.images.finding import find
from mpa_ray.images.listing import files
from mpa_ray.images.parts import read_images
from mpa_ray.images.references import fetch
from mpa_ray.schema import Reason
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder
from s3 import KEY, SECRET, Failing, environment, put

LIMIT = 10_000
ODD_KEYS = [
    "a b.png",
    "a%20b.png",
    "a//b.png",
    "amp&eq=1+2.png",
    "back\\slash.png",
    "control\x01.png",
    "deep/er/x.JPG",
    "hash#offset=0&size=3.png",
    "new\nline.png",
    "q?x=1.png",
    "quote\"'.png",
    "tilde~(1)[2]{3}.png",
    "ünïcödé 图.png",
]


def parquet(**columns: list) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_a_manifest_and_its_images_with_odd_key_names(bucket: str, tmp_path: Path) -> None:
    put(bucket, {f"images/{key}": key.encode() for key in ODD_KEYS})
    put(
        bucket,
        {
            "images/notes.txt": b"-",
            "images/.hidden/x.png": b"-",
            "images/empty/": b"",
            "images-of-others/x.png": b"-",
        },
    )
    built = manifest.build(
        f"s3://{bucket}/images",
        Folder.at(tmp_path / "manifest"),
        images_per_part=5,
        bytes_per_part=2**28,
        max_image_bytes=2**26,
    )
    tables = [
        read_images(part, manifest=built, max_image_bytes=LIMIT) for part in range(built.parts)
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    # The order of the keys' bytes.
    assert [row["image"].decode() for row in rows] == sorted(ODD_KEYS, key=str.encode)
    assert all(
        row["reason"] is None and row["image_id"] == image_id_of(row["image_uri"]) for row in rows
    )
    assert all(row["image_uri"].startswith(f"s3://{bucket}/images/") for row in rows)


def test_the_manifest_itself_lies_in_s3(bucket: str) -> None:
    put(bucket, {f"images/{number}.png": b"x" for number in range(7)})
    folder = Folder.at(f"s3://{bucket}/run/manifest")
    # What an interrupted attempt left is not taken, nor kept.
    put(bucket, {"run/manifest/00009.parquet": b"stale"})
    built = manifest.build(
        f"s3://{bucket}/images",
        folder,
        images_per_part=3,
        bytes_per_part=2**28,
        max_image_bytes=2**26,
    )
    assert manifest.load(folder) == built
    assert folder.names(".parquet") == ["00000.parquet"]
    assert [built.part(number).num_rows for number in range(built.parts)] == [3, 3, 1]


def test_containers_in_s3(bucket: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("a.png", "b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    uris = [
        "c.png",
        f"s3://{bucket}/in/c.png",
        "gone.png",
        "../outside.png",
        "s3://no-such-bucket-here/x.png",
        "s3://Not A Bucket/x.png",
        "s3://x",
    ]
    put(
        bucket,
        {
            "in/t.tar": archive.getvalue(),
            "in/p.parquet": parquet(image=[b"1", b"2"]),
            "in/u.parquet": parquet(url=uris),
        },
    )
    put(bucket, {"in/c.png": b"c", "outside.png": b"-"})
    trusted = ("s3://no-such-bucket-here", "s3://Not A Bucket")
    found = fetch(
        [reference for reference, _ in find(f"s3://{bucket}/in", image_roots=trusted)],
        max_image_bytes=LIMIT,
    )
    assert [one.reason if isinstance(one, UnreadableImage) else one for one in found] == [
        *(b"c", b"1", b"2", b"a.png", b"b.png"),
        *(
            b"c",
            b"c",
            Reason.MISSING,
            Reason.OUTSIDE_ROOT,
            Reason.MISSING,
            Reason.MISSING,
            Reason.OUTSIDE_ROOT,
        ),
    ]
    found = fetch(
        [reference for reference, _ in find(f"s3://{bucket}/in")][-3:], max_image_bytes=LIMIT
    )
    assert {one.reason for one in found} == {Reason.OUTSIDE_ROOT}, (
        "buckets that nobody named are not asked for"
    )
    assert [reference for reference, _ in find(f"s3://{bucket}/in/t.tar")] == [
        f"s3://{bucket}/in/t.tar#offset={512 + 1024 * n}&size=5&member={'ab'[n]}.png"
        for n in range(2)
    ]


def test_what_is_not_there(bucket: str) -> None:
    put(bucket, {"in/a.png": b"a", "in/large.png": bytes(LIMIT + 1)})
    references = [reference for reference, _ in find(f"s3://{bucket}/in")]
    s3.client().delete_object(Bucket=bucket, Key="in/a.png")
    gone, large = fetch(references, max_image_bytes=LIMIT)
    assert isinstance(gone, UnreadableImage) and gone.reason == Reason.MISSING
    assert isinstance(large, UnreadableImage) and large.reason == Reason.TOO_MANY_BYTES
    for images in (
        f"s3://{bucket}/nowhere",
        "s3://no-such-bucket-here/in",
        f"s3://{bucket}/in/a.png",
    ):
        with pytest.raises(ConfigurationError, match="does not exist"):
            list(find(images))


def test_a_listing_goes_over_pages(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, {f"many/{number}": b"" for number in range(5)})
    monkeypatch.setattr(s3, "_PAGE", 2)
    assert [file.path for file in files(f"s3://{bucket}/many")] == [
        f"s3://{bucket}/many/{number}" for number in range(5)
    ]


def test_members_that_lie_together_are_one_request(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number in range(50):
            for extension, size in ((".png", 3000), (".json", 200)):
                member = tarfile.TarInfo(f"{number:03d}{extension}")
                member.size = size
                tar.addfile(member, io.BytesIO(bytes([number]) * size))
    put(bucket, {"t.tar": archive.getvalue()})
    references = [reference for reference, _ in find(f"s3://{bucket}/t.tar")]
    asked = []
    original = s3.read

    def read(bucket: str, key: str, **options: int) -> tuple[int, bytes | None]:
        asked.append(options)
        return original(bucket, key, **options)

    monkeypatch.setattr(s3, "read", read)
    assert fetch(references, max_image_bytes=LIMIT) == [
        bytes([number]) * 3000 for number in range(50)
    ]
    assert len(asked) == 1
    # Far apart, they are asked for by themselves.
    asked.clear()
    monkeypatch.setattr("mpa_ray.images.references._LARGEST_GAP", 10_000)
    assert fetch([references[40], references[0], references[1]], max_image_bytes=LIMIT) == [
        bytes([n]) * 3000 for n in (40, 0, 1)
    ]
    assert len(asked) == 2


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{KEY}:{SECRET}@bucket/in",
        f"s3://{KEY}@bucket/in",
        f"gs://x:{SECRET}@bucket/in",
        f"http://x:{SECRET}@host/a",
    ],
)
def test_keys_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    for use in (lambda: Folder.at(uri), lambda: next(find(uri)), lambda: next(files(uri))):
        with pytest.raises(ConfigurationError, match="credentials into the environment") as caught:
            use()
        assert SECRET not in str(caught.value) and KEY not in str(caught.value)


def test_keys_in_a_list_are_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(
        parquet(uri=["a.png", f"s3://{KEY}:{SECRET}@bucket/x.png"])
    )
    with pytest.raises(
        ConfigurationError,
        match=r"list.parquet, column 'uri', row 1: .*credentials into the environment",
    ) as caught:
        list(find(str(tmp_path)))
    assert SECRET not in str(caught.value)


def test_options_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL") as caught:
        Folder.at(f"s3://bucket/in?X-Amz-Signature={SECRET}")
    assert SECRET not in str(caught.value)


def test_credentials_come_from_the_environment_alone(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(bucket, {"a.png": b"a"})
    assert fetch([f"s3://{bucket}/a.png"], max_image_bytes=LIMIT) == [b"a"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3.client.cache_clear()
    with pytest.raises(StorageError, match="there are no credentials; set AWS_ACCESS_KEY_ID"):
        fetch([f"s3://{bucket}/a.png"], max_image_bytes=LIMIT)


def answer(code: int, error: str) -> bytes:
    return f"<Error><Code>{error}</Code><Message>-</Message></Error>".encode()


def send(
    request: BaseHTTPRequestHandler, code: int, body: bytes, length: int | None = None
) -> None:
    request.send_response(code)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
    # What was announced and does not come is not waited for.
    request.close_connection = length is not None


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts."""
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("code", "error"),
    [(503, "SlowDown"), (500, "InternalError"), (403, "AccessDenied"), (400, "ExpiredToken")],
)
def test_a_service_that_fails_ends_the_run_and_quarantines_nothing(code: int, error: str) -> None:
    with (
        Failing(lambda request: send(request, code, answer(code, error))) as server,
        environment(server.port),
    ):
        with pytest.raises(StorageError, match="s3://bucket/a.png"):
            fetch(["s3://bucket/a.png"], max_image_bytes=LIMIT)
        assert len(server.requests) == (8 if code >= 500 else 1)
        with pytest.raises(StorageError, match="s3://bucket/in/"):
            list(files("s3://bucket/in"))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("trouble", ["slow down", "reset", "cut"])
def test_a_service_that_recovers_is_waited_for(trouble: str) -> None:
    def sometimes(request: BaseHTTPRequestHandler) -> None:
        if len(server.requests) > 3:
            send(request, 200, b"whole")
        elif trouble == "slow down":
            send(request, 503, answer(503, "SlowDown"))
        elif trouble == "cut":
            send(request, 200, b"who", length=5)
        else:
            request.close_connection = True

    with Failing(sometimes) as server, environment(server.port):
        assert fetch(["s3://bucket/a.png"], max_image_bytes=LIMIT) == [b"whole"]
        assert len(server.requests) == 4


@pytest.mark.usefixtures("hurried")
def test_a_body_that_is_cut_every_time_is_no_truncated_image() -> None:
    with (
        Failing(lambda request: send(request, 200, b"who", length=5)) as server,
        environment(server.port),
    ):
        with pytest.raises(StorageError, match="s3://bucket/a.png"):
            fetch(["s3://bucket/a.png"], max_image_bytes=LIMIT)
        assert len(server.requests) == 8


def test_nothing_of_the_environment_is_in_what_is_written(bucket: str, tmp_path: Path) -> None:
    put(bucket, {"in/a.png": b"a"})
    manifest.build(
        f"s3://{bucket}/in",
        Folder.at(tmp_path / "manifest"),
        images_per_part=3,
        bytes_per_part=2**28,
        max_image_bytes=2**26,
    )
    written = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert (
        KEY.encode() not in written and os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in written
    )


def test_an_object_is_created_once_and_entries_tell_its_etag(bucket: str) -> None:
    folder = Folder.at(f"s3://{bucket}/run/commits")
    assert folder.create_json("a.json", {"by": "first"})
    assert not folder.create_json("a.json", {"by": "second"})
    assert folder.read_json("a.json") == {"by": "first"}
    put(
        bucket,
        {
            "run/commits/b.json": b"{}",
            "run/commits/deeper/c.json": b"{}",
            "run/commits-of-others/d.json": b"{}",
        },
    )
    first, second = folder.entries(".json")
    assert (
        (first.name, second.name, second.size) == ("a.json", "b.json", 2)
        and first.etag
        and first.etag != second.etag
    )
    assert Folder.at(f"s3://{bucket}/nowhere").entries() == []
