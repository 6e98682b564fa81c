"""Where a study is kept: SQLite in its own directory, or a database that several machines share."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from muai_lab.errors import RunError

if TYPE_CHECKING:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

DATABASE = "study.db"
IN_MEMORY = "memory:"
"""A study that ends with its process: for searches in virtual time."""

# Several processes may write to one SQLite file: each waits this long for its turn.
_SQLITE_PATIENCE_S = 60
_CONNECT_TIMEOUT_S = 10
_MOST_RACES = 6  # lost in a row while several processes make the tables of a new database


def storage_url(directory: Path, configured: str | None) -> str:
    """The database's address for SQLAlchemy; configured: `tuning.storage`."""
    if configured is None:
        return f"sqlite:///{(directory / DATABASE).resolve()}"
    # Psycopg 3 is the driver that the extra brings; without a driver SQLAlchemy would look for its own default.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", configured)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Connect, and make the tables where there are none. Raises RunError when the database cannot be used."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    if url == IN_MEMORY:
        return optuna.storages.InMemoryStorage()
    local = url.startswith("sqlite")
    patience = {"timeout": _SQLITE_PATIENCE_S} if local else {"connect_timeout": _CONNECT_TIMEOUT_S}
    with storage_errors(url):
        for attempt in itertools.count():
            try:
                # A connection that a restart of the database cut is noticed before it is used.
                arguments = {"connect_args": patience, "pool_pre_ping": not local}
                return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
            except SQLAlchemyError as error:
                # Optuna looks which tables there are, then makes the others: in between another process may have.
                if attempt == _MOST_RACES or not _made_by_another(error):
                    raise
                time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def _made_by_another(error: SQLAlchemyError) -> bool:
    from sqlalchemy.exc import IntegrityError

    return isinstance(error, IntegrityError) or "already exists" in str(error)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what the database or its driver raises into a RunError that says what to do."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise RunError(
            f"the database {shown(url)} needs the Python package {error.name}: install muai-lab[postgres]"
        ) from error
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise RunError(
            f"the study's database {shown(url)} cannot be used: {reason}. Nothing that was finished is lost: mend it "
            "and run the same command again"
        ) from error


def shown(url: str) -> str:
    """The address as people should see it: without credentials, a local file by its path."""
    if url.startswith("sqlite:///"):
        return url.removeprefix("sqlite:///")
    return re.sub(r"//[^@/]*@", "//", url.replace("+psycopg", ""))
