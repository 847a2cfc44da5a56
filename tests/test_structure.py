"""What no single module can promise: the layers hold, everything ships, commands start quickly.

Three folders at the root are subpackages of flmgrow by a mapping in ``pyproject.toml``. A package
forgotten there imports well in a working copy and is missing from every wheel, without a word; so
the folders are compared with the mapping here, and a wheel with the folders.
"""

import ast
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest
from hf_folders import make_folder
from pico import make_checkpoint
from quoted_words import FOREIGN, said_in_strings, spelled
from repository import FOLDERS, ROOT, SETUP, find_modules
from tiny_tokenizers import make_jsonl

# Top first: a module imports from its own line and from those below. Packages on one line do not
# know of each other.
LAYERS = (
    ("flmgrow.__main__",),
    ("flmgrow.cli",),
    ("flmgrow.api",),
    ("flmgrow.checked", "flmgrow.foresight", "flmgrow.inspection", "flmgrow.models",
     "flmgrow.planned", "flmgrow.scores", "flmgrow.verified"),
    ("flmgrow.studying",),
    ("flmgrow.proposing", "flmgrow.searching"),
    ("flmgrow.opened", "flmgrow.costing", "flmgrow.prediction"),
    ("flmgrow.stages",),
    ("flmgrow.evaluation",),
    ("flmgrow.evaluation.tasks",),
    ("flmgrow.generation",),
    ("flmgrow.given",),
    ("flmgrow.hub",),
    ("flmgrow.growing",),
    ("flmgrow.surgery",),
    ("flmgrow.trainer.__main__",),
    ("flmgrow.trainer.training",),
    ("flmgrow.trainer.loop",),
    ("flmgrow.trainer.guarding",),
    ("flmgrow.trainer.components", "flmgrow.trainer.going_back", "flmgrow.trainer.live",
     "flmgrow.trainer.progress"),
    ("flmgrow.trainer.telling",),
    ("flmgrow.trainer.validating",),
    ("flmgrow.trainer.run_config", "flmgrow.trainer.samples_read"),
    ("flmgrow.trainer.checkpoint", "flmgrow.trainer.metrics", "flmgrow.trainer.steps"),
    ("flmgrow.trainer.data",),
    ("flmgrow.trainer.megatron", "flmgrow.trainer.stage"),
    ("flmgrow.trainer.ranks",),
    ("flmgrow.trainer",),
    ("flmgrow.operators",),
    ("flmgrow.formats.arguments_elsewhere", "flmgrow.formats.stored_listing"),
    ("flmgrow.formats.opening", "flmgrow.formats.writing"),
    ("flmgrow.formats.huggingface", "flmgrow.formats.megatron.legacy",
     "flmgrow.formats.megatron.fsdp_dtensor"),
    ("flmgrow.formats.megatron.torch_dist",),
    ("flmgrow.formats.megatron",),
    ("flmgrow.formats.megatron.arguments",),
    ("flmgrow.formats.tokenizer",),
    ("flmgrow.formats.history",),
    ("flmgrow.formats.checkpoint",),
    ("flmgrow.formats.companions", "flmgrow.formats.same_values"),
    ("flmgrow.formats.targets", "flmgrow.formats.fields", "flmgrow.formats.elsewhere"),
    ("flmgrow.formats.reading",),
    ("flmgrow.formats.pieces",),
    ("flmgrow.formats.layout", "flmgrow.formats.dcp", "flmgrow.formats.vouched"),
    ("flmgrow.formats.tables", "flmgrow.formats.torch_file"),
    ("flmgrow.formats",),
    ("flmgrow.storage", "flmgrow.model"),
    ("flmgrow.storage.remote",),
    ("flmgrow.errors",),
    ("flmgrow.text", "flmgrow.garbage"),
    ("flmgrow",),
)  # fmt: skip
# The trainer trains what it is given: it knows no growth, though growth lies below it. And Hugging
# Face's folders are no Megatron checkpoints in disguise.
STRANGERS = {
    "flmgrow.trainer": "flmgrow.operators",
    "flmgrow.formats.huggingface": "flmgrow.formats.megatron",
    "flmgrow.formats.tokenizer": "flmgrow.formats.megatron",
    "flmgrow.formats.megatron.legacy": "flmgrow.formats.megatron.torch_dist",
}
PLANNED = ("bake", "growth", "import", "layout")
DONE_BY_THE_FACE = {
    "flmgrow.formats.opening", "flmgrow.formats.writing", "flmgrow.surgery.verify",
    "flmgrow.surgery.evidence.integrity",
}  # fmt: skip
"""What commands reach by the modules that the public face consists of."""
SAYS_APART = {
    "flmgrow.text",  # says how it is said
    "flmgrow.formats.huggingface.shipped.configuration_flm",  # runs without flmgrow
}
"""Where what was found and wanted may stand in strings."""
FLOORS = {package: floor for floor, packages in enumerate(LAYERS) for package in packages}

LONGEST, LONGEST_TEST = 320, 400
"""Lines of a file: what is read at one sitting, and what a table of cases may take."""
HEAVY = {
    "torch", "megatron", "transformers", "safetensors", "huggingface_hub", "matplotlib",
    "obstore", "tensorboard", "lm_eval", "datasets", "wandb", "trackio",
}  # fmt: skip

# Runs code that a file names, or a shell: what a checkpoint from elsewhere must never reach.
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.load",
    "marshal.loads", "pickle.load", "pickle.loads", "pickle.Unpickler", "shelve.open", "yaml.load",
    "yaml.unsafe_load", "torch.jit.load",
}  # fmt: skip
UNSAFE_OPTIONS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}


MODULES = find_modules()


def package_of(module: str) -> str:
    """The package of LAYERS that a module is in: the most exact that fits."""
    while module not in FLOORS:
        module = module.rpartition(".")[0]
        assert module != "flmgrow", "a new package needs a line in LAYERS"
    return module


def is_allowed(module: str, other: str) -> bool:
    """Whether a module may import another.

    The package itself is the front door: it names the public face, and imports it when it is asked.
    """
    if module == "flmgrow":
        front = ("api", "foresight", "models", "scores", "opened", "errors")
        return other in {f"flmgrow.{name}" for name in front}
    if any(
        f"{module}.".startswith(f"{one}.") and f"{other}.".startswith(f"{stranger}.")
        for one, stranger in STRANGERS.items()
    ):
        return False
    own, its = package_of(module), package_of(other)
    return own == its or FLOORS[own] < FLOORS[its]


def nodes(module: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))


def imported(module: str) -> set[str]:
    """The library's modules that a module imports, wherever in its text."""
    names: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & MODULES.keys()


def unsafe(module: str) -> Iterator[str]:
    """The calls in a module that run, or let a file run, what they are given."""
    for node in nodes(module):
        if not isinstance(node, ast.Call):
            continue
        options = {
            (item.arg, item.value.value)
            for item in node.keywords
            if isinstance(item.value, ast.Constant)
        }
        name = ast.unparse(node.func)
        careless = name == "torch.load" and ("weights_only", True) not in options
        if name in UNSAFE_CALLS or careless or options & UNSAFE_OPTIONS:
            yield f"{module}, line {node.lineno}: {ast.unparse(node)[:60]}"


def test_imports_point_downwards() -> None:
    assert not [
        f"{module} imports {other}"
        for module in MODULES
        for other in imported(module)
        if not is_allowed(module, other)
    ]


def opens_or_plans_itself(module: str) -> set[str]:
    """What a module imports that opens, plans, writes or verifies checkpoints."""
    making = {"make_plan", "plan_growth"} | {f"plan_{of}_of" for of in PLANNED}
    names = {alias.name for node in nodes(module) if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    return (names & making) | (imported(module) & DONE_BY_THE_FACE)


def test_commands_open_plan_and_verify_as_python_does() -> None:
    """They call the functions of the public face, or those that it is made of."""
    commands = [module for module in MODULES if module.startswith("flmgrow.cli.")]
    assert not {name: found for name in commands if (found := opens_or_plans_itself(name))}
    assert opens_or_plans_itself("flmgrow.planned") == {f"plan_{of}_of" for of in PLANNED}
    assert opens_or_plans_itself("flmgrow.verified") == {"flmgrow.surgery.verify"}


def test_no_option_is_spelled_outside_of_the_command_line() -> None:
    """What knows of no place names settings, and each place says them in its own words."""
    found = {
        module: spelled(path.read_text(encoding="utf-8")) - FOREIGN
        for module, path in MODULES.items()
        if not f"{module}.".startswith("flmgrow.cli.")
    }
    assert not {module: options for module, options in found.items() if options}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('raise UsageError("--hidden-size: no")', {"--hidden-size"}),
        ('f"leave out {x}--tp {n}, or (--pp)"', {"--tp", "--pp"}),
        ('"a--b -- c, or ---d"', set()),
        ('"""Speaks of --tp."""\nx = 1\n"""And of --pp."""', set()),
        ('Setting("tp")', set()),
    ],
)
def test_an_option_in_a_string_is_found(text: str, found: set[str]) -> None:
    assert spelled(text) == found


def test_no_string_says_what_was_found_and_wanted() -> None:
    found = {
        name: list(said_in_strings(path.read_text(encoding="utf-8")))
        for name, path in find_modules().items()
        if name not in SAYS_APART
    }
    assert not {name: sentences for name, sentences in found.items() if sentences}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('raise UsageError("has 1, wanted 2")', 1),
        ('refuse(f"{name}: found {value}")', 1),
        ('UsageError(f"has {size} bytes", wanted=2)', 1),
        ('_refuse(path, f"has {size} bytes", wanted=2)', 1),
        ('UsageError(Text("has ", Found(size)), f"make it {size}", wanted=2)', 0),
        ('UsageError("no tensors", wanted="some")', 0),
        ('"""Found, wanted or not."""', 0),
    ],
)
def test_a_sentence_is_found(text: str, count: int) -> None:
    assert len(list(said_in_strings(text))) == count


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("flmgrow.formats.megatron.legacy.reader", "flmgrow.formats.megatron.torch_dist.contents"),
        ("flmgrow.formats.huggingface.reader", "flmgrow.formats.megatron.content"),
        ("flmgrow.formats.megatron.content", "flmgrow.formats.megatron.legacy.reader"),
        ("flmgrow.trainer.training", "flmgrow.operators.growth"),
        ("flmgrow.model.axes", "flmgrow.storage.files"),
    ],
)
def test_the_floors_are_found(module: str, other: str) -> None:
    assert {module, other} <= MODULES.keys()
    assert not is_allowed(module, other)


def roots(module: str) -> set[str]:
    """The packages that a module imports, wherever in its text, by their first names."""
    names: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_megatron_core_is_imported_in_one_place() -> None:
    """On a CPU it must not come before torch was made ready for it."""
    found = {module for module in MODULES if "megatron" in roots(module)}
    assert found == {f"flmgrow.trainer.megatron.{name}" for name in ("core", "cpu")}


def test_every_package_is_listed() -> None:
    on_disk = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert on_disk == set(SETUP["packages"])


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES.values()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_nothing_runs_what_a_file_names() -> None:
    assert not [call for module in MODULES for call in unsafe(module)]


def test_files_stay_short() -> None:
    beside = [ROOT.glob(f"{folder}/*.py") for folder in ("examples", "benchmarks", "docs")]
    files = dict.fromkeys(chain(MODULES.values(), *beside), LONGEST)
    files |= dict.fromkeys(ROOT.glob("tests/**/*.py"), LONGEST_TEST)
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {path: length for path, length in lengths.items() if length > files[path]}


LOOKING = """
--help
expand --help
verify --help
inspect SRC
expand SRC DST --hidden-size 16 --num-layers 6 --method zero --dry-run
reshard SRC DST --tp 2 --dry-run
export SRC DST --dry-run
inspect HF
import HF DST --tp 2 --dry-run
expand HF DST --ffn-hidden-size 40 --method zero --dry-run
data prepare --help
data prepare TEXT DST --tokenizer bytes
train --help
run PAPER --dry-run
run PAPER --print-commands
plot --help
eval --help
"""

ONE_BY_ONE = f"""
import shlex, sys
from flmgrow.cli.app import run
for line in sys.stdin.read().strip().splitlines():
    code = run(shlex.split(line))
    print(code, sorted(sys.modules.keys() & {HEAVY!r}), line, file=sys.stderr)
"""


def test_inspect_imports_no_yaml(tmp_path: Path) -> None:
    """What it needs only where ``--set-arg`` or ``--args-from`` are given."""
    source = str(make_checkpoint(tmp_path / "a", "llama"))
    code = (
        "import sys; from flmgrow.cli.app import run; "
        "sys.exit(run(sys.argv[1:]) or 10 + ('yaml' in sys.modules))"
    )
    for words, imported in (([], 10), (["--set-arg", "seed=1"], 11)):
        command = [sys.executable, "-c", code, "inspect", source, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == imported, done.stderr


def test_commands_that_only_look_start_without_torch(tmp_path: Path) -> None:
    """One after the other in one process: the first that imports too much is the one that fails."""
    places = {
        "SRC": str(make_checkpoint(tmp_path / "a", "llama")),
        "HF": str(make_folder(tmp_path / "hf")),
        "TEXT": str(make_jsonl(tmp_path / "text.jsonl", ["text"])),
        "DST": str(tmp_path / "b"),
        "PAPER": str(ROOT / "configs" / "flm-101b.yaml"),
    }
    commands = [
        shlex.join(places.get(word, word) for word in line.split())
        for line in LOOKING.strip().splitlines()
    ]
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE],
        cwd=tmp_path,
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    told = [line for line in done.stderr.splitlines() if line[:1].isdigit()]
    assert told == [f"0 [] {command}" for command in commands], done.stderr


def test_a_wheel_holds_every_module(tmp_path: Path) -> None:
    # In a copy: setuptools leaves its build folder beside the sources, and takes from it next time.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in {Path(folder).parts[0] for folder in FOLDERS.values()}:
        shutil.copytree(ROOT / folder, copy / folder)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--wheel-dir", str(tmp_path), str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(ZipFile(wheel).namelist())
    wanted = {
        f"{name.replace('.', '/')}{'/__init__' if path.name == '__init__.py' else ''}.py"
        for name, path in MODULES.items()
    }
    tasks = {path.relative_to(ROOT).as_posix() for path in (ROOT / "flmgrow").rglob("*.yaml")}
    assert tasks
    assert not {*wanted, *tasks, "flmgrow/py.typed"} - shipped
