"""What a study has planned and found, in one SQLite file that many processes on one machine may write at once.

A result is kept without what many of them share (the task's classes, the machine, the layers of one mask), so that ten
thousand of them are read in a second or two.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import ValidationError

from ..core.errors import UserError
from ..core.files import canonical_json, digest_of, locked
from ..core.result import Layer, Result
from ..core.spec import RunSpec

FILE = "study.sqlite"
Status = Literal["planned", "done", "failed", "skipped"]
VERSION = 1
"""Of the tables, kept as SQLite's `user_version`. 0 is a new file, or one in which a run knew a single study."""
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, spec TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'planned',
    reason TEXT NOT NULL DEFAULT '', result TEXT, task TEXT, environment TEXT, mask TEXT
);
CREATE TABLE IF NOT EXISTS plans (study TEXT, run_id TEXT, PRIMARY KEY (study, run_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shared (digest TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS networks (parent TEXT PRIMARY KEY, source TEXT, label TEXT, sparsity REAL, accuracy REAL);
CREATE TABLE IF NOT EXISTS speeds (parent TEXT PRIMARY KEY, row TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Origin:
    """What is known of a network that transfers start from: where it is opened from (None for one that a run makes),
    what the report calls its method, by which sparsity it goes there, and its accuracy upstream, a fraction."""

    source: str | None = None
    label: str | None = None
    sparsity: float | None = None
    accuracy: float | None = None


class Store:
    """The file `study.sqlite` in a folder of runs. It knows every run that was planned or done there, and the plan of
    each study, which is what its last `plan` said. Raises UserError where it cannot be read or written."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE
        root.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            if _version(db) == 0:
                with locked(root / f".{FILE}.lock", wait=True):  # SQLite does not wait where a file becomes WAL
                    _make_tables(db)
            if (version := _version(db)) != VERSION:
                raise UserError(
                    f"{self.path} has version {version}, this Budwood reads {VERSION}; delete it: `budwood study run` "
                    "makes it again from the runs"
                )

    @classmethod
    def existing(cls, root: Path) -> "Store":
        """UserError where no study has run there yet."""
        if not (root / FILE).exists():
            raise UserError(f"no study has run in {root} yet; start it with `budwood study run`")
        return cls(root)

    # -- writing -----------------------------------------------------------------------------------------

    def plan(self, study: str, specs: Sequence[RunSpec], origins: Mapping[str, Origin]) -> None:
        """Note the runs that a study wants, in place of those it wanted before. What is known of them already stays;
        what no study wants any more, and never came to anything, is forgotten."""
        rows = [(spec.run_id, spec.model_dump_json()) for spec in specs]
        with self._open() as db:
            db.execute("DELETE FROM plans WHERE study = ?", (study,))
            db.executemany("INSERT OR IGNORE INTO plans VALUES (?, ?)", [(study, run_id) for run_id, _ in rows])
            db.execute("DELETE FROM runs WHERE result IS NULL AND run_id NOT IN (SELECT run_id FROM plans)")
            db.executemany("INSERT OR IGNORE INTO runs (run_id, spec) VALUES (?, ?)", rows)
            known = [(parent, o.source, o.label, o.sparsity, o.accuracy) for parent, o in origins.items()]
            db.executemany("INSERT OR REPLACE INTO networks VALUES (?, ?, ?, ?, ?)", known)

    def record(self, results: Iterable[Result]) -> None:
        """Keep results, finished or failed; a finished one is never replaced by a failed one."""
        with self._open() as db:
            for result in results:
                self._record(db, result)

    def _record(self, db: sqlite3.Connection, result: Result) -> None:
        def share(value: Any) -> str:
            digest = digest_of(value)
            db.execute("INSERT OR IGNORE INTO shared VALUES (?, ?)", (digest, canonical_json(value)))
            return digest

        layers = [layer.model_dump(mode="json") for layer in result.layers]
        light = result.model_copy(update={"layers": [], "history": [], "task": {}, "environment": {}})
        db.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO UPDATE SET"
            " status = excluded.status, reason = excluded.reason, result = excluded.result, task = excluded.task,"
            " environment = excluded.environment, mask = excluded.mask WHERE status != 'done'",
            (
                result.run_id, result.spec.model_dump_json(), result.status, result.reason, light.model_dump_json(),
                share(result.task), share(result.environment), share(layers),
            ),
        )  # fmt: skip

    # -- reading -----------------------------------------------------------------------------------------

    def statuses(self) -> dict[str, Status]:
        """run_id -> status of every run that was ever planned or done here."""
        with self._open() as db:
            return dict(db.execute("SELECT run_id, status FROM runs"))

    def results(self, study: str | None = None) -> list[Result]:
        """Every run of the plan of one study, or of all studies: what came of it or, where nothing has yet, a `skipped`
        one whose reason says so."""
        query = (
            "SELECT run_id, spec, result, task, environment, mask FROM runs WHERE run_id IN"
            " (SELECT run_id FROM plans WHERE ?1 IS NULL OR study = ?1) ORDER BY rowid"
        )
        with self._open() as db:
            rows = db.execute(query, (study,)).fetchall()  # before what they share, which another process adds to
            shared = {digest: json.loads(text) for digest, text in db.execute("SELECT * FROM shared")}
            masks = {mask for *_, mask in rows if mask}
            layers = {mask: [Layer.model_validate(layer) for layer in shared[mask]] for mask in masks}
            found = []
            for run_id, spec, text, task, environment, mask in rows:
                if text is None:
                    planned = RunSpec.model_validate_json(spec)
                    found.append(Result(run_id=run_id, spec=planned, status="skipped", reason="not done yet"))
                    continue
                result = Result.model_validate_json(text)
                result.task, result.environment, result.layers = shared[task], shared[environment], layers[mask]
                found.append(result)
        return found

    def origins(self) -> dict[str, Origin]:
        """By the digest of a network, or `run:RUN_ID`."""
        query = "SELECT parent, source, label, sparsity, accuracy FROM networks"
        with self._open() as db:
            return {parent: Origin(*known) for parent, *known in db.execute(query)}

    def record_speeds(self, rows: Mapping[str, dict[str, Any]]) -> None:
        """Keep a row of `bench.latency` for each network."""
        with self._open() as db:
            stored = [(parent, canonical_json(row)) for parent, row in rows.items()]
            db.executemany("INSERT OR REPLACE INTO speeds VALUES (?, ?)", stored)

    def speeds(self) -> dict[str, dict[str, Any]]:
        """The last measurement of each network that was timed."""
        with self._open() as db:
            return {parent: json.loads(row) for parent, row in db.execute("SELECT * FROM speeds")}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction. A connection is not kept: it must not be carried into another process."""
        where = f"file:{quote(str(self.path.absolute()))}"
        if not os.access(self.path.parent, os.W_OK):
            where += "?immutable=1"  # else SQLite wants to write beside a file in WAL mode even to read it
        try:
            db = sqlite3.connect(where, timeout=60, uri=True)
            try:
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, ValidationError, json.JSONDecodeError, KeyError) as error:
            reason = "; ".join(e["msg"] for e in error.errors()) if isinstance(error, ValidationError) else error
            raise UserError(
                f"{self.path} cannot be used ({reason}); let its folder be written or, if it is damaged, delete it: "
                "`budwood study run` makes it again from the runs"
            ) from None


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _make_tables(db: sqlite3.Connection) -> None:
    """In a new file, or in one of version 0."""
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("BEGIN IMMEDIATE")  # one process makes them; another waits here, and finds them
    for statement in _TABLES.split(";"):
        db.execute(statement)
    if "study" in {column for _, column, *_ in db.execute("PRAGMA table_info(runs)")}:
        db.execute("INSERT INTO plans SELECT study, run_id FROM runs WHERE study != ''")
        db.execute("ALTER TABLE runs DROP COLUMN study")
    db.execute(f"PRAGMA user_version = {VERSION}")
