"""What we ask of S3 beyond pyarrow's file systems: listings as a stream, one request for an object
or a range of it, and patience.

pyarrow (`FileSystem.from_uri`) lists a prefix only as a whole, needs three requests for an object
(two HEAD, one GET), takes no key with an empty component (`a//b`), and answers `503 SlowDown` with
a request every 200 ms for 6 s. boto3's standard mode waits up to 20 s between requests, longer each
time and by chance, as S3 asks for.

Endpoint, region and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION` or
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, a profile, or the machine's role), never from a URI.
"""

import io
import os
import random
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote

from mpa_ray.errors import StorageError

SCHEME = "s3://"
# Requests for one answer, the first included: half a minute of waiting on average.
_ATTEMPTS = 8
_CONNECTIONS = 32
_PAGE = 1000
# What a service answers when the name it was asked for cannot be or is not there.
_NO_SUCH = frozenset(
    {"404", "NoSuchKey", "NoSuchBucket", "InvalidBucketName", "KeyTooLongError", "InvalidURI"}
)


@lru_cache(maxsize=1)
def client() -> Any:
    """The client of this process. Threads may share it."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=_CONNECTIONS,
        # Checksums are asked for where S3 needs them and not wherever boto3 could: other services
        # do not know them all.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A session of its own: boto3's default one must not be made by two threads at a time. boto3
    # does not read AWS_REGION, pyarrow does.
    return boto3.session.Session().client(
        "s3", region_name=os.environ.get("AWS_REGION"), config=config
    )


def place_of(uri: str) -> tuple[str, str]:
    """The bucket and the key of a percent-encoded s3:// URI."""
    bucket, _, key = unquote(uri.removeprefix(SCHEME)).partition("/")
    return bucket, key


def keys(bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    """The keys that begin with `prefix` and their sizes in bytes, in the order of their UTF-8
    bytes. Raises as `objects` does.
    """
    return ((key, size) for key, size, _ in objects(bucket, prefix))


def objects(bucket: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """The keys that begin with `prefix`, their sizes in bytes and their ETags, in the order of the
    keys' UTF-8 bytes; a page is held at a time.

    Raises:
        FileNotFoundError: there is no such bucket.
        StorageError: the service did not give the list.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    pages = iter(
        client()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=prefix, MaxKeys=_PAGE)
    )
    while True:
        try:
            page = next(pages, None)
        except (BotoCoreError, ClientError) as error:
            _raise(error, f"{SCHEME}{bucket}/{prefix}")
        if page is None:
            return
        for item in page.get("Contents", ()):
            yield item["Key"], item["Size"], item.get("ETag", "")


def size(bucket: str, key: str) -> int:
    """The bytes of an object. Raises as `read` does."""
    return _asked("head_object", bucket, key)["ContentLength"]


def read(
    bucket: str, key: str, *, start: int = 0, length: int | None = None, limit: int | None = None
) -> tuple[int, bytes | None]:
    """How many bytes the object or its range has, and what they are: None where they are more than
    `limit`, fewer where the object ends before.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: the service refused, or failed again and again.
    """
    from botocore.exceptions import (
        HTTPClientError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    asked = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
    for attempt in range(_ATTEMPTS):
        answer = _asked("get_object", bucket, key, **asked)
        body, found = answer["Body"], answer["ContentLength"]
        try:
            if limit is not None and found > limit:
                return found, None
            return found, body.read()
        # botocore repeats a request that fails, but not one whose answer breaks off.
        except (
            HTTPClientError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        ) as error:
            if attempt == _ATTEMPTS - 1:
                _raise(error, f"{SCHEME}{bucket}/{key}")
            time.sleep(random.uniform(0, min(20.0, 2.0**attempt)))
        finally:
            body.close()
    raise AssertionError("unreachable")


def create(bucket: str, key: str, data: bytes) -> bool:
    """Write an object where there is none of the name, and say whether it did: of several writers
    at a time one succeeds.

    Raises:
        StorageError: the service refused, or failed again and again.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        return True
    except (BotoCoreError, ClientError) as error:
        # 409: another request on the same key was under way.
        if not isinstance(error, ClientError) or error.response["ResponseMetadata"].get(
            "HTTPStatusCode"
        ) not in (409, 412):
            _raise(error, f"{SCHEME}{bucket}/{key}")
    # A request whose answer was lost is repeated, and the second one finds what the first has
    # written.
    return read(bucket, key)[1] == data


def _asked(operation: str, bucket: str, key: str, **options: Any) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return getattr(client(), operation)(Bucket=bucket, Key=key, **options)
    except (BotoCoreError, ClientError) as error:
        # A range that begins behind the object's end.
        if (
            isinstance(error, ClientError)
            and error.response["ResponseMetadata"].get("HTTPStatusCode") == 416
        ):
            return {"Body": io.BytesIO(), "ContentLength": 0}
        _raise(error, f"{SCHEME}{bucket}/{key}")


def _raise(error: Exception, uri: str) -> NoReturn:
    from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError

    if isinstance(error, ParamValidationError):
        raise FileNotFoundError(f"{uri} cannot be the name of an object") from error
    if isinstance(error, NoCredentialsError):
        raise StorageError(
            f"{uri}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
            " a profile"
        ) from error
    if not isinstance(error, ClientError):
        raise StorageError(f"{uri}: {error}; asked {_ATTEMPTS} times") from error
    code, status = (
        error.response["Error"].get("Code", ""),
        error.response["ResponseMetadata"].get("HTTPStatusCode"),
    )
    if code in _NO_SUCH or status == 404:
        raise FileNotFoundError(f"{uri} is not there") from error
    if status in (401, 403):
        raise StorageError(
            f"{uri}: access was refused ({code}); check the environment's credentials and what"
            " they may read"
        ) from error
    raise StorageError(f"{uri}: {error}") from error
