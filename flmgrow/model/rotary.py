"""How rotary positions are computed, as settings: nothing here depends on a size that grows.

Models whose texts were made longer scale the frequencies: all alike (``interpolation``), by bands
of wavelengths as Llama 3 does (``scaling_factor``), between both by a ramp (:class:`Yarn`), or each
by a factor of its own (:class:`LongRope`). ``turning.py`` computes with them.
"""

from dataclasses import dataclass, replace

from flmgrow.errors import UsageError
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.text import Found, Text


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): slow pairs turn ``factor`` times slower, quick ones as they did.

    Slow are those that turn fewer than ``slow`` times in ``context`` positions, quick those that
    turn more than ``fast`` times; between them is a ramp over the pairs, its ends rounded to whole
    pairs if ``truncated``. Queries and keys are multiplied by ``attention``.
    """

    factor: float
    context: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float = 1.0
    truncated: bool = True

    def __post_init__(self) -> None:
        check_whole("YaRN's context", self.context)
        for name in ("factor", "fast", "slow", "attention"):
            check_finite(f"YaRN's {name}", getattr(self, name), above=0)


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024): each pair turns slower by a factor of its own.

    Those are ``short`` as long as no text of a batch is longer than ``context``, else ``long``.
    Queries and keys are multiplied by ``attention``.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    context: int
    attention: float = 1.0

    def __post_init__(self) -> None:
        check_whole("LongRoPE's context", self.context)
        check_finite("LongRoPE's attention", self.attention, above=0)
        for factor in (*self.short, *self.long):
            check_finite("LongRoPE's factor", factor, above=0)


@dataclass(frozen=True)
class RotarySettings:
    """How rotary positions are computed.

    ``base`` is theta; ``percent`` the rotated share of head_dim; ``interleaved`` rotates
    neighbouring pairs instead of halves; ``interpolation`` divides positions. ``scaling_factor`` is
    Llama 3's: pairs that turn fewer than ``scaling_slow`` times in ``scaling_context`` positions
    turn slower by it, those that turn more than ``scaling_fast`` times as they did.
    ``xpos_scale_base`` and ``xpos_centre`` belong to xPos: query and key are scaled by
    zeta ** (+-(n - centre) / scale_base) with zeta_i = (2i / d + 0.4) / 1.4 (Sun et al. 2022,
    section 3).

    Entries rotate in pairs: where the rotated share comes to an odd number, one entry more rotates,
    and the exponents of theta stay fractions of that number (megatron-core 0.16's
    ``RotaryEmbedding``, transformers 5's GPT-NeoX).
    """

    base: float = 10000.0
    percent: float = 1.0
    interleaved: bool = False
    scaling_factor: float | None = None
    scaling_slow: float = 1.0
    scaling_fast: float = 4.0
    scaling_context: int = 8192
    interpolation: float | None = None
    yarn: Yarn | None = None
    longrope: LongRope | None = None
    xpos_scale_base: float = 512.0
    xpos_centre: int = 0

    def __post_init__(self) -> None:
        check_finite("the base of rotary positions", self.base, above=0)
        check_finite("the rotated share of a head", self.percent)
        if not 0 <= self.percent <= 1:
            raise UsageError(
                Text("the rotated share of a head is ", Found(f"{self.percent:g}")), wanted="0 to 1"
            )
        for name in ("scaling_factor", "interpolation"):
            if getattr(self, name) is not None:
                check_finite(f"rotary {name.replace('_', ' ')}", getattr(self, name), above=0)
        check_finite("the slow end of rotary scaling", self.scaling_slow, above=0)
        check_finite("the fast end of rotary scaling", self.scaling_fast, above=self.scaling_slow)
        check_whole("the context of rotary scaling", self.scaling_context)
        check_finite("xPos's scale base", self.xpos_scale_base, above=0)
        check_whole("xPos's centre", self.xpos_centre, least=0)
        if self.yarn is not None and self.base <= 1:
            raise UsageError("YaRN needs a base of rotary positions above 1")

    def size(self, head_dim: int) -> int:
        """Return how many of a head's entries are to rotate; exponents are fractions of it."""
        return int(head_dim * self.percent)

    def pairs(self, head_dim: int) -> int:
        """Return how many pairs of a head's entries rotate."""
        return -(-self.size(head_dim) // 2)

    def check_for(self, head_dim: int) -> None:
        """Raise UsageError if heads of ``head_dim`` entries cannot be rotated so."""
        pairs = self.pairs(head_dim)
        if 2 * pairs > head_dim:
            raise UsageError(
                f"rotary positions turn pairs: heads of {head_dim} entries have no {pairs}",
                "rotate a smaller share of each head, or give heads an even size",
            )
        for factors in (self.longrope.short, self.longrope.long) if self.longrope else ():
            if len(factors) != pairs:
                raise UsageError(
                    f"LongRoPE has {len(factors)} factors for the {pairs} pairs of a head"
                )


def without_scaling(rotary: RotarySettings) -> RotarySettings:
    """Return settings whose bands, which have no effect without a factor, are the usual ones."""
    if rotary.scaling_factor is not None:
        return rotary
    usual = RotarySettings()
    return replace(
        rotary,
        scaling_slow=usual.scaling_slow,
        scaling_fast=usual.scaling_fast,
        scaling_context=usual.scaling_context,
    )
