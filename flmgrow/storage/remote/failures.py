"""What failures of an object store mean, in one line of our own words.

The texts of causes are looked into, and not shown: they may hold what a server echoes.
"""

import os
import re

from flmgrow.errors import StorageError, UsageError
from flmgrow.storage.remote.addresses import Address
from flmgrow.text import Found, Text

AGAIN = "run the same command again"
OPENING = "opening the store"
"""What is done before anything is asked: the environment is read."""

_STATUS = re.compile(r"status code: (\d{3})")
_SERVER = re.compile(r"https?://[^/\s]")
_CREDENTIALS = "set {service.credentials} as the store wants them"
_SIGNS = (
    ("NoSuchBucket|ContainerNotFound", "there is no such {service.container}",
     "check the name, and the endpoint if one is set"),
    (r"Missing\w*(Key|Account)|169\.254\.169\.254|computeMetadata|must be specified",
     "no credentials were found", _CREDENTIALS),
    ("InvalidObjectState", "it is archived", "restore it from the archive first"),
    ("InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|TokenRefreshRequired|RequestTimeTooSkew"
     "|failed to authenticate|InvalidAuthenticationInfo|Unauthenticated|status code: 401",
     "its credentials are wrong or have expired", _CREDENTIALS),
    ("PermanentRedirect|without LOCATION|AuthorizationHeaderMalformed",
     "the bucket is in another region", "set AWS_REGION to that of the bucket"),
    ("PermissionDenied|status code: 403", "its credentials do not allow this", _CREDENTIALS),
    ("status code: 501", "the store does not know such requests",
     "one that takes conditional requests is wanted: see the guide on object stores"),
    ("InvalidPath", "there are keys with empty or relative parts", "rename these objects"),
    ("BadScheme", "its endpoint begins with http://, which is not allowed",
     "set {service.prefix}_ALLOW_HTTP=true if it has no certificate"),
    ("error sending request", "the server cannot be reached", "check network and endpoint"),
    ("body error", "the server broke off its answer", f"wait a while, then {AGAIN}"),
)  # fmt: skip
"""What in an error's kind or text tells of its cause, and what to do."""


def refuse_wrong_endpoint(address: Address) -> None:
    """Raise UsageError if the environment has an endpoint for ``address`` that is no server's."""
    for name in address.service.endpoints:
        if not _SERVER.match(os.environ.get(name) or "https://none"):
            raise UsageError(
                Text(name, " names ", Found("no server")),
                wanted="https://HOST or http://HOST:PORT",
                where=address,
            )


def storage_error(address: Address, doing: str, error: Exception) -> StorageError:
    """Return what an error of obstore's means that came while ``doing`` something there."""
    text, service = f"{type(error).__name__} {error}", address.service
    for sign, what, hint in _SIGNS:
        if re.search(sign, text):
            what, hint = what.format(service=service), hint.format(service=service)
            return StorageError(f"{doing} failed: {what}", hint, where=address)
    if doing == OPENING:
        what, hint = "its settings are not understood", _CREDENTIALS.format(service=service)
    else:
        found = _STATUS.search(text)
        what = f"the server answers {found[1]}" if found else f"obstore says {type(error).__name__}"
        hint = f"wait a while, then {AGAIN}"
    return StorageError(f"{doing} failed: {what}", hint, where=address)
