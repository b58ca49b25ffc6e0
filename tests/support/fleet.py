"""Tokenizers, chat templates and models of the shapes that real ones have, built in milliseconds without a download.

`FLEET` holds the members. `rows` gives prompts with gold answers, and `expected` the token ids that every part of the
code should read and write for a row. The chat templates are those of the installed trl.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl
from tokenizers import AddedToken, normalizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.real_tokenizers import byte_level, sentencepiece

TEMPLATES = Path(trl.__file__).parent / "chat_templates"

QUESTIONS = (
    ("What is 7 plus 5?", "12"),
    ("How much is 3 - 8?", "-5"),
    ("How much is 2.75 \u2212 8?", "\u22125.25"),
    ("Is it so?", "Yes, it is!"),
    ("Where do people drink coffee, \u00e0 la carte?", "caf\u00e9"),
    ("Where do people drink coffee, a\u0300 la carte?", "cafe\u0301"),
    ("\u6771\u4eac\u306f\uff1f", "\u6771\u4eac\u3001\u65e5\u672c"),
    ("How is it? \U0001f642", "good \U0001f44d\U0001f3fd 10"),
)
"""Questions and gold answers: digits, signs, punctuation, accents composed and decomposed, CJK and emoji."""


@dataclass(frozen=True)
class Member:
    """A tokenizer with the model that belongs to it.

    Attributes:
        name: Its name in `FLEET`.
        build: Builds the tokenizer.
        closes: The token that ends an answer.
        ends: The tokens in the `eos_token_id` of the model's generation configuration.
        chat: Whether prompts are conversations.
        chat_options: Further arguments of the chat template.
        traits: What sets it apart: `system` (its template takes a system message), `nfkc` (its tokenizer puts text
            into the normal form NFKC), `merges` (a token of its reaches over the border of prompt and answer).
        padding: Rows of the embedding beyond the tokenizer's last token.
    """

    name: str
    build: Callable[[], PreTrainedTokenizerFast]
    closes: str
    ends: tuple[str, ...]
    chat: bool = False
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    traits: frozenset[str] = frozenset()
    padding: int = 0

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return a new tokenizer, padding on the left."""
        return self.build()

    def model(self, seed: int = 0) -> PerfectModel:
        """Return a small Llama with random weights that knows the gold answers to `rows`."""
        tokenizer = self.tokenizer()
        torch.manual_seed(seed)
        ends: list[Any] = tokenizer.convert_tokens_to_ids(list(self.ends))
        config = LlamaConfig(
            vocab_size=len(tokenizer) + self.padding,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends if len(ends) > 1 else ends[0],
            tie_word_embeddings=True,
        )
        model = PerfectModel(config)
        model.answers = {tuple(prompt_ids): completion_ids for prompt_ids, completion_ids in expected_rows(self)}
        return model

    def same_text(self, one: str, other: str) -> bool:
        """Whether two texts are the same for this tokenizer: up to canonical equivalence, or that of its NFKC."""
        form: Any = "NFKC" if "nfkc" in self.traits else "NFC"
        return unicodedata.normalize(form, one) == unicodedata.normalize(form, other)


class PerfectModel(LlamaForCausalLM):
    """A Llama that generates the gold answer to the prompts that it knows, token for token, and nothing to others.

    A forward without gradients over such a prompt and a beginning of its answer gives states from which the head reads
    the next token of the answer.

    As `generate` of transformers it stops at the tokens that end a text by the generation configuration. Where the last
    token of its answer is none of these, it goes on.
    """

    _is_stateful = True  # so that nobody reads prompts in advance, with the random weights

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.answers: dict[tuple[int, ...], list[int]] = {}
        self.prompts: list[list[int]] = []
        """The prompts of all calls of `generate`, and those that it knew in forwards, without padding."""
        with torch.no_grad():  # of vectors of one length, each is the likeliest behind itself
            embeddings: Any = self.get_input_embeddings()
            embeddings.weight.copy_(torch.nn.functional.normalize(torch.randn_like(embeddings.weight)))
        self.model.register_forward_hook(self._recall, with_kwargs=True)

    def _recall(self, _backbone: Any, _args: Any, inputs: dict[str, Any], output: Any) -> None:
        ids_BS, mask_BS = inputs.get("input_ids"), inputs.get("attention_mask")
        if torch.is_grad_enabled() or ids_BS is None or mask_BS is None or mask_BS.dim() != 2:
            return
        for b, mask in enumerate(mask_BS.bool()):
            places, row = mask.nonzero()[:, 0].tolist(), ids_BS[b][mask].tolist()
            for prompt, answer in self.answers.items():
                if row[: len(prompt)] != list(prompt):
                    continue
                self.prompts.append(list(prompt))
                for t, token in enumerate(answer):
                    if row[len(prompt) :][:t] == answer[:t] and len(prompt) + t <= len(row):
                        vector = self.get_input_embeddings().weight[token]
                        output.last_hidden_state[b, places[len(prompt) + t - 1]] = vector

    def generate(  # type: ignore[override]
        self, input_ids: Any, attention_mask: Any, generation_config: GenerationConfig | None = None, **_: Any
    ) -> torch.Tensor:
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        self.prompts += prompts
        declared = (generation_config or self.generation_config).eos_token_id
        ends = declared if isinstance(declared, list) else [declared]
        answers = [self.answers.get(tuple(prompt), ends[:1]) for prompt in prompts]
        answers = [ids if ids[-1] in ends else [*ids, _FURTHER] for ids in answers]
        longest = max(map(len, answers))
        padded = [ids + ends[:1] * (longest - len(ids)) for ids in answers]
        return torch.cat([input_ids, input_ids.new_tensor(padded)], dim=1)


_FURTHER = 300
"""What a model says behind an answer if nothing ends it: a token that spells text in all tokenizers here."""


# -- rows -------------------------------------------------------------------------------------------------------------


def prompt(member: Member, question: str) -> Any:
    """Return a question as a prompt: text, or a conversation with a system message where the template takes one."""
    if not member.chat:
        return f"Question: {question}\nAnswer:"
    system = [{"role": "system", "content": "Be brief."}] if "system" in member.traits else []
    return [*system, {"role": "user", "content": question}]


def rows(member: Member) -> list[dict[str, Any]]:
    """Return a row for each of `QUESTIONS`."""
    return [
        {"prompt": prompt(member, question), "answer": answer, "skill": "all", "level": 0, "entry": ""}
        for question, answer in QUESTIONS
    ]


def rendered(tokenizer: Any, messages: Any, chat_options: Mapping[str, Any]) -> str:
    """Return a prompt as text; of a conversation with the generation prompt of the template."""
    if isinstance(messages, str):
        return messages
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **chat_options))


def expected(member: Member, row: Mapping[str, Any], tokenizer: Any = None) -> tuple[list[int], list[int]]:
    """Return the token ids of a row's prompt and of its gold answer as a completion.

    The completion is the answer as the tokenizer spells it behind the prompt, and the token that ends an answer:
    nothing stands between prompt and answer, so that the completion's text is the answer. Where a token would reach
    across the border, the prompt stays as it is, and the answer is spelt by itself.
    """
    tokenizer = tokenizer or member.tokenizer()
    text = rendered(tokenizer, row["prompt"], member.chat_options)
    prompt_ids, ids = (
        tokenizer(part, add_special_tokens=not member.chat)["input_ids"] for part in (text, text + row["answer"])
    )
    size = len(prompt_ids)
    answer_ids = ids[size:] if ids[:size] == prompt_ids else tokenizer.encode(row["answer"], add_special_tokens=False)
    return prompt_ids, [*answer_ids, tokenizer.convert_tokens_to_ids(member.closes)]


_READINGS: dict[str, list[tuple[list[int], list[int]]]] = {}


def expected_rows(member: Member) -> list[tuple[list[int], list[int]]]:
    """Return what is `expected` for each of `rows`."""
    if member.name not in _READINGS:
        tokenizer = member.tokenizer()
        _READINGS[member.name] = [expected(member, row, tokenizer) for row in rows(member)]
    return _READINGS[member.name]


# -- members ----------------------------------------------------------------------------------------------------------

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_END, _USER, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SYSTEM = frozenset({"system"})


def _plain(name: str, build: Callable[[], Any], closes: str = _END, **options: Any) -> Member:
    return Member(name, build, closes, (closes,), **options)


def _built_in() -> list[Member]:
    """Return the members whose template, if any, is written here."""
    llama2 = {"eos_token": "</s>", "bos": "<s>", "pad_token": "<unk>"}
    ended = {"eos_token": _END, "pad_token": _END}
    of_nfc: dict[str, Any] = {**ended, "normalizer": normalizers.NFC()}
    of_nfkc: dict[str, Any] = {**ended, "normalizer": normalizers.NFKC()}
    turns = _END, _USER, _TURN_END
    byte = functools.partial(byte_level, _END)
    instruct = functools.partial(byte_level, *turns, chat_template=_CHATML, **ended)
    return [
        _plain("byte_level", functools.partial(byte, **ended)),
        _plain("sentencepiece_bpe", functools.partial(sentencepiece, **llama2), "</s>"),
        _plain(
            "sentencepiece_unigram", functools.partial(sentencepiece, kind="unigram", dummy="first", **llama2), "</s>"
        ),
        _plain("nfc", functools.partial(byte, **of_nfc)),
        _plain("nfkc", functools.partial(byte, **of_nfkc), traits=frozenset({"nfkc"})),
        _plain(
            "merges_over_the_border",
            functools.partial(byte, further=("Answer:-5",) * 20, **ended),
            traits=frozenset({"merges"}),
        ),
        _plain(
            "bos",
            functools.partial(byte_level, "<|end|>", bos="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"),
            "<|end|>",
        ),
        _plain("add_prefix_space", functools.partial(byte, space=True, **ended)),
        _plain("no_pad", functools.partial(byte, eos_token=_END)),
        _plain("no_eos", functools.partial(byte_level, _END, "<|pad|>", pad_token="<|pad|>")),
        _plain("padded_vocabulary", functools.partial(byte, **ended), padding=24),
        _plain("sibling", functools.partial(byte_level, _END, "<|user|>", "<|assistant|>", **ended)),
        Member("turn_end", instruct, _TURN_END, (_END, _TURN_END), True, traits=_SYSTEM),
        Member("turn_end_not_in_ends", instruct, _TURN_END, (_END,), True, traits=_SYSTEM),
    ]


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _qwen(template: str, **chat_options: Any) -> Member:
    """Return a member with one of Qwen's templates: NFC, `<think>` is an added token, but not a special one."""
    build = functools.partial(
        byte_level,
        *(_END, _USER, _TURN_END),
        plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
        normalizer=normalizers.NFC(),
        eos_token=_TURN_END,
        pad_token=_END,
        chat_template=_template(template),
    )
    suffix = "".join(f"_{key}_{value}".lower() for key, value in chat_options.items())
    return Member(template + suffix, build, _TURN_END, (_TURN_END, _END), True, chat_options, _SYSTEM)


def _gemma(template: str, traits: frozenset[str]) -> Member:
    """Return a member with one of Gemma's templates and no space in front of a text."""
    first = "<pad>", "<eos>", "<bos>", "<unk>"
    named = {"eos_token": "<eos>", "bos": "<bos>", "pad_token": "<pad>", "chat_template": _template(template)}
    build = functools.partial(sentencepiece, "<start_of_turn>", "<end_of_turn>", first=first, dummy="none", **named)
    return Member(template, build, "<end_of_turn>", ("<eos>", "<end_of_turn>"), True, {}, traits)


def _llama3(template: str, **chat_options: Any) -> Member:
    """Return a member with one of Llama 3's templates: a BOS before every text, no pad token."""
    special = "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
    named = {"bos": special[0], "eos_token": "<|eot_id|>", "chat_template": _template(template)}
    build = functools.partial(byte_level, *special, **named)
    return Member(template, build, "<|eot_id|>", ("<|end_of_text|>", "<|eot_id|>"), True, chat_options, _SYSTEM)


def _phi3() -> Member:
    """Return a member with the template of Phi 3, whose special tokens swallow the white space behind them."""
    names = _END, "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"
    special = [AddedToken(name, rstrip=True, normalized=False, special=True) for name in names]
    named = {"eos_token": _END, "bos_token": "<s>", "pad_token": _END, "chat_template": _template("phi3")}
    build = functools.partial(sentencepiece, *special, **named)
    return Member("phi3", build, "<|end|>", (_END, "<|assistant|>", "<|end|>"), True, {}, _SYSTEM)


def _deepseek(template: str) -> Member:
    """Return a member with one of DeepSeek's templates, whose generation prompt opens a thought."""
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    build = functools.partial(
        byte_level,
        *(begin, end, "<｜User｜>", "<｜Assistant｜>"),
        plain=("<think>", "</think>"),
        bos=begin,
        eos_token=end,
        pad_token=end,
        chat_template=_template(template),
    )
    return Member(template, build, end, (end,), True, {}, _SYSTEM)


def _of_trl() -> list[Member]:
    """Return the members with templates of the installed trl."""
    return [
        _qwen("qwen2_5"),
        *(_qwen("qwen3", enable_thinking=thinking) for thinking in (True, False)),
        *(_qwen("qwen3_5_think", enable_thinking=thinking) for thinking in (True, False)),
        _qwen("qwen3_instruct_2507"),
        _gemma("gemma", frozenset()),
        _gemma("gemma3", _SYSTEM),
        _llama3("llama3"),
        _llama3("llama3_2", date_string="26 Jul 2024"),
        _phi3(),
        *map(_deepseek, ("deepseek_r1_distill", "deepseekv3")),
    ]


FLEET: dict[str, Member] = {member.name: member for member in [*_built_in(), *_of_trl()]}
