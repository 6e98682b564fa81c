"""The database of a study: SQLite in its own directory, or a database that several machines share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from filelock import FileLock

from muai_lab.errors import RunError

if TYPE_CHECKING:
    import optuna

DATABASE = "study.db"
IN_MEMORY = "memory:"
"""The address of a study that ends with its process, for searches in virtual time."""

_ESCAPED = "file:"

# Several processes may write to one database, and open one study: each waits this long for its turn.
_PATIENCE_S = 60
_CONNECT_TIMEOUT_S = 10
# Of PostgreSQL's advisory lock: any number that no other program uses in this database.
_OPENING = 0x4D75_4149


def study_directory(configured: str | None, now: datetime | None = None) -> Path:
    """Return the directory of a study. configured: `tuning.study`."""
    if configured is not None:
        return Path(configured)
    at = now or datetime.now()  # noqa: DTZ005 (a folder's name is for people of this place)
    return Path("studies") / at.strftime("%Y-%m-%d") / at.strftime("%H-%M-%S")


def storage_url(directory: Path, configured: str | None) -> str:
    """Return the database's address for SQLAlchemy. configured: `tuning.storage`."""
    if configured is None:
        return _sqlite_url((directory / DATABASE).resolve())
    # Psycopg 3 is the driver that the extra brings; without a driver SQLAlchemy would look for its own default.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", configured)


def _sqlite_url(path: Path) -> str:
    """The address of a local database.

    A name that an address, or the template that Optuna makes of it, would read otherwise goes into SQLite's own form of
    address, where it can be written with escapes. SQLAlchemy writes it, since its versions differ in what they escape.
    """
    escaped = quote(str(path))
    if escaped == str(path):
        return f"sqlite:///{path}"
    from sqlalchemy import URL

    return URL.create("sqlite", database=f"{_ESCAPED}{escaped}", query={"uri": "true"}).render_as_string()


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Connect, and make the tables if there are none. Raises RunError if the database cannot be used."""
    import optuna

    if url == IN_MEMORY:
        return optuna.storages.InMemoryStorage()
    local = url.startswith("sqlite")
    patience = {"timeout": _PATIENCE_S} if local else {"connect_timeout": _CONNECT_TIMEOUT_S}
    with storage_errors(url):
        # A connection that a restart of the database cut is noticed before it is used.
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": patience, "pool_pre_ping": not local})


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Keep other processes from opening a study in this database meanwhile.

    Two processes that find no tables would both make them, and one would fail. Two that find no trial would both ask
    for the first. Raises RunError if the others do not finish, or if the database cannot be used.
    """
    with ExitStack() as held:
        with storage_errors(url):
            if url.startswith("sqlite"):
                held.enter_context(_file_locked(Path(shown(url))))
            elif url.startswith("postgresql"):
                held.enter_context(_advisory_lock(url))
        yield


@contextmanager
def _file_locked(database: Path) -> Iterator[None]:
    lock = FileLock(f"{database}.lock")
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except OSError as error:
        raise RunError(
            f"the study's database {database} cannot be locked ({error.strerror or error}): end the process that holds "
            f"{lock.lock_file}, free space, or choose another directory"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _advisory_lock(url: str) -> Iterator[None]:
    """PostgreSQL's own lock between sessions; it ends with its session, however that ends."""
    from sqlalchemy import NullPool, create_engine, text

    engine = create_engine(
        url,
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_S},
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
    )
    with engine.connect() as session:
        session.execute(text(f"SET lock_timeout = '{_PATIENCE_S}s'"))
        session.execute(text("SELECT pg_advisory_lock(:number)"), {"number": _OPENING})
        yield


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn an error of the database or its driver into a RunError with the remedy."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        # Optuna turns the driver's ModuleNotFoundError into an ImportError without a name.
        missing = error.name or getattr(error.__cause__ or error.__context__, "name", None) or "that is its driver"
        raise RunError(
            f"the database {shown(url)} needs the Python package {missing}, which is not installed; muai-lab[postgres] "
            "brings what postgresql:// needs"
        ) from error
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise RunError(
            f"the study's database {shown(url)} cannot be used: {reason}. Nothing that was finished is lost: mend it "
            "and run the same command again"
        ) from error


def shown(url: str) -> str:
    """Return the address for people: without credentials, and a local file by its path."""
    if url.startswith("sqlite:///") and url.endswith("?uri=true"):
        from sqlalchemy import make_url

        return unquote((make_url(url).database or "").removeprefix(_ESCAPED))
    if url.startswith("sqlite:///"):
        return url.removeprefix("sqlite:///")
    return re.sub(r"//[^@/]*@", "//", url.replace("+psycopg", ""))
