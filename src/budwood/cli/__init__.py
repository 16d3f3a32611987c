"""The command line: one file = one verb, loaded when it is called."""

import ast
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, UnusedCliTokensError

from ..core.errors import UserError

NO_MEMORY = "not enough memory; try smaller images, a smaller batch or a smaller network"
OF_THE_MACHINE = {
    "out of memory|t allocate memory": NO_MEMORY,
    "DataLoader worker": "a process that loads images is gone, killed for want of memory perhaps; try --workers 0",
}
"""What PyTorch raises a plain RuntimeError for."""

app = App(
    name="budwood",
    help="Prune ImageNet networks, transfer them to your own images with the mask held, and see what it cost.",
    version=lambda: version("budwood"),
    suppress_keyboard_interrupt=False,  # `main` has a word to say on it
)
app["--help"].group = app["--version"].group = "Help"


def _words(verb: str) -> str:
    """What a verb's function says of itself, read without importing it, and PyTorch with it."""
    tree = ast.parse((Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return (ast.get_docstring(functions["run"]) or "").partition("\n\nParameters\n")[0]


for _verb in ("transfer", "prune", "eval", "verify", "compile", "predict", "bench", "info", "ls", "export", "report"):
    app.command(f"budwood.cli.{_verb}:run", name=_verb, help=_words(_verb))
app.command("budwood.cli.recipe:app", name="recipe", help="A method's settings, its authors' too, as a file to edit.")
app.command("budwood.cli.study:app", name="study", help="Many transfers from one file: done, gone on with, reported.")
app.command(
    "budwood.cli.data:app", name="data", help="Check images, fix their splits in a file, or get a known data set."
)


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. Bad input: one line on stderr and exit code 2. Ctrl-C: 130, and how to go on."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except UserError as error:
        _fail(str(error), 2)
    except CycloptsError as error:
        _fail(_reason(error), 2)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again to go on where it was", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        _fail(NO_MEMORY, 2)
    except RuntimeError as error:
        told = next((told for words, told in OF_THE_MACHINE.items() if re.search(words, str(error))), None)
        if told is None:
            raise
        _fail(told, 2)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 2)


def _reason(error: CycloptsError) -> str:
    """One line; of pydantic's several, what is wrong with which option."""
    if isinstance(error, UnusedCliTokensError):
        return f"too many arguments: {' '.join(error.unused_tokens or [])}; see --help"
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    if not found:
        return str(error)
    reason = found[0]["msg"].removeprefix("Value error, ")
    if not found[0]["loc"]:
        return reason
    option = "--" + "-".join(str(part) for part in found[0]["loc"]).replace("_", "-")
    return f"{option} {found[0]['input']}: {reason}"


def _fail(message: str, code: int) -> None:
    print(f"budwood: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
