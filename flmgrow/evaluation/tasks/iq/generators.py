"""The generators by their names, and their versions.

Whoever changes a generator so that it makes other items raises its version here, and notes the new
digest in ``tests/evaluation/iq_digests.json``.
"""

from flmgrow.evaluation.tasks.iq import interference, patterns, rules
from flmgrow.evaluation.tasks.iq.items import Generator

_ALL = (
    Generator("counting_en", 1, rules.counting_en),
    Generator("counting_zh", 1, rules.counting_zh),
    Generator("replace_lowercase", 1, rules.replace_lowercase),
    Generator("replace_word", 1, rules.replace_word),
    Generator("head_tail", 1, patterns.head_tail),
    Generator("full_repeating", 1, patterns.full_repeating),
    Generator("head_slicing", 1, patterns.head_slicing, 1 / 3),
    Generator("multi_key", 1, interference.multi_key, (1 + 1 / 2 + 1 / 3) / 3),
    Generator("one_fact", 1, interference.one_fact, 1 / 6),
    Generator("two_facts", 1, interference.two_facts, 1 / 6),
)
GENERATORS = {generator.name: generator for generator in _ALL}
