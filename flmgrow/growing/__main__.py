"""``torchrun ... -m flmgrow.growing STAGE.yaml``: one rank of a stage that grows after another.

It is a rank of the trainer, which is given what it must not know itself: how a model grows.
"""

import sys
from typing import TYPE_CHECKING

from flmgrow.trainer.__main__ import main

if TYPE_CHECKING:
    from flmgrow.trainer.live import Growing


def _growing() -> "Growing":
    from flmgrow.growing.in_place import GrowthInPlace  # loads torch: when that is ready for it

    return GrowthInPlace()


if __name__ == "__main__":
    sys.exit(main(_growing))
