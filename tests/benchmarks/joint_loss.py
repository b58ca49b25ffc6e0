"""Time the loss of policy and response together against TRL's kernels one after the other, in pairs, in one process.

    python -m tests.benchmarks.joint_loss [--teachers 2] [--vocabulary 50000] [--width 576] [--tokens 512] [--pairs 5]

Together: one pass over the vocabulary for log-probabilities, entropy and all teachers. Apart: TRL's kernel for
log-probabilities and entropy, then its divergence kernel for each teacher. Both go backwards to the student's states
and head, from every token. The peak of memory is what a process gained at most (Linux); it is compared with TRL's
kernels for one teacher.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from rld.losses.combination import Mixture
from rld.losses.divergences import ForwardKL
from rld.losses.fused_response import SampledTokens, fused_response_loss
from rld.losses.objective import ResponseObjective
from rld.losses.teacher_distribution import FullDistribution
from rld.models.heads import LMHead

_TRL_CHUNK = 32768


class Case:
    """Random states and heads: the student's want gradients."""

    def __init__(self, tokens: int, width: int, vocabulary: int, teachers: int) -> None:
        torch.manual_seed(0)
        self.states = torch.randn(tokens, width, requires_grad=True)
        self.weight = (0.05 * torch.randn(vocabulary, width)).requires_grad_()
        self.sampled = torch.randint(vocabulary, (tokens,))
        self.teachers = [(torch.randn(tokens, width), 0.05 * torch.randn(vocabulary, width)) for _ in range(teachers)]

    def together(self) -> Tensor:
        tokens, share = len(self.states), 1 / len(self.teachers)
        valid = torch.ones(tokens, dtype=torch.bool)
        teachers = [
            FullDistribution(valid_N=valid, head=LMHead(weight, None, 1.0, None), hidden_NH=states)
            for states, weight in self.teachers
        ]
        total, stats = fused_response_loss(
            self.states,
            LMHead(self.weight, None, 1.0, None),
            teachers,
            weights_NK=torch.full((tokens, len(teachers)), share),
            counts_N=torch.full((tokens,), 1 / tokens),
            objective=ResponseObjective(ForwardKL(), Mixture(), 1.0),
            sampled_tokens=SampledTokens(self.sampled, 1.0),
        )
        return total - stats.sampled_logprob_N.mean()

    def apart(self, num_teachers: int | None = None) -> Tensor:
        args = self.states, self.weight, None, self.sampled, 1.0, _TRL_CHUNK, None, 1.0, ("log_probs", "entropy")
        loss: Tensor = -ChunkedLogProbFunction.apply(*args)[0].mean()
        for states, weight in self.teachers[:num_teachers]:
            pair = self.states, self.weight, None, states, weight, None, 0.0
            gap: Tensor = ChunkedDivergenceFunction.apply(*pair)[0]
            loss = loss + gap.mean() / len(self.teachers)
        return loss

    def measured(self, loss: Callable[[], Tensor]) -> tuple[float, float]:
        """Seconds, and the peak of bytes beyond those at the start, of a loss and its gradients."""
        self.states.grad = self.weight.grad = None
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")
        before, start = _kilobytes("VmRSS"), time.perf_counter()
        loss().backward()
        return time.perf_counter() - start, 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(what)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"teachers": 2, "vocabulary": 50_000, "width": 576, "tokens": 512, "pairs": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    case = Case(options.tokens, options.width, options.vocabulary, options.teachers)
    ratios, memory = [], []
    for pair in range(options.pairs + 1):
        together, peak = case.measured(case.together)
        apart, _ = case.measured(case.apart)
        _, one = case.measured(lambda: case.apart(1))
        if pair:  # the first warms up
            ratios.append(together / apart)
            memory.append(peak / one)
            sizes = f"{peak / 2**20:.0f} and {one / 2**20:.0f} MiB"
            print(f"pair {pair}: {together:.2f} s together, {apart:.2f} s apart; {sizes}")
    product = 2 * options.tokens * options.width * options.vocabulary
    print(f"products with a head, if all logits are kept: {3 + options.teachers} of {product / 1e9:.0f} GFLOP together")
    print(f"time: {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"memory against one teacher: {statistics.median(memory):.2f}, {min(memory):.2f} to {max(memory):.2f}")


if __name__ == "__main__":
    main()
