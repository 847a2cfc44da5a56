"""Anti-interference: what matters stands between much that does not.

The paper has pass keys, at most three, in a long irrelevant text; and stories after tasks 1 and 2
of bAbI, where a question needs one or two facts of many. Texts and worlds are made here. The
answer to a question about a place is each place equally often, whatever the story's length.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass, field

from flmgrow.evaluation.tasks.draws import Draws
from flmgrow.evaluation.tasks.iq.items import Item, Series
from flmgrow.evaluation.tasks.iq.words import sentence

KEYS = ((1, 1),) * 6 + ((2, 1), (2, 2)) * 3 + ((3, 1), (3, 2), (3, 3)) * 2
"""How many keys there are and which is asked for, all as often as they should be."""
FILLERS = (40, 60, 80)
"""How many irrelevant sentences there are: about 500 to 1,000 tokens."""
KEY_DIGITS = 5

PERSONS = ("Anna", "Ben", "Clara", "David", "Emma", "Frank")
PLACES = ("attic", "cellar", "garden", "kitchen", "library", "office")
OBJECTS = ("apple", "book", "coin", "letter")
MOVES = ("went to", "moved to", "walked to", "travelled to")
TAKES = ("took", "picked up", "grabbed")
DROPS = ("put down", "dropped", "left")
LENGTHS_OF_ONE = (2, 4, 6, 8, 10)
LENGTHS_OF_TWO = (4, 6, 8, 10, 12)
"""How many statements a story has for one fact, and for two."""


def multi_key(series: Series) -> Iterator[Item]:
    """Yield long texts that hold keys, one of which is asked for."""
    (count, asked), fillers = series.turn("keys", KEYS), series.turn("fillers", FILLERS)
    while True:
        yield _hidden_keys(series, count, asked, fillers)
        (count, asked), fillers = series.choice(KEYS), series.choice(FILLERS)


def _hidden_keys(draws: Draws, count: int, asked: int, fillers: int) -> Item:
    keys: list[str] = []
    while len(keys) < count:
        key = draws.text(string.digits, KEY_DIGITS)
        if key not in keys:
            keys.append(key)
    sentences = [sentence(draws).text for _ in range(fillers)]
    places = sorted(draws.sample(range(fillers), count), reverse=True)
    for place, number in zip(places, range(count, 0, -1), strict=True):
        sentences.insert(place, f"Pass key {number} is {keys[number - 1]}. Remember it.")
    return Item(
        "Some important information is hidden in a lot of irrelevant text. Find it and remember "
        f"it: there will be a question about it.\n{' '.join(sentences)}\n"
        f"Question: What is pass key {asked}?\nAnswer: Pass key {asked} is",
        keys[asked - 1],
    )


def one_fact(series: Series) -> Iterator[Item]:
    """Yield stories of persons who move, and ask where one is."""
    place, length = series.turn("place", PLACES), series.turn("length", LENGTHS_OF_ONE)
    while True:
        yield _where_is_a_person(series, place, length)
        place, length = series.choice(PLACES), series.choice(LENGTHS_OF_ONE)


def two_facts(series: Series) -> Iterator[Item]:
    """Yield stories of persons who move and carry objects, and ask where an object is."""
    place, length = series.turn("place", PLACES), series.turn("length", LENGTHS_OF_TWO)
    while True:
        yield _where_is_an_object(series, place, length)
        place, length = series.choice(PLACES), series.choice(LENGTHS_OF_TWO)


@dataclass
class StoryWorld:
    """Where persons are and who carries what, as the ``story`` tells it.

    What is in neither ``persons`` nor ``objects`` was not spoken of. An object is at a place, or
    with a person.
    """

    persons: dict[str, str] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)

    def place_of(self, name: str) -> str | None:
        """Return where an object is, or a person; None where the story does not tell."""
        holder = self.objects.get(name, name)
        return holder if holder in PLACES else self.persons.get(holder)

    def happen(self, draws: Draws) -> None:
        """Let somebody move, take an object or put one down; half of the time it is a move."""
        person = draws.choice(PERSONS)
        carried = [thing for thing in OBJECTS if self.objects.get(thing) == person]
        if draws.below(2):
            self.move(draws, person, draws.choice([p for p in PLACES if p != self._at(person)]))
        elif carried and self._at(person):
            thing = draws.choice(carried)
            self.objects[thing] = self.persons[person]
            self._tell(draws, person, DROPS, thing)
        elif near := [thing for thing in OBJECTS if self._in_reach(person, thing)]:
            thing = draws.choice(near)
            self.objects[thing] = person
            self._tell(draws, person, TAKES, thing)

    def move(self, draws: Draws, person: str, place: str) -> None:
        """Let a person go to a place."""
        self.persons[person] = place
        self._tell(draws, person, MOVES, place)

    def _in_reach(self, person: str, thing: str) -> bool:
        """Whether a person can take an object: one that nobody spoke of may be anywhere."""
        return thing not in self.objects or self.objects[thing] == self._at(person)

    def _at(self, person: str) -> str | None:
        return self.persons.get(person)

    def _tell(self, draws: Draws, person: str, verbs: tuple[str, ...], what: str) -> None:
        self.story.append(f"{person} {draws.choice(verbs)} the {what}.")


def _where_is_a_person(draws: Draws, place: str, length: int) -> Item:
    """One who goes to the place at some point of the story, and nowhere after that."""
    while True:
        asked, last = draws.choice(PERSONS), draws.below(length)
        others = [person for person in PERSONS if person != asked]
        world = StoryWorld()
        for step in range(length):
            person = asked if step == last else draws.choice(PERSONS if step < last else others)
            elsewhere = [p for p in PLACES if p != world.persons.get(person)]
            world.move(draws, person, place if step == last else draws.choice(elsewhere))
            if step == last - 1 and world.persons.get(asked) == place:
                break  # from where there is no way to it
        else:
            return _question(world, asked, place)


def _where_is_an_object(draws: Draws, place: str, length: int) -> Item:
    """One that is at the place when the story ends: stories are told until there is one."""
    while True:
        world = StoryWorld()
        while len(world.story) < length:
            world.happen(draws)
        there = [thing for thing in OBJECTS if world.place_of(thing) == place]
        if there:
            return _question(world, f"the {draws.choice(there)}", place)


def _question(world: StoryWorld, asked: str, place: str) -> Item:
    story = "\n".join(world.story)
    return Item(f"{story}\nQuestion: Where is {asked}?\nAnswer:", place)
