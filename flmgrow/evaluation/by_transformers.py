"""The harness's own model over transformers, with what it asserts told as a user's mistake."""

from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from flmgrow.evaluation.room import check_room


class TransformersModel(HFLM):  # type: ignore[misc]  # the harness has no types
    """``HFLM`` that looks first whether a task can be answered at all."""

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what each context goes on with, up to the texts that end it.

        Raises:
            UsageError: Where a task asks for more new tokens than the model reads.
        """
        check_room(requests, self.max_length)
        texts: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return texts
