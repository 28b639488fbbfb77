"""Client credentials and the access tokens given for them (``POST /oauth2/token`` of iam.smartcar.com)."""

from __future__ import annotations

import hmac
from typing import Final

from evbatteryd.simulator.draws import key_of, token_of

LIFETIME_S: Final = 3600


class Tokens:
    """Access tokens of one application. Each is good for an hour, however many there are."""

    def __init__(self, client_id: str, client_secret: str, seed: int) -> None:
        self._client_id = client_id
        self._client_secret = client_secret
        self._key = key_of("tokens", seed)
        self._issued = 0
        self._expiry: dict[str, float] = {}

    def knows(self, client_id: str, client_secret: str) -> bool:
        secret_fits = hmac.compare_digest(client_secret.encode(), self._client_secret.encode())
        return client_id == self._client_id and secret_fits

    def issue(self, now: float) -> str:
        self._expiry = {token: expiry for token, expiry in self._expiry.items() if expiry > now}
        self._issued += 1
        token = token_of(self._key, self._issued)
        self._expiry[token] = now + LIFETIME_S
        return token

    def valid(self, token: str, now: float) -> bool:
        return self._expiry.get(token, 0.0) > now
