"""Teachers on a server: `rld serve-teacher`, or any that speaks vLLM's dialect of OpenAI's completions API.

A call is repeated, after longer and longer pauses, while the server does not answer, is full or is broken; the teacher
is down (`TeacherDown`) once that took longer than `patience`. What the server refuses is the user's mistake, and is
said at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo, TopKLogprobs
from rld.models.tokenizers import PROBES, probe_ids, vocabulary_hash
from rld.teachers.http_client import TOKEN, HttpClient
from rld.teachers.wire_format import PayloadError, pack_passages, unpack_shortlist

_LEAST_TAIL = 1e-7

_OPENAI_TOKENS = 8192
"""Of a request: an answer in JSON takes about 4 kB a token."""

_PROMPTS, _PROMPT_TOKENS = 64, 65_536
"""Of a request for answers, new tokens included: an id takes up to 8 bytes, and a server may take 1 MiB."""

_Item = TypeVar("_Item")


def remote_teacher(
    url: str,
    name: str | None = None,
    top_k: int = 64,
    patience: float = 60.0,
    token_variable: str = TOKEN,
    fingerprint: str | None = None,
) -> LogprobSource:
    """Return the teacher that answers at `url`.

    Args:
        url: Of `rld serve-teacher`; one that ends in `/v1` is an OpenAI-compatible endpoint.
        name: What errors call it. None: its host and port.
        top_k: Tokens of a shortlist, 1 to 255.
        patience: Seconds that it may fail to answer, from the first failure on, before it counts as down. A call that
            gets no byte for five minutes, or `patience` if that is longer, has failed.
        token_variable: The environment variable that holds the bearer token, if the server asks for one.
        fingerprint: Of the weights that it must have. None: those that it starts with.
    """
    kind = OpenAIServer if url.rstrip("/").endswith("/v1") else RldServer
    return kind(url.rstrip("/"), name, top_k, patience, token_variable, fingerprint)


class RldServer(HttpClient):
    """`rld serve-teacher`."""

    def _introduce(self, student: PreTrainedTokenizerBase) -> SourceInfo:
        found = self._json(self._call("GET", f"{self.url}/health"))
        try:
            about = SourceInfo(found["fingerprint"], frozenset(found["ends"]), found["num_parameters"])
            vocabulary, self._max_tokens = found["vocabulary"], int(found["max_tokens"])
        except (TypeError, KeyError, ValueError) as error:
            raise self._error("what answers there is no rld serve-teacher") from error
        if vocabulary != vocabulary_hash(student):
            raise self._error(
                "its tokenizer is not the student's, so it would read the student's tokens as other text; serve a "
                "teacher of the student's family, or load this one here with align"
            )
        return about

    def score(self, passages: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        found: list[TopKLogprobs] = []
        for chosen in _passages(passages, self._max_tokens):
            body = pack_passages(chosen, {"top_k": str(self.top_k), "temperature": repr(temperature)})
            data = self._call("POST", f"{self.url}/score", content=body).content
            try:
                shortlist, about = unpack_shortlist(data)
                self._require_same(about.get("fingerprint", ""))
                found += shortlist.split([passage.num_scored for passage in chosen])
            except (PayloadError, RuntimeError) as error:
                raise self._error(f"its answer holds no shortlists of what it was asked: {error}") from error
        return found

    def answer(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        answers: list[str] = []
        for chosen in _prompts(prompts, max_new_tokens):
            question = {"prompts": chosen, "max_new_tokens": max_new_tokens}
            match self._json(self._call("POST", f"{self.url}/answer", json=question)):
                case {"texts": [*texts], "fingerprint": str(fingerprint)} if len(texts) == len(chosen):
                    self._require_same(fingerprint)
                    answers += map(str, texts)
                case _:
                    raise self._error("its answer holds no answers to what it was asked")
        return answers


class OpenAIServer(HttpClient):
    """An OpenAI-compatible endpoint whose completions have vLLM's `prompt_logprobs`."""

    _model, _vocabulary = "", 0

    def _introduce(self, student: PreTrainedTokenizerBase) -> SourceInfo:
        self._vocabulary = len(student)
        match self._json(self._call("GET", f"{self.url}/models")):
            case {"data": [{"id": str(model)}, *_]}:
                self._model = model
            case _:
                raise self._error("it lists no models")
        for text, ids in zip(PROBES, probe_ids(student), strict=True):
            question = {"model": self._model, "prompt": text, "add_special_tokens": False}
            found = self._json(self._call("POST", f"{self.url.removesuffix('/v1')}/tokenize", json=question))
            if not isinstance(found, dict) or found.get("tokens") != ids:
                raise self._error(f"{self._model}'s tokenizer is not the student's (on {text!r})")
        ends = frozenset() if student.eos_token_id is None else frozenset([int(student.eos_token_id)])
        return SourceInfo(hashlib.sha256(self._model.encode()).hexdigest()[:16], ends, 0)

    def score(self, passages: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        if temperature != 1.0:
            raise self._error(
                f"an OpenAI-compatible endpoint scores at temperature 1, not {temperature:g}; set it for the rollout"
            )
        options = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": self.top_k}
        found = []
        for chosen in _passages(passages, _OPENAI_TOKENS):
            choices = self._complete([passage.ids for passage in chosen], options)
            found += [self._shortlist(passage, choice) for passage, choice in zip(chosen, choices, strict=True)]
        return found

    def answer(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        options = {"max_tokens": max_new_tokens, "temperature": 0.0}
        pieces = [self._complete(chosen, options) for chosen in _prompts(prompts, max_new_tokens)]
        return [str(choice.get("text", "")) for choices in pieces for choice in choices]

    def _complete(self, prompts: list[list[int]], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        question = {"model": self._model, "prompt": prompts, **options}
        found = self._json(self._call("POST", f"{self.url}/completions", json=question))
        match found:
            case {"choices": [*choices]} if len(choices) == len(prompts) and all(map(_is_choice, choices)):
                return sorted(choices, key=lambda choice: int(choice.get("index", 0)))
        raise self._error("its answer holds no completions of what it was asked")

    def _shortlist(self, passage: ScoredSequence, choice: Mapping[str, Any]) -> TopKLogprobs:
        """A shortlist from a dictionary per token, whose keys are ids; it may name the sampled token besides the k."""
        try:
            told = choice["prompt_logprobs"][-passage.num_scored :]
            sampled = [
                float(one[str(i)]["logprob"]) for one, i in zip(told, passage.ids[-passage.num_scored :], strict=True)
            ]
            likeliest = [
                sorted(
                    sorted(((float(v["logprob"]), int(i)) for i, v in one.items()), reverse=True)[: self.top_k],
                    key=lambda pair: pair[1],
                )
                for one in told
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._error("its answer has no prompt_logprobs; it should be vLLM, or speak its dialect") from error
        if {len(one) for one in likeliest} != {min(self.top_k, self._vocabulary)}:
            raise self._error(
                f"it gives fewer than {self.top_k} prompt_logprobs; start it with --max-logprobs {self.top_k}"
            )
        log_p_NJ = torch.tensor([[value for value, _ in one] for one in likeliest])
        tail_N = (1 - log_p_NJ.double().exp().sum(-1)).clamp(min=_LEAST_TAIL).log().float()
        ids_NJ = torch.tensor([[i for _, i in one] for one in likeliest], dtype=torch.int32)
        shortlist = TopKLogprobs(ids_NJ, log_p_NJ, tail_N, torch.tensor(sampled))
        if not shortlist.is_sound():
            raise self._error("its prompt_logprobs hold values that are no ids or no log-probabilities")
        return shortlist


def _passages(passages: Sequence[ScoredSequence], max_tokens: int) -> Iterator[list[ScoredSequence]]:
    return _parts(passages, [len(passage.ids) for passage in passages], max_tokens, len(passages))


def _prompts(prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[list[list[int]]]:
    return _parts(prompts, [len(ids) + max_new_tokens for ids in prompts], _PROMPT_TOKENS, _PROMPTS)


def _parts(items: Sequence[_Item], sizes: Sequence[int], max_size: int, max_items: int) -> Iterator[list[_Item]]:
    """Yield items together as long as a request may hold them; each at least alone."""
    chosen, total = list[_Item](), 0
    for item, size in zip(items, sizes, strict=True):
        if chosen and (total + size > max_size or len(chosen) == max_items):
            yield chosen
            chosen, total = [], 0
        chosen.append(item)
        total += size
    if chosen:
        yield chosen


def _is_choice(choice: Any) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("index", 0), int)
