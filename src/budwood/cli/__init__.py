"""The command line: one file = one verb, loaded when it is called."""

import sys
from importlib.metadata import version

from cyclopts import App, CycloptsError

from ..core.errors import UserError

app = App(
    name="budwood",
    help="Prune ImageNet networks, transfer them to your own images with the mask held, and see what it cost.",
    version=lambda: version("budwood"),
)
app["--help"].group = app["--version"].group = "Help"
for _verb in ("transfer", "prune", "eval", "verify", "info", "ls", "export", "report"):
    app.command(f"budwood.cli.{_verb}:run", name=_verb)
app.command("budwood.cli.data:app", name="data")


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. Bad input: one line on stderr and exit code 2. Ctrl-C: 130, and how to go on."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except (UserError, CycloptsError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again to go on where it was", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 2)


def _fail(message: str, code: int) -> None:
    print(f"budwood: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
