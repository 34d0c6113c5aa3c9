"""A language model as judge of free-form answers, through any OpenAI-compatible endpoint.

Greedy, cached by content in files that any number of processes may share, retried, and parsed strictly: a
judgement that is not of the demanded form is an error, never a verdict. An endpoint that is away stops the work.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Judge as JudgeConfig
from sophia_mcore.data.prompts import fill, load_prompt
from sophia_mcore.endpoint import Endpoint, EndpointUnreachableError, NoCompletionError, RequestRefusedError
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import VerdictName, after_thought
from sophia_mcore.store.atomic import write_json

RESPONSE_CHARACTERS = 4_000  # the end of a response that is shown for extraction
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0  # before a reply that is no completion is asked for again
_VERDICT = re.compile(r"verdict\s*:\s*[*_]*(correct|wrong)[*_]*\.?", re.IGNORECASE)
_ANSWER = re.compile(r"answer\s*:\s*(?P<answer>\S.*)", re.IGNORECASE)


def parse_verdict(reply: str) -> VerdictName:
    """The verdict of a reply whose last line is "Verdict: CORRECT" or "Verdict: WRONG"; any other reply is "error"."""
    match = _VERDICT.fullmatch(_last_line(reply).strip("*` "))
    if match is None:
        return "error"
    return "correct" if match[1].lower() == "correct" else "wrong"


def parse_extraction(reply: str) -> str | None:
    """The answer of a reply whose last line is "Answer: ..."; "" for NONE; None for any other reply."""
    match = _ANSWER.fullmatch(_last_line(reply).strip("*` "))
    if match is None:
        return None
    answer = match["answer"].strip()
    return "" if answer.upper().strip(".") == "NONE" else answer


def _last_line(reply: str) -> str:
    """Last line of a reply without its thinking."""
    return after_thought(reply).strip().rpartition("\n")[2].strip()


class JudgeUnreachableError(SophiaError):
    """The endpoint is away or refuses everything: no verdict may be made of that."""


class LanguageModelJudge:
    """Implements ``verify.types.Judge``; asks the endpoint in background threads.

    Raises SophiaError without the client library, UsageError for a prompt file that cannot be used.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._endpoint = Endpoint(
            base_url=config.base_url,
            model_name=config.model_name,
            api_key_variable=config.api_key_variable,
            timeout_seconds=config.timeout_seconds,
            max_retries=config.max_retries,
        )
        self._away: JudgeUnreachableError | None = None  # why no further request makes sense
        self._completed = False  # whether any reply was a completion
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")
        self._judge_prompt = load_prompt("judge", config.judge_prompt_file, needs=("response",))
        self._extract_prompt = load_prompt("extract_answer", config.extract_prompt_file, needs=("response",))

    @property
    def extracts(self) -> bool:
        """Whether it is also asked for the final answer where no rule finds one."""
        return self._config.extract

    @property
    def version(self) -> str:
        """Model and prompts, for the verifier's version."""
        prompts = hashlib.sha256((self._judge_prompt + "\0" + self._extract_prompt).encode()).hexdigest()[:8]
        return f"judge-{self._config.model_name}-{prompts}"

    def close(self) -> None:
        """Drop what has not been asked yet and end the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._endpoint.close()

    def verdict(self, question: str, answer: str, given: str) -> Future[VerdictName]:
        """Whether ``given`` means the same as ``answer``; "error" if no reply was usable.

        The future's result raises JudgeUnreachableError when the endpoint stays away.
        """
        prompt = fill(self._judge_prompt, question=question, answer=answer, response=given)
        return self._threads.submit(self._ask, prompt, parse_verdict, "error")

    def extraction(self, question: str, response: str) -> Future[str | None]:
        """The final answer that ``response`` commits to, "" if none, None if no reply was usable."""
        shown = response[-RESPONSE_CHARACTERS:]
        prompt = fill(self._extract_prompt, question=question, response=shown, answer="")
        return self._threads.submit(self._ask, prompt, parse_extraction, None)

    def _ask(self, prompt: str, parse: Callable[[str], Any], failure: Any) -> Any:
        """The parsed reply to a prompt. Only replies that could be parsed are cached."""
        path = self._cache_path(prompt)
        try:
            reply = json.loads(path.read_text(encoding="utf-8"))["reply"]
            return parse(reply)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # not asked yet, or a damaged entry: ask again
        asked = self._reply(prompt)
        if asked is None:
            return failure
        parsed = parse(asked)
        if parsed != failure:
            write_json(path, {"model": self._config.model_name, "prompt": prompt, "reply": asked})
        return parsed

    def _reply(self, prompt: str) -> str | None:
        """The endpoint's reply; None if it refuses this prompt, or sends something else to it than a completion.

        Raises JudgeUnreachableError when it is away, or has never sent a completion.
        """
        for attempt in range(self._config.max_retries + 1):
            if self._away:
                raise self._away
            if attempt:
                time.sleep(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)))
            try:
                completion = self._endpoint.complete(
                    [{"role": "user", "content": prompt}],
                    temperature=0.0,
                    max_tokens=self._config.max_tokens,
                    seed=0,
                )
                self._completed = True
                return completion.choices[0].message.content or ""
            except RequestRefusedError:
                return None
            except NoCompletionError as error:
                if attempt == self._config.max_retries and not self._completed:  # it never was one: no judge there
                    raise self._unusable(error) from error
            except EndpointUnreachableError as error:
                raise self._unusable(error) from error
        return None

    def _unusable(self, error: SophiaError) -> JudgeUnreachableError:
        """What every further request ends with, too."""
        self._away = JudgeUnreachableError(
            f"the judge {self._config.model_name} at {self._config.base_url} cannot be used ({error}); "
            f"its verdicts so far are kept: run the same again when it answers"
        )
        return self._away

    def _cache_path(self, prompt: str) -> Path:
        key = hashlib.sha256(
            f"{self._config.base_url}\n{self._config.model_name}\n{prompt}".encode("utf-8", "surrogatepass")
        ).hexdigest()
        return self._config.cache_folder / key[:2] / f"{key}.json"
