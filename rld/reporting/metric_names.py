"""The metrics of `metrics.jsonl`: one entry per metric, from which the log, the charts and the docs take their names.

To add a metric, log it where it is measured and add one entry to `METRICS`. A name that is in neither list is written
all the same, with a warning, which is an error in the tests.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rld.errors import UnlistedMetricWarning

TIME, SCORE = "time/", "score/"
"""Beginnings of the names of metrics that other modules add up or write."""


@dataclass(frozen=True)
class Metric:
    """One metric, or several alike.

    Attributes:
        pattern: Its name; `<skill>`, `<teacher>` and so on stand for the name of one.
        unit: Of its values; empty for a number without a unit.
        meaning: What it measures, as the docs say it.
        chart: The title of the chart that shows it (`chart_groups`); empty where none does.
    """

    pattern: str
    unit: str
    meaning: str
    chart: str = ""

    @functools.cached_property
    def _regex(self) -> re.Pattern[str]:
        parts = re.split(r"<(\w+)>", self.pattern)
        groups = [f"(?P<{part}>[^/]+)" if part == "signal" else f"(?P<{part}>.+)" for part in parts[1::2]]
        return re.compile("".join(a + b for a, b in zip(map(re.escape, parts[::2]), [*groups, ""], strict=True)))

    def match(self, name: str) -> dict[str, str] | None:
        """Return what each placeholder stands for in `name`; None where the name is not of this metric."""
        match = self._regex.fullmatch(name)
        return match.groupdict() if match else None


_TICK = "over the updates since the controller's last decision"

# fmt: off
METRICS = (
    Metric("stage", "", "the stage's name"),
    Metric("step", "updates", "the stage's updates so far"),
    Metric("seconds", "seconds", "time since the run began, without the time between a stop and its resumption"),
    Metric("flops", "FLOPs", "the run's floating-point operations so far, all stages"),
    Metric("loss", "",
           "what the optimizer minimises: the sum of the signals' losses, each weighted and scaled", "Total"),
    Metric("loss/sft", "nats per token",
           "cross-entropy of the answers that a stage fine-tunes on", "Loss, nats per token"),
    Metric("loss/reference", "nats per token", "divergence from the earlier student on replayed completions", "Loss"),
    Metric("padding", "", "share of the tokens in the student's rows that are padding"),
    Metric("loss/gold", "nats per token", "cross-entropy of the gold answers among the completions", "Loss"),
    Metric("loss/<signal>", "", "a signal's own loss, neither weighted nor scaled", "Loss"),
    Metric("scale/<signal>", "", "the factor that makes the signals' gradients equally large", "Scale"),
    Metric("weight/reference/<skill>", "",
           "how strongly a protected skill is replayed", "Weight of the earlier student"),
    Metric("weight/reference", "", "the same, mean over protected skills"),
    Metric("weight/<signal>/<skill>", "", "a signal's weight on a skill; a skill's weights sum to 1", "Signal weights"),
    Metric("weight/<signal>", "", "the same, mean over skills", "Signal weights"),
    Metric("phase/<skill>", "", "0: mostly distillation; 1: mostly reinforcement; 2: reinforcement alone"),
    Metric("teacher/<teacher>/weight/<skill>", "", "a teacher's share of what a skill is taught", "Teacher weights"),
    Metric("teacher/<teacher>/weight", "", "the same, mean over skills", "Teacher weights"),
    Metric("teacher/<teacher>/used/<skill>", "",
           "a teacher's mean weight on a rollout's completions, after gate, combination and `teach_on`"),
    Metric("teacher/<teacher>/informed", "",
           "share of a rollout's completions for which there is all that a teacher's prompt shows of the rollout"),
    Metric("gate/assumed", "",
           "share of the gate's verdicts on a teacher and a prompt that are assumed, because the latest were the same"),
    Metric("transfer/<skill>", "",
           "cosine between the gradients of a skill's gold answers and of the target skills'"),
    Metric("teacher_share/<skill>", "",
           "share of the teachers in a softened target, the rest of which is the student's own distribution"),
    Metric("gold_share/<skill>", "",
           "share of the skill's prompts that have their gold answer alone", "Gold answers"),
    Metric("answered/<skill>", "",
           "where teachers' answers are learnt, share of the rows drawn for it that a teacher answers correctly"),
    Metric("score/<skill>", "",
           "the main score of a skill on its held-out rows; by default the share answered correctly, greedily",
           "Held-out score"),
    Metric("progress/<skill>", "", f"share of the completions that the verifier accepts, {_TICK}", "Success rate"),
    Metric("level/<skill>", "", "the curriculum's level, from 0; a mean where several are open", "Curriculum level"),
    Metric("share/<skill>", "", "share of the prompts that ask for the skill", "Share of prompts"),
    Metric("retention/<skill>", "",
           "success on the probes of a protected skill, divided by that at the start", "Retained success"),
    Metric("audit/<skill>", "",
           f"share of the audited successes that the trusted reward confirms, {_TICK}", "Confirmed successes"),
    Metric("sure/<teacher>/<skill>", "",
           "share of correct answers among those that the teacher sampled, on prompts that its greedy answer solves"),
    Metric("divergence/<teacher>", "nats per token",
           "the student's divergence from a teacher, where that one teaches", "Divergence, nats per token"),
    Metric("distance/<teacher>", "",
           "the distance of their hidden states, where the teacher teaches", "Distance of hidden states"),
    Metric("grad/<signal>", "",
           f"root mean square of a signal's gradient at the last hidden state of a token, {_TICK}",
           "Gradient at the last hidden states"),
    Metric("noise/<signal>/<skill>", "", "squared standard error of a signal's mean gradient"),
    Metric("aligned/<signal>/<skill>", "",
           "cosine between a signal's gradient and that of the gold answers' likelihood"),
    Metric("reward/<reward>", "", "a reward's mean over the completions", "Reward"),
    Metric("entropy", "nats per token",
           "entropy of the student's distribution of the next token, mean over tokens", "Entropy, nats per token"),
    Metric("entropy_coef", "", "the weight of the entropy bonus", "Weight of the entropy bonus"),
    Metric("sampling/sampling_logp_difference/mean", "nats per token",
           "mean absolute difference of the student's log-probabilities to those of vLLM, where it samples"),
    Metric("tokens/<count>", "tokens",
           "in this stage so far: `generated` by the student, `trained` on by it, `scored` by teachers, or `saved` by "
           "weights of 0 or gate",
           "Tokens so far"),
    Metric("prompts/<count>", "prompts",
           "with `rollout.refill`, in this stage so far: `replaced` because the completions of each got one reward, or "
           "`all_the_same` after the last replacement", "Prompts so far"),
    Metric("time/<part>", "seconds",
           "seconds of an update that a part took; `optimizer`, `scoring`, `checkpoints`: of the update before"),
)
# fmt: on

LEFT_OUT = {
    "TRL": (
        "reward", "reward_std", "rewards/<reward>/std", "frac_reward_zero_std", "policy_loss", "kl", "aux_loss",
        "num_tokens", "mean_token_accuracy", "step_time", "completions/<statistic>", "clip_ratio/<statistic>",
        "cispo_clip_ratio", "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/<statistic>",
        "tools/<statistic>", "vespo/<statistic>",
    ),
    "transformers": (
        "grad_norm", "learning_rate", "epoch", "num_input_tokens_seen", "train_runtime", "train_tokens_per_second",
    ),
    "RLDTrainer": ("flops",),
}  # fmt: skip
"""Metrics that are left out on purpose, by who logs them: they repeat those above, or the recipe. The trainer's FLOPs
are those of its stage alone."""

_TRL_REWARD = Metric("rewards/<reward>/mean", "", "")

_LEFT_OUT = [Metric(pattern, "", "") for patterns in LEFT_OUT.values() for pattern in patterns]


@functools.cache
def find_metric(name: str) -> tuple[Metric, Mapping[str, str]] | None:
    """Return the metric that `name` belongs to, and what its placeholders stand for; None where it is not listed."""
    for metric in METRICS:
        if (names := metric.match(name)) is not None:
            return metric, names
    return None


@functools.cache
def _is_left_out(name: str) -> bool:
    return any(metric.match(name) is not None for metric in _LEFT_OUT)


def logged_metrics(logs: Mapping[str, Any], supervised: bool) -> dict[str, float | None]:
    """Return what `metrics.jsonl` keeps of a trainer's log, under its names; None stands for NaN and infinity.

    A name that is not listed is kept as it is, with an `UnlistedMetricWarning`. A log without a loss, such as the last
    one's timings, has no metrics.

    Args:
        supervised: Whether the loss is that of the `sft` signal.
    """
    if "loss" not in logs:
        return {}
    values = {}
    for name, value in logs.items():
        if reward := _TRL_REWARD.match(name):
            values[f"reward/{reward['reward']}"] = value
        elif not _is_left_out(name):
            values[name] = value
            if find_metric(name) is None:
                warnings.warn(
                    f"metrics.jsonl holds {name!r}, which is in no list of rld.reporting.metric_names; the report "
                    "shows it under 'Other metrics'",
                    UnlistedMetricWarning,
                    stacklevel=2,
                )
    if supervised:
        values["loss/sft"] = logs["loss"]
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
