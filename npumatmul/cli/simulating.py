"""`npumatmul sim`: the simulator for programs that are not written in Python."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from typing import Annotated, NoReturn

import typer

from npumatmul import sim
from npumatmul.rknn.socs import DEFAULT_SOC

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="The simulator for programs that are linked with librknnrt.so.",
)

RuntimeOption = Annotated[str, typer.Option(help="The version of the vendor's runtime to simulate.")]


@app.command("path", short_help="Print the library's path.")
def path_command(runtime: RuntimeOption = sim.NEWEST_RUNTIME) -> None:
    """Print the path of the simulator's library."""
    typer.echo(sim.library_path(runtime))


@app.command("include", short_help="Print the folder of the C headers.")
def include_command() -> None:
    """Print the folder of the C headers."""
    typer.echo(sim.include_path())


@app.command("cflags", short_help="Print what compiling needs.")
def cflags_command() -> None:
    """Print what compiling needs: cc $(npumatmul sim cflags) -c program.c."""
    typer.echo(_for_the_shell(sim.compile_flags()))


@app.command("libs", short_help="Print what linking needs.")
def libs_command(runtime: RuntimeOption = sim.NEWEST_RUNTIME) -> None:
    """Print what linking needs: cc program.o $(npumatmul sim libs). The program runs by itself, and follows sim env."""
    typer.echo(_for_the_shell(sim.link_flags(runtime)))


def _for_the_shell(flags: list[str]) -> str:
    """With blanks escaped, as pkg-config prints them."""
    return " ".join(re.sub(r"([^\w@%+=:,./-])", r"\\\1", flag) for flag in flags)


@app.command("env", short_help="Run a program with the simulator.", context_settings={"allow_interspersed_args": False})
def env_command(
    program: Annotated[
        list[str] | None, typer.Argument(help="The program and its arguments; without it the variables are printed.")
    ] = None,
    soc: Annotated[str, typer.Option(help="The chip to simulate.")] = DEFAULT_SOC,
    runtime: RuntimeOption = sim.NEWEST_RUNTIME,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what a board may not forgive, such as a forgotten rknn_mem_sync.")
    ] = False,
    trace: Annotated[str | None, typer.Option(help="Write every call to this file, for ui.perfetto.dev.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Another setting of docs/simulator.md.")
    ] = None,
) -> None:
    """Run a program with the simulator as its librknnrt.so, or print the variables that make it so for a shell."""
    chosen: dict[str, str | int | bool] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {setting!r}")
        chosen[name] = value
    if strict:
        chosen["strict"] = True
    if trace is not None:
        chosen["trace"] = os.path.abspath(trace)
    variables = sim.environment(soc, runtime, inherited=os.environ, **chosen)
    if program:
        _replace_this_process(program, variables)
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _replace_this_process(program: list[str], variables: dict[str, str]) -> NoReturn:
    """Become the program, so that signals reach it and its exit code is the caller's."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores these, and what is ignored stays so in the new program.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(program[0], program, {**os.environ, **variables})
    except OSError as error:
        # The codes of env(1) and of shells: 127 for a program that is not there, 126 for one that cannot be run.
        sys.stderr.write(f"npumatmul: {program[0]}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
