"""An error of one rank as plain data, and as the error that the others raise."""

from flmgrow import errors
from flmgrow.errors import FlmgrowError, LostRankError, UsageError
from flmgrow.storage.strict_json import Json
from flmgrow.text import from_data, to_data

AGAIN = "run the same command again, with any number of ranks: it resumes"

_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FlmgrowError)
}

_TEXTS = ("what", "wanted", "hint")


def described(error: BaseException, rank: int) -> Json:
    """Return what others must know of an error that a rank has met."""
    if isinstance(error, FlmgrowError):
        known = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS)
        kind, told = next(known), error
    else:
        how = f"ended with {type(error).__name__}"
        what = how if isinstance(error, Exception) else "was interrupted"
        kind, told = LostRankError.__name__, LostRankError(what, AGAIN)
    if rank:
        told = told.at(f"rank {rank}")
    texts = {name: to_data(getattr(told, name)) for name in _TEXTS}
    return {"kind": kind, "where": list(map(to_data, told.where)), **texts}


def raised(failed: Json) -> FlmgrowError:
    """Return the error that another rank has met: of the same kind, so of the same exit code."""
    texts = {name: from_data(failed[name]) for name in _TEXTS}
    return _KINDS[failed["kind"]](**texts, where=tuple(map(from_data, failed["where"])))


def another_plan(rank: int) -> UsageError:
    """Return the error of a rank that would do something else than rank 0."""
    return UsageError(
        f"rank {rank}: has another plan than rank 0",
        "all ranks need the same command and the same files: let them lie where every node sees "
        "them",
    )
