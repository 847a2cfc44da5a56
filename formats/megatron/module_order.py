"""The order in which megatron-core's modules hold their parameters, which optimizers count by."""

from collections.abc import Sequence


def module_keys(keys: Sequence[str]) -> list[str]:
    """Sort one chunk's keys by module; a norm that is fused into a linear layer comes first in
    it.
    """
    modules: dict[str, int] = {}
    for key in keys:
        if "layer_norm_" not in key:
            modules.setdefault(key.rpartition(".")[0], len(modules))

    def place(key: str) -> tuple[int, bool]:
        module, _, name = key.rpartition(".")
        return modules[module], not name.startswith("layer_norm_")

    return sorted(keys, key=place)
