"""What a training runs on, compared with what its launcher and its arguments ask for.

Accelerate starts one process where `accelerate launch --cpu` should start several without MPI, and trains with DDP on
CPUs whatever a configuration says of FSDP or DeepSpeed. Neither is told by Accelerate.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.commands.config import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import Trainer, TrainingArguments

from rld.errors import LaunchError

_STRATEGIES = {
    DistributedType.NO: "one process",
    DistributedType.MULTI_CPU: "DDP",
    DistributedType.MULTI_GPU: "DDP",
    DistributedType.FSDP: "FSDP",
    DistributedType.DEEPSPEED: "DeepSpeed",
}

_ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
"""Accelerate's environment variables, and the strategy that each asks for."""

_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Environment variables in which launchers write the number of processes."""

_MAX_ANCESTORS = 4
"""Processes between this one and `accelerate launch`."""


@dataclass(frozen=True)
class LaunchRequest:
    """What a launcher, its configuration file or the environment asks for.

    Attributes:
        processes: Number of processes; 1 where nothing asks for more.
        strategies: Ways to share the training's memory, each with what asks for it.
        precision: `bf16`, `fp16` or `fp8`; None: nothing asks for mixed precision.
    """

    processes: int
    strategies: Mapping[str, str]
    precision: str | None


def read_request(environment: Mapping[str, str] | None = None) -> LaunchRequest:
    """Return what the environment and the `accelerate launch` that started this process ask for.

    Args:
        environment: The environment variables. None: those of the process.
    """
    environment = os.environ if environment is None else environment
    strategies = {
        name: f"the environment variable {variable}"
        for variable, name in _ENVIRONMENT.items()
        if environment.get(variable, "").lower() in ("1", "true", "yes")
    }
    sizes = [int(environment[name]) for name in _WORLD_SIZES if environment.get(name, "").isdecimal()]
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    command = _accelerate_command(_ancestors())
    if command is not None:
        options = _with_file(_parsed(command))
        sizes.append(options.num_processes or 1)
        for name, is_on in (("FSDP", options.use_fsdp), ("DeepSpeed", options.use_deepspeed)):
            if is_on:
                strategies.setdefault(name, "accelerate launch, or its configuration file")
    return LaunchRequest(max(sizes, default=1), strategies, None if precision == "no" else precision)


def require_possible(request: LaunchRequest) -> None:
    """Refuse what this machine cannot do, before Accelerate connects the processes.

    Raises:
        LaunchError: DeepSpeed is not installed, or there are more processes than accelerators.
    """
    if "DeepSpeed" in request.strategies:
        _require_deepspeed(request.strategies["DeepSpeed"])
    num_local, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < num_gpus < num_local:
        raise LaunchError(
            f"{num_local} processes were started on this machine, which has {num_gpus} GPUs, and each process needs "
            f"one of its own; start {num_gpus}"
        )


def require_strategy(strategies: Mapping[str, str], state: PartialState) -> None:
    """Refuse a strategy that the training would not get.

    Args:
        strategies: The strategies, each with what asks for it.
        state: Accelerate's, of this process.

    Raises:
        LaunchError: Accelerate trains in another way.
    """
    for name, source in strategies.items():
        # Before its trainer is built, Accelerate names a training with FSDP after its devices.
        is_met = strategy_of(state) == name or (name == "FSDP" and state.distributed_type == DistributedType.MULTI_GPU)
        if not is_met:
            way = f"{state.num_processes} processes with DDP" if state.num_processes > 1 else "one process without it"
            raise LaunchError(
                f"{source} asks for {name}, and on {state.device.type} Accelerate would train in {way}; "
                f"start it on GPUs with accelerate launch, or leave {name} out"
            )


def requested_by(arguments: TrainingArguments) -> dict[str, str]:
    """Return the strategies that a trainer's arguments ask for.

    Raises:
        LaunchError: DeepSpeed is not installed.
    """
    names = {"FSDP": "fsdp", "DeepSpeed": "deepspeed"}
    return {strategy: f"{name} in the trainer's arguments" for strategy, name in names.items() if vars(arguments)[name]}


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse mixed precision that Accelerate would leave out without a word.

    Raises:
        LaunchError: it is fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise LaunchError(
            "fp16 is asked for, and on a CPU Accelerate would compute in float32; use bf16, or leave it out"
        )


def require_supported(arguments: TrainingArguments) -> None:
    """Refuse options of FSDP and DeepSpeed with which a training would fail late, or silently be another one.

    Args:
        arguments: A trainer's.

    Raises:
        LaunchError: one is set; the message names it and its mend.
    """
    fsdp, deepspeed = _fsdp_plugin(arguments), arguments.deepspeed_plugin
    config = {} if deepspeed is None else deepspeed.deepspeed_config
    is_half = arguments.mixed_precision == "fp16" or config.get("fp16", {}).get("enabled") is True
    is_scaled = is_half and (fsdp is not None or deepspeed is not None)
    problems = [("fp16", is_scaled, "its scaled gradients are not supported with FSDP or DeepSpeed; use bf16")]
    if fsdp is not None:
        on_gpu = "the GPUs send each other what checkpoints, probes and scores need whole, so parts have to be on them"
        loads_once = "the student is read and scored before processes share it, so each has to read it"
        problems += [
            ("fsdp_version: 1", fsdp.fsdp_version != 2, "only FSDP2 is supported; set fsdp_version: 2"),
            ("fsdp_offload_params", isinstance(fsdp.cpu_offload, CPUOffloadPolicy), f"{on_gpu}; set it to false"),
            ("fsdp_cpu_ram_efficient_loading", fsdp.cpu_ram_efficient_loading, f"{loads_once}; set it to false"),
        ]
    if deepspeed is not None:
        owner = "is the trainer's here, so that a checkpoint is the same everywhere"
        loads_shared = "teachers would be loaded in parts as well, and the student is scored before it is shared"
        shares_none = "processes would share nothing, and no checkpoint could be written"
        stage = config.get("zero_optimization", {}).get("stage", 0)
        problems += [
            ("zero_stage: 0", stage == 0, f"{shares_none}; set 1, 2 or 3, or train with DDP, without DeepSpeed"),
            ("zero3_init_flag", deepspeed.zero3_init_flag, f"{loads_shared}; set it to false"),
            ("optimizer", "optimizer" in config, f"the optimizer {owner}; leave it out of DeepSpeed's configuration"),
            ("scheduler", "scheduler" in config, f"the schedule {owner}; leave it out of DeepSpeed's configuration"),
        ]
    for name, is_set, reason in problems:
        if is_set:
            raise LaunchError(f"{name}: {reason}")


def _fsdp_plugin(arguments: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """Return the options of FSDP with which a trainer of these arguments trains; None without FSDP."""
    if arguments.fsdp_plugin_args is not None:
        return FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    return FullyShardedDataParallelPlugin() if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" else None


def require_installed(options: Mapping[str, Any]) -> None:
    """Refuse a trainer's options that ask for DeepSpeed where it is not installed."""
    if options.get("deepspeed"):
        _require_deepspeed("deepspeed in the trainer's arguments")


def _require_deepspeed(source: str) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise LaunchError(
            f"{source} asks for DeepSpeed, which is not installed; pip install deepspeed, or leave it out"
        )


def strategy_of(state: PartialState) -> str:
    """Return how Accelerate trains: `one process`, `DDP`, `FSDP`, `DeepSpeed`, or its own name of another way."""
    name: str = _STRATEGIES.get(state.distributed_type, state.distributed_type.value)
    return name


def _ancestors() -> list[list[str]]:
    """Return the command lines of the processes above this one, as far as they can be read."""
    commands = []
    with contextlib.suppress(psutil.Error):  # another user's, or gone
        for parent in psutil.Process().parents()[:_MAX_ANCESTORS]:
            commands.append(parent.cmdline())
    return commands


def _accelerate_command(commands: Iterable[list[str]]) -> list[str] | None:
    """Return the arguments after `accelerate launch` in the first command line that has them."""
    for words in commands:
        for i, word in enumerate(words[:4]):
            name = Path(word).name
            if name == "accelerate" and words[i + 1 : i + 2] == ["launch"]:
                return words[i + 2 :]
            if name == "accelerate-launch" or word == "accelerate.commands.launch" or name == "launch.py":
                return words[i + 1 :] if name != "launch.py" or "accelerate" in word else None
    return None


def _parsed(command: list[str]) -> Namespace:
    options, _ = launch_command_parser().parse_known_args(command)
    return Namespace(**vars(options))


def _with_file(options: Namespace) -> Namespace:
    """Add what Accelerate's configuration file says to the options of a command line, as `accelerate launch` does."""
    has_default = os.path.isfile(default_config_file) and not options.cpu
    if options.config_file is None and not has_default:
        return options
    file = load_config_from_file(options.config_file)
    options.num_processes = options.num_processes or getattr(file, "num_processes", None)
    if not (options.use_fsdp or options.use_deepspeed or options.multi_gpu):
        options.use_fsdp = file.distributed_type == DistributedType.FSDP
        options.use_deepspeed = file.distributed_type == DistributedType.DEEPSPEED
    return options


class CheckedLaunch(Trainer):
    """A trainer that is refused where its arguments ask for a strategy or precision that Accelerate does not use.

    Raises:
        LaunchError: when it is built; the message names what asks for the strategy.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        requested = requested_by(self.args)
        require_strategy({**read_request().strategies, **requested}, self.accelerator.state)
        require_supported(self.args)
        precision, actual = self.args.mixed_precision, self.accelerator.mixed_precision
        require_precision(precision, self.accelerator.device)
        if actual != precision and strategy_of(self.accelerator.state) != "DeepSpeed":  # its configuration decides
            raise LaunchError(
                f"mixed precision {precision} is asked for, and Accelerate would compute in {actual} here"
            )
