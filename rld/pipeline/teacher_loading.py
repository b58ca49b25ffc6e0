"""From a stage's teachers in a recipe to live ones, each with what it was seen to answer rightly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rld.data.skill_rows import SkillRows
from rld.errors import TeacherDown
from rld.evaluation import held_out
from rld.losses.feature_matching import FeaturePlan
from rld.models.logprob_source import LogprobSource, ScoredSequence
from rld.models.prompting import PromptEncoder
from rld.pipeline.model_loading import Loaded, ModelLoader
from rld.recipe.stages.distill import Distill
from rld.recipe.teachers import ServedTeacher, TeacherSpec
from rld.rollout.gold import gold_completions
from rld.teachers.cache import CachedLogprobs
from rld.teachers.local import LocalLogprobs
from rld.teachers.remote import remote_teacher
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.types import Event, Row


class ProbedTeachers(NamedTuple):
    """A teacher that is ready, and its entry in the summary."""

    teacher: Teacher
    entry: dict[str, Any]


@dataclass
class TeacherLoader:
    """Brings teachers to life and probes them.

    Args:
        models: Loads them.
        folder: The recipe's.
        sources: The source of each skill's probes.
        device: Where they are run.
        score: Gives a model's accuracy on the held-out rows, per skill.
        answers: Gives a model's greedy answers to rows.
        known: Gives the scores of an earlier stage's model, or None.
    """

    models: ModelLoader
    folder: Path
    sources: Mapping[str, SkillRows]
    device: torch.device
    score: Callable[[Any, Any], dict[str, float]]
    answers: Callable[[Any, Any, Sequence[Row]], list[str]]
    known: Callable[[str], dict[str, float] | None]

    def __call__(
        self, stage: Distill, skills: Sequence[str], student: Loaded
    ) -> tuple[list[ProbedTeachers], list[Event]]:
        """The stage's teachers, but for optional ones that are down, and an event for each of these.

        Raises:
            TeacherDown: one that is not optional is down, or all are.
        """
        ready, events = list[ProbedTeachers](), list[Event]()
        bases: dict[str, Loaded] = {}
        for name, spec in stage.teachers.items():
            try:
                teacher = self.teacher(stage, name, student, bases)
                ready.append(self._probed(teacher, spec, skills))
            except TeacherDown as error:
                if not (isinstance(spec, ServedTeacher) and spec.optional):
                    raise
                warnings.warn(f"{error}; it is optional, so the stage starts without it", stacklevel=2)
                about = "its server did not answer", "it is optional"
                events.append(Event(0, "teacher dropped", "all skills", name, *about))
        if stage.teachers and not ready:
            names = ", ".join(stage.teachers)
            raise TeacherDown(
                f"stage '{stage.name}' has no teacher left: its only ones, {names}, are optional, and none answers; "
                "start a server, or leave the teachers out of the stage"
            )
        return ready, events

    def teacher(self, stage: Distill, name: str, student: Loaded, bases: dict[str, Loaded]) -> Teacher:
        """One of the stage's teachers, not probed yet; `bases` holds the models that are loaded already.

        Raises:
            TeacherError: it can't teach this student, or is not there.
        """
        spec = stage.teachers[name]
        if isinstance(spec, TeacherSpec) and stage.cache is None:
            return self._here(name, spec, bases)
        if isinstance(spec, TeacherSpec):
            assert stage.cache is not None
            here, feature = self._here(name, spec, bases), stage.signals.feature
            with here.running(self.device) as model:
                taps = FeaturePlan.of(feature.loss, student[0], model, name).taps if feature is not None else ()
            lister: LogprobSource = LocalLogprobs(here, self.device, stage.cache.top_k, taps=taps)
        else:
            lister = remote_teacher(spec.url, name, spec.top_k, spec.patience, spec.token_variable, spec.fingerprint)
        if stage.cache is not None:
            top_k = spec.top_k if isinstance(spec, ServedTeacher) else stage.cache.top_k
            lister = CachedLogprobs(lister, self.folder / stage.cache.folder / name, top_k)
        teacher = Teacher(lister, name, spec.skills, optional=isinstance(spec, ServedTeacher) and spec.optional)
        teacher.require_same_tokenizer(student[1])
        return teacher

    def fill(self, stage: Distill, rows: Sequence[Row], student: Loaded, args: RLDConfig) -> dict[str, tuple[int, int]]:
        """Let the stage's teachers read the gold answers to `rows` and keep what they say.

        Returns:
            Per teacher, the tokens of what it teaches on, and how many of them it had to read.
        """
        bases: dict[str, Loaded] = {}
        chat_options: Any = args.chat_template_kwargs
        answers = gold_completions(list(rows), student[1], args.max_completion_length)
        encoder = PromptEncoder(student[1], chat_options)
        prompts = [encoder.encode(row["prompt"]) for row in rows]
        counts = {}
        for name in stage.teachers:
            teacher = self.teacher(stage, name, student, bases)
            taught = [i for i, row in enumerate(rows) if teacher.teaches(row["skill"])]
            passages = [ScoredSequence([*prompts[i], *answers[i]], len(answers[i])) for i in taught]
            teacher.shortlists(passages, args.temperature)
            assert teacher.lister is not None
            size = sum(len(passage.ids) for passage in passages)
            counts[name] = size, size - teacher.lister.take_found()
        return counts

    def _here(self, name: str, spec: TeacherSpec, bases: dict[str, Loaded]) -> Teacher:
        if spec.base not in bases:
            bases[spec.base] = self.models.load(spec.model, spec.init, "auto", spec.chat_template)
        model, tokenizer = bases[spec.base]
        return Teacher(
            *(model, name, spec.skills, {}, tokenizer),
            align=spec.align,
            chat_template=spec.chat_template,
            adapter=None if spec.adapter is None else self.models.path(spec.adapter),
            offload=spec.offload,
        )

    def _probed(self, teacher: Teacher, spec: TeacherSpec | ServedTeacher, skills: Sequence[str]) -> ProbedTeachers:
        known = self.known(spec.model) if isinstance(spec, TeacherSpec) and spec.adapter is None else None
        probes = list(self._probes(spec.probe, skills))
        with teacher.answering(self.device) as model:
            scores = known or self.score(model, teacher.tokenizer)
            answers = self.answers(model, teacher.tokenizer, probes)
            probed = held_out.score(probes, answers)
        teacher.verified = {skill: (round(accuracy * num), num) for skill, (accuracy, num) in probed.items()}
        return ProbedTeachers(teacher, {"parameters": teacher.num_parameters(), "scores": scores})

    def _probes(self, num: int, skills: Sequence[str]) -> Iterator[Row]:
        for skill in skills:
            yield from self.sources[skill].probe(num)
