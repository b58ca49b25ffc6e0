"""Let Accelerate shard the training of CPU processes, as it does that of GPUs.

Accelerate trains several CPU processes with DDP whatever its configuration says: its state takes FSDP and DeepSpeed
for accelerators alone. `shard_on_cpu` sets the kind of distribution anew, so that tests run the code that GPUs run.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_VARIABLES = {"ACCELERATE_USE_FSDP": DistributedType.FSDP, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}


def shard_on_cpu() -> None:
    """Let this process use the kind of distribution that Accelerate's environment variables ask for."""
    kind = next((kind for name, kind in _VARIABLES.items() if os.environ.get(name) == "true"), None)
    if kind is None:
        return
    if kind == DistributedType.DEEPSPEED:
        _leave_out_the_shared_memory_kernel()
    begin, build = PartialState.__init__, AcceleratorState.__init__

    def partial_init(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = kind

    def init(self: Any, *args: Any, deepspeed_plugin: Any = None, fsdp_plugin: Any = None, **options: Any) -> None:
        is_first = not AcceleratorState._shared_state
        build(self, *args, deepspeed_plugin=deepspeed_plugin, fsdp_plugin=fsdp_plugin, **options)
        if is_first and kind == DistributedType.FSDP:
            self.fsdp_plugin = fsdp_plugin
        elif is_first:
            deepspeed_plugin.set_mixed_precision(os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
            deepspeed_plugin.select(_from_accelerator_state=True)
            self.deepspeed_plugins = deepspeed_plugin

    PartialState.__init__, AcceleratorState.__init__ = partial_init, init  # type: ignore[method-assign]


def _leave_out_the_shared_memory_kernel() -> None:
    """Let DeepSpeed's processes talk through gloo alone; it would compile a kernel first, which takes minutes."""
    import deepspeed.ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
