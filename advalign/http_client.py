"""One JSON request to a server that may be slow, endless, broken or hostile: bounded in time and size, and no text holds the key.

Redirects are not followed, so the key goes nowhere but to the address that the configuration names; replies are not unpacked; only
http and https are spoken. What went wrong is one sentence in a `ServerError`, without the exception it came from, whose frames hold the
request.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from advalign.errors import AdvalignError, ConfigError
from advalign.functional import escaping
from advalign.ranges import Range

TRANSIENT = frozenset({408, 409, 425, 429, *range(500, 600)})
"""Statuses after which the same request may succeed."""
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
ADDRESS = re.compile('[!-"$->A-~]+')  # printable ASCII without # and ?
PART = 1 << 16
DETAIL = 300


class ServerError(AdvalignError):
    """A server that gave no reply that can be used. `transient`: the same request may succeed later. `status`: None without a reply."""

    def __init__(self, sentence: str, *, transient: bool, status: int | None = None) -> None:
        super().__init__(sentence)
        self.transient, self.status = transient, status


def check_url(url: str, path: str) -> None:
    """Raises ConfigError for what is not the address of a server; one that holds a password is not repeated."""
    if "@" in url:
        raise ConfigError(f"{path}: an address with a name or password is given; leave them out, keys come from the environment.")
    try:
        parts = urlsplit(url)
        readable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and ADDRESS.fullmatch(url)
    except ValueError:  # a port beyond 65535, or brackets around what is no address
        readable = False
    if not readable:
        shown = url.partition("?")[0]
        raise ConfigError(f"{path}: '{shown}' given; an address that begins with http:// or https://, without ? and #, is needed.")


def check_key_name(name: str, path: str) -> None:
    """Raises ConfigError for what cannot be the name of an environment variable in capitals, and does not repeat it: it may be the key."""
    if not VARIABLE.fullmatch(name):
        raise ConfigError(
            f"{path}: the NAME of an environment variable in capitals is expected, such as OPENAI_API_KEY, never the key itself."
        )


def read_key(name: str, path: str) -> SecretStr | None:
    """The key in the environment variable `name`; None where it is not set or empty."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{path}: the environment variable {name} does not hold a key, but characters that no header may have.")
    return SecretStr(key) if key else None


@dataclass(frozen=True, eq=False)
class Address(Range):
    """The address of a server."""

    words = "an address that begins with http:// or https://, without ? and #"

    def check(self, value: Any, path: str) -> None:
        check_url(value, path)


@dataclass(frozen=True, eq=False)
class KeyName(Range):
    """The name of the environment variable that holds a key; no sentence repeats what was given in its place."""

    words = "the name of an environment variable in capitals"

    def check(self, value: Any, path: str) -> None:
        check_key_name(value, path)


ServerAddress = Annotated[str, Address()]
KeyVariable = Annotated[str, KeyName()]


@dataclass(frozen=True, kw_only=True)
class Client:
    """A server, and the bounds of one request to it."""

    url: str
    """Its address, without a closing slash."""
    seconds: float
    """Of one request, from the connection to the last byte."""
    most_bytes: int
    """Of one reply."""
    key: SecretStr | None = field(default=None, repr=False)
    """Sent as `Authorization: Bearer`."""

    def ask(self, path: str, body: Any = None) -> Any:
        """The reply to a POST of `body` as JSON, or to a GET: what its JSON holds; a text that is not JSON's as it is."""
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        request.add_header("Accept-Encoding", "identity")
        if self.key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.key.get_secret_value()}")
        exchange = _Exchange(request, self.seconds, self.most_bytes)
        status, reply = exchange.run()
        if status is None:
            raise ServerError(self._shown(reply.decode(errors="replace")), transient=exchange.transient)
        if not 200 <= status < 300:
            detail = f" ({self._shown(reply.decode(errors='replace'))})" if reply else ""
            raise ServerError(f"answered {status}{detail}", transient=status in TRANSIENT, status=status)
        return self._read(reply, status)

    def _read(self, reply: bytes, status: int) -> Any:
        try:
            text = reply.decode()
            return json.loads(text) if text.lstrip()[:1] in ("{", "[") else text
        except UnicodeDecodeError:
            raise ServerError("answered with bytes that are not UTF-8", transient=True, status=status) from None
        except (ValueError, RecursionError):
            raise ServerError("answered with a text that is not JSON", transient=True, status=status) from None

    def _shown(self, text: str) -> str:
        """A server's own words on one line, without the key, which it may repeat."""
        if self.key is not None:
            text = text.replace(self.key.get_secret_value(), "***")
        flat = escaping.one_line(escaping.visible(text))
        return flat if len(flat) <= DETAIL else flat[: DETAIL - 1] + "…"


class _Exchange:
    """One request on a thread of its own, which ends with it: looking up a name or a dripping header has no time limit of its own."""

    def __init__(self, request: urllib.request.Request, seconds: float, most_bytes: int) -> None:
        self.request, self.seconds, self.most_bytes = request, seconds, most_bytes
        self.transient = True
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._outcome: tuple[int | None, bytes] | None = None

    def run(self) -> tuple[int | None, bytes]:
        """(status, reply); without a status, why there is none."""
        thread = threading.Thread(target=self._work, name="advalign-http", daemon=True)
        thread.start()
        try:
            thread.join(self.seconds)
        finally:
            outcome = self._outcome
            if outcome is None:
                self._abandon()
        return outcome or (None, f"gave no whole reply in {self.seconds:g} seconds".encode())

    def _work(self) -> None:
        # Nothing is raised out of this thread: exceptions, and the frames below them, know the request and its key.
        try:
            self._outcome = self._send()
        except urllib.error.HTTPError as error:
            with contextlib.suppress(Exception):
                self._outcome = error.code, self._detail(error)
            self._outcome = self._outcome or (error.code, b"")
        except _Refused as error:
            self.transient = False
            self._outcome = None, str(error).encode()
        except TimeoutError:
            self._outcome = None, f"gave no whole reply in {self.seconds:g} seconds".encode()
        except Exception as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            self._outcome = None, f"does not answer ({type(reason).__name__}: {reason})".encode(errors="replace")

    def _send(self) -> tuple[int, bytes]:
        opener = urllib.request.OpenerDirector()
        errors = (urllib.request.UnknownHandler(), urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler())
        for handler in (urllib.request.ProxyHandler(), _Handler(self._sockets), *errors):
            opener.add_handler(handler)
        with opener.open(self.request, timeout=self.seconds) as reply:
            encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                raise _Refused("answered with a packed reply, though none was asked for")
            body = self._body(reply, self.most_bytes)
            if reply.length:
                raise http.client.IncompleteRead(b"", reply.length)
            return reply.status, body

    def _body(self, reply: Any, most: int) -> bytes:
        parts, number = [], 0
        while part := reply.read1(PART):
            number += len(part)
            if number > most:
                raise _Refused(f"answered with more than {self.most_bytes:,} bytes")
            if time.monotonic() > self._end:
                raise TimeoutError
            parts.append(part)
        return b"".join(parts)

    def _detail(self, error: urllib.error.HTTPError) -> bytes:
        """What a failure says, or where a redirect points to."""
        if 300 <= error.code < 400:
            return f"a redirect to {error.headers.get('Location', 'nowhere')}; redirects are not followed, give the last address".encode()
        with contextlib.suppress(_Refused, TimeoutError):
            return self._body(error, PART)
        return b""

    def _abandon(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError, ValueError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Refused(Exception):
    """A reply that no second request would make better."""


class _Connection(http.client.HTTPConnection):
    """Adds its socket to a list, so that another thread can shut it."""

    def __init__(self, *arguments: Any, sockets: list[socket.socket], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sockets = sockets

    def connect(self) -> None:
        super().connect()
        self._sockets.append(self.sock)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens both kinds of connection."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = sockets

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request, sockets=self._sockets)  # type: ignore[arg-type]

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request, sockets=self._sockets)  # type: ignore[arg-type]


__all__ = ["Client", "KeyVariable", "ServerAddress", "ServerError", "check_key_name", "check_url", "read_key"]
