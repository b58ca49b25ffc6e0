"""What `rld.trainer` relies on in TRL. When one of these fails after an upgrade, mend the trainer, then this."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer import utils
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, shuffle_sequence_dict, split_tensor_dict

import tests.support.tiny as tiny
from rld.trainer import trl_patches
from rld.trainer.rld_config import LOSS_TYPES, RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def names(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def made(folder: Any, **changes: Any) -> RLDTrainer:
    return RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(**tiny.rld_options(folder, **changes)),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
    )


def test_calculate_rewards_returns_gathered_rewards_per_function(tmp_path):
    assert names(GRPOTrainer._calculate_rewards) == ["self", "inputs", "prompts", "completions", "completion_ids_list"]
    trainer = made(tmp_path)
    rewards = GRPOTrainer._calculate_rewards(
        trainer, [{"prompt": "a="}] * 4, ["a="] * 4, ["a", "b", "c", "d"], [[5]] * 4
    )
    assert rewards.tolist() == [[1.0], [1.0], [0.0], [0.0]]


def test_rewards_log_columns_by_one_method_whose_values_wait_for_the_table(tmp_path):
    assert names(GRPOTrainer._log_completion_extra) == ["self", "column", "values"]
    trainer = made(tmp_path)
    columns: list[Any] = []
    trainer._log_completion_extra = lambda *column: columns.append(column)  # type: ignore[method-assign]

    def says(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("feedback", completions)
        return [0.0] * len(completions)

    trainer.reward_funcs = [says]
    GRPOTrainer._calculate_rewards(trainer, [{"prompt": "a="}] * 2, ["a="] * 2, ["a", "b"], [[5]] * 2)
    assert columns == [("feedback", ["a", "b"])]
    GRPOTrainer._log_completion_extra(trainer, "other", [1, 2])
    assert trainer._pending_extra_logs == {"other": [1, 2]}


def test_unused_columns_are_removed_by_one_hook(tmp_path):
    assert names(GRPOTrainer._set_signature_columns_if_needed) == ["self"]
    trainer = made(tmp_path)
    trainer._signature_columns = None
    GRPOTrainer._set_signature_columns_if_needed(trainer)
    assert trainer._signature_columns == ["prompt", "image", "images"]


def test_a_rollout_is_a_batch_first_dict_with_the_keys_we_read(tmp_path):
    trainer = made(tmp_path)
    trainer.model.train()
    rollout = GRPOTrainer._generate_and_score_completions(trainer, [tiny.rows()[0]] * 4)
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"} <= rollout.keys()
    assert rollout["advantages"].shape == (4,)
    assert rollout["num_items_in_batch"] == rollout["completion_mask"].sum()
    assert "old_per_token_logps" not in rollout  # aligned steps: the log-probabilities at loss time are the old ones


def test_prompts_are_encoded_by_one_hook_as_the_shared_encoder_does(tmp_path):
    assert names(GRPOTrainer._tokenize_prompts) == ["self", "prompts"]
    trainer = made(tmp_path)
    for chat in (False, True):
        prompts = list(tiny.rows(3, chat=chat)["prompt"])
        ours, theirs = trainer._tokenize_prompts(prompts), GRPOTrainer._tokenize_prompts(trainer, prompts)
        assert ours == (theirs[0], None, theirs[2])


def test_completions_are_generated_for_a_list_of_prompts_by_one_hook(tmp_path):
    assert names(GRPOTrainer._generate_single_turn)[:2] == ["self", "prompt_ids"]
    completions, log_p = GRPOTrainer._generate_single_turn(made(tmp_path), [[5, 4], [6, 4], [7, 4]], None, {}, 1)
    assert len(completions) == 3
    assert log_p is None


def test_prompts_are_replaced_by_what_trls_generation_returns(tmp_path):
    assert names(GRPOTrainer._generate) == ["self", "prompts"]
    trainer = made(tmp_path)
    trainer.model.train()
    prompt_ids, completion_ids, _, completions, log_p, *_ = GRPOTrainer._generate(trainer, ["a=", "b="])
    assert prompt_ids == [[5, 4], [6, 4]]
    assert completions == tiny.tokenizer().batch_decode(completion_ids, skip_special_tokens=True)
    assert log_p is None


def test_vllm_samples_whole_groups_with_the_options_and_the_weights_that_we_change():
    """`tests/trainer/test_vllm_rollouts.py` runs these around a small vLLM."""
    single_turn = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "self.vllm_generation.sync_weights()" in single_turn
    assert "return completion_ids, logprobs" in single_turn
    assert names(VLLMGeneration._iter_named_params) == ["self"]
    assert "self._iter_named_params()" in inspect.getsource(VLLMGeneration.sync_weights)
    generate = inspect.getsource(VLLMGeneration.generate)
    assert "all_prompts[::num_generations]" in generate
    assert "generation_kwargs.update(self.generation_kwargs)" in generate  # of a vLLM in the process
    assert '"generation_kwargs": self.generation_kwargs' in generate  # of a server
    assert "seed=accelerator.process_index //" in inspect.getsource(VLLMGeneration._init_vllm)


def test_a_completion_without_log_probabilities_of_vllm_is_not_corrected():
    score = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'float("nan") if x is None else x' in score
    assert "torch.nan_to_num(per_token_logps_diff, nan=0.0)" in score
    log_p, threshold = torch.tensor([[0.5, 0.5]]), 0.1
    unknown = GRPOTrainer.get_off_policy_mask(-torch.ones(1, 1), log_p, log_p * torch.nan, torch.ones(1, 2), threshold)
    assert unknown.item() == 1


def test_rollouts_are_shuffled_and_split_along_the_first_axis():
    rollout = {"a": torch.arange(8), "b": torch.arange(8)[:, None, None].expand(8, 2, 3), "whole": torch.tensor(8)}
    shuffled = shuffle_sequence_dict(rollout)
    halves = split_tensor_dict(shuffled, 2)
    assert torch.equal(torch.cat([half["b"] for half in halves])[:, 0, 0], torch.cat([half["a"] for half in halves]))
    assert all(half["whole"] == 8 for half in halves)


def test_one_function_shuffles_a_rollout_and_ours_keeps_prompts_together(tmp_path):
    rows = [row for row in tiny.rows(4) for _ in range(4)]
    trainer = made(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, num_iterations=2)
    trainer.model.train()
    orders = []
    for _ in range(3):
        trainer._buffered_inputs = None
        trainer._prepare_inputs(rows)
        parts = trainer._buffered_inputs
        assert [len(part["prompt_ids"].unique(dim=0)) for part in parts] == [1] * 4
        lengths = torch.cat([part["completion_mask"].sum(1) for part in parts])
        assert torch.equal(lengths, torch.cat([(part["old_per_token_logps"] != 0).sum(1) for part in parts]))
        orders.append([part["prompt_ids"][0].tolist() for part in parts])
    assert orders[0] != orders[1] or orders[1] != orders[2]  # prompts are shuffled all the same


def test_the_student_is_called_once_for_log_probabilities_and_entropy(tmp_path):
    trainer = made(tmp_path)
    calls = []

    def student(**kwargs: Any) -> Any:
        calls.append(sorted(kwargs))
        return trainer.model(**kwargs)

    ids, attention = torch.randint(3, 15, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    log_p, entropy, _ = GRPOTrainer._get_per_token_logps_and_entropies(
        trainer, student, ids, attention, 4, compute_entropy=True
    )
    assert calls == [["attention_mask", "fused_lm_head", "input_ids", "labels"]]
    ours = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, 4, compute_entropy=True)
    torch.testing.assert_close(ours[:2], (log_p, entropy), rtol=1e-5, atol=1e-5)
    reference = trainer.model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(log_p, reference[:, -4:], rtol=1e-5, atol=1e-5)
    assert entropy.shape == (2, 4)


def test_the_loss_reads_the_advantages_after_the_log_probabilities_and_is_linear_in_them(tmp_path, monkeypatch):
    trainer = made(tmp_path)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    ids = torch.randint(3, 15, (4, 7))
    inputs = {
        "prompt_ids": ids[:, :3],
        "prompt_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_ids": ids[:, 3:],
        "completion_mask": torch.ones(4, 4, dtype=torch.long),
        "advantages": torch.zeros(4),
        "num_items_in_batch": torch.tensor(16),
    }
    original = GRPOTrainer._get_per_token_logps_and_entropies
    late = torch.randn(4, 4)

    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        inputs["advantages"] = late
        return result

    monkeypatch.setattr(RLDTrainer, "_get_per_token_logps_and_entropies", hooked)
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    torch.testing.assert_close(loss, -late.mean(), rtol=1e-5, atol=1e-6)


def test_the_fused_head_and_the_kernels_have_the_signatures_we_call():
    assert names(add_fused_lm_head) == ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]
    assert {"log_probs", "entropy", "aux_loss"} <= set(FusedCausalLMOutput.__dataclass_fields__)
    assert names(ChunkedDivergenceFunction.forward) == [
        "ctx",
        *("student_hidden", "student_weight", "student_bias", "teacher_hidden", "teacher_weight", "teacher_bias"),
        *("beta", "temperature", "student_logit_scale", "student_final_logit_softcapping"),
        *("teacher_logit_scale", "teacher_final_logit_softcapping"),
    ]
    assert names(ChunkedLogProbFunction.forward) == [
        *("ctx", "hidden", "weight", "bias", "targets", "temperature", "chunk_size"),
        *("final_logit_softcapping", "logit_scale", "outputs"),
    ]


def test_the_fused_head_asks_one_function_whether_to_leave_out_positions_without_a_label(monkeypatch):
    seen = []
    kernel = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", lambda h, *a: seen.append(len(h)) or kernel(h, *a))
    ids = torch.randint(3, 15, (2, 7))
    labels = ids.masked_fill(torch.arange(7) < 5, -100)
    outputs = []
    for asked in (trl_patches._runs_triton, trl_patches._skips_unlabelled):
        monkeypatch.setattr(utils, "_use_triton", asked)
        model = tiny.model()
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        result = model(input_ids=ids, labels=labels, fused_lm_head=True)
        result.loss.backward()
        outputs.append((result.log_probs, next(model.parameters()).grad))
    assert seen == [12, 4]
    for every, labelled in zip(*outputs, strict=True):
        torch.testing.assert_close(every, labelled)


def test_the_norm_of_the_gradient_is_known_before_the_optimizers_step():
    assert names(Trainer._get_grad_norm) == ["self", "model", "grad_norm"]
    assert names(Trainer._prepare_inputs) == ["self", "inputs"]
    assert "self._prepare_inputs(inputs)" in inspect.getsource(Trainer.training_step)
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("self._get_grad_norm(") < source.index("self.optimizer.step()")


def test_checkpoints_are_written_and_read_by_the_hooks_we_extend():
    assert names(GRPOTrainer._save_checkpoint) == ["self", "model", "trial"]
    assert "save_total_limit=self.args.save_total_limit" in inspect.getsource(Trainer._save_checkpoint)
    assert names(GRPOTrainer._load_optimizer_and_scheduler) == ["self", "checkpoint"]
    assert names(GRPOTrainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert names(GRPOTrainer._prepare_for_training) == [
        *("self", "max_steps", "train_dataloader", "resume_from_checkpoint"),
    ]
    assert names(GRPOTrainer._save_optimizer_and_scheduler) == ["self", "output_dir"]
    assert names(GRPOTrainer.save_model) == ["self", "output_dir", "_internal_call"]


def test_one_module_replaces_functions_of_trl_and_two_replace_methods_of_a_model():
    """Assignments to an attribute of one of TRL's modules, and to `forward` or `generate` of a model."""
    patches, methods = {}, {}
    for path in (Path(trl_patches.__file__).parents[1]).rglob("*.py"):
        tree, name = ast.parse(path.read_text()), f"{path.parent.name}/{path.name}"
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
        modules = {a.name for node in imports if (node.module or "").split(".")[0] == "trl" for a in node.names}
        targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                if target.value.id in modules:
                    patches.setdefault(name, set()).add(f"{target.value.id}.{target.attr}")
                elif target.attr in ("forward", "generate") and target.value.id == "model":
                    methods[name] = target.attr
    replaced = {"utils._use_triton", "grpo_trainer.shuffle_sequence_dict", "grpo_trainer.create_model_from_path"}
    assert patches == {"trainer/trl_patches.py": replaced}
    assert "model = create_model_from_path(model, " in inspect.getsource(GRPOTrainer.__init__)
    assert methods == {"trainer/student_forward.py": "forward", "models/prefill.py": "generate"}


def test_our_list_of_losses_is_trls():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    compared = [node for node in ast.walk(ast.parse("if True:\n" + source)) if isinstance(node, ast.Compare)]
    named = {
        constant.value
        for node in compared
        if "loss_type" in ast.unparse(node.left)
        for constant in ast.walk(node.comparators[0])
        if isinstance(constant, ast.Constant)
    }
    assert named == set(LOSS_TYPES)
