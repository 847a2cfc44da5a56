from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import UsageError
from flmgrow.storage.remote.addresses import (
    SERVICES,
    Address,
    Service,
    address_of,
    is_remote,
)

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{1,20}", fullmatch=True)


@given(st.sampled_from(SERVICES), NAMES, st.lists(NAMES, max_size=4))
def test_an_address_is_what_its_text_says(service: Service, bucket: str, parts: list[str]) -> None:
    text = "/".join([f"{service.scheme}:/", bucket, *parts])
    address = address_of(Path(text))
    assert (address.service, address.bucket, address.key) == (service, bucket, "/".join(parts))
    assert str(address) == text
    assert address_of(Path(str(address.below("x/y")))).parent == address.below("x")


@pytest.mark.parametrize("path", ["s3", "s3/b", "/s3:/b/k", "hf://org/name", "s3x://b/k", ".", ""])
def test_names_of_folders_are_none(path: str) -> None:
    assert not is_remote(Path(path))
    assert not is_remote(path)


@pytest.mark.parametrize(
    "path", ["s3://", "s3://b", "gs://a b/k", "az://-x/k", "s3://bucket/../other", "s3://a@bb/k"]
)
def test_what_names_no_bucket_or_leads_out_of_it_is_refused(path: str) -> None:
    assert is_remote(PurePosixPath(path))
    with pytest.raises(UsageError):
        address_of(PurePosixPath(path))


def test_a_bucket_lies_in_itself() -> None:
    bucket = Address(SERVICES[0], "bucket")
    assert bucket.is_bucket
    assert bucket.parent == bucket
