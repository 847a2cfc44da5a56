"""Run in a process of its own, with a newer megatron-core: its model, trained by its own optimizer.

Model, optimizer and schedule follow from the arguments in a folder as they do in Megatron-LM.
Input and output are JSON: jobs (folders to load and to save, steps to take), and for each the
settings of every parameter and the losses; or what megatron-core said instead. Of several ranks
the first one tells.
"""

import json
import sys
from pathlib import Path
from typing import Any

from flmgrow.trainer.megatron import cpu

cpu.install()

import torch  # noqa: E402
from legacy_checkpoint import (  # noqa: E402
    iteration_folder,
    load_legacy,
    read_arguments,
    save_legacy,
)
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.validation import StrictHandling  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import (  # noqa: E402
    OptimizerConfig,
    get_megatron_optimizer,
    get_mup_config_overrides,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from stock_logits import stock_model  # noqa: E402

from flmgrow.trainer.megatron.model import start_parallel, stop_parallel  # noqa: E402
from flmgrow.trainer.ranks.agreement import gathered  # noqa: E402

CONTENT = {
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
    "distrib_optim_sharding_type": "dp_reshardable",
}
DECAY = 0.1
SETTINGS = ("lr", "max_lr", "min_lr", "eps", "weight_decay", "wd_mult")
LENGTH, SAMPLES = 12, 4


class Training:
    """Megatron-LM's training components for a folder's arguments, filled from it."""

    def __init__(self, folder: Path, with_optimizer: bool, changes: dict[str, Any]) -> None:
        self.args = arguments_of(folder)
        vars(self.args).update(changes)
        distributed = self.args.use_distributed_optimizer
        model = stock_model(self.args).train().to(self.args.params_dtype)
        model.config.finalize_model_grads_func = finalize_model_grads
        reduction = DistributedDataParallelConfig(
            use_distributed_optimizer=distributed, grad_reduce_in_fp32=self.args.bf16
        )
        self.models = [DistributedDataParallel(model.config, reduction, model)]
        self.optimizer = self._optimizer(model.config.mup_width_mult, distributed)
        self.schedule = OptimizerParamScheduler(
            self.optimizer, init_lr=0.0, max_lr=self.args.lr, min_lr=self.args.min_lr,
            lr_warmup_steps=0, lr_decay_steps=100, lr_decay_style="cosine", start_wd=DECAY,
            end_wd=DECAY, wd_incr_steps=100, wd_incr_style="constant",
        )  # fmt: skip
        self._load(folder, with_optimizer)

    def _optimizer(self, width: float, distributed: bool) -> Any:
        settings = OptimizerConfig(
            optimizer="adam", lr=self.args.lr, min_lr=self.args.min_lr, weight_decay=DECAY,
            adam_eps=1e-8, clip_grad=0.0, params_dtype=self.args.params_dtype,
            use_distributed_optimizer=distributed, bf16=self.args.bf16,
        )  # fmt: skip
        overrides = get_standard_config_overrides(settings)
        if self.args.use_mup:
            overrides |= get_mup_config_overrides(settings, width, "adam")
        return get_megatron_optimizer(settings, self.models, config_overrides=overrides)

    def _load(self, folder: Path, with_optimizer: bool) -> None:
        if list(folder.rglob("model_optim_rng.pt")):
            both = (self.optimizer, self.schedule) if with_optimizer else ()
            load_legacy(folder, [model.module for model in self.models], *both)
            return
        place = folder / iteration_folder(folder)
        wanted = self._sharded(dist_checkpointing.load_content_metadata(str(place)), True)
        loaded = dist_checkpointing.load(wanted, str(place), strict=StrictHandling.RAISE_ALL)
        self.models[0].module.load_state_dict(loaded["model"], strict=True)
        self.optimizer.load_state_dict(loaded["optimizer"])
        self.schedule.load_state_dict(loaded["opt_param_scheduler"])

    def _sharded(self, content: dict[str, Any], is_loading: bool = False) -> dict[str, Any]:
        state = {"model": self.models[0].module.sharded_state_dict(metadata=content)}
        state["optimizer"] = self.optimizer.sharded_state_dict(
            dict(state), is_loading=is_loading, metadata=content
        )
        return state

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return what AdamW is told of every parameter."""
        names = self._names()
        return {
            names[id(parameter)]: {key: group[key] for key in SETTINGS}
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        }

    def set(self, settings: dict[str, dict[str, float]]) -> None:
        """Give every parameter settings of its own, from the next step on."""
        order = self._names()
        (optimizer,) = self.optimizer.chained_optimizers
        alone = [
            {**group, "params": [parameter], **settings[order[id(parameter)]]}
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        optimizer.optimizer.param_groups[:] = alone

    def _names(self) -> dict[int, str]:
        """Return the names of what AdamW works on: parameters, or a distributed one's shards."""
        names = {parameter: name for name, parameter in self.models[0].module.named_parameters()}
        (optimizer,) = self.optimizer.chained_optimizers
        places = getattr(optimizer, "model_param_group_index_map", None)
        if places is None:
            return {id(parameter): name for parameter, name in names.items()}
        groups = self.optimizer.param_groups
        return {id(groups[g]["params"][at]): names[p] for p, (g, at) in places.items()}

    def train(self, steps: int, seed: int) -> list[float]:
        """Take steps on the same tokens as every other run with ``seed``."""
        losses: list[float] = []
        chance = torch.Generator().manual_seed(seed)
        vocab = self.args.padded_vocab_size
        positions = torch.arange(LENGTH).expand(SAMPLES, LENGTH)

        def forward(data: Any, model: Any) -> Any:
            tokens = next(data)
            found = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:].contiguous())
            return found, lambda output: (output.mean(), {"loss": output.mean().item()})

        for _ in range(steps):
            tokens = torch.randint(vocab, (SAMPLES, LENGTH + 1), generator=chance)
            self.models[0].zero_grad_buffer()
            self.optimizer.zero_grad()
            told = get_forward_backward_func()(
                forward_step_func=forward, data_iterator=iter([tokens]), model=self.models,
                num_microbatches=1, seq_length=LENGTH, micro_batch_size=SAMPLES,
                forward_only=False,
            )  # fmt: skip
            losses += [each["loss"] for each in told]  # on the last pipeline rank
            self.optimizer.step()
            self.schedule.step(increment=1)
        return losses

    def save(self, folder: Path, form: str) -> None:
        """Save everything, in Megatron-LM's legacy format or in its distributed one."""
        if form == "megatron":
            module = [model.module for model in self.models]
            save_legacy(folder, self.args, module, self.optimizer, self.schedule)
            return
        name = f"iter_{self.args.iteration:07d}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "latest_checkpointed_iteration.txt").write_text(str(self.args.iteration))
        content = dict(CONTENT)
        common = {
            "args": self.args, "checkpoint_version": 3.0, "iteration": self.args.iteration,
            "opt_param_scheduler": self.schedule.state_dict(),
        }  # fmt: skip
        dist_checkpointing.save(
            {**common, **self._sharded(content)}, str(folder / name), content_metadata=content
        )


def arguments_of(folder: Path) -> Any:
    """Return the arguments in a folder of either format."""
    if list(folder.rglob("model_optim_rng.pt")):
        return read_arguments(folder)
    place = folder / iteration_folder(folder)
    return dist_checkpointing.load_common_state_dict(str(place))["args"]


def done(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job."""
    try:
        training = Training(Path(job["load"]), job["optimizer"], job.get("changes", {}))
    except (KeyError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    settings = training.settings()
    if "settings" in job:
        training.set(job["settings"])
    losses = training.train(job["steps"], job["seed"])
    for form, folder in job.get("save", {}).items():
        training.save(Path(folder), form)
    own = {"settings": settings, "losses": losses}
    every: list[dict[str, Any]] = gathered(own)
    if len(every) == 1:
        return own
    named = {
        f"rank {rank}: {name}": value
        for rank, each in enumerate(every)
        for name, value in each["settings"].items()
    }
    return {"settings": named, "losses": every[-1]["losses"]}


def main() -> None:
    """Answer one request, of a file that is named or on standard input."""
    text = Path(sys.argv[1]).read_text() if sys.argv[1:] else sys.stdin.read()
    asked = json.loads(text)
    start_parallel(tp=asked["tp"], pp=asked["pp"])
    first = torch.distributed.get_rank() == 0
    told = [done(job) for job in asked["jobs"]]
    stop_parallel()
    if first:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
