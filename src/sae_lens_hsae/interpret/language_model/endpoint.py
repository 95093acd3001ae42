"""Questions to an OpenAI-compatible endpoint: many at once, kept on disk, and nothing guessed from a bad answer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from sae_lens_hsae.storage.json_files import printable

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
CHARACTERS_PER_TOKEN = 3.5
"""Rough, for estimates; fewer than in plain English, since contexts are full of marks."""

ATTEMPTS = 3
"""Times a question is asked until its answer is well-formed."""
MAX_RETRIES = 6
"""Times the client sends a request again, with back-off, after 429, 5xx, or a broken connection."""
TIMEOUT = 60.0
"""Seconds for one request."""
MAX_TOKENS = 200
"""Of an answer."""
MAX_TOKENS_WITH_REASONING = 4096
"""The same of a model that reasons first, whose thoughts count."""
MAX_SAID = 300  # characters shown of what an endpoint says

MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)
"""What an answer that cannot be used raises."""

Parse = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        system, user: the messages.
        repetition: tells apart questions that are asked several times on purpose.
    """

    system: str
    user: str
    repetition: int = 0


@dataclass
class Replies:
    """Answers in the order of the requests, and what it took.

    Attributes:
        answers: parsed; None where no well-formed answer came.
        n_cached: answers that stood on disk.
        n_malformed: answers that could not be used, those that were asked again included.
        errors: for each request without an answer, by its number, why.
        prompt_tokens, completion_tokens: as the endpoint counted them.
    """

    answers: list[Any]
    n_cached: int = 0
    n_malformed: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint. Address and key come from OPENAI_BASE_URL and OPENAI_API_KEY; the key stays there.

    An estimate needs neither.

    Attributes:
        model: name of the language model.
        cache: a file for the answers; one that exists goes on being used.
        concurrency: questions on their way at once.
        temperature: of the sampling.

    Raises:
        ValueError: if ``concurrency`` is below 1.
    """

    model: str
    cache: str | Path
    concurrency: int = 8
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency} must be at least 1")

    def check_can_ask(self) -> None:
        """Check that there are a key and a client, before anything is prepared.

        Raises:
            ValueError: if there is no key.
            ImportError: if the client is not installed.
        """
        if not os.environ.get(KEY_VARIABLE):
            raise ValueError(
                f"{KEY_VARIABLE} is not set; export the endpoint's key, or any word if it asks for none, "
                f"and {URL_VARIABLE} for another endpoint than OpenAI's"
            )
        _openai()

    def estimate(self, requests: Sequence[Request], parse: Parse) -> tuple[int, int, int, int]:
        """How many requests the cache lacks, their prompt tokens (roughly), and the most tokens of their answers.

        The last number is the most tokens of answers from a model that reasons first. What is asked again since its
        answer was malformed is not in it.
        """
        new = list(requests)
        if Path(self.cache).is_file():
            with closing(self._open("ro")) as stored:
                new = [request for request in requests if self._stored(stored, request, parse) is None]
        characters = sum(len(request.system) + len(request.user) for request in new)
        n_in = round(characters / CHARACTERS_PER_TOKEN)
        return len(new), n_in, len(new) * MAX_TOKENS, len(new) * MAX_TOKENS_WITH_REASONING

    def ask(self, requests: Sequence[Request], parse: Parse, progress: str | None = None) -> Replies:
        """Ask all; every answer is kept as soon as it comes, so that an interrupted call goes on where it was.

        Args:
            requests: the questions.
            parse: the answer's JSON object → what it says; raises KeyError, TypeError or ValueError if it is malformed.
            progress: name of the progress bar, None for no bar.

        Raises:
            ConnectionError: if the very first question finds no endpoint.
            ValueError: if there is no key, or the endpoint refuses it, the model or the request.
            ImportError: if the client is not installed.
        """
        self.check_can_ask()
        replies = Replies([None] * len(requests))
        with closing(self._open()) as stored:
            open_ones = []
            for i, request in enumerate(requests):
                replies.answers[i] = self._stored(stored, request, parse)
                if replies.answers[i] is None:
                    open_ones.append(i)
                else:
                    replies.n_cached += 1
            if not open_ones:
                return replies
            with (
                self._client() as client,
                ThreadPoolExecutor(self.concurrency) as pool,
                tqdm(total=len(open_ones), desc=progress, disable=progress is None) as bar,
            ):

                def keep(i: int, answer: _Answer) -> None:
                    replies.n_malformed += answer.n_malformed
                    replies.prompt_tokens += answer.prompt_tokens
                    replies.completion_tokens += answer.completion_tokens
                    if answer.text is None:
                        replies.errors[i] = answer.error
                    else:
                        replies.answers[i] = parse(_object(answer.text))
                        with stored:
                            stored.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)",
                                           (self._key(requests[i]), answer.text))  # fmt: skip
                    bar.update()

                # The first alone: what is wrong with all of them shows before many are sent.
                first, *rest = open_ones
                options: dict[str, Any] = {"temperature": self.temperature, "max_tokens": MAX_TOKENS}
                keep(first, self._one(client, requests[first], parse, options, first=True))
                futures = {pool.submit(self._one, client, requests[i], parse, options): i for i in rest}
                try:
                    for future in as_completed(futures):
                        keep(futures[future], future.result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return replies

    def _one(
        self, client: Any, request: Request, parse: Parse, options: dict[str, Any], first: bool = False
    ) -> _Answer:
        """Ask one question; what the endpoint does not take of the options the first one leaves out for all."""
        openai = _openai()
        names = ("AuthenticationError", "PermissionDeniedError", "NotFoundError", "BadRequestError")
        refused = tuple(getattr(openai, name) for name in names)
        answer = _Answer()
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        attempts = ATTEMPTS
        while attempts:
            attempts -= 1
            try:
                completion = client.chat.completions.create(model=self.model, messages=messages, **options)
                usage = getattr(completion, "usage", None)
                answer.prompt_tokens += getattr(usage, "prompt_tokens", None) or 0
                answer.completion_tokens += getattr(usage, "completion_tokens", None) or 0
                choice = completion.choices[0]
                if choice.finish_reason == "length" and first and options.get("max_tokens") == MAX_TOKENS:
                    options["max_tokens"] = MAX_TOKENS_WITH_REASONING  # a model may reason and refuse nothing
                    attempts += 1
                    continue
                if choice.finish_reason == "length":
                    raise ValueError(f"cut off after {' '.join(f'{k}={v}' for k, v in options.items() if 'max' in k)}")
                parse(_object(choice.message.content))
            except refused as error:
                if first and _left_out(options, error):
                    attempts += 1
                    continue
                said = _said(error)
                if isinstance(error, openai.BadRequestError) and not first:  # of this question alone, maybe
                    answer.error = f"HTTP {error.status_code}{said}"
                    return answer
                raise ValueError(
                    f"the endpoint refused the request (HTTP {error.status_code}{said}); check {KEY_VARIABLE}, "
                    f"{URL_VARIABLE} and model={self.model!r}"
                ) from None  # the original may quote the key
            except openai.APIConnectionError as error:
                answer.error = type(error).__name__
                if first and not isinstance(error, openai.APITimeoutError):
                    raise ConnectionError(
                        f"no endpoint answers at {client.base_url}; start it, or set {URL_VARIABLE}"
                    ) from None
                return answer
            except openai.APIStatusError as error:
                answer.error = f"HTTP {error.status_code}"
                return answer
            except openai.OpenAIError as error:
                answer.n_malformed += 1
                answer.error = f"unreadable response ({type(error).__name__})"
            except MALFORMED as error:
                answer.n_malformed += 1
                answer.error = f"malformed answer ({error})"
            else:
                answer.text = choice.message.content
                break
        return answer

    def _client(self) -> Any:
        return _openai().OpenAI(
            api_key=os.environ[KEY_VARIABLE],
            base_url=os.environ.get(URL_VARIABLE),
            max_retries=MAX_RETRIES,
            timeout=TIMEOUT,
        )

    def _open(self, mode: Literal["rwc", "ro"] = "rwc") -> sqlite3.Connection:
        cache = Path(self.cache)
        if mode == "rwc":
            cache.parent.mkdir(parents=True, exist_ok=True)
        stored = sqlite3.connect(f"{cache.resolve().as_uri()}?mode={mode}", uri=True)
        try:
            if mode == "rwc":
                stored.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT)")
            stored.execute("SELECT answer FROM answers LIMIT 0")
        except sqlite3.DatabaseError as error:
            stored.close()
            raise ValueError(f"cache={str(self.cache)!r} is no cache of answers ({error}); move or delete it") from None
        return stored

    def _stored(self, stored: sqlite3.Connection, request: Request, parse: Parse) -> Any:
        """What the kept answer says; None where there is none, or one that cannot be used, which is asked again."""
        row = stored.execute("SELECT answer FROM answers WHERE request = ?", (self._key(request),)).fetchone()
        try:
            return None if row is None else parse(_object(row[0]))
        except MALFORMED:
            return None

    def _key(self, request: Request) -> str:
        parts = [os.environ.get(URL_VARIABLE), self.model, self.temperature, MAX_TOKENS]
        text = json.dumps([*parts, request.system, request.user, request.repetition])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class _Answer:
    text: str | None = None
    error: str = ""
    n_malformed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def _left_out(options: dict[str, Any], error: Any) -> bool:
    """Whether an option was what an endpoint refused; it is then gone, as models that reason ask for."""
    said = f"{getattr(error, 'param', None)!r} {error.body}"
    for name in ("max_tokens", "temperature"):
        if name in options and re.search(rf"\b{name}\b", said):
            del options[name]
            if name == "max_tokens":
                options["max_completion_tokens"] = MAX_TOKENS_WITH_REASONING
            return True
    return False


def _said(error: Any) -> str:
    """What an endpoint says of a refusal, without the key, which it may quote."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    if not isinstance(said, str) or not said.strip():
        return ""
    key = os.environ.get(KEY_VARIABLE) or "\0"
    return f": {printable(said.strip().replace(key, '…'))[:MAX_SAID]}"


def _object(text: str) -> dict[str, Any]:
    """The first JSON object of an answer; thoughts, words and a code fence around it do not count."""
    answer = text.rpartition("</think>")[2]
    if "<think>" in answer:
        raise ValueError("it ends within its thoughts")
    if "{" not in answer:
        raise ValueError("no JSON object")
    data, _ = json.JSONDecoder().raw_decode(answer[answer.index("{") :])
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which cannot be written") from None
    return data


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ImportError("a language model is asked through openai: pip install 'sae-lens-hsae[judge]'") from error
    return openai
