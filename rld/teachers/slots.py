"""One object per teacher of an ensemble: it scores completions, and hands a micro-batch what the loss reads.

There are three kinds. `SameTokenizerSlot` runs a model on the student's tokens. `AlignedSlot` runs a model with another
tokenizer on a translation, and moves its states to the tokens of the student. `LogprobSlot` asks a log-probability
source, which may be a server or a cache, for top-k log-probabilities.

Shapes: B completions of a rollout, R of them that a teacher scores, P prompt tokens, T completion tokens, S = P + T,
U completion tokens of a teacher with another tokenizer, H width, L layers, V tokens that two vocabularies share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rld.errors import TeacherError
from rld.losses.teacher_outputs import TeacherOutputs, TeacherTensor, teacher_key
from rld.models.backbone import States, as_many_as_fit, hidden_states
from rld.models.draft_rows import BatchWithDrafts
from rld.models.heads import LMHead, log_probabilities
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.self_check import require_context, require_sound_model, require_token_rows
from rld.teachers.slot_base import SlotResult, TeacherBatch, TeacherSlot
from rld.teachers.translation import CompletionTranslator


class _LocalSlot(TeacherSlot):
    """A teacher whose model runs in this process and hands over hidden states."""

    def _read_teacher(self) -> None:
        super()._read_teacher()
        model = self.teacher.load()
        self._model = model if self.teacher.offload or self.teacher.is_student else self._prepare(model)
        with self.teacher.running(self._model.device):
            require_sound_model(self._model, f"teacher '{self.teacher.name}'", TeacherError)
            self._layout = PromptSharingLayout.of(self._model, f"teacher '{self.teacher.name}'")
        self._fitting_rows: int | None = None
        """Completions per forward that fit into memory, once more did not."""

    @property
    def model(self) -> PreTrainedModel:
        return self._model

    def takes_drafts(self, scoring_dtype: torch.dtype | None) -> bool:
        return self._layout.shared and scoring_dtype in (None, self._model.dtype)

    def _run_with_drafts(
        self, ids_RS: Tensor, attention_RS: Tensor, *, num_tokens: int, batch: TeacherBatch
    ) -> tuple[States, list[Tensor]]:
        """Return the states at the completions, and for each draft the last hidden states that predict its tokens."""
        rows = batch.rows_per_forward
        if not batch.drafts:
            return self._run_model(ids_RS, attention_RS, num_tokens=num_tokens, rows_per_forward=rows), []
        with_drafts = BatchWithDrafts.of(ids_RS, attention_RS, num_tokens, batch.drafts)
        states = self._run_model(
            with_drafts.ids_NS, with_drafts.attention_NS, num_tokens=with_drafts.num_tokens, rows_per_forward=rows
        )
        return with_drafts.apart(states, num_tokens, [len(draft) for _, draft in batch.drafts])

    def _run_model(self, ids_RS: Tensor, attention_RS: Tensor, *, num_tokens: int, rows_per_forward: int) -> States:
        """Return the last hidden states and those that features are compared at."""
        # On a GPU more rows are faster, and more than fit into its memory are halved.
        rows = rows_per_forward if ids_RS.device.type == "cpu" else len(ids_RS)
        rows = rows if self._fitting_rows is None else min(rows, self._fitting_rows)
        state_keys = () if self.plan is None else self.plan.teacher_keys
        self._require_context(attention_RS)
        with self.teacher.running(ids_RS.device) as model:

            def run(rows_per_forward: int) -> States:
                return hidden_states(
                    model,
                    ids_RS,
                    attention_RS,
                    num_tokens=num_tokens,
                    rows_per_forward=rows_per_forward,
                    layout=self._layout,
                    state_keys=state_keys,
                )

            states, fitting_rows = as_many_as_fit(run, rows)
        if fitting_rows < rows:
            self._fitting_rows = fitting_rows
        return states

    def _require_context(self, attention_RS: Tensor) -> None:
        """Refuse rows that are longer than the model's context; padding counts where the model counts positions."""
        counts_padding = not self._layout.positions
        num_tokens = attention_RS.shape[1] if counts_padding else int(attention_RS.sum(1).max())
        text = "a prompt with its completion" + (", padded like the others," if counts_padding else "")
        name = f"teacher '{self.teacher.name}'"
        require_context(self._model, num_tokens, name=name, text=text, kind=TeacherError)

    def outputs(self, batch: Mapping[str, Any]) -> TeacherOutputs:
        return TeacherOutputs(
            head=self.head(),
            hidden_BTH=self._get(batch, "hidden"),
            layers_BLTH=self._get(batch, "layers"),
            valid_BT=batch["teacher_tokens"][:, self.index],
        )


class SameTokenizerSlot(_LocalSlot):
    """A teacher that reads the student's tokens."""

    def run(self, batch: TeacherBatch) -> SlotResult:
        self._require_readable_prompts(batch)
        ids_RS = torch.cat([batch.prompt_ids_RP, batch.completion_ids_RT], dim=1)
        attention_RS = torch.cat([batch.prompt_mask_RP, batch.completion_mask_RT], dim=1)
        num_tokens = batch.completion_ids_RT.shape[1]
        embeddings: Any = self.teacher.load().get_input_embeddings()
        unknown_RS = ids_RS >= len(embeddings.weight)
        # An unknown token is read as token 0, and a foreign one as another, so the states from it on mean nothing.
        after_unknown_RS = ((unknown_RS | self._is_foreign(ids_RS)) & attention_RS.bool()).cumsum(1) > 0
        states, draft_states = self._run_with_drafts(
            ids_RS.masked_fill(unknown_RS, 0), attention_RS, num_tokens=num_tokens, batch=batch
        )
        ids_RT = batch.completion_ids_RT
        tokens_RT = (ids_RT < len(self.head().weight)) & self._is_not_foreign_end(ids_RT)
        tensors: dict[TeacherTensor, Tensor] = {"hidden": states.last_BTH}
        if states.mapped_BLTH is not None:
            tensors["layers"] = states.mapped_BLTH
        is_known_RT = ~after_unknown_RS[:, -num_tokens:]
        return SlotResult(tokens_RT & is_known_RT, tensors, states.num_computed, draft_states=draft_states)

    def sampled_scores(self, rollout: Mapping[str, Any], temperature: float) -> Tensor | None:
        rows_B = rollout["teacher_tokens"][:, self.index].any(1)
        if not rows_B.any():
            return None
        ids_BT, head = rollout["completion_ids"], self.head()
        hidden_RTH = rollout[teacher_key(self.index, "hidden")][rows_B]
        scores_BT = torch.zeros(ids_BT.shape, device=ids_BT.device)
        targets_RT = ids_BT[rows_B].clamp(max=len(head.weight) - 1)
        scores_BT[rows_B] = log_probabilities(head, hidden_RTH, targets_RT, temperature=temperature)
        return scores_BT


class AlignedSlot(_LocalSlot):
    """A teacher with another tokenizer, which reads a translation of the completions."""

    def _read_teacher(self) -> None:
        super()._read_teacher()
        encoder, name = self.teacher.prompt_encoder(self.student.encoder), f"teacher '{self.teacher.name}'"
        require_token_rows(self.model, encoder.tokenizer, name, kind=TeacherError)
        self._translator = CompletionTranslator(
            str(self.teacher.name), encoder, student=self.student.vocabulary, is_chat=self.student.is_chat
        )

    def head(self) -> LMHead:
        """Return the output head over the teacher's own vocabulary."""
        return self.teacher.head(self.student.head_device)

    def run(self, batch: TeacherBatch) -> SlotResult | None:
        translation = self._translator.translate(batch.prompts, batch.completion_ids_RT, batch.completion_mask_RT)
        if not translation.num_tokens:
            return None
        device = batch.completion_ids_RT.device
        text = translation.to(device)
        states, draft_states = self._run_with_drafts(
            text.ids_BS, text.attention_BS, num_tokens=text.num_tokens, batch=batch
        )
        last_RUH = states.last_BTH.to(device)  # a model may end on another device
        log_p_RU = log_probabilities(
            self.head(), last_RUH, text.ids_BS[:, -text.num_tokens :], temperature=batch.temperature
        )
        index_RT = text.starts_BT.clamp(min=0)
        row_R1 = torch.arange(len(index_RT), device=device)[:, None]
        tokens_RT = text.starts_BT >= 0
        if self.teacher.align == "vocabulary":  # a first token with a space is no partner of one without
            tokens_RT[:, 0] &= ~text.has_space_B
        tensors: dict[TeacherTensor, Tensor] = {
            "hidden": last_RUH[row_R1, index_RT],
            "spans": text.student_spans_BT,
            "span_scores": _span_sums(log_p_RU, text.teacher_spans_BU, index_RT.shape[1]),
        }
        if states.mapped_BLTH is not None:
            mapped_RULH = states.mapped_BLTH.to(device).transpose(1, 2)
            tensors["layers"] = mapped_RULH[row_R1, index_RT].transpose(1, 2)
        return SlotResult(tokens_RT, tensors, states.num_computed, draft_states=draft_states)

    def outputs(self, batch: Mapping[str, Any]) -> TeacherOutputs:
        return replace(
            super().outputs(batch),
            align=self.teacher.align,
            spans_BT=self._get(batch, "spans"),
            span_scores_BT=self._get(batch, "span_scores"),
            shared_ids=self._shared_ids(batch["completion_ids"].device),
        )

    def _shared_ids(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the ids `[V]` of the student's and of the teacher's tokens that spell the same."""
        student_V, teacher_V = self._translator.vocabulary
        # a model may lack the last tokens of its tokenizer
        both_V = (student_V < self.student.num_logits) & (teacher_V < len(self.head().weight))
        return student_V[both_V].to(device), teacher_V[both_V].to(device)

    def sampled_scores(self, rollout: Mapping[str, Any], temperature: float) -> Tensor | None:
        spans_BT, scores_BT = self._get(rollout, "spans"), self._get(rollout, "span_scores")
        if spans_BT is None or scores_BT is None:
            return None
        return scores_BT.gather(1, spans_BT.clamp(min=0))

    def sampled_spans(self, rollout: Mapping[str, Any]) -> Tensor:
        spans_BT = self._get(rollout, "spans")
        return super().sampled_spans(rollout) if spans_BT is None else spans_BT


class LogprobSlot(TeacherSlot):
    """A teacher behind a log-probability source, which reads the student's tokens."""

    def _read_teacher(self) -> None:
        super()._read_teacher()
        assert self.teacher.source is not None
        self._source = self.teacher.source

    @property
    def is_remote(self) -> bool:
        return self._source.is_remote

    def scorable_rows(self, rollout: Mapping[str, Any], rows_B: Tensor) -> Tensor:
        has_tokens_B: Tensor = rollout["completion_mask"].any(1)  # a completion that was cut short may have none
        return rows_B & has_tokens_B

    def run(self, batch: TeacherBatch) -> SlotResult | None:
        self._require_readable_prompts(batch)
        sequences = [*_sequences(batch)]
        logprobs = self.teacher.score(sequences, batch.temperature)
        if logprobs is None:
            return None
        ids_RT = batch.completion_ids_RT
        mask_RT = torch.arange(ids_RT.shape[1]) < torch.tensor([len(sequence.tail) for sequence in logprobs])[:, None]
        tensors: dict[TeacherTensor, Tensor] = {}
        for name, values_N in vars(TopKLogprobs.concatenated(logprobs)).items():
            if values_N is not None:
                values_RT = values_N.new_zeros(mask_RT.shape + values_N.shape[1:])
                values_RT[mask_RT] = values_N
                values_RT = values_RT.transpose(1, 2) if name == "layers" else values_RT
                tensors[cast(TeacherTensor, name)] = values_RT.to(ids_RT.device)
        num_cached = self._source.take_cached_tokens()
        num_computed = sum(len(sequence.ids) for sequence in sequences) - num_cached
        before_foreign_RT = self._is_foreign(ids_RT).cumsum(1) == 0
        tokens_RT = self._is_not_foreign_end(ids_RT) & mask_RT.to(ids_RT.device) & before_foreign_RT
        return SlotResult(tokens_RT, tensors, num_computed, num_cached)

    def outputs(self, batch: Mapping[str, Any]) -> TeacherOutputs:
        ids, log_p, tail, sampled = (self._get(batch, name) for name in ("ids", "log_p", "tail", "sampled"))
        logprobs = None
        if ids is not None and log_p is not None and tail is not None and sampled is not None:
            logprobs = TopKLogprobs(ids, log_p, tail, sampled)
        reads_out = self.plan is not None and self.plan.readout_norm is not None
        return TeacherOutputs(
            head=self.head() if reads_out else None,
            hidden_BTH=None,
            layers_BLTH=self._get(batch, "layers"),
            valid_BT=batch["teacher_tokens"][:, self.index],
            top_k=logprobs,
        )

    def sampled_scores(self, rollout: Mapping[str, Any], temperature: float) -> Tensor | None:
        return self._get(rollout, "sampled")


def _sequences(batch: TeacherBatch) -> Iterator[ScoredSequence]:
    """Yield each prompt and its completion without padding."""
    tensors = (batch.prompt_ids_RP, batch.prompt_mask_RP, batch.completion_ids_RT, batch.completion_mask_RT)
    for prompt_P, is_prompt_P, ids_T, mask_T in zip(*(tensor.cpu() for tensor in tensors), strict=True):
        size = int(mask_T.sum())
        yield ScoredSequence([*prompt_P[is_prompt_P.bool()].tolist(), *ids_T[:size].tolist()], size)


def _span_sums(log_p_RU: Tensor, spans_RU: Tensor, size: int) -> Tensor:
    """Sum log-probabilities over the tokens of each span: `[R, size]`."""
    sums = log_p_RU.new_zeros(len(log_p_RU), size + 1)  # the last column is for tokens without a span
    return sums.scatter_add(1, spans_RU.where(spans_RU >= 0, size), log_p_RU)[:, :size]
