"""`python -m flows.secrets` (`make secrets`): random passwords for compose.yaml into .env; prints none of them.

Needs nothing but the standard library, since the machine that runs the containers may have no environment. The names
are our own: Prefect also reads .env, and would take a variable of its own from there in every command typed here.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

ENV_PATH = Path(".env")
SECRET_NAMES = (
    "MINILLM_PREFECT_PASSWORD",
    "MINILLM_MLFLOW_PASSWORD",
    "MINILLM_MLFLOW_SECRET_KEY",
    "MINILLM_POSTGRES_PASSWORD",
)
_NUM_BYTES = 32
_USER_ERROR_EXIT = 2


def write_secrets(path: Path, is_renewed: bool) -> bool:
    """Write new values, readable by the owner alone; returns whether it did: an existing file stays unless renewed.

    Other lines of a renewed file, such as ports, are kept.
    """
    if path.exists() and not is_renewed:
        return False
    lines = [*_other_lines(path), *(f"{name}={secrets.token_urlsafe(_NUM_BYTES)}" for name in SECRET_NAMES)]
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _other_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if line.partition("=")[0].strip() not in SECRET_NAMES]


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 2 when there is a file already."""
    parser = argparse.ArgumentParser(prog="python -m flows.secrets", description=__doc__)
    parser.add_argument("--renew", action="store_true", help="replace the secrets of an existing file")
    if not write_secrets(ENV_PATH, parser.parse_args(arguments).renew):
        print(f"error: {ENV_PATH} exists; --renew replaces its secrets (docs/security.md)", file=sys.stderr)
        return _USER_ERROR_EXIT
    print(f"wrote {len(SECRET_NAMES)} secrets to {ENV_PATH}, which only you can read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
