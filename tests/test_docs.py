"""Documents that nobody runs are wrong within a month: here they are run.

Every command stands in the documentation, the generated reference is fresh, links lead somewhere,
the guides' commands are carried out as they stand, and what is said of files, tests and the
manifest is compared with the real ones.
"""

import ast
import gzip
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from commands import flmgrow
from hub_places import hub_at
from pico import CONFIGS, even, make_checkpoint
from pico_buckets import BUCKETS, make_bucket_checkpoint
from quoted_words import settings
from repository import FOLDERS, ROOT, find_modules
from sampling import sample
from speakers import make_named
from tiny_tokenizers import make_jsonl, make_ranks

from flmgrow.stages.schedule import read_schedule
from flmgrow.text import COMMAND_LINE
from flmgrow.trainer.data.corpus_files import open_corpus_files
from flmgrow.trainer.data.tokenizers import open_tokenizer
from flmgrow.trainer.stage.file import read_stage

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [
    ROOT / "docs" / "guides" / f"{name}.md"
    for name in ("dp-reshardable", "grow", "reshard", "verify", "huggingface", "data")
]
CONCEPTS = [
    ROOT / "docs" / "concepts" / f"{name}.md"
    for name in ("axes-and-roles", "masks", "optimizer-state")
]
REFERENCE = "docs/reference/cli.md"
ROW_NAME = re.compile(r"(?:[a-z]+\.)?[A-Z0-9_]+\.name")
"""A name that stands in its row: of an argument, or of a field of ``config.json``."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_PRIVATE = re.compile(r"/(?:work|tmp|home|root|shared)\b")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *kinds: str) -> Iterator[str]:
    """The fenced blocks of a page, of these kinds."""
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match[1] in kinds:
            yield match[2]


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def shown_commands(page: Path, *more: str) -> Iterator[tuple[list[str], int, list[str]]]:
    """Each ``flmgrow`` command on a page, the exit code that the page shows (else 0), the output.

    Blocks of kind ``log`` show what took files that are not here: they count only as one ``more``.
    """
    for block in blocks(page, "console", "sh", "text", *more):
        lines = block.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith(("$ flmgrow ", "flmgrow "))]
        for start in starts:
            following = (i for i in range(start + 1, len(lines)) if lines[i].startswith("$ "))
            after = next(following, len(lines))
            told = lines[after : after + 1] == ["$ echo $?"]
            yield (
                shlex.split(lines[start].removeprefix("$ "))[1:],
                int(lines[after + 1]) if told else 0,
                lines[start + 1 : after],
            )


def checks_in(output: list[str]) -> list[str]:
    """What verify's lines speak of, and what it made of each, without their numbers."""
    return [" ".join(re.split(r" {2,}", line)[:2]) for line in output]


def make_texts(folder: Path) -> None:
    """The texts that the guide to data names, and a small vocabulary under the large one's name."""
    make_ranks(folder / "cl100k_base.tiktoken")
    lines = make_jsonl(folder / "english.jsonl", [f"the thing {i}" for i in range(99)]).read_bytes()
    (folder / "english.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "chinese.txt").write_text("床前明月光 疑是地上霜 " * 9, encoding="utf-8")
    bad = ('{"text": "fine"}', '{"txt": "not fine"}', '{"text": null}')
    (folder / "broken.jsonl").write_text("\n".join(bad))


def make_run(path: Path) -> None:
    """What a run with the distributed optimizer saves by default, of two replicas."""
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    made, _ = make_bucket_checkpoint(path.with_name("made"), "llama", layout, **BUCKETS)
    made.rename(path)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = _HEADING.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.replace(" ", "-") for text in plain}


def test_the_reference_is_fresh() -> None:
    found = (ROOT / REFERENCE).read_text(encoding="utf-8")
    assert found == generator().reference(), "run make docs"


def test_every_command_is_documented() -> None:
    guides = "".join(
        page.read_text(encoding="utf-8") for page in PAGES if name_of(page) != REFERENCE
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in generator().commands():
        assert f"`flmgrow {command}`" in readme
        assert f"$ flmgrow {command} " in guides


def test_every_word_says_where_it_lives() -> None:
    rows = (ROOT / "docs" / "README.md").read_text(encoding="utf-8").partition("## Words")[2]
    words = [line.strip("| ").split(" | ") for line in rows.splitlines() if line.startswith("| ")]
    missing = [row[0] for row in words[1:] if not (ROOT / row[2].strip("`")).is_file()]
    assert len(words) > 30
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_no_path_of_a_machine(page: Path) -> None:
    assert not _PRIVATE.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shown_commands_have_such_options(page: Path) -> None:
    for words, _, _ in shown_commands(page, "log"):
        outcome = flmgrow(*words, "--help")
        assert outcome.code == 0, f"{' '.join(words)}: {outcome.err}"


@pytest.mark.parametrize("page", sample([*GUIDES, *CONCEPTS], *GUIDES), ids=name_of)
def test_commands_do_as_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of a page, one after the other, on a tiny checkpoint of the same kind; the Hub
    is one on loopback. Each of verify's lines is shown.
    """
    monkeypatch.chdir(tmp_path)
    layout = even(CONFIGS["llama"], tp=2, pp=2)
    make_checkpoint(tmp_path / "ckpt-small", "llama", layout, dtype="float32")
    make_checkpoint(tmp_path / "ckpt-adam", "llama", layout, dtype="bfloat16", optimizer=True)
    make_run(tmp_path / "ckpt-run")
    make_texts(tmp_path)
    make_named(tmp_path / "smollm2-135m")
    for text in blocks(page, "yaml"):
        (tmp_path / "target.yaml").write_text(text, encoding="utf-8")
        assert flmgrow("expand", "ckpt-small", "x", "--to", "target.yaml", "--dry-run").code == 0
    ran = 0
    with hub_at(tmp_path, monkeypatch):
        for words, code, shown in shown_commands(page):
            outcome = flmgrow(*words)
            assert outcome.code == code, f"{' '.join(words)}: {outcome.out}{outcome.err}"
            if words[0] == "verify" and shown and "..." not in shown:
                assert checks_in(shown) == checks_in(outcome.out.splitlines())
            ran += 1
    assert ran


def test_the_guides_read_what_the_guide_to_data_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage and the schedule that they show, on its corpora, with its tokenizer."""
    monkeypatch.chdir(tmp_path)
    make_texts(tmp_path)
    guides = ROOT / "docs" / "guides"
    for words, _, _ in shown_commands(guides / "data.md"):
        flmgrow(*words)
    sections = []
    for name in ("train", "run"):
        example = next(blocks(guides / f"{name}.md", "yaml"))
        (tmp_path / f"{name}.yaml").write_text(example, encoding="utf-8")
    sections.append(read_stage(tmp_path / "train.yaml").data)
    sections += [planned.stage.data for planned in read_schedule(tmp_path / "run.yaml")]
    for section in sections:
        tokenizer = open_tokenizer(section.tokenizer, section.eod)
        for corpus in section.corpora:
            assert open_corpus_files(corpus.path, tokenizer).files


def modules_by_folder() -> dict[str, set[str]]:
    """The files of every folder of the library that hold anything, by the folder's path."""
    found: dict[str, set[str]] = {}
    for path in find_modules().values():
        if len(ast.parse(path.read_text(encoding="utf-8")).body) > 1:
            folder = f"{path.parent.relative_to(ROOT).as_posix()}/"
            found.setdefault(folder, set()).add(path.name)
    return found


def test_the_table_of_folders_is_the_tree() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+/)` \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    listed = {
        folder: [f"{name}.py" for name in re.findall(r"`(\w+)`", row)] for folder, row in rows
    }
    assert len(listed) == len(rows)
    assert all(len(files) == len(set(files)) for files in listed.values())
    assert {folder: set(files) for folder, files in listed.items()} == modules_by_folder()


def test_every_file_is_described_once() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, listing = page.partition("## File by file")
    told: dict[str, list[str]] = {}
    for part in re.split(r"^\*\*", listing, flags=re.MULTILINE)[1:]:
        folder, _, rest = part.partition("**")
        told[folder.strip("`")] = re.findall(r"^- `(\w+\.py)`: .", rest, re.MULTILINE)
    assert all(len(files) == len(set(files)) for files in told.values())
    assert {folder: set(files) for folder, files in told.items()} == modules_by_folder()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, _, test in re.findall(r"`((?!megatron/)(?:\w+/)+\w+\.py)(::(\w+))?`", text):
        assert (ROOT / path).is_file(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


def test_the_manifests_fields_are_listed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "concepts" / "manifest.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    source = make_checkpoint(tmp_path / "a", "llama")
    assert flmgrow("expand", source, tmp_path / "b", "--hidden-size", 16).code == 0
    assert flmgrow("verify", source, tmp_path / "b").code == 0
    manifest = json.loads((tmp_path / "b" / "flmgrow.json").read_text(encoding="utf-8"))
    inner = [f"{key}.{name}" for key in ("source", "growth", "receipt") for name in manifest[key]]
    assert sorted(listed) == sorted([*manifest, *inner])
    function = next(check for check in manifest["receipt"]["checks"] if check["name"] == "function")
    for name in function.keys() - {"name", "passed", "detail"}:
        assert f"`{name}`" in page


def test_exit_codes_are_listed() -> None:
    from flmgrow import errors

    page = (ROOT / "docs" / "guides" / "when-things-go-wrong.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.FlmgrowError)}
    listed = re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)
    assert {str(code) for code in codes} <= {code for row in listed for code in row.split(", ")}


def string_constants() -> str:
    """Every string in the library; adjacent literals are one, and names of rows are filled in."""
    found: list[str] = []
    for name, path in find_modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found.extend(on_the_command_line(node) for node in ast.walk(tree))
        found.extend(wanting(node) for node in ast.walk(tree))
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
        if any(ROW_NAME.search(ast.unparse(node)) for node in strings):
            namespace = vars(importlib.import_module(name))
            found.extend(filled(node, namespace) for node in strings)
            found.extend(placed(node, namespace) for node in ast.walk(tree))
            found.extend(wanting(node, namespace) for node in ast.walk(tree))
    return "\n".join(found)


def on_the_command_line(node: ast.AST) -> str:
    """A text that names settings, as commands print it; other values are line ends."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "Text":
        return ""
    parts = []
    for part in node.args:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        elif isinstance(part, ast.JoinedStr):
            parts.append(filled(part))
        else:
            name = next((each.value for each in settings(part)), None)
            parts.append("\n" if name is None else COMMAND_LINE.name(str(name)))
    return "".join(parts)


def placed(node: ast.AST, namespace: dict[str, object]) -> str:
    """What an error says that is of a row's field or argument: the name stands before it."""
    where = given(node, "where")
    if not isinstance(node, ast.Call) or not isinstance(where, ast.Tuple):
        return ""
    return f"{named(ast.unparse(where.elts[-1]), namespace)}: {plain(node.args[0], namespace)}"


def wanting(node: ast.AST, namespace: dict[str, object] | None = None) -> str:
    """What an error says was found, and wanted."""
    wanted = given(node, "wanted")
    if not isinstance(node, ast.Call) or wanted is None:
        return ""
    texts = (ast.Constant, ast.JoinedStr, ast.Call)
    what = next((each for each in node.args if isinstance(each, texts)), ast.Constant(""))
    return f"{plain(what, namespace)}, wanted {plain(wanted, namespace)}"


def given(node: ast.AST, name: str) -> ast.AST | None:
    """The value of a call's argument that is given by name."""
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return next((keyword.value for keyword in keywords if keyword.arg == name), None)


def plain(node: ast.AST, namespace: dict[str, object] | None) -> str:
    """A string as far as it is written out."""
    if isinstance(node, ast.JoinedStr):
        return filled(node, namespace)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Text", "Found"):
        return "".join(plain(part, namespace) for part in node.args)
    return str(node.value) if isinstance(node, ast.Constant) else "\n"


def named(source: str, namespace: dict[str, object]) -> str:
    """The name of a row that code such as ``TIED.name`` stands for; another value is a line end."""
    return str(eval(source, dict(namespace))) if ROW_NAME.fullmatch(source) else "\n"


def filled(text: ast.JoinedStr, namespace: dict[str, object] | None = None) -> str:
    """An f-string with the names of rows, as in ``{TIED.name}``, if they are given; other values
    are line ends.
    """
    parts = []
    for part in text.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        elif isinstance(part, ast.FormattedValue):
            source = ast.unparse(part.value)
            parts.append("\n" if namespace is None else named(source, namespace))
    return "".join(parts)


def test_common_messages_are_real() -> None:
    page = (ROOT / "docs" / "guides" / "when-things-go-wrong.md").read_text(encoding="utf-8")
    table = page[page.index("## Common messages") :]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    strings = string_constants()
    parts = [part.strip() for message in messages for part in message.split("...")]
    assert len(messages) > 10
    assert not [part for part in parts if part not in strings]


def test_root_folders_are_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"`{Path(folder).name}/`" in page for folder in FOLDERS.values())
