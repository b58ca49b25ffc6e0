"""One encoder for all readers of a trainer's prompts, and the tokens at which its completions end."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from rld.models.decoding import end_tokens
from rld.models.generation import declare_ends
from rld.models.prompting import PromptEncoder, is_chat
from rld.models.template_checks import require_options_read


def shared_encoder(trainer: Any, student: PreTrainedModel, rows: Any) -> tuple[PromptEncoder, bool]:
    """Let completions of a GRPO trainer end at every token that ends an answer.

    TRL leaves out the token by which a chat template closes a turn where the model's generation configuration does,
    and has None where the tokenizer has no end. Options in `generation_kwargs` go before this. A tokenizer without a
    token to pad with gets one; TRL masks padding.

    Args:
        trainer: The trainer.
        student: Its model without wrappers.
        rows: The training set.

    Returns:
        The encoder that all readers of the trainer's prompts share, and whether prompts are conversations.
    """
    tokenizer, kwargs, args = trainer._tokenizer, trainer.chat_template_kwargs, trainer.args
    encoder = PromptEncoder(
        tokenizer,
        kwargs,
        trainer.chat_template,
        trainer.tools or None,
        model_ends=end_tokens(student),
        strip_thinking=args.strip_thinking and (args.thinking_markers or True),
    )
    has_chats = rows is not None and is_chat(rows)
    if has_chats:
        require_options_read(encoder)
    declare_ends(student, encoder, has_chats)
    trainer.eos_token_ids = ends = encoder.ends(has_chats)
    if tokenizer.pad_token is None and ends:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    if not trainer.use_vllm:  # which reads the model's own generation configuration
        options = {"eos_token_id": ends or None, "pad_token_id": tokenizer.pad_token_id}
        options |= args.generation_kwargs or {}
        trainer.generation_config.update(**options)
        trainer.generation_kwargs |= options
    return encoder, has_chats
