"""Which commands there are, without the modules that carry them out.

A command is imported when it is called, or its own help is asked for: what ``flmgrow --help``
tells of all of them is said here, so that it need not import any.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer import main as making
from typer.core import TyperCommand, TyperGroup

from flmgrow.garbage import no_garbage_collection

ARGUMENTS = "Arguments"
OPTIONS = "Options"
"""The panel of options that name none."""

THREADS = "OPENBLAS_NUM_THREADS"
"""What the linear algebra in numpy's wheels reads when it is loaded, and never again."""


@dataclass(frozen=True)
class Entry:
    """A command: the module in ``flmgrow.cli`` that holds it, and what it does in one line.

    The module has a function of the command's name, or an ``app`` with further commands in it.
    """

    module: str
    summary: str


COMMANDS: Mapping[str, Entry] = {
    "run": Entry(
        "run",
        "Run a schedule: each stage is trained, then grown, laid out and verified for the next.",
    ),
    "train": Entry(
        "train", "Train one stage on this machine, and go on where it stopped if it did."
    ),
    "plot": Entry(
        "plot", "Draw the loss of runs against tokens and against floating-point operations."
    ),
    "search": Entry(
        "search",
        "Try a grid of settings on a small model, and tell the best and how flat it is around it.",
    ),
    "study": Entry(
        "study",
        "Train a model in several ways, with several seeds, and tell which pays, and how surely.",
    ),
    "predict": Entry("predict", "Foretell the loss of a large model from the runs of small ones."),
    "propose": Entry(
        "propose",
        "Propose a schedule for a budget: sizes, when to grow, the loss to expect, and whether to.",
    ),
    "cost": Entry(
        "cost",
        "Show what a schedule costs: operations, GPU hours, days, money, energy and memory.",
    ),
    "expand": Entry("expand", "Grow a checkpoint so that its function does not change."),
    "reshard": Entry(
        "reshard",
        "Lay a checkpoint out for another tensor x pipeline parallelism; weights stay bit for bit.",
    ),
    "import": Entry(
        "import_", "Write a Hugging Face model as a Megatron checkpoint, in any layout."
    ),
    "export": Entry(
        "export",
        "Write a model as a Hugging Face folder that transformers loads, and push it on request.",
    ),
    "verify": Entry("verify", "Prove that DST computes what SRC computes."),
    "inspect": Entry(
        "inspect", "Show a checkpoint's model, layout, masks, family tree and health."
    ),
    "generate": Entry("generate", "Let a model go on with texts: greedily, or by drawing."),
    "eval": Entry(
        "eval_",
        "Evaluate checkpoints on lm-evaluation-harness's tasks, and put their scores side by side.",
    ),
    "bake": Entry(
        "bake", "Put the masks of a growth into the weights; the result is an ordinary checkpoint."
    ),
    "data": Entry("data", "Make tokens of texts, and look at them."),
}


class PanelledCommand(TyperCommand):
    """A command whose help lists options panel by panel, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options below the names of their panels."""
        panels: dict[str, list[tuple[str, str]]] = {ARGUMENTS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(_panel_of(parameter), []).append(record)
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


def _panel_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    panel: str | None = getattr(parameter, "rich_help_panel", None)
    return panel or OPTIONS


class PlainGroup(TyperGroup):
    """A group whose help tells what each command does in whole sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first paragraph of every command's own help."""
        with formatter.section("Commands"):
            formatter.write_dl(self.summaries(ctx))

    def summaries(self, ctx: Any) -> list[tuple[str, str]]:
        """Return every command's name and what it does."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        return [(name, summary_of(command)) for name, command in commands]


def summary_of(command: Any) -> str:
    """Return the first paragraph of a command's help on one line."""
    return " ".join(command.help.partition("\n\n")[0].split())


class CommandGroup(PlainGroup):
    """The commands of ``COMMANDS``, each imported when it is wanted."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command; None if there is none of that name."""
        return command_of(cmd_name) if cmd_name in COMMANDS else None

    def summaries(self, ctx: Any) -> list[tuple[str, str]]:
        """Return what the table says, and import nothing."""
        return [(name, entry.summary) for name, entry in COMMANDS.items()]


def _import_numpy() -> None:
    """Import numpy, which all commands do, without threads for its linear algebra.

    No command has large products for numpy, and threads that wait for one spin: a quarter of the
    CPU time of a command that only looks. What is started or imported later, torch and ranks, finds
    the environment as it was.
    """
    if THREADS in os.environ:
        return
    os.environ[THREADS] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[THREADS]


@no_garbage_collection()  # what modules are made of stays
def command_of(name: str) -> Any:
    """Import the command ``name`` and return it."""
    _import_numpy()
    entry = COMMANDS[name]
    module = import_module(f"flmgrow.cli.{entry.module}")
    function = getattr(module, entry.module, None)
    if function is None:
        return making.get_command(module.app)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, cls=PanelledCommand)(function)
    return making.get_command(single)
