"""What rewards say of completions in words."""

from __future__ import annotations

from rld.rollout.feedback import FeedbackLog


def test_no_text_of_any_reward_keeps_a_lone_surrogate() -> None:
    """The tokenizer of a teacher and TRL's table of completions would end the run at it."""
    log = FeedbackLog(is_read=True)
    log.begin(2)
    assert log.add(["bad \ud800", None]) == ["bad ?", None]
    assert log.add(("é", "\udfff")) == ["bad ?\né", "?"]
    assert log.texts() == ["bad ?\né", "?"]
