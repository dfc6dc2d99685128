"""Who may ask: by the name the server is asked under, the page that asks, and a key."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from npumatmul.server.errors import ApiError
from npumatmul.server.settings import Settings

__all__ = ["Gate"]


class Gate:
    """Looks at the headers of requests.

    Parameters
    ----------
    settings : Settings
        Who may ask.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = None if settings.api_key is None else f"Bearer {settings.api_key}".encode("ascii")
        self._origins, self._hosts = settings.origins, {host.lower() for host in settings.hosts}
        self._loopback = _is_loopback(settings.host)

    def check(self, headers: Mapping[bytes, bytes], *, open_to_all: bool = False) -> None:
        """Raise `ApiError` if this one may not ask.

        Parameters
        ----------
        headers : mapping
            Names in lower case.
        open_to_all : bool
            Whether no key is needed.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        if self._loopback and not self._own(host):
            raise ApiError(403, f"this server is not asked under the name {host[:100]!r}: it takes its own names only")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and _place(origin) != host and not self.shares_with(origin):
            raise ApiError(403, f"pages of {origin[:100]!r} may not ask this server")
        if self._key is not None and not open_to_all:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                raise ApiError(
                    401,
                    "the API key is wrong" if given else "an API key is needed: Authorization: Bearer <key>",
                    code="invalid_api_key",
                )

    def shares_with(self, origin: str) -> bool:
        """Whether scripts of a page may ask."""
        return "*" in self._origins or origin in self._origins

    def _own(self, host: str) -> bool:
        if any(each in host for each in "/?#@\\"):  # there is more in it than a name and a port
            return False
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in ("", "localhost") or name in self._hosts or _is_address(name)


def _place(origin: str) -> str | None:
    """Name and port in a page's origin; None if it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    """Whether it is an address, which no one else's name can lead to."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
