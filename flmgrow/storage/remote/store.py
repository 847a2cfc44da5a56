"""Requests to an object store, each with its failures as one of flmgrow's errors.

Everything that is asked of an object store goes through here. ``obstore`` does the talking: it
takes endpoints and credentials from the environment, and repeats what may be repeated (errors of
the server, throttling, bodies that are cut off). What is left over becomes one line of our own
words. What a server says is not shown: it may echo what it was sent.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from flmgrow.errors import BadCheckpointError, FlmgrowError, UsageError
from flmgrow.storage.remote.addresses import Address
from flmgrow.storage.remote.failures import OPENING, refuse_wrong_endpoint, storage_error

if TYPE_CHECKING:
    from obstore import ListResult, ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")

ATTEMPTS = 8
"""How often a request is made until its failure counts."""
PAUSE = timedelta(milliseconds=250)
"""The pause after the first failure; each is twice as long as the one before."""
LONGEST_PAUSE = 40 * PAUSE
PATIENCE = timedelta(minutes=3)


@dataclass(frozen=True)
class FoundObject:
    """An object as a list or an answer describes it; ``tag`` changes with its bytes.

    ``version`` is what some services want besides to replace it, and do not tell in lists.
    """

    size: int
    tag: str | None
    modified: datetime
    version: str | None = field(default=None, compare=False)


_attempts: ContextVar[int | None] = ContextVar("attempts", default=None)


@contextmanager
def hurried() -> Iterator[None]:
    """Be less patient in the block: what is done there may be left undone."""
    token = _attempts.set(2)
    try:
        yield
    finally:
        _attempts.reset(token)


@lru_cache
def _store(scheme: str, bucket: str, attempts: int) -> "ObjectStore":
    from obstore.store import from_url

    return from_url(
        f"{scheme}://{bucket}",
        retry_config={
            "max_retries": attempts - 1,
            "retry_timeout": PATIENCE,
            "backoff": {"init_backoff": PAUSE, "max_backoff": LONGEST_PAUSE, "base": 2},
        },
    )


def forget() -> None:
    """Let the environment be looked at anew."""
    _store.cache_clear()


def store_of(address: Address) -> "ObjectStore":
    """Return the store that ``address`` is in, as the environment describes it.

    Raises:
        UsageError: Without obstore, or if a variable names no server.
        StorageError: If the environment is not understood.
    """
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise UsageError(
            "the package obstore is not installed",
            "pip install 'flmgrow[object-store]'",
            where=address,
        ) from None
    refuse_wrong_endpoint(address)
    attempts = _attempts.get() or ATTEMPTS
    with _told(address, OPENING):
        return _store(address.service.scheme, address.bucket, attempts)


class ChangedError(BadCheckpointError):
    """An object is not the one that was wanted any more."""


def changed_error(address: Address) -> ChangedError:
    """Return the refusal of an object that somebody else writes."""
    return ChangedError(
        "changed while it was being used",
        "wait until nothing writes to it, then run the command again",
        where=address,
    )


def ask(address: Address, doing: str, call: Callable[[], T]) -> T:
    """Return what ``call`` returns; every failure of obstore's in it is an error of ``address``.

    A signal is answered while a request is on its way.

    Raises:
        BadCheckpointError: For what is not there.
        ChangedError: For an object that is not as the request wants it.
        StorageError: For all else.
    """
    with _told(address, doing):
        if threading.current_thread() is threading.main_thread():
            return _waited_for(call)
        return call()


def _waited_for(call: Callable[[], T]) -> T:
    """Return what ``call`` returns in a thread of its own: Python answers signals while it waits
    there, but not while a library does.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result()


@contextmanager
def _told(address: Address, doing: str) -> Iterator[None]:
    """Turn failures in the block into errors as said above. The texts of the causes, which may hold
    what a server echoes, are dropped.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except FlmgrowError:
        raise
    except FileNotFoundError:
        raise BadCheckpointError(
            "does not exist", "check bucket and key, and the endpoint if one is set", where=address
        ) from None
    except (PreconditionError, AlreadyExistsError):
        raise changed_error(address) from None
    except (BaseError, OSError, ValueError) as error:
        raise storage_error(address, doing, error) from None


def patiently(call: Callable[[], T]) -> T:
    """Return what ``call`` returns, repeated if an answer breaks off; it must be repeatable."""
    from obstore.exceptions import GenericError

    pause = PAUSE
    for _ in range(ATTEMPTS - 1):
        try:
            return call()
        except GenericError as error:
            if "body error" not in str(error):
                raise
            time.sleep(pause.total_seconds())
            pause = min(2 * pause, LONGEST_PAUSE)
    return call()


def look(address: Address) -> FoundObject | None:
    """Return what is known of an object, None if there is none.

    Raises:
        StorageError: The store failed, or does not answer.
    """
    store = store_of(address)
    import obstore

    def looked() -> FoundObject | None:
        try:
            return found_in(obstore.head(store, address.key))
        except FileNotFoundError:
            return None

    return ask(address, "looking up", looked)


def list_below(address: Address) -> dict[str, FoundObject]:
    """Return all objects below a folder, by their keys.

    Raises:
        StorageError: The store failed, or does not answer.
    """
    store = store_of(address)
    import obstore

    def listed() -> list["ObjectMeta"]:
        return [each for page in obstore.list(store, address.key or None) for each in page]

    objects = ask(address, "listing", lambda: patiently(listed))
    return {each["path"]: found_in(each) for each in objects}


def list_beside(address: Address) -> tuple[list[str], dict[str, FoundObject]]:
    """Return the keys of the folders right below ``address``, and the objects there by theirs.

    Raises:
        StorageError: The store failed, or does not answer.
    """
    store = store_of(address)
    import obstore

    def listed() -> "ListResult[Sequence[ObjectMeta]]":
        return obstore.list_with_delimiter(store, address.key or None)

    answer = ask(address, "listing", lambda: patiently(listed))
    objects = {each["path"]: found_in(each) for each in answer["objects"]}
    return list(answer["common_prefixes"]), objects


def found_in(meta: "ObjectMeta") -> FoundObject:
    """Return what a list or an answer says, in one form: some services leave out the quotes of a
    tag in lists, and fractions of a second in answers.
    """
    tag, modified = meta["e_tag"], meta["last_modified"].astimezone(UTC).replace(microsecond=0)
    plain = tag is not None and not tag.endswith('"')
    return FoundObject(meta["size"], f'"{tag}"' if plain else tag, modified, meta["version"])


def read_range(address: Address, found: FoundObject, start: int, count: int) -> memoryview:
    """Return ``count`` bytes of an object, which must still be the one that was ``found``.

    Raises:
        BadCheckpointError: If it is gone or another now.
        StorageError: The store failed, or does not answer.
    """
    if not count:
        return memoryview(b"")
    store = store_of(address)
    import obstore

    def read() -> memoryview:
        answer = obstore.get(
            store,
            address.key,
            options={"range": (start, start + count), "if_match": found.tag},
        )
        data = memoryview(answer.bytes())
        if answer.meta["size"] != found.size or data.nbytes != count:
            raise ChangedError(
                f"{answer.meta['size']} bytes, listed with {found.size}",
                "wait until nothing writes to it, then run the command again",
                where=address,
            )
        return data

    return ask(address, "reading", read)
