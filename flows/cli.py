"""The command line `minillm`. What a command needs is imported when it is called, so that help is quick."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.environment import child_environment
from minillm.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_MARKS = {True: "ok", False: "WRONG", None: "-"}
_USER_ERROR_EXIT = 2

Model = Annotated[str, typer.Option(help="teacher, warmup, student, or a model directory.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")]
DrawSeed = Annotated[int, typer.Option(min=0, help="Equal seeds give equal answers.")]


@app.callback()
def _describe() -> None:
    """Distil a white-box teacher language model into a small student. Call it in the root of the repository."""


@app.command()
def run() -> None:
    """Bring every stage up to date, as `make run` does, and show the results.

    Example: minillm run
    """
    from flows.local import main

    raise typer.Exit(main())


@app.command()
def stage(name: Annotated[str, typer.Argument(help="prepare, teacher, warmup, distill, evaluate or report.")]) -> None:
    """Bring one stage up to date without those before it.

    Example: minillm stage distill
    """
    from flows.compare_workspace import recover
    from flows.graph import select_stages
    from flows.placement import occupied
    from flows.reproduction import DvcError, reproduce

    def run_stage(root: Path) -> None:
        [known] = select_stages(root, [name])
        with occupied(root, f"run of the stage {known}"):
            recover(root)
            reproduce(root, known, typer.echo, {}, stderr_to_terminal=True)

    try:
        _checked(lambda: run_stage(Path.cwd()))
    except DvcError as error:
        raise typer.Exit(max(error.exit_code, 1)) from None


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def compare(context: typer.Context) -> None:
    """Run variants under seeds as DVC experiments and compare them; options as of `python -m flows.compare --help`.

    Example: minillm compare --variants kd minillm --seeds 17 18
    """
    from flows.compare import main

    raise typer.Exit(main(context.args))


@app.command()
def status() -> None:
    """Show what is stale, and the results of the last run.

    Example: minillm status
    """
    from flows.dvc_process import dvc_command
    from tasks.result_table import result_table

    subprocess.run(dvc_command("status"), env=child_environment({}), check=False)
    typer.echo(_checked(lambda: result_table(Path.cwd())))


@app.command()
def up() -> None:
    """Start Prefect, MLflow and the workers in the background, with pools, deployments and automations.

    Example: minillm up
    """
    from flows.team import up

    typer.echo(_checked(lambda: up(Path.cwd())))


@app.command()
def down() -> None:
    """End what `minillm up` started; a running stage saves its state first.

    Example: minillm down
    """
    from flows.team import down

    typer.echo(_checked(lambda: down(Path.cwd())))


@app.command()
def notify(
    url: Annotated[str, typer.Option(help="A web hook that takes JSON with a `text`, such as Slack's.")] = "",
    off: Annotated[bool, typer.Option("--off", help="Tell nobody any more.")] = False,
) -> None:
    """Tell a web hook of runs that failed, crashed or timed out; the team must be up.

    Examples: minillm notify --url https://hooks.example/T0/B0; minillm notify --off
    """
    from flows.team import connect_to_prefect

    _checked(connect_to_prefect)
    from flows.notification import notify, notify_nobody

    typer.echo(_checked(notify_nobody if off else lambda: notify(url)))


@app.command()
def compare_page(
    names: Annotated[list[str] | None, typer.Argument(help="DVC experiments, or ids of Prefect flow runs.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Without names: this many of the newest pipelines.")] = 10,
    curves: Annotated[str, typer.Option(help="Show the curves of this metric of the stage distill.")] = "",
) -> None:
    """Print the address of MLflow's page that compares pipelines; `make ui` serves it.

    Examples: minillm compare-page; minillm compare-page kd-17 minillm-17 --curves validation/reverse_kl
    """
    from flows.environment import mlflow_url
    from minillm.params import load_params
    from tasks.pages import comparison_page, curves_page

    tracking = _checked(lambda: load_params(Path("params.yaml"))).tracking
    place = (mlflow_url(tracking), tracking, names or [], last)
    typer.echo(_checked(lambda: curves_page(*place, curves) if curves else comparison_page(*place)))


@app.command()
def promote(
    version: Annotated[int | None, typer.Option(min=1, help="Number of the version; without it the newest.")] = None,
) -> None:
    """Make a student of MLflow's registry @champion by hand, whatever the rule says.

    Examples: minillm promote; minillm promote --version 3
    """
    from minillm.params import load_params
    from tasks.registry import promote

    typer.echo(_checked(lambda: promote(load_params(Path("params.yaml")), version)))


@app.command()
def generate(
    instruction: Annotated[str, typer.Argument(help="What the model shall do.")],
    context: Annotated[str, typer.Option("--input", help="The material that it shall do it with.")] = "",
    model: Model = "student",
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    seed: DrawSeed = 0,
) -> None:
    """Answer one instruction; the words are shown as they come.

    Examples: minillm generate "Name three colours."; minillm generate "Summarize." --input "..." --temperature 1
    """
    from tasks.talk import Manner, Speaker

    _checked(lambda: Speaker(model).answer(instruction, context, Manner(max_tokens, temperature, seed)))


@app.command()
def chat(
    model: Model = "student", max_tokens: MaxTokens = 128, temperature: Temperature = 0.0, seed: DrawSeed = 0
) -> None:
    """Answer line after line, each by itself: the models are trained on single instructions. Ctrl-D ends it.

    Example: minillm chat --temperature 0.7
    """
    from tasks.talk import Manner, Speaker

    speaker = _checked(lambda: Speaker(model))
    for line in sys.stdin:
        if line.strip():
            speaker.answer(line.strip(), "", Manner(max_tokens, temperature, seed))


@app.command()
def doctor(
    cache: Annotated[bool, typer.Option("--cache", help="Read every object of DVC's cache, compare its md5.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="With --cache: move damaged ones to state/damaged.")] = False,
) -> None:
    """Check versions, disk, params, servers, waiting records and GPU; exit code 1 when something is wrong.

    Examples: minillm doctor; minillm doctor --cache; minillm doctor --cache --repair
    """
    from flows.doctor import cache_finding, findings

    found = _checked(lambda: [*findings(Path.cwd()), *([cache_finding(repair)] if cache else [])])
    for finding in found:
        typer.echo(f"{_MARKS[finding.is_good]:<6} {finding.subject:<9} {finding.text}")
    raise typer.Exit(int(any(finding.is_good is False for finding in found)))


def _checked(action: Callable[[], Any]) -> Any:
    """Return what the action returns; a user's mistake ends in one line."""
    try:
        return action()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USER_ERROR_EXIT) from None
