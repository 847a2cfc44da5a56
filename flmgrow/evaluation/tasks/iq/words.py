"""Plain words, and sentences that are made of them and mean nothing in particular."""

from dataclasses import dataclass

from flmgrow.evaluation.tasks.draws import Draws

QUALITIES = (
    "old young tall quiet clever tired cheerful careful yellow heavy broken wooden silver round "
    "empty dusty narrow gentle hungry foreign"
).split()
PEOPLE = (
    "farmer teacher doctor sailor baker painter gardener singer driver tailor soldier nurse "
    "student pilot hunter judge clerk miner"
).split()
DEEDS = (
    "carries paints repairs hides buys sells finds cleans borrows forgets admires draws measures "
    "wraps lifts"
).split()
THINGS = (
    "basket lamp chair bottle mirror ladder blanket hammer letter clock violin bucket carpet "
    "kettle umbrella candle saddle drum rope spoon pillow helmet wheel map"
).split()
PLACES = (
    "near the river,behind the church,at the market,in the forest,under the bridge,by the road,"
    "on the hill,before the storm,after the dinner,in the morning,at the harbour,without a word"
).split(",")


@dataclass(frozen=True)
class Sentence:
    """A sentence and the ``thing`` in it, which stands there once."""

    text: str
    thing: str


def sentence(draws: Draws, thing: str = "") -> Sentence:
    """Return a sentence about a thing: the one that is named, or any."""
    thing = thing or draws.choice(THINGS)
    one, other = draws.sample(QUALITIES, 2)
    words = ["The", one, draws.choice(PEOPLE), draws.choice(DEEDS), "the", other, thing]
    return Sentence(f"{' '.join(words)} {draws.choice(PLACES)}.", thing)
