"""Time a student's forward and backward with shared rows against rows of their own, in pairs, in one process.

    python -m tests.benchmarks.shared_rows MODEL [--prompt 128] [--completion 32] [--group 8] [--groups 2] [--pairs 5]

The lengths of completions are even, so that nothing but the shared prompts is gained; `--shortest 10` draws them from
10 to `--completion`.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from rld.models.hidden_states import capture_states
from rld.models.prompt_sharing import PromptSharingLayout
from rld.trainer.trl_patches import skip_unlabelled_positions


def batch(options: argparse.Namespace, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Token ids `[B, S]` and their mask: every group has a prompt of its own."""
    generator = torch.Generator().manual_seed(0)
    size = options.groups * options.group, options.completion
    prompts = torch.randint(vocabulary, (options.groups, options.prompt), generator=generator)
    completions = torch.randint(vocabulary, size, generator=generator)
    lengths = torch.full(size[:1], options.completion)
    if options.shortest:
        lengths = torch.randint(options.shortest, options.completion + 1, size[:1], generator=generator)
    mask = torch.arange(options.completion) < lengths[:, None]
    prompts = prompts.repeat_interleave(options.group, dim=0)
    return torch.cat([prompts, completions], dim=1), torch.cat([torch.ones_like(prompts), mask.long()], dim=1)


def seconds(
    model: PreTrainedModel, layout: PromptSharingLayout, ids: Tensor, mask: Tensor, num_tokens: int
) -> tuple[float, float]:
    """Forward, and forward with backward."""
    start = time.perf_counter()
    rows = layout.rows(ids, mask, num_tokens)
    labels = ids.masked_fill(mask == 0, -100)[:, -num_tokens:]
    given: dict[str, Any] = {**rows.inputs, "shift_labels": labels, "fused_lm_head": True}
    with capture_states(model, (), rows.restore):
        loss = model(**given).loss
    forward = time.perf_counter() - start
    loss.backward()
    model.zero_grad()
    return forward, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, default in {"prompt": 128, "completion": 32, "group": 8, "groups": 2, "pairs": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shortest", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    skip_unlabelled_positions()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    add_fused_lm_head(model)
    shared = PromptSharingLayout.of(model, options.model)
    layouts = {"shared": shared, "apart": replace(shared, shared=False)}
    ids, mask = batch(options, model.config.get_text_config().vocab_size)
    for name, layout in layouts.items():
        rows = layout.rows(ids, mask, options.completion)
        print(f"{name}: {tuple(rows.inputs['input_ids'].shape)}, {rows.num_computed} tokens")
    ratios = []
    for pair in range(options.pairs + 1):
        times = {k: seconds(model, layout, ids, mask, options.completion) for k, layout in layouts.items()}
        if pair:  # the first warms up
            ratios.append([apart / together for together, apart in zip(times["shared"], times["apart"], strict=True)])
            print(f"pair {pair}: {times['shared'][1]:.2f} s shared, {times['apart'][1]:.2f} s apart")
    for name, values in zip(("forward", "forward and backward"), zip(*ratios, strict=True), strict=True):
        print(f"{name}: {statistics.median(values):.2f} times faster, {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
