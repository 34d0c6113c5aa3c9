"""A client for OpenAI-compatible chat endpoints, which turns failures into clear errors.

The `openai` client repeats failed requests (429, 5xx, lost connections; exponential backoff, Retry-After) and has a
time limit. This module turns the remaining failures into three kinds of SophiaError, each with one line that never
contains the API key.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from sophia_mcore.errors import SophiaError

_NO_KEY = "none"  # many local servers need no key, but the client needs a string
_MAX_SERVER_TEXT = 300  # characters of a server's message that are shown


class RequestRefusedError(SophiaError):
    """The endpoint refuses this request (HTTP 400 or 422), for example because the prompt is too long."""


class EndpointUnreachableError(SophiaError):
    """The endpoint does not answer, or answers every request with an error."""


class NoCompletionError(SophiaError):
    """The reply is not a completion, such as the HTML page of a proxy."""


class Endpoint:
    """One model behind one address. Threads may share it.

    Raises SophiaError when the `openai` package is missing.
    """

    def __init__(
        self, *, base_url: str, model_name: str, api_key_variable: str, timeout_seconds: float, max_retries: int
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise SophiaError(
                f"the endpoint {base_url} needs the package openai: pip install 'sophia-mcore[rollout]'"
            ) from error
        logging.getLogger("openai").setLevel(logging.WARNING)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._where = f"endpoint {base_url}"
        self._model_name, self._api_key_variable = model_name, api_key_variable
        self._timeout_seconds, self._max_retries = timeout_seconds, max_retries
        self._key = os.environ.get(api_key_variable, "")
        self._client = openai.OpenAI(
            base_url=base_url, api_key=self._key or _NO_KEY, timeout=timeout_seconds, max_retries=max_retries
        )

    def complete(self, messages: list[Any], **body: Any) -> Any:
        """Request a chat completion for ``messages`` (in the API's format); returns a reply with at least one choice.

        ``body``: other fields of the request. Raises RequestRefusedError, EndpointUnreachableError or
        NoCompletionError.
        """
        import openai

        try:
            reply = self._client.chat.completions.create(model=self._model_name, messages=messages, **body)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise RequestRefusedError(self._described(error)) from None
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            raise EndpointUnreachableError(self._described(error)) from None
        except (openai.OpenAIError, ValueError) as error:
            raise NoCompletionError(self._described(error)) from None
        if not getattr(reply, "choices", None) or getattr(reply.choices[0], "message", None) is None:
            raise NoCompletionError(f"{self._where}: the reply holds no choice")
        return reply

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _described(self, error: Exception) -> str:
        """The error as one line: what failed, where, and what to do."""
        import openai

        retries = f"{self._max_retries} retries"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            state = "holds a key it does not accept" if self._key else "is not set"
            return f"{self._where} refused access: environment variable {self._api_key_variable} {state}"
        if isinstance(error, openai.NotFoundError):
            return f"{self._where} does not know model {self._model_name!r}, or is not its base_url (404)"
        if isinstance(error, openai.APITimeoutError):
            return f"{self._where} gave no answer within {self._timeout_seconds:g} s, after {retries}"
        if isinstance(error, openai.APIConnectionError):
            return f"{self._where} cannot be reached, after {retries}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = (lines[0] if lines else type(error).__name__)[:_MAX_SERVER_TEXT]
        if self._key:
            text = text.replace(self._key, "***")
        suffix = f", after {retries}" if isinstance(error, openai.RateLimitError | openai.InternalServerError) else ""
        return f"{self._where}: {text}{suffix}"
