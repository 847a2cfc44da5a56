"""What a user asks of the layout and of the files of a result.

What is not asked for stays as it is in the source, so a request is resolved against one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import HuggingFaceOptions
from flmgrow.formats.layout.placements import Layout, make_layout
from flmgrow.formats.pieces import DTYPES
from flmgrow.model.checks import check_whole
from flmgrow.text import Setting, Text


@dataclass(frozen=True)
class LayoutRequest:
    """The layout a user asks for; None keeps the source's.

    ``padded_vocab`` is the number of rows of the embedding table, None for the usual one.
    """

    tp: int | None = None
    pp: int | None = None
    vpp: int | None = None
    pipeline_layers: Sequence[int] | None = None
    padded_vocab: int | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "vpp", "padded_vocab"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        for layers in self.pipeline_layers or ():
            check_whole("layers of a pipeline rank", layers, least=0)

    def resolve(self, source: Layout, layers: int) -> Layout:
        """Return the layout for a model of ``layers`` layers, close to the source's where not
        told.
        """
        tp = source.tp if self.tp is None else self.tp
        pp = source.pp if self.pp is None else self.pp
        vpp = self.vpp
        if vpp is None:
            vpp = source.vpp if pp == source.pp else 1
        same = (pp, vpp, layers) == (source.pp, source.vpp, source.layers)
        if self.pipeline_layers is None and same:
            return Layout(tp, pp, vpp, source.chunk_layers)
        return make_layout(layers, tp, pp, vpp, self.pipeline_layers)

    def single(self, layers: int) -> Layout:
        """Return the layout of a format without ranks.

        Raises:
            UsageError: If ranks were asked for.
        """
        other = Setting("format", "megatron")
        asked = {"tp": self.tp, "pp": self.pp, "vpp": self.vpp}
        for name, size in asked.items():
            if size not in (None, 1):
                raise UsageError(
                    Text(Setting(name), f" {size}: a Hugging Face folder has no ranks"),
                    Text("leave out the layout, or write ", other),
                )
        if self.padded_vocab is not None:
            raise UsageError(
                Text(
                    Setting("padded_vocab_size"),
                    f" {self.padded_vocab}: a Hugging Face folder has no padding",
                ),
                Text("leave it out, or write ", other),
            )
        return make_layout(layers, pipeline_layers=self.pipeline_layers)


def check_dtype(name: str | None) -> None:
    """Raise UsageError unless ``name`` is a dtype by torch's name, or None."""
    if name is not None and name not in DTYPES:
        raise UsageError(Text(Setting("dtype"), f" {name}: unknown"), f"one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class FileRequest:
    """What a user asks of the files; None keeps the source's.

    ``torch_dist_version`` and ``huggingface`` matter to those formats alone.
    """

    dtype: str | None = None
    format: str | None = None
    torch_dist_version: str | None = None
    huggingface: HuggingFaceOptions = field(default_factory=HuggingFaceOptions)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)


AS_STORED = FileRequest()
"""Files like the source's."""
