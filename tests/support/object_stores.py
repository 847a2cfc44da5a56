"""The object stores that tests run over, one after the other: the same tests, on other servers."""

import pytest
from azure_store import AZURITE, AzureStore
from google_store import GoogleStore
from object_store import ObjectStore

S3 = pytest.param(ObjectStore, id="s3")
AZURE = pytest.param(
    AzureStore,
    id="az",
    marks=[
        pytest.mark.slow,
        pytest.mark.long,
        pytest.mark.skipif(not AZURITE, reason="FLMGROW_AZURITE names no azurite-blob"),
    ],
)
STORES = [S3, pytest.param(GoogleStore, id="gs", marks=pytest.mark.slow), AZURE]
CHECKING_STORES = STORES[1:]
"""Those that check who asks, as the services do; moto does not."""

THOROUGH_STORES = [
    S3, pytest.param(GoogleStore, id="gs", marks=[pytest.mark.slow, pytest.mark.long]), AZURE,
]  # fmt: skip
"""For tests that let request after request fail, or run in ranks: they take minutes for a store."""
