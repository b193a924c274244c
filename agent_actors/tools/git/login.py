"""The logins of remotes: read by the service, and given to the one git that needs one."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent_actors.errors import ToolRefused
from agent_actors.tools.git.remotes import HTTPS, HTTPS_PORT, Remote

READABLE_BY_OTHERS = 0o004

# Git asks its helper for a login, and tells it later whether that was taken or refused: this one
# gives the same answer to all, and stores nothing.
LOGIN_HELPER = (
    "credential.helper",
    r"""!f() {
        test -n "$GIT_LOGIN_NAME" &&
        printf 'username=%s\npassword=%s\n' "$GIT_LOGIN_NAME" "$GIT_LOGIN_PASSWORD"
    }; f""",
)


def login(remote: Remote, credentials_file: str) -> dict[str, str]:
    """Return what the helper is to find in its environment; nothing when there is no login.

    The file is one of git-credential-store(1). Raises ToolRefused when it cannot be read, or
    when everybody can.
    """
    if not credentials_file:
        return {}
    for line in _lines(Path(credentials_file)):
        name, password = _login_of(line, remote)
        if name and password and "\n" not in name + password:
            return {"GIT_LOGIN_NAME": name, "GIT_LOGIN_PASSWORD": password}
    return {}


def _lines(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8") as opened:
            if os.fstat(opened.fileno()).st_mode & READABLE_BY_OTHERS:
                raise ToolRefused(
                    "tools.git.credentials_file can be read by everybody: chmod o-r it"
                )
            return opened.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToolRefused(f"tools.git.credentials_file cannot be read: {error}") from None


def _login_of(line: str, remote: Remote) -> tuple[str, str]:
    try:
        entry = urlsplit(line.strip())
        port = str(entry.port or HTTPS_PORT)
    except ValueError:  # git passes over such lines, too
        return "", ""
    if (entry.scheme, entry.hostname, port) != (HTTPS, remote.host, remote.port):
        return "", ""
    return unquote(entry.username or ""), unquote(entry.password or "")
