"""What a training run keeps for every parameter, beside the weight the model computes with."""

from enum import StrEnum


class State(StrEnum):
    """One of the values kept per parameter; each is a logical tensor with the parameter's axes.

    ``MASTER`` is the float32 copy of a 16-bit weight. ``EXP_AVG`` and ``EXP_AVG_SQ`` are Adam's
    running means of the gradient and of its square.
    """

    WEIGHT = "weight"
    MASTER = "master"
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"

    @property
    def gradient_power(self) -> int:
        """Which power of the gradient the state is made of; 0 for weights."""
        return {State.EXP_AVG: 1, State.EXP_AVG_SQ: 2}.get(self, 0)
