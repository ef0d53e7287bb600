"""What a stub worker answers, as a test sets it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from promptmill.errors import EngineError, PromptmillError
from promptmill.protocol import Choice, GenerationRequest, GenerationResult, Usage

__all__ = ["Answer", "Answers", "answer_to", "result_with"]

#: One answer: its text; the text in pieces, which are streamed as they come; a whole result; or the task's failure.
Answer = str | Iterable[str] | GenerationResult | PromptmillError

#: One answer for all; one for each prompt (of a chat: its last message); or a function, which may also raise the
#: failure, and wait. None: an echo, the words of the prompt, ``max_tokens`` of them.
Answers = Answer | Mapping[str, Answer] | Callable[[GenerationRequest], Answer] | None


def answer_to(request: GenerationRequest, answers: Answers) -> Answer | None:
    """The answer to ``request``; None for an echo. Raises what a test's function raises."""
    if isinstance(answers, Mapping):
        missing = EngineError("the stub worker was given answers, and none for this prompt: add it to them")
        return answers.get(_last_text(request), missing)
    return answers(request) if callable(answers) else answers


def result_with(text: str, request: GenerationRequest) -> GenerationResult:
    """A result in which every choice has this text; a word counts as a token."""
    choices = tuple(Choice(index=index, text=text, finish_reason="stop") for index in range(request.sampling.n))
    prompt_tokens = len(_last_text(request).split())
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(text.split()) * len(choices))
    return GenerationResult(choices=choices, usage=usage)


def _last_text(request: GenerationRequest) -> str:
    return request.messages[-1].content if request.messages else request.prompt or ""
