"""The API key that the run's servers ask for and its agents show; it is in no configuration, command line or record."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from asiarch_hpc.config import AgentsConfig
from asiarch_hpc.errors import ConfigError


def read_key(config: AgentsConfig, environ: Mapping[str, str]) -> str:
    """The key in the variable agents.api_key_env, else in the file agents.api_key_file; empty without either.

    Raises:
        ConfigError: the file is missing or others may read it, or what it holds cannot be sent as a header.
    """
    where, key = f"${config.api_key_env}", environ.get(config.api_key_env, "").strip() if config.api_key_env else ""
    if not key and config.api_key_file:
        where = f"agents.api_key_file={config.api_key_file}"
        key = _content(Path(config.api_key_file).expanduser(), where)
        if not key:
            raise ConfigError(f"{where}: the file is empty; one line with the key was expected")
    if not all("!" <= letter <= "~" for letter in key):
        raise ConfigError(f"{where}: a key of printable ASCII letters without spaces was expected")
    return key


def _content(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"{where}: its mode is {mode:o}, others may read the key; expected 600: chmod 600")
            return file.read(65536).decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigError(f"{where}: {os.strerror(error.errno or 0)}; a file with the key was expected") from error
