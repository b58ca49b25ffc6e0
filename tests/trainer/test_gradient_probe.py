"""What controllers see of gradients' directions, against an independent computation, and training by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.controllers.gap import GapController
from rld.controllers.gradient import GradientAlignmentController, GradientNoiseController
from rld.controllers.observation import GradientStats
from rld.errors import RecipeError
from rld.teachers.teacher import Teacher
from rld.trainer.gradient_sketch import SKETCH_SIZE, random_signs, sketch
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.one_and_two import scripted

CPU = torch.device("cpu")
GOLD = [dict(row) for row in tiny.rows(6)]


def trainer(folder: Any, controller: Any, **changes: Any) -> RLDTrainer:
    options = {"signals": ["policy", "response"], "divergence": "forward_kl", "per_device_train_batch_size": 16}
    torch.manual_seed(0)
    gold_rows, rollout_func = changes.pop("gold_rows", GOLD), changes.pop("rollout_func", None)
    return RLDTrainer(
        tiny.model(),
        tiny.letters,
        RLDConfig(**tiny.rld_options(folder, **{**options, **changes})),
        tiny.rows(128),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(tiny.model(seed=1, width=48), name="t", tokenizer=tiny.tokenizer())],
        controller=controller,
        gold_rows=gold_rows,
        rollout_func=rollout_func,
    )


def parameters(made: RLDTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def mapped_logits(model: Any, ids: torch.Tensor, attention: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Logits with a linear map between the last states and the head."""
    hidden = model(input_ids=ids, attention_mask=attention, output_hidden_states=True).hidden_states[-1].detach()
    return (hidden + hidden @ by) @ model.lm_head.weight.detach().T


def reference(made: RLDTrainer, rollout: dict[str, Any], group: int) -> dict[str, torch.Tensor]:
    """The gradients `[H, H]` of one group's summed losses, by autograd through whole distributions."""
    rows = rollout["group_ids"] == group
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)[rows]
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)[rows]
    length, mask = rollout["completion_ids"].shape[1], rollout["completion_mask"][rows]
    by = torch.zeros(32, 32, requires_grad=True)
    log_s = mapped_logits(made.model, ids, attention, by).log_softmax(-1)[:, -length - 1 : -1]
    with torch.no_grad():
        log_t = (
            made.ensemble.slots[0]
            .model(input_ids=ids, attention_mask=attention)
            .logits.log_softmax(-1)[:, -length - 1 : -1]
        )
    taken = log_s.gather(-1, ids[:, -length:, None]).squeeze(-1)
    losses = {
        "policy": -(rollout["advantages"][rows][:, None] * taken * mask).sum(),
        "response": ((log_t.exp() * (log_t - log_s)).sum(-1) * mask).sum(),
    }
    return {s: torch.autograd.grad(loss, by, retain_graph=True)[0].double() for s, loss in losses.items()}


def sketched(gradient_HH: torch.Tensor, seed: int = 0) -> torch.Tensor:
    u_HD, v_HD = random_signs(32, seed).double()
    return torch.einsum("hd,hk,kd->d", u_HD, gradient_HH, v_HD) / SKETCH_SIZE**0.5


def measure(made: RLDTrainer, rollout: dict[str, Any]) -> tuple[dict[str, GradientStats], int]:
    made.current_gradient_accumulation_steps = 1
    made._compute_loss(made.model, rollout)
    return made._joint_loss.take_gradient_stats()


def test_means_noise_and_alignment_agree_with_autograd_group_by_group(tmp_path):
    made = trainer(tmp_path, GradientAlignmentController(decide_every=1))
    made.model.train()
    rows = [made.train_dataset[i] for i in (0, 1, 2, 4) for _ in range(4)]  # one group of the skill "first", three more
    torch.manual_seed(0)
    rollout = made._generate_and_score_completions(rows)
    order = torch.randperm(16)  # as TRL shuffles them
    rollout = {k: v[order] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in rollout.items()}
    seen, num_read = measure(made, dict(rollout))

    num_tokens, groups = rollout["completion_mask"].sum(), (0, 2, 3)
    by_group = [reference(made, rollout, group) for group in groups]
    samples = {s: torch.stack([3 * sketched(g[s]) / num_tokens for g in by_group]) for s in ("policy", "response")}
    means = {s: sample.mean(0) for s, sample in samples.items()}
    for one, mean in means.items():
        variance = (samples[one] - mean).pow(2).sum(1).sum() / (3 * 2)
        assert seen["second"].noise[one] == pytest.approx(variance.item(), rel=1e-4)
        for two, other in means.items():
            assert seen["second"].inner_products[one][two] == pytest.approx((mean @ other).item(), rel=1e-3, abs=1e-6)
    assert seen["first"].noise == {}  # one group says nothing of noise

    tokenizer, total = made.processing_class, 0
    direction = torch.zeros(32, 32, dtype=torch.float64)
    for row in GOLD:
        prompt, answer = (tokenizer(row[key])["input_ids"] for key in ("prompt", "answer"))
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        total += ids.numel()
        if row["skill"] == "second":
            by = torch.zeros(32, 32, requires_grad=True)
            log_p = mapped_logits(made.model, ids, torch.ones_like(ids), by).log_softmax(-1)
            nll = -log_p[0, len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None]).sum()
            direction += torch.autograd.grad(nll, by)[0].double()
    assert num_read == total
    for signal, mean in means.items():
        cosine = torch.cosine_similarity(mean, sketched(direction), dim=0).item()
        assert seen["second"].gold_cosine[signal] == pytest.approx(cosine, abs=1e-4)


def test_sketches_keep_inner_products_on_average():
    generator = torch.Generator().manual_seed(0)
    hidden, one, two = (torch.randn(5, 32, generator=generator) for _ in range(3))
    first, second = hidden.T @ one, hidden.T @ (one + two)
    products = []
    for seed in range(300):
        drawn = random_signs(32, seed)
        sketches = [sketch(hidden, g, drawn).sum(0) for g in (one, one + two)]
        products.append((sketches[0] @ sketches[1]).item())
    found = torch.tensor(products)
    assert found.mean() == pytest.approx((first * second).sum().item(), abs=3 * found.std().item() / 300**0.5)
    assert found.std() < 0.25 * (first.norm() * second.norm()).item()


def test_micro_batches_and_uninformative_policies_are_seen_as_they_are(tmp_path):
    def run(steps: int, **changes: Any) -> Any:
        options = {"per_device_train_batch_size": 16 // steps, "gradient_accumulation_steps": steps}
        made = trainer(
            tmp_path,
            GradientNoiseController(decide_every=1),
            max_steps=2,
            num_generations=2,
            generation_batch_size=16,
            **options,
            **changes,
        )
        made.train()
        return made

    whole, quarters = (run(n).runtime.state["skills"] for n in (1, 4))
    for skill, entry in whole.items():
        assert entry["noise"] == pytest.approx(quarters[skill]["noise"], rel=1e-3)
        assert entry["bias"]["response"] == pytest.approx(quarters[skill]["bias"]["response"], rel=1e-3)
        assert entry["log_weights"] == pytest.approx(quarters[skill]["log_weights"], rel=1e-3)
    made = trainer(tmp_path, GradientNoiseController(decide_every=1))
    made.model.train()
    rollout = made._generate_and_score_completions([made.train_dataset[i // 4] for i in range(16)])
    rollout["advantages"].zero_()
    seen, _ = measure(made, rollout)
    assert all(set(pulls.noise) == {"response"} for pulls in seen.values())


@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_groups_of_several_rollouts_of_an_update_are_different_samples(tmp_path, steps_per_generation):
    def stats(steps: int) -> dict[str, GradientStats]:
        options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_generations": 4}
        made = trainer(
            tmp_path,
            GradientNoiseController(decide_every=1),
            max_steps=1,
            steps_per_generation=steps,
            shuffle_dataset=False,  # so that all have the same prompts
            rollout_func=scripted,
            **options,
        )
        taken, take = list[dict[str, GradientStats]](), made._joint_loss.take_gradient_stats

        def spy() -> tuple[dict[str, GradientStats], int]:
            taken.append(take()[0])
            return taken[-1], 0

        made._joint_loss.take_gradient_stats = spy
        made.train()
        return taken[0]

    several, one = stats(steps_per_generation), stats(4)
    assert {skill for skill, seen in one.items() if seen.noise} == {"first", "second"}
    for skill, seen in one.items():
        assert several[skill].noise == pytest.approx(seen.noise, rel=1e-3)


@pytest.mark.parametrize(
    "controller",
    [GradientNoiseController(decide_every=2), GradientAlignmentController(decide_every=2)],
    ids=lambda c: c.kind,
)
def test_training_by_directions_moves_weights_and_resumes_bit_for_bit(tmp_path, controller):
    def made(folder: str) -> RLDTrainer:
        options = {
            "max_steps": 8,
            "save_strategy": "steps",
            "save_steps": 5,
            "signals": ["policy", "response", "feature"],
        }
        return trainer(tmp_path / folder, controller, gate="off", **options)

    whole, again = made("whole"), made("again")
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    torch.testing.assert_close(parameters(again), parameters(whole), rtol=0, atol=0)
    assert again.runtime.state_dict() == whole.runtime.state_dict()
    start = controller.weights(controller.start(whole.skills, ["t"], ["policy", "response", "feature"]))
    assert whole.runtime.weights.signals != start.signals
    last = [entry for entry in whole.state.log_history if "noise/response/first" in entry]
    assert last
    assert ("aligned/feature/second" in last[0]) == (controller.kind == "gradient_alignment")


def test_measuring_costs_what_it_reads_changes_no_update_and_is_left_alone_unless_asked_for(tmp_path):
    halves = {"policy": 0.5, "response": 0.5}
    runs = []
    for controller in (
        FixedController(**halves, decide_every=1),
        GradientNoiseController(decide_every=1),
        GradientAlignmentController(decide_every=1),
    ):
        runs.append(trainer(tmp_path, controller, max_steps=1))
        runs[-1].train()
    fixed, noise, probe = runs
    assert torch.equal(parameters(fixed), parameters(noise))
    assert torch.equal(parameters(fixed), parameters(probe))
    assert fixed.flop_meter.total == noise.flop_meter.total
    tokens = sum(len(row["prompt"]) + len(row["answer"]) + 1 for row in GOLD)
    assert probe.flop_meter.total - fixed.flop_meter.total == pytest.approx(2 * fixed.model.num_parameters() * tokens)
    assert fixed._joint_loss.gradient_probe is None
    assert trainer(tmp_path, GapController())._joint_loss.gradient_probe is None


@pytest.mark.parametrize("answer", ["abcdefghij", "ab ab"], ids=["longer than a completion", "unknown characters"])
def test_gold_answers_that_the_student_cannot_write_are_left_out_of_the_measurement(tmp_path, answer):
    controller = GradientAlignmentController(gold_rows=2)
    with pytest.warns(UserWarning, match=r"without 1 that the student cannot write; the first one: its answer"):
        made = trainer(tmp_path, controller, gold_rows=[{**GOLD[0], "answer": answer}, *GOLD])
    first = trainer(tmp_path, controller)
    assert made._joint_loss.gradient_probe.gold._texts == first._joint_loss.gradient_probe.gold._texts


def test_a_probe_without_gold_answers_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no row of gold_rows has one"):
        RLDTrainer(
            tiny.model(),
            tiny.letters,
            RLDConfig(**tiny.rld_options(tmp_path)),
            tiny.rows(),
            processing_class=tiny.tokenizer(),
            teachers=[Teacher(tiny.model(seed=1), name="t", tokenizer=tiny.tokenizer())],
            controller=GradientAlignmentController(),
        )
