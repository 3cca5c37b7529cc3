"""Where Prefect and MLflow keep their records: files of this repository, or databases of one PostgreSQL server.

MINILLM_DATABASE decides: unset or `sqlite`, or `postgresql://USER:PASSWORD@HOST:PORT` with its databases `prefect` and
`mlflow`. The address comes from the environment and reaches the servers by theirs, so no command line has the password.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from minillm.errors import UserError

DATABASE_VARIABLE = "MINILLM_DATABASE"
_CONNECT_TIMEOUT_S = 10
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server."""

    place: str  # host and port, which may be shown
    authority: str = field(repr=False)  # user, password, host and port, as in an address

    @property
    def prefect_url(self) -> str:
        """Return the address of Prefect's database, with the driver that Prefect takes."""
        return f"postgresql+asyncpg://{self.authority}/prefect"

    @property
    def mlflow_uri(self) -> str:
        """Return the address of MLflow's database."""
        return f"postgresql+psycopg://{self.authority}/mlflow"


def postgres() -> Postgres | None:
    """Return the server that MINILLM_DATABASE names, None for files; raises UserError, which shows no password."""
    text = os.environ.get(DATABASE_VARIABLE) or "sqlite"
    if text == "sqlite":
        return None
    try:
        parts = urlsplit(text)
        place = f"{parts.hostname}:{parts.port or 5432}"
    except ValueError:
        raise _wrong(text) from None
    is_whole = parts.scheme == "postgresql" and parts.hostname and parts.username
    if not is_whole or parts.path.strip("/") or parts.query or parts.fragment or _PERCENT.search(parts.netloc):
        raise _wrong(text)
    return Postgres(place, parts.netloc)


def make_databases() -> None:
    """Make the databases that are not there, on the PostgreSQL server if one is chosen; raises UserError."""
    server = postgres()
    if server is None:
        return
    import psycopg

    address = f"postgresql://{server.authority}/postgres"
    try:
        with psycopg.connect(address, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in sorted({"prefect", "mlflow"} - there):
                connection.execute(f"CREATE DATABASE {name}")
    except psycopg.Error as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{DATABASE_VARIABLE}: PostgreSQL at {server.place}: {words[0]}") from None


def _wrong(text: str) -> UserError:
    _, mark, rest = text.rpartition("@")
    shown = ("***@" if mark else "") + rest.partition("?")[0]
    wanted = "`sqlite` or postgresql://USER:PASSWORD@HOST:PORT, special characters as %XX, is needed"
    return UserError(f"{DATABASE_VARIABLE}: {wanted} (got {shown!r})")
