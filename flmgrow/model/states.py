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

    @classmethod
    def beside_weights(cls, precision: str, *, distributed: bool) -> tuple["State", ...]:
        """Return what Adam keeps: a distributed optimizer has masters of float32 weights, too."""
        moments = (cls.EXP_AVG, cls.EXP_AVG_SQ)
        return (cls.MASTER, *moments) if distributed or precision != "float32" else moments

    @property
    def gradient_power(self) -> int:
        """Which power of the gradient the state is made of; 0 for weights."""
        return {State.EXP_AVG: 1, State.EXP_AVG_SQ: 2}.get(self, 0)


MOMENTS = (State.EXP_AVG, State.EXP_AVG_SQ)
