"""An S3 server of the tests' own, spoken to over its real protocol; nothing leaves this machine."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from evalsvc.checkpoints.remote import objects


class ObjectStore:
    def __init__(self, endpoint: str) -> None:
        self.bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        self.client: Any = boto3.client("s3", endpoint_url=endpoint)
        self.client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, content: bytes) -> str:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)
        return f"s3://{self.bucket}/{key}"

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def forget_connections() -> None:
    """Have the next ones made with the credentials and endpoints of the environment as it is then."""
    objects._shared_filesystem.cache_clear()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **CREDENTIALS}.items():
                patch.setenv(name, value)
            forget_connections()
            yield ObjectStore(f"http://{host}:{port}")
    finally:
        forget_connections()
        server.stop()
