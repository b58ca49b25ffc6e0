"""The teachers of one trainer: they score a rollout once, and answer for what they said.

A teacher is run once per rollout, without gradients, and hands over hidden states; its head is applied to them later.
One with another tokenizer reads a translation, and its states are put where the student's tokens start. Those that are
elsewhere are asked all at the same time, and hand over a shortlist per token (`shortlist.py`).

Shapes: B completions, R of them that a teacher is run on, T completion tokens, U completion tokens of a teacher with
another tokenizer, P prompt tokens, H width, L layers, K teachers, J tokens of a shortlist, V tokens that two
vocabularies share.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.losses.feature_matching import FeaturePlan
from rld.losses.features import AnyFeature
from rld.losses.teacher_outputs import TeacherOutputs, TeacherTensor, teacher_key
from rld.models.backbone import as_many_as_fit, hidden_states
from rld.models.heads import LMHead, log_probabilities
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.prompting import PromptEncoder
from rld.teachers.teacher import Teacher, share_base_models
from rld.teachers.translation import CompletionTranslator, StudentVocabulary, Translation


class TeacherEnsemble:
    """The teachers of one trainer, ready to score rollouts.

    What it adds to a rollout is batch first and survives TRL's shuffling and splitting into micro-batches.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        student: PreTrainedModel,
        encoder: PromptEncoder,
        ends: Sequence[int],
        feature: AnyFeature | None,
        prepare: Callable[[PreTrainedModel], PreTrainedModel],
    ) -> None:
        names = [teacher.name for teacher in teachers]
        if len(set(names)) < len(names):
            raise TeacherError(f"two teachers share a name: {names}; give them names with Teacher(model, name=...)")
        unknown = [teacher.name for teacher in teachers if not teacher.verified and teacher.skills is None]
        if len(unknown) > 1:
            warnings.warn(
                f"nothing says where teachers {unknown} are right, so all teach everywhere alike, and one that is "
                "wrong on a skill harms the student there; give them Teacher(..., skills=[...]) or verified={...}",
                stacklevel=4,
            )
        self.teachers, self._prepare, self._ends = list(teachers), prepare, set(ends)
        share_base_models(teachers)
        for teacher in teachers:
            teacher.require_same_tokenizer(encoder.tokenizer)
        # A base model ends with another token than its instruct sibling: what one says of the other's end is noise.
        self._foreign_ends = [sorted(self._ends - teacher.ends()) for teacher in teachers]
        self.models = [self._prepared(teacher) for teacher in teachers]
        self.num_parameters = [teacher.num_parameters() for teacher in teachers]
        self.num_computed = [0] * len(self.models)
        """Tokens that each teacher of this process computed since whoever counts them began anew."""
        self._layouts: dict[int, PromptSharingLayout] = {}
        self._fits: dict[int, int] = {}
        """Completions per forward, for each teacher that once ran out of memory with more."""
        self._output = student.get_output_embeddings()
        self._vocabulary = self._output.weight.shape[0]
        self._translators = _translators(teachers, encoder, ends)
        self.align = [teacher.align for teacher in teachers]
        self.plans = [FeaturePlan.of(feature, student, t.load(), str(t.name)) for t in teachers] if feature else []
        for teacher, plan in zip(teachers, self.plans, strict=False):
            teacher.require_states(plan.taps)
        self._read_out = [plan.norm is not None for plan in self.plans] or [False] * len(teachers)

    def _prepared(self, teacher: Teacher) -> PreTrainedModel | None:
        if teacher.lister is not None:
            return None
        return teacher.load() if teacher.offload else self._prepare(teacher.load())

    def swap(self, k: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let teacher k speak with the weights of another model from now on.

        Raises:
            TeacherError: it has another tokenizer, or features are matched, whose projections belong to the old one.
        """
        teacher = self.teachers[k]
        if self.plans:
            raise TeacherError(f"teacher '{teacher.name}' can't change its weights with a feature signal")
        teacher.swap(model, tokenizer)
        self.models[k], self.num_parameters[k] = self._prepared(teacher), teacher.num_parameters()
        self._foreign_ends[k] = sorted(self._ends - teacher.ends())
        self._layouts.pop(k, None)

    def head(self, k: int) -> LMHead:
        """Teacher k's output head, over the vocabulary that it shares with the student, or another one of its own."""
        head = self.teachers[k].head(self._output.weight.device)
        return head if self._translators[k] else head.first(min(self._vocabulary, head.weight.shape[0]))

    @torch.no_grad()
    def score(
        self, rollout: dict[str, Any], rows_BK: Tensor, batch: int, prompts: Sequence[Any], temperature: float
    ) -> None:
        """Run each teacher once over the rows that need it and add what it says to `rollout`.

        Args:
            rollout: TRL's: prompts and completions in the student's tokens. Added are `teacher_tokens` `[B, K, T]`,
                where each teacher has a distribution, and for each k that was run its `TeacherTensor`s.
            rows_BK: The rows that need it.
            batch: Completions per forward, about.
            prompts: What the rows' prompts are: text or messages.
            temperature: Of the span scores.
        """
        completions_BT = rollout["completion_ids"]
        spoken_BKT = torch.zeros(len(rows_BK), len(self.models), completions_BT.shape[1], dtype=torch.bool)
        rollout["teacher_tokens"] = spoken_BKT.to(completions_BT.device)
        listed_K = torch.tensor([teacher.lister is not None for teacher in self.teachers], device=rows_BK.device)
        # A lister can't be asked about nothing, such as a completion that is left out because it was cut short.
        rows_BK = rows_BK & (rollout["completion_mask"].any(1)[:, None] | ~listed_K)
        wanted = {k: rows for k in range(len(self.models)) if len(rows := rows_BK[:, k].nonzero().squeeze(1))}
        listers = {k: lister for k in wanted if (lister := self.teachers[k].lister)}
        elsewhere = [k for k, lister in listers.items() if lister.is_elsewhere]
        with ThreadPoolExecutor(max(1, len(elsewhere))) as pool:
            asked = {k: pool.submit(self._ask, k, rollout, wanted[k], temperature) for k in elsewhere}
            self._run_here({k: wanted[k] for k in wanted if k not in listers}, rollout, batch, prompts, temperature)
            # Not in the pool: models here may share weights, whose adapter, hooks and place are one for all.
            said = {k: self._ask(k, rollout, wanted[k], temperature) for k in listers if k not in asked}
        for k in listers:
            self._note(k, rollout, wanted[k], asked[k].result() if k in asked else said[k])

    def _run_here(
        self,
        wanted: Mapping[int, Tensor],
        rollout: dict[str, Any],
        batch: int,
        prompts: Sequence[Any],
        temperature: float,
    ) -> None:
        """Run the teachers of this process on the rows that each is wanted on."""
        completions_BT = rollout["completion_ids"]
        for k, rows in wanted.items():
            translator = self._translators[k]
            if translator is None:
                self._listen(k, rollout, rows, batch)
            else:
                completions = completions_BT[rows], rollout["completion_mask"][rows]
                translation = translator.translate([prompts[i] for i in rows.tolist()], *completions)
                if translation.num_tokens:
                    self._listen_aligned(k, rollout, rows, batch, translation.to(completions_BT.device), temperature)

    def _ask(self, k: int, rollout: dict[str, Any], rows: Tensor, temperature: float) -> list[TopKLogprobs] | None:
        """Ask a teacher elsewhere for shortlists, one for each row."""
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        read = zip(*(rollout[name][rows].cpu() for name in names), strict=True)
        passages = [
            ScoredSequence([*prompt_P[real_P.bool()].tolist(), *ids_T[: int(mask_T.sum())].tolist()], int(mask_T.sum()))
            for prompt_P, real_P, ids_T, mask_T in read
        ]
        self.num_computed[k] += sum(len(passage.ids) for passage in passages)
        return self.teachers[k].shortlists(passages, temperature)

    def _note(self, k: int, rollout: dict[str, Any], rows: Tensor, said: Sequence[TopKLogprobs] | None) -> None:
        """Put a teacher's shortlists where the completion tokens are; without any it stays silent."""
        if said is None:
            return
        ids_BT = rollout["completion_ids"]
        mask_RT = torch.arange(ids_BT.shape[1]) < torch.tensor([len(one.tail) for one in said])[:, None]
        listed = vars(TopKLogprobs.concatenated(said))
        for name, values_N in ((name, values) for name, values in listed.items() if values is not None):
            values_RT = values_N.new_zeros(*mask_RT.shape, *values_N.shape[1:])
            values_RT[mask_RT] = values_N
            values_RT = values_RT.transpose(1, 2) if name == "layers" else values_RT
            rollout[teacher_key(k, cast(TeacherTensor, name))] = _at_rows(
                values_RT.to(ids_BT.device), rows, len(ids_BT)
            )
        speaks_RT = self._knows_end(k, ids_BT[rows]) & mask_RT.to(ids_BT.device)
        rollout["teacher_tokens"][rows, k] = speaks_RT

    def _listen(self, k: int, rollout: dict[str, Any], rows: Tensor, batch: int) -> None:
        """Run a teacher that reads the student's tokens."""
        ids_RS, attention_RS = (
            torch.cat([rollout[f"prompt_{what}"][rows], rollout[f"completion_{what}"][rows]], dim=1)
            for what in ("ids", "mask")
        )
        num_rows, num_tokens = rollout["completion_ids"].shape
        embeddings: Any = self.teachers[k].load().get_input_embeddings()
        unknown_RS = ids_RS >= embeddings.weight.shape[0]
        lost_RS = (unknown_RS & attention_RS.bool()).cumsum(1) > 0  # nor can it follow what stands behind them
        last, mapped = self._run(k, ids_RS.masked_fill(unknown_RS, 0), attention_RS, num_tokens, batch)
        speaks_RT = self._speaks(k, rollout["completion_ids"][rows]) & ~lost_RS[:, -num_tokens:]
        rollout["teacher_tokens"][rows, k] = speaks_RT
        rollout[teacher_key(k, "hidden")] = _at_rows(last, rows, num_rows)
        if mapped is not None:
            rollout[teacher_key(k, "layers")] = _at_rows(mapped, rows, num_rows)

    def _run(
        self, k: int, ids_BS: Tensor, attention_BS: Tensor, num_tokens: int, batch: int
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher k's hidden states, and those that features are matched with."""
        taps = self.plans[k].taps if self.plans else ()
        with self.teachers[k].running(ids_BS.device) as model:
            if k not in self._layouts:
                self._layouts[k] = PromptSharingLayout.of(model, f"teacher '{self.teachers[k].name}'")
            if ids_BS.device.type != "cpu":  # there a larger batch is faster, and too large a one can be mended
                batch = len(ids_BS)
            batch = min(batch, self._fits.get(k, batch))
            read = model, ids_BS, attention_BS, num_tokens, taps
            states, fits = as_many_as_fit(lambda size: hidden_states(*read, size, self._layouts[k]), batch)
            if fits < batch:
                self._fits[k] = fits
        self.num_computed[k] += states.num_computed
        return states.last_BTH, states.mapped_BLTH

    def _listen_aligned(
        self, k: int, rollout: dict[str, Any], rows: Tensor, batch: int, said: Translation, temperature: float
    ) -> None:
        """Run a teacher on a translation, and put its states where the student's tokens start and its spans end."""
        num_rows, (_, num_tokens) = len(rollout["completion_ids"]), said.starts_BT.shape
        last_RUH, mapped_RLUH = self._run(k, said.ids_BS, said.attention_BS, said.num_tokens, batch)
        last_RUH = last_RUH.to(said.ids_BS.device)  # a model may end on another device
        mapped_RLUH = None if mapped_RLUH is None else mapped_RLUH.to(said.ids_BS.device)
        log_p_RU = log_probabilities(self.head(k), last_RUH, said.ids_BS[:, -said.num_tokens :], temperature)
        scores_RT = _span_sums(log_p_RU, said.theirs_BU, num_tokens)
        index = said.starts_BT.clamp(min=0)
        batch_index = torch.arange(len(rows), device=index.device)[:, None]
        spoken_RT = said.starts_BT >= 0
        if self.align[k] == "vocabulary":  # a first token with a space is no partner of one without
            spoken_RT[:, 0] &= ~said.spaced_B
        rollout["teacher_tokens"][rows, k] = spoken_RT
        rollout[teacher_key(k, "hidden")] = _at_rows(last_RUH[batch_index, index], rows, num_rows)
        if mapped_RLUH is not None:
            mapped_RLTH = mapped_RLUH.transpose(1, 2)[batch_index, index].transpose(1, 2)
            rollout[teacher_key(k, "layers")] = _at_rows(mapped_RLTH, rows, num_rows)
        rollout[teacher_key(k, "spans")] = _at_rows(said.spans_BT + 1, rows, num_rows) - 1  # -1 in the other rows
        rollout[teacher_key(k, "span_scores")] = _at_rows(scores_RT, rows, num_rows)

    def _speaks(self, k: int, ids_BT: Tensor) -> Tensor:
        """Where teacher k's opinion means something: it has the token, and the token is not an end unknown to it."""
        return (ids_BT < self.head(k).weight.shape[0]) & self._knows_end(k, ids_BT)

    def _knows_end(self, k: int, ids_BT: Tensor) -> Tensor:
        return ~torch.isin(ids_BT, torch.tensor(self._foreign_ends[k], device=ids_BT.device))

    def sampled_scores(self, rollout: dict[str, Any], temperature: float) -> dict[str, Tensor]:
        """What each teacher thinks of what the student sampled.

        Returns:
            `teacher_scores` `[B, K, T]`, the log-probability in nats of the span that the token lies in, which for a
            teacher of the same tokenizer is the token itself; and `teacher_spans` `[B, K, T]`, the number of that span,
            -1 where the teacher is silent.
        """
        spoken_BKT = rollout["teacher_tokens"]
        scores_BKT = torch.zeros(spoken_BKT.shape, device=spoken_BKT.device)
        spans_BKT = torch.arange(spoken_BKT.shape[-1], device=spoken_BKT.device).expand(spoken_BKT.shape)
        spans_BKT = spans_BKT.where(spoken_BKT, -1)
        for k, translator in enumerate(self._translators):
            rows = spoken_BKT[:, k].any(1)
            if translator is not None and teacher_key(k, "spans") in rollout:
                spans_BT = rollout[teacher_key(k, "spans")]
                scores_BKT[:, k] = rollout[teacher_key(k, "span_scores")].gather(1, spans_BT.clamp(min=0))
                spans_BKT[:, k] = spans_BT
            elif teacher_key(k, "sampled") in rollout:
                scores_BKT[:, k] = rollout[teacher_key(k, "sampled")]
            elif translator is None and rows.any():
                head = self.head(k)
                targets_BT = rollout["completion_ids"][rows].clamp(max=head.weight.shape[0] - 1)
                hidden_BTH = rollout[teacher_key(k, "hidden")][rows]
                scores_BKT[rows, k] = log_probabilities(head, hidden_BTH, targets_BT, temperature)
        return {"teacher_scores": scores_BKT.masked_fill(spans_BKT < 0, 0.0), "teacher_spans": spans_BKT}

    def states(self, inputs: Mapping[str, Any]) -> list[TeacherOutputs]:
        """What each teacher said about a micro-batch."""
        device = inputs["completion_ids"].device
        return [
            TeacherOutputs(
                self.head(k) if self.teachers[k].lister is None or self._read_out[k] else None,
                inputs.get(teacher_key(k, "hidden")),
                inputs.get(teacher_key(k, "layers")),
                inputs["teacher_tokens"][:, k],
                self.align[k],
                inputs.get(teacher_key(k, "spans")),
                inputs.get(teacher_key(k, "span_scores")),
                self._shared(k, device),
                _shortlist(k, inputs),
            )
            for k in range(len(self.models))
        ]

    def _shared(self, k: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The ids `[V]` of the student's and of teacher k's tokens that spell the same; None for the same tokenizer."""
        translator = self._translators[k]
        if translator is None:
            return None
        ours_V, theirs_V = translator.vocabulary
        both_V = (ours_V < self._vocabulary) & (theirs_V < len(self.head(k).weight))  # a model may lack the last tokens
        return ours_V[both_V].to(device), theirs_V[both_V].to(device)


def _translators(
    teachers: Sequence[Teacher], encoder: PromptEncoder, ends: Sequence[int]
) -> list[CompletionTranslator | None]:
    """What translates for each teacher; None for those that read the student's tokens."""
    if not any(teacher.align for teacher in teachers):
        return [None] * len(teachers)
    student = StudentVocabulary(encoder.tokenizer, ends)
    return [
        CompletionTranslator(str(teacher.name), teacher.prompt_encoder(encoder), teacher.ends(), student)
        if teacher.align
        else None
        for teacher in teachers
    ]


def _shortlist(k: int, inputs: Mapping[str, Any]) -> TopKLogprobs | None:
    fields: tuple[TeacherTensor, ...] = ("ids", "log_p", "tail", "sampled")
    names = [teacher_key(k, name) for name in fields]
    return TopKLogprobs(*(inputs[name] for name in names)) if names[0] in inputs else None


def _span_sums(log_p_RU: Tensor, spans_RU: Tensor, size: int) -> Tensor:
    """Sum log-probabilities over the tokens of each span: `[R, size]`."""
    sums = log_p_RU.new_zeros(len(log_p_RU), size + 1)  # the last column is for tokens without a span
    return sums.scatter_add(1, spans_RU.where(spans_RU >= 0, size), log_p_RU)[:, :size]


def _at_rows(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Put `values` at `rows` of a zero tensor with `num_rows` rows, on their device: a model may end on another."""
    values = values.to(rows.device)
    if len(rows) == num_rows:
        return values
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy_(0, rows, values)
