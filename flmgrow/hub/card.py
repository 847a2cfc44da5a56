"""Writing the model card of an exported folder from its manifest.

A model card that somebody types is wrong about the numbers; this one is told by the manifest. What
the manifest does not say is left out, and nothing is made up. The last line carries a sum of all
before it: a page that was edited since, or written by somebody, is theirs and is left alone.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash
import yaml

from flmgrow import __version__
from flmgrow.errors import printable
from flmgrow.formats.checkpoint import HubOrigin
from flmgrow.formats.history.manifest import lineage, methods_text
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.history.parts import Member, Summary
from flmgrow.hub.evaluation import EvaluationScore
from flmgrow.model.config import ModelConfig
from flmgrow.model.wording import amount, kind_text, model_text

CARD = "README.md"
_SEAL = re.compile(rb"<!-- written by flmgrow, and left alone once edited: (\w{32}) -->\n\Z")
_LOADING = """\
from transformers import AutoModelForCausalLM{tokenizer}

model = AutoModelForCausalLM.from_pretrained({place})
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside the manifest.

    ``name`` is the repository's, or the folder's where it is not on the Hub. ``license`` is an
    identifier of the Hub's, None where nobody said.
    """

    name: str
    config: ModelConfig
    revision: str = "main"
    tokenizer: bool = False
    license: str | None = None
    scores: tuple[EvaluationScore, ...] = ()


def is_own(page: bytes) -> bool:
    """Whether flmgrow wrote a page and nobody has edited it since."""
    seal = _SEAL.search(page)
    if seal is None:
        return False
    return xxhash.xxh3_128_hexdigest(page[: seal.start()]).encode() == seal[1]


def card(manifest: Manifest, facts: CardFacts) -> bytes:
    """Return the card of the model that ``manifest`` describes, sealed."""
    members = lineage(manifest, facts.name)
    sections = [
        _front_matter(members, facts),
        _summary(manifest, facts),
        _tree(members),
        _growth(manifest),
        _receipts(members),
        _loading(facts),
        _evaluation(facts.scores),
        _origin(manifest, members),
    ]
    page = "\n".join(section for section in sections if section).encode()
    seal = xxhash.xxh3_128_hexdigest(page)
    return page + f"<!-- written by flmgrow, and left alone once edited: {seal} -->\n".encode()


def _cell(value: object) -> str:
    """Return a value out of a file as text that markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", printable(str(value)))


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table, without the columns that no row has anything in."""
    kept = [i for i in range(len(heads)) if any(row[i] != "" for row in rows)]
    yield "| " + " | ".join(heads[i] for i in kept) + " |"
    yield "|" + "---|" * len(kept)
    for row in rows:
        yield "| " + " | ".join(_cell(row[i]) for i in kept) + " |"


def _section(title: str, *lines: str) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _on_hub(members: Sequence[Member]) -> HubOrigin | None:
    """Return where on the Hub the nearest ancestor that came from it stood."""
    return next((member.hub for member in reversed(members) if member.hub is not None), None)


def _front_matter(members: Sequence[Member], facts: CardFacts) -> str:
    fields: dict[str, object] = {"license": facts.license} if facts.license else {}
    if (base := _on_hub(members)) and base.repository != facts.name:
        fields["base_model"] = base.repository
    fields |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    grown = any(member.methods for member in members)
    fields["tags"] = ["flmgrow", *(["model-growth"] if grown else [])]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _summary(manifest: Manifest, facts: CardFacts) -> str:
    title = facts.name.rpartition("/")[2]
    size = f"{amount(manifest.parameters)} parameters"
    return (
        f"# {_cell(title)}\n\n"
        f"A language model of {size}: {model_text(facts.config)}; {kind_text(facts.config)}. "
        f"Its weights are {_cell(manifest.dtype)}.\n"
    )


def _tree(members: Sequence[Member]) -> str:
    sizes = [member.parameters for member in members]
    steps = [size for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    rows = [
        (
            member.name,
            amount(member.parameters),
            "" if member.iteration is None else member.iteration,
            amount(member.tokens) if member.tokens else "",
            member.date or "",
            methods_text(member.methods or {}),
        )
        for member in members
    ]
    heads = ("model", "parameters", "iteration", "tokens seen", "date", "grown by")
    lines = list(_table(heads, rows))
    if len(steps) > 1:
        lines = [" -> ".join(map(amount, steps)), "", *lines]
    return _section("Family tree", *lines)


def _growth(manifest: Manifest) -> str:
    growth = manifest.growth
    if not growth.methods:
        return ""
    kept = "keeps" if growth.preserves_function else "does not keep"
    seed = f", with seed {growth.seed}" if growth.seed is not None else ""
    how = _cell(methods_text(growth.methods))
    line = f"The last growth ({how}{seed}) {kept} the function of the model before."
    return _section("Growth", line)


def _short(value: object) -> str:
    """Return a number as a receipt's table shows it, nothing for what is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.3g}" if number else ""


def _verdict(receipt: Summary) -> str:
    """Return what a receipt says in a word or two."""
    if not receipt.equal:
        return "DIFFERENT"
    missing = ", ".join(receipt.missing or ())
    return f"equal, NOT PROVEN: {missing}" if missing else "equal"


def _receipts(members: Sequence[Member]) -> str:
    rows = []
    for member in members:
        if (found := member.receipt) is None:
            continue
        numbers = found.numbers
        stored = numbers.get("stored_dtypes", [])
        rows.append(
            (
                member.name,
                found.source,
                _verdict(found),
                found.date or "",
                _short(numbers.get("max_logit")),
                _short(numbers.get("largest_logit")),
                _short(numbers.get("tolerance")),
                numbers.get("dtype", ""),
                " and ".join(map(str, stored)) if isinstance(stored, list) else "",
                numbers.get("tokens", ""),
            )
        )
    if not rows:
        return ""
    heads = (
        "model", "compared with", "verdict", "date", "largest difference of logits",
        "largest logit", "allowed", "computed in", "stored in", "tokens",
    )  # fmt: skip
    note = "`flmgrow verify` ran both models through one reference forward:"
    return _section("Verification", note, "", *_table(heads, rows))


def _loading(facts: CardFacts) -> str:
    place = json.dumps(facts.name)
    revision = "" if facts.revision == "main" else f", revision={json.dumps(facts.revision)}"
    code = _LOADING.format(
        tokenizer=", AutoTokenizer" if facts.tokenizer else "", place=f"{place}{revision}"
    )
    if facts.tokenizer:
        code += f"tokenizer = AutoTokenizer.from_pretrained({place}{revision})\n"
    return _section("Loading", f"```python\n{code}```")


def _evaluation(scores: Sequence[EvaluationScore]) -> str:
    if not scores:
        return ""
    rows = [(s.task, s.metric, f"{s.value:.4g}", _short(s.error)) for s in scores]
    heads = ("task", "metric", "value", "standard error")
    return _section("Evaluation", *_table(heads, rows))


def _origin(manifest: Manifest, members: Sequence[Member]) -> str:
    lines = [
        f"Written by flmgrow {_cell(manifest.flmgrow or __version__)}; `flmgrow.json` has "
        "sizes, checksums of all files, and how each index came about."
    ]
    if base := _on_hub(members):
        commit = _cell(base.commit)
        lines.append(f"It goes back to {_cell(base.repository)} at commit {commit}.")
    return _section("Provenance", *lines)
