"""What all commands share: how flags are read, how results and errors are shown, and with which exit code.

    app = CommandLine("tpas double", __doc__)

    @app.command()
    def double(number: Annotated[int, typer.Argument(help="to double")]) -> CommandResult:
        return CommandResult({"doubled": 2 * number}, f"twice {number} is {2 * number}")

    def main(argv: Sequence[str] | None = None) -> None:
        app.run(argv)

A command prints nothing itself. It returns its result, which goes to the standard output as text, or with
`--json` as one JSON document; whatever libraries print meanwhile goes to the standard error. Its heavy
imports stand inside the function, so that help and shell completion answer at once.
"""

import gc
import inspect
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm
from typer.core import TyperGroup

from ..data.whole_files import denial, is_denied
from .flags import LenientCommand, flags_of, values_if_bare

DONE, WRONG_USAGE, CHECK_FAILED, INTERRUPTED, OUTPUT_CLOSED = 0, 2, 3, 130, 141
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check found mistakes, 130 interrupted, "
    "141 nobody read the output, 143 ended by SIGTERM. Errors are one line; `--debug` or TPAS_DEBUG=1 shows "
    "their trace."
)
DEBUG_VARIABLE = "TPAS_DEBUG"
HEAD_START = 10.0  # seconds, in which a launcher notices that a process has ended


@dataclass(frozen=True)
class CommandResult:
    """The result of a command.

    Attributes:
        content: for `--json`, or a function that makes it where that takes a while.
        text: the same for people.
        exit_code: `CHECK_FAILED` where a check was asked for and found mistakes.
    """

    content: Any
    text: str
    exit_code: int = DONE

    def json(self) -> str:
        content = self.content() if callable(self.content) else self.content
        return json.dumps(content, indent=1, default=str)


class WrongUsage(typer.TyperException):
    """Flags that do not go together."""

    exit_code = WRONG_USAGE
    ctx: typer.Context | None = None


class CommandLine(typer.Typer):
    """A command, or with several functions a group of them, as `typer` makes them.

    A parameter annotated with a dataclass stands for its fields, each of them a flag: see `flags.py`.
    """

    def __init__(
        self,
        program: str,
        about: str | None,
        log_format: str = "%(message)s",
        cls: type[TyperGroup] | None = None,
        add_completion: bool = False,
    ):
        super().__init__(
            cls=cls,
            help=_examples_unwrapped(about),
            epilog=EXIT_CODES,
            rich_markup_mode=None,  # rich cuts long flags short on usual terminals
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["--help", "-h"]},
            add_completion=add_completion,
        )
        self.program = program
        self.about = about
        self.log_format = log_format

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Callable], Callable]:
        def register(function: Callable) -> Callable:
            about = _examples_unwrapped(function.__doc__ or self.about)
            own = {"cls": LenientCommand, "help": about, "epilog": EXIT_CODES} | settings
            super(CommandLine, self).command(name, **own)(self._with_flags(function))
            return function

        return register

    def run(self, argv: Sequence[str] | None = None) -> None:
        """Does what the words of `argv` say, or those that the program was started with.

        Raises:
            SystemExit: it failed, or a check found mistakes.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        command = typer.main.get_command(self)
        if isinstance(command, TyperGroup) and not words:
            words = ["--help"]
        try:
            code = command.main(words, prog_name=self.program, standalone_mode=False)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            path = self.program if context is None else context.command_path
            _let_the_main_process_report_first()
            said = one_line(error.format_message()).removesuffix(".")
            said = re.sub(r"path '(.*)' is not readable", lambda match: denial(match[1]), said)
            message = f"{path}: {said} ({path} --help)"
            typer.echo(message, err=True)
            ending = SystemExit(message)  # for callers in Python
            ending.code = error.exit_code
            raise ending from None
        if code:
            raise SystemExit(code)

    def _with_flags(self, function: Callable) -> Callable:
        """`function` as typer can call it: with a parameter for each flag, and its result is printed."""
        parameters, groups = flags_of(function)

        def call(
            context: typer.Context,
            as_json: Annotated[
                bool, typer.Option("--json", help="print the result as one JSON document")
            ] = False,
            debug: Annotated[bool, typer.Option("--debug", help="show the trace of an error")] = False,
            **values: Any,
        ) -> None:
            debug = debug or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
            debug = debug or context.find_root().params.get("debug", False)
            with _one_line_errors(context, debug):
                for name, kind in groups.items():
                    given = {field: values.pop(field) for field in kind.__dataclass_fields__}
                    try:
                        values[name] = kind(**given)
                    except ValueError as error:
                        raise WrongUsage(str(error)) from error
                with redirect_stdout(sys.stderr):
                    _show_log(self.log_format)
                    result = function(**values)
                if result is not None and is_main_process():
                    typer.echo(result.json() if as_json else result.text)
            if result is not None and result.exit_code:
                raise typer.Exit(result.exit_code)

        # What typer reads of a function.
        parameters += [flag for flag in flags_of(call)[0] if flag.name != "values"]
        call.__name__ = function.__name__
        call.__signature__ = inspect.Signature(parameters)
        call.__annotations__ = {flag.name: flag.annotation for flag in parameters}
        call.bare = values_if_bare(parameters)
        return call


class _AboveProgressBars(logging.Handler):
    """Writes to what is the standard error by then, without tearing a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _show_log(log_format: str) -> None:
    """Shows what this package logs; libraries show their own."""
    handler = _AboveProgressBars()
    handler.setFormatter(logging.Formatter(log_format))
    log = logging.getLogger("tpas")
    log.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    log.handlers = [handler]


def is_main_process() -> bool:
    """Whether this is the only process, or of those that `accelerate launch` started the one that reports."""
    accelerate = sys.modules.get("accelerate")  # not imported for this
    if accelerate is not None and accelerate.PartialState._shared_state:
        return accelerate.PartialState().is_main_process
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def shown_warnings(program: str, **flags: str) -> Iterator[None]:
    """Logs what libraries warn of, a line each, and the flag that is the way out by a word that names it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(one_line(str(warning.message)) for warning in caught):
                ways_out = "".join(f" ({flag})" for word, flag in flags.items() if word in message)
                logging.getLogger(__name__).warning("%s: warning: %s%s", program, message, ways_out)


@contextmanager
def quick_imports() -> Iterator[None]:
    """For the first imports of torch and transformers, all of whose objects stay to the end.

    Looking through them for garbage, meanwhile and once more at the exit, takes a third of a short command.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def one_line(message: str) -> str:
    return " ".join(message.split())


def _examples_unwrapped(text: str | None) -> str:
    """With a backspace before each indented paragraph, a command: click then leaves it as it is."""
    text = inspect.cleandoc(text or "")
    text = re.sub(r"\n\n(?=tpas )", "\n\n    ", text)  # cleaned too well, where nothing else follows
    return re.sub(r"\n\n(?= {4})", "\n\n\b\n", text)


@contextmanager
def _one_line_errors(context: typer.Context, debug: bool) -> Iterator[None]:
    try:
        yield
    except WrongUsage as error:
        error.ctx = context
        raise
    except BrokenPipeError:
        # The rest of what is buffered goes nowhere, rather than into a second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(OUTPUT_CLOSED) from None
    except KeyboardInterrupt as interrupt:
        typer.echo(f"{context.command_path}: {str(interrupt) or 'interrupted'}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        _let_the_main_process_report_first()
        raise SystemExit(f"{context.command_path}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    if isinstance(error, KeyError) and len(error.args) == 1:  # which would quote it
        return one_line(str(error.args[0]))
    if isinstance(error, PermissionError) and error.filename and is_denied(Path(error.filename)):
        return one_line(denial(error.filename))
    expected = isinstance(error, OSError | ValueError | ImportError | RuntimeError | ArithmeticError)
    if expected and str(error):
        return one_line(str(error))
    return one_line(f"{type(error).__name__}: {error} (--debug shows where)")


def _let_the_main_process_report_first() -> None:
    """Where that has failed as well, its launcher ends this one meanwhile: one message, not many."""
    if not is_main_process():
        time.sleep(HEAD_START)
