"""Load the teachers of a stage and evaluate them on held-out and probing rows."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from rld.errors import TeacherDown
from rld.evaluation.held_out import Evaluation, correct_counts
from rld.losses.feature_matching import FeaturePlan
from rld.models.logprob_source import LogprobSource, ScoredSequence, answered_everywhere
from rld.pipeline.model_loading import Loaded
from rld.pipeline.run import RunContext
from rld.recipe import registry
from rld.recipe.stages.distill import Distill
from rld.recipe.teachers import CacheSpec, SelfTeacherSpec, ServedTeacher, TeacherSpec
from rld.rollout.gold import gold_completions
from rld.teachers.cache import CachedLogprobs
from rld.teachers.local import LocalLogprobs
from rld.teachers.remote import remote_teacher
from rld.teachers.self_teacher import SelfTeacher
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.types import Event, Row


class ProbedTeacher(NamedTuple):
    """A loaded teacher, its number of parameters, and its evaluation on the held-out rows."""

    teacher: Teacher
    num_parameters: int
    evaluation: Evaluation


def best_scores(teachers: Sequence[ProbedTeacher], skills: Sequence[str]) -> dict[str, float]:
    """Return the highest held-out score of a teacher of each skill; skills without a teacher's score are left out."""
    best: dict[str, float] = {}
    for probed in teachers:
        scores = probed.evaluation.scores
        for skill in filter(probed.teacher.teaches, skills):
            if skill in scores:
                best[skill] = max(best.get(skill, 0.0), scores[skill])
    return best


class TeacherLoader:
    """Loads and probes the teachers of stages; teachers with the same base share its weights."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._bases: dict[str, Loaded] = {}

    def load(self, stage: Distill, student: Loaded) -> tuple[list[ProbedTeacher], list[Event]]:
        """Return the stage's teachers except optional ones that are down, and an event for each of those.

        Raises:
            TeacherDown: one that is not optional is down, or all are; a server is down if it is for one process.
        """
        ready, events = list[ProbedTeacher](), list[Event]()
        skills = self._context.skills(stage)
        for name, spec in stage.teachers.items():
            try:
                teacher = answered_everywhere(functools.partial(self._teacher, stage, name, student))
                ready.append(self.probe(teacher, spec, skills, are_read=self._reads_probes(stage)))
            except TeacherDown as error:
                if not (isinstance(spec, ServedTeacher) and spec.optional):
                    raise
                warnings.warn(f"{error}; it is optional, so the stage starts without it", stacklevel=2)
                reason = "its server did not answer at the start", "it is optional, so the stage starts without it"
                events.append(Event(0, "teacher dropped", "all skills", name, *reason))
        if stage.teachers and not ready:
            names = ", ".join(stage.teachers)
            raise TeacherDown(
                f"stage '{stage.name}' has no teacher left: its only ones, {names}, are optional, and none answers; "
                "start a server, or leave the teachers out of the stage"
            )
        return ready, events

    def _reads_probes(self, stage: Distill) -> bool:
        """Return whether only probes tell a stage how often its teachers are correct."""
        use, folder = self._context.recipe.verifier_in_use.use, self._context.source.parent
        return stage.reads_probes(can_judge=registry.can_judge(use, folder))

    def probe(
        self,
        teacher: Teacher,
        spec: TeacherSpec | ServedTeacher | SelfTeacherSpec,
        skills: Sequence[str],
        *,
        are_read: bool,
    ) -> ProbedTeacher:
        """Score a teacher on the held-out rows, and count its correct answers to the probing prompts of its skills.

        It is asked as it is when it teaches, by its own prompt where it has one. One that reads attempts is not asked:
        before a rollout there are none, so that it has no score.
        """
        context = self._context
        if teacher.reads_attempts:
            return ProbedTeacher(teacher, teacher.num_parameters(), Evaluation({}, {}, []))
        # A text asks for no answer.
        taught = [skill for skill in skills if skill not in context.recipe.blocks and teacher.teaches(skill)]
        count = spec.num_probes(are_read=are_read)
        rows: list[Row] = [row for skill in taught for row in context.skill_rows[skill].probe(count)]

        def as_read(rows: Sequence[Row]) -> list[Row]:
            return [teacher.own_row(row) if row["skill"] in taught else row for row in rows]

        evaluation = None
        if isinstance(spec, TeacherSpec) and spec.adapter is None and spec.prompt is None:
            evaluation = context.earlier_evaluation(spec.model)
        with teacher.answering(context.state.device) as model:
            tokenizer = teacher.tokenizer
            assert tokenizer is not None  # set for every teacher that generates answers
            evaluation = evaluation or context.evaluate(model, tokenizer, as_read(context.evaluator.rows))
            predictions = context.predict(str(teacher.name), model, tokenizer, as_read(rows))
        teacher.verified = correct_counts(rows, predictions)
        return ProbedTeacher(teacher, teacher.num_parameters(), evaluation)

    def fill_cache(
        self, stage: Distill, rows: Sequence[Row], student: Loaded, args: RLDConfig
    ) -> dict[str, tuple[int, int]]:
        """Score the gold answers to `rows` with the stage's teachers, and store the log-probabilities.

        Returns:
            For each teacher, the number of tokens that it teaches on, and how many of them were not in the cache.
        """
        encoder = self._context.encoder(*student)
        answers = gold_completions(rows, encoder, args.max_completion_length)
        counts = {}
        for name in stage.teachers:
            teacher = self._teacher(stage, name, student)
            indices = [i for i, row in enumerate(rows) if teacher.teaches(row["skill"])]
            prompts = encoder.encode_all([teacher.own_row(rows[i])["prompt"] for i in indices])
            sequences = [
                ScoredSequence([*prompt, *answers[i]], len(answers[i]))
                for i, prompt in zip(indices, prompts, strict=True)
            ]
            teacher.score(sequences, args.temperature)
            assert teacher.source is not None
            size = sum(len(sequence.ids) for sequence in sequences)
            counts[name] = size, size - teacher.source.take_cached_tokens()
        return counts

    def _teacher(self, stage: Distill, name: str, student: Loaded) -> Teacher:
        """Return a teacher of the stage that is not probed yet.

        Raises:
            TeacherError: the teacher cannot teach this student, or cannot be loaded.
        """
        spec, cache = stage.teachers[name], stage.cache
        if isinstance(spec, SelfTeacherSpec):
            itself = SelfTeacher(spec.prompt, name, spec.skills, average=spec.average)
            itself.bind(*student)
            return itself
        if isinstance(spec, ServedTeacher):
            source: LogprobSource = remote_teacher(
                spec.url,
                name,
                spec.top_k,
                timeout_seconds=spec.timeout_seconds,
                token_variable=spec.token_variable,
                fingerprint=spec.fingerprint,
                served_model=spec.served_model,
            )
        elif cache is None:
            return self._loaded(name, spec)
        else:
            source = self._cacheable(stage, name, spec, cache, student)
        if cache is not None:
            top_k = spec.top_k if isinstance(spec, ServedTeacher) else cache.top_k
            source = CachedLogprobs(source, self._context.source.parent / cache.folder / name, top_k)
        is_optional = isinstance(spec, ServedTeacher) and spec.optional
        teacher = Teacher(source, name, spec.skills, optional=is_optional, prompt=spec.prompt)
        teacher.require_same_tokenizer(student[1])
        return teacher

    def _cacheable(
        self, stage: Distill, name: str, spec: TeacherSpec, cache: CacheSpec, student: Loaded
    ) -> LogprobSource:
        """Return a source of a local teacher's log-probabilities and of the hidden states that the stage matches."""
        teacher, feature = self._loaded(name, spec), stage.signals.feature
        with teacher.running(self._context.state.device) as model:
            state_keys = (
                FeaturePlan.of(feature.loss, student[0], model, name).teacher_keys if feature is not None else ()
            )
        return LocalLogprobs(teacher, self._context.state.device, cache.top_k, state_keys=state_keys)

    def _loaded(self, name: str, spec: TeacherSpec) -> Teacher:
        """Return a teacher whose weights are on this machine."""
        models = self._context.models
        if spec.base not in self._bases:
            self._bases[spec.base] = models.load(spec.model, spec.from_pretrained, "auto", spec.chat_template)
        model, tokenizer = self._bases[spec.base]
        return Teacher(
            model,
            name,
            spec.skills,
            tokenizer=tokenizer,
            align=spec.align,
            chat_template=spec.chat_template,
            adapter=None if spec.adapter is None else models.path(spec.adapter),
            offload=spec.offload,
            prompt=spec.prompt,
        )
