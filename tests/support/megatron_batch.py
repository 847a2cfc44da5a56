"""Starting megatron-core takes ten seconds, and what the tests ask of it takes half of one.

Run under torchrun, this does several of ``tiny_megatron.py``'s commands in one start. They are
given as JSON: a list of command lines, each of which must want all the processes there are.
"""

import json
import sys
from pathlib import Path

import torch.distributed


def main() -> None:
    """Run every command."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import tiny_megatron

    # Each command joins a process group and leaves it. One group serves them all: a second one
    # would find the first one's addresses in torchrun's store, and call processes that hung up.
    join, leave = torch.distributed.init_process_group, torch.distributed.destroy_process_group
    torch.distributed.init_process_group = lambda *_: None
    torch.distributed.destroy_process_group = lambda *_: None
    join("gloo")
    for command in json.loads(sys.argv[1]):
        sys.argv[1:] = command
        tiny_megatron.main()
    leave()


if __name__ == "__main__":
    main()
