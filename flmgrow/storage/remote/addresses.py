"""Addresses in object stores: ``s3://BUCKET/KEY`` and its kin, told from the names of folders.

An address stands wherever a checkpoint's folder does, and must not be taken for a folder of that
name. Paths are read by ``pathlib``, which makes one slash of two; so it is the first part, ``s3:``,
that tells.
"""

import posixpath
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Self

from flmgrow.errors import UsageError
from flmgrow.text import Found, Text


@dataclass(frozen=True)
class Service:
    """A kind of object store: the word that its addresses begin with, what its buckets are called,
    what its variables begin with, and those in which it wants its credentials and another endpoint.
    """

    scheme: str
    bucket: str
    prefix: str
    credentials: str
    endpoints: tuple[str, ...]

    @property
    def form(self) -> str:
        """The form of its addresses."""
        return f"{self.scheme}://{self.bucket}/KEY"

    @property
    def container(self) -> str:
        """What its buckets are called in a sentence."""
        return self.bucket.lower()


SERVICES = (
    Service(
        "s3",
        "BUCKET",
        "AWS",
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
        ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"),
    ),
    Service("gs", "BUCKET", "GOOGLE", "GOOGLE_APPLICATION_CREDENTIALS", ("GOOGLE_BASE_URL",)),
    Service(
        "az",
        "CONTAINER",
        "AZURE",
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    ),
)
_BY_PREFIX = {f"{service.scheme}:": service for service in SERVICES}
_BUCKET = re.compile(r"[$\w][\w.-]{1,221}", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A place in an object store: an object, or a folder of those whose keys begin with it."""

    service: Service
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (f"{self.service.scheme}:/", self.bucket, self.key)))

    @property
    def is_bucket(self) -> bool:
        """Whether this is all of a bucket."""
        return not self.key

    def below(self, relative: str) -> Self:
        """Return the address at ``relative`` below this one."""
        key = posixpath.normpath(posixpath.join(self.key, relative))
        return type(self)(self.service, self.bucket, key)

    @property
    def parent(self) -> Self:
        """The folder that this lies in; a bucket lies in itself."""
        return type(self)(self.service, self.bucket, posixpath.dirname(self.key))


def is_remote(path: object) -> bool:
    """Whether a path, as given on the command line, means a place in an object store."""
    return isinstance(path, PurePath) and bool(path.parts) and path.parts[0] in _BY_PREFIX


def address_of(path: PurePath) -> Address:
    """Return what ``s3://BUCKET/KEY`` means.

    Raises:
        UsageError: What was asked for cannot be.
    """
    service, parts = _BY_PREFIX[path.parts[0]], path.parts[1:]
    bucket = parts[0] if parts else ""
    if "@" in bucket or ":" in bucket:
        raise UsageError(
            Text(f"{service.scheme}://***: holds ", Found("a user's name or a key")),
            f"set {service.credentials}: what is typed is kept by the shell",
            wanted=service.form,
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{service.scheme}://{bucket}: names no bucket", service.form)
    if {".", ".."} & set(parts):
        raise UsageError(
            "has '..' in it",
            service.form,
            where=Address(service, bucket, "/".join(parts[1:])),
            wanted="a plain key",
        )
    return Address(service, bucket, "/".join(parts[1:]))
