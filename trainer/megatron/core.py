"""What the trainer uses of megatron-core, imported once torch is ready for it.

On a CPU that is after :func:`flmgrow.trainer.megatron.cpu.install`. So megatron-core is imported
here, and every other module of the trainer takes its parts from here.
"""

from flmgrow.trainer.megatron import cpu

cpu.install()

from megatron.core import parallel_state, tensor_parallel
from megatron.core.activations import squared_relu
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention, TENorm
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.jit import jit_fuser
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import (
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.core.utils import get_pg_rank, get_pg_size, get_te_version

__all__ = [
    "HAVE_TE",
    "AttnMaskType",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DotProductAttention",
    "GPTDataset",
    "GPTDatasetConfig",
    "GPTModel",
    "IndexedDataset",
    "ModuleSpec",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "ParamKey",
    "ParamWithNamePredicate",
    "RowParallelLinear",
    "SelfAttention",
    "Split",
    "TEDotProductAttention",
    "TENorm",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "finalize_model_grads",
    "get_bias_dropout_add",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_gpt_layer_with_transformer_engine_spec",
    "get_megatron_optimizer",
    "get_num_layers_to_build",
    "get_pg_rank",
    "get_pg_size",
    "get_standard_config_overrides",
    "get_te_version",
    "get_transformer_layer_offset",
    "jit_fuser",
    "parallel_state",
    "rope_utils",
    "squared_relu",
    "tensor_parallel",
]
