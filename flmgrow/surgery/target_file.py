"""A target model as a file: the sizes, methods and layout of ``expand``, under the options' own
names.
"""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flmgrow.errors import UsageError
from flmgrow.operators.choices import FreshSecondMoment, Method, Moments, NewLayers, chosen
from flmgrow.operators.depth import LayerPlacement
from flmgrow.operators.target import Target, parse_methods
from flmgrow.operators.width import NOISE
from flmgrow.storage.validation import problems
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.text import Setting, Text


class GrowthRequest(BaseModel):
    """What a file or the command line asks of ``expand``. Unknown keys are refused.

    Sizes are in Megatron-LM's terms; ``None`` keeps the source's. ``method`` is one word,
    ``width=copy,...``, or a mapping from dimension to method.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    num_layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    ffn_hidden_size: int | None = Field(None, ge=1)
    num_attention_heads: int | None = Field(None, ge=1)
    num_query_groups: int | None = Field(None, ge=1)
    kv_channels: int | None = Field(None, ge=1)
    vocab_size: int | None = Field(None, ge=1)
    method: str | dict[str, str] | None = None
    depth_placement: str | None = None
    new_layers: str | None = None
    copy_noise: float | None = Field(None, ge=0, le=10)
    untie: bool | None = None
    optimizer: str | None = None
    fresh_second_moment: str | None = None
    ramp_steps: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)
    tp: int | None = Field(None, ge=1)
    pp: int | None = Field(None, ge=1)
    vpp: int | None = Field(None, ge=1)
    pipeline_layers: list[int] | None = None
    padded_vocab_size: int | None = Field(None, ge=1)

    def target(self) -> Target:
        """Return the growth asked for."""
        method = self.method or Method.MASK
        if not isinstance(method, str):
            method = ",".join(f"{dimension}={name}" for dimension, name in method.items())
        new_layers = chosen(Setting("new_layers"), self.new_layers or NewLayers.COPY, NewLayers)
        moments = chosen(Setting("optimizer"), self.optimizer or Moments.KEEP, Moments)
        return Target(
            layers=self.num_layers,
            hidden=self.hidden_size,
            ffn=self.ffn_hidden_size,
            heads=self.num_attention_heads,
            kv_groups=self.num_query_groups,
            vocab=self.vocab_size,
            methods=parse_methods(method),
            depth_placement=self.depth_placement or LayerPlacement.END,
            new_layers=new_layers,
            copy_noise=NOISE if self.copy_noise is None else self.copy_noise,
            untie=bool(self.untie),
            moments=moments,
            fresh_second_moment=self._fresh_second_moment(moments),
            ramp_steps=self.ramp_steps,
            seed=self.seed or 0,
        )

    def _fresh_second_moment(self, moments: Moments) -> FreshSecondMoment:
        word = self.fresh_second_moment or FreshSecondMoment.ZERO
        wanted = chosen(Setting("fresh_second_moment"), word, FreshSecondMoment)
        if wanted is not FreshSecondMoment.ZERO and moments is Moments.RESET:
            raise UsageError(
                Text(
                    Setting("fresh_second_moment"),
                    f" {wanted}: ",
                    Setting("optimizer", moments),
                    " makes every moment zero",
                ),
                "leave out one of the two",
            )
        return wanted

    def layout(self) -> LayoutRequest:
        """Return the layout asked for."""
        return LayoutRequest(
            self.tp, self.pp, self.vpp, self.pipeline_layers, self.padded_vocab_size
        )


def parse_target(data: object, where: str = "the request") -> GrowthRequest:
    """Return the target that ``data`` describes, found in ``where``.

    Raises:
        UsageError: The message names each problem.
    """
    try:
        return GrowthRequest.model_validate(data)
    except ValidationError as error:
        raise UsageError(
            problems(error.errors()),
            Text("see flmgrow expand ", Setting("help", True)),
            where=where,
        ) from None
