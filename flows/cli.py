"""The command line `minillm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_MARKS = {True: "ok", False: "WRONG", None: "-"}


@app.callback()
def _describe() -> None:
    """Distil a white-box teacher language model into a small student."""


@app.command()
def doctor(
    cache: Annotated[
        bool, typer.Option("--cache", help="Read every object of DVC's cache and compare its md5.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --cache: move damaged objects to state/damaged.")
    ] = False,
) -> None:
    """Check versions, disk, params, servers, waiting records and GPU; exit code 1 when something is wrong.

    Examples: minillm doctor; minillm doctor --cache; minillm doctor --cache --repair
    """
    from flows.doctor import cache_finding, findings

    found = [*findings(Path.cwd()), *([cache_finding(repair)] if cache else [])]
    for finding in found:
        typer.echo(f"{_MARKS[finding.is_good]:<6} {finding.subject:<9} {finding.text}")
    raise typer.Exit(int(any(finding.is_good is False for finding in found)))
