"""Before its first update the student answers rows of skills whose gold answers may be bare results.

Whether they are is seen by the length of its own correct answers: `controllers/gold_share.py` has the rule. Otherwise
the first update would teach bare results, or sample where they are none. All processes see the same counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from rld.controllers.gold_share import MOST_FIRST, NUM_FIRST, FirstAnswers, GoldShareController
from rld.models.generation import generate
from rld.rollout.verifier import Verify, is_success, shared_rewards
from rld.trainer.sharding import whole_student
from rld.utils.flops import forward_flops

_MOST_AT_ONCE = 64
"""Rows that a process answers at a time, at most: vLLM's rollouts may be larger than what the student can answer."""


class FirstAnswersCallback(TrainerCallback):
    """Has the student answer rows when a training begins that is not resumed, and tells the controller.

    Args:
        trainer: The `RLDTrainer`: its student, stream, runtime and meter.
        controller: That of its runtime.
        verify: Judges the answers.
    """

    def __init__(self, trainer: Any, controller: GoldShareController, verify: Verify) -> None:
        self._trainer, self._controller, self._verify = trainer, controller, verify

    @classmethod
    def for_trainer(cls, trainer: Any, verify: Verify | None) -> FirstAnswersCallback | None:
        """Return that of an `RLDTrainer` with its runtime; None where no answer could change what is learnt.

        Args:
            trainer: The trainer.
            verify: Gives 1 to correct answers. None: no answer can be judged, and only correct ones show bare results.
        """
        controller = trainer.runtime.controller
        if verify is None or not isinstance(controller, GoldShareController) or not controller.doubtful_skills:
            return None
        return cls(trainer, controller, verify)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        controller, runtime = self._controller, self._trainer.runtime
        if runtime.last_step:  # resumed: the controller's state has the counts
            return
        answers = {skill: FirstAnswers() for skill in controller.doubtful_skills}
        skills = list(answers)
        with whole_student(self._trainer) as model:
            for start in range(0, MOST_FIRST, NUM_FIRST):
                if not skills:
                    break
                for skill, answer in self._answers(model, skills, start):
                    answers[skill] += answer
                skills = [skill for skill in skills if answers[skill].show_no_success(controller.gold_lengths[skill])]
        new_state, events = controller.with_first_answers(runtime.state, answers)
        runtime.use_state(new_state)
        self._trainer.events += events

    def _answers(self, model: Any, skills: Sequence[str], start: int) -> list[tuple[str, FirstAnswers]]:
        """Return the counts of the student's answer to each row from `start` on, `NUM_FIRST` of each skill.

        They are greedy, which takes no random numbers. One to which the verifier does not apply counts as none.
        """
        trainer, encoder = self._trainer, self._trainer._encoder
        rows = [row for skill in skills for row in trainer.stream.examples(skill, start + NUM_FIRST)[start:]]
        args, num_processes = trainer.args, trainer.accelerator.num_processes
        batch_size = min(max(args.generation_batch_size // num_processes, 1), _MOST_AT_ONCE)  # a rollout's fits
        answers = generate(model, encoder, rows, max_new_tokens=args.answer_length, batch_size=batch_size)
        texts = [answer.text for answer in answers]
        rewards = shared_rewards(encoder, rows, texts, self._verify)
        pairs = zip(answers, encoder.encode_answers(texts), strict=True)
        lengths = [len(ids) + answer.is_complete for answer, ids in pairs]  # with their ends
        num_tokens = encoder.count_tokens(rows, []) + sum(lengths)
        trainer.flop_meter.add_student("probes", forward_flops(trainer._num_parameters, num_tokens))
        names = [skill for skill in skills for _ in range(NUM_FIRST)]
        counts = [_count(length, reward) for length, reward in zip(lengths, rewards, strict=True)]
        return list(zip(names, counts, strict=True))


def _count(length: int, reward: float | None) -> FirstAnswers:
    """Return the counts of one answer of so many tokens."""
    if reward is None:
        return FirstAnswers()
    is_correct = is_success(reward)
    return FirstAnswers(
        attempts=1, attempt_tokens=length, successes=int(is_correct), success_tokens=length * is_correct
    )
