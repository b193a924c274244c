"""What a hostile model, a hostile test run or a hostile repository may try with git.

Most of it happens in a sandbox that confines nothing, so that only what git is told stands
between the attack and its canary. Each canary is first seen to run where git is not told so.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.bare_sandbox import BareSandbox, bare_surroundings
from support.git_https import GitServer, git_server
from support.git_work import (
    CONFINED,
    PERSON,
    change,
    make_upstream,
    open_folder,
    run_git,
    said,
    surroundings_in,
    use,
)

from agent_actors.config_tools import GitConfig, SandboxConfig, ToolsConfig
from agent_actors.errors import ToolError, ToolRefused
from agent_actors.tools.git import prepare_repository
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Command

PASSWORD = "canary-password-5f3a"
LOGIN = f"robot:{PASSWORD}"


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest.fixture
def upstream(folder: Path) -> Path:
    return make_upstream(folder / "remotes" / "up")


@pytest.fixture
async def work(folder: Path) -> Surroundings:
    """A workspace with one file committed, another change, and a canary that git must not run."""
    settings = ToolsConfig(git=GitConfig(remotes=(f"file://{folder}/remotes/*",)))
    surroundings = bare_surroundings(folder, settings)
    await prepare_repository(surroundings, None)
    path = surroundings.workspace.path
    (path / "a.txt").write_text("one\n")
    (path / "canary").write_text(f"#!/bin/sh\ncat >/dev/null </dev/null\ntouch {path}/RAN\n")
    (path / "canary").chmod(0o755)
    await use("git_add", surroundings, all=True)
    await use("git_commit", surroundings, message="First")
    (path / "a.txt").write_text("two\n")
    return surroundings


def plain_git(path: Path, *arguments: str) -> str:
    """Run git in the workspace as anybody would: with all that the workspace asks for."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(path.parent), **PERSON}
    done = subprocess.run(
        ["git", "-C", path, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        input="protocol=https\nhost=example.org\n\n",
        timeout=30,
    )
    return done.stdout + done.stderr


def configure(path: Path, *lines: str, file: str = ".git/config") -> None:
    with (path / file).open("a") as config:
        config.writelines(f"{line}\n" for line in lines)


def hook(path: Path, name: str) -> None:
    (path / ".git/hooks").mkdir(exist_ok=True)
    (path / ".git/hooks" / name).symlink_to(path / "canary")


def filters(path: Path, file: str = ".git/config") -> None:
    (path / ".gitattributes").write_text("*.txt filter=evil\n")
    configure(
        path, '[filter "evil"]', f"clean = {path}/canary", f"smudge = {path}/canary", file=file
    )


def included_filters(path: Path) -> None:
    filters(path, file="more.config")
    configure(path, "[include]", f"path = {path}/more.config")


def filters_included_on_condition(path: Path) -> None:
    filters(path, file="more.config")
    configure(path, '[includeIf "gitdir:**"]', f"path = {path}/more.config")


def filters_of_a_worktree(path: Path) -> None:
    configure(path, "[extensions]", "worktreeConfig = true")
    filters(path, file=".git/config.worktree")


def filters_of_a_common_folder(path: Path) -> None:
    subprocess.run(["cp", "-r", path / ".git", path / "evil"], check=True)
    filters(path, file="evil/config")
    (path / ".git/commondir").write_text("../evil\n")


def text_conversion(path: Path) -> None:
    (path / ".gitattributes").write_text("*.txt diff=evil\n")
    configure(path, '[diff "evil"]', f"textconv = {path}/canary", f"command = {path}/canary")


def missing_objects(path: Path) -> None:
    """Have git ask a promised remote for an object that is not there."""
    blob = run_git(path, "rev-parse", "HEAD:a.txt")
    (path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    configure(path, "[extensions]", "partialClone = evil")
    configure(path, '[remote "evil"]', f"url = {path}", f"uploadpack = {path}/canary")


COMMIT = ("commit", "--allow-empty", "--message=x")
HOSTILE: dict[
    str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, dict[str, object]]]
] = {
    "a hook before commits": (
        lambda path: hook(path, "pre-commit"),
        COMMIT,
        ("git_commit", {"message": "x", "all": True}),
    ),
    "a hook of every change of a ref": (
        lambda path: hook(path, "reference-transaction"),
        ("branch", "plain"),
        ("git_branch", {"name": "x"}),
    ),
    "a hook after checkouts": (
        lambda path: hook(path, "post-checkout"),
        ("checkout", "-b", "plain"),
        ("git_checkout", {"ref": "x", "create": True}),
    ),
    "a folder of hooks": (
        lambda path: (hook(path, "pre-commit"), configure(path, "[core]", "hooksPath=.git/hooks")),
        COMMIT,
        ("git_commit", {"message": "x", "all": True}),
    ),
    "a file system monitor": (
        lambda path: configure(path, "[core]", f"fsmonitor = {path}/canary"),
        ("status",),
        ("git_status", {}),
    ),
    "an external diff": (
        lambda path: configure(path, "[diff]", f"external = {path}/canary"),
        ("diff",),
        ("git_diff", {}),
    ),
    "a conversion for diffs": (text_conversion, ("diff",), ("git_diff", {})),
    "a program for signing": (
        lambda path: configure(
            path, "[commit]", "gpgSign = true", "[gpg]", f"program = {path}/canary"
        ),
        COMMIT,
        ("git_commit", {"message": "x", "all": True}),
    ),
    "filters": (filters, ("add", "a.txt"), ("git_add", {"all": True})),
    "filters included": (included_filters, ("add", "a.txt"), ("git_add", {"all": True})),
    "filters included on condition": (
        filters_included_on_condition,
        ("add", "a.txt"),
        ("git_add", {"all": True}),
    ),
    "filters of a worktree": (filters_of_a_worktree, ("add", "a.txt"), ("git_add", {"all": True})),
    "filters of a common folder": (
        filters_of_a_common_folder,
        ("add", "a.txt"),
        ("git_add", {"all": True}),
    ),
    "a promised remote": (missing_objects, ("diff", "HEAD"), ("git_diff", {"ref": "HEAD"})),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_repository_runs_no_program_of_its_own(work: Surroundings, name: str):
    set_up, plainly, (tool, arguments) = HOSTILE[name]
    path = work.workspace.path
    set_up(path)
    with suppress(ToolError):
        await use(tool, work, **arguments)
    assert not (path / "RAN").exists()
    plain_git(path, *plainly)
    assert (path / "RAN").exists(), "the canary would not have run in any case"


REMOTE_SETTINGS = {
    "another address": (
        lambda path: configure(
            path,
            *("[protocol]", "allow = always"),
            *(f'[url "ext::{path}/canary "]', "insteadOf = file://", "insteadOf = /"),
        ),
        ("fetch", "file:///nowhere"),
    ),
    "a program of ssh": (
        lambda path: configure(path, "[core]", f"sshCommand = {path}/canary"),
        ("ls-remote", "ssh://example.org/x"),
    ),
    "a helper for logins": (
        lambda path: configure(path, "[credential]", f"helper = {path}/canary"),
        ("credential", "fill"),
    ),
    "a hook before pushes": (
        lambda path: hook(path, "pre-push"),
        ("push", "../remotes/up", "HEAD:refs/heads/plain"),
    ),
}


@pytest.mark.parametrize("name", REMOTE_SETTINGS)
async def test_a_workspace_has_no_say_in_how_remotes_are_reached(
    work: Surroundings, upstream: Path, name: str
):
    set_up, plainly = REMOTE_SETTINGS[name]
    path = work.workspace.path
    set_up(path)
    url = f"file://{upstream}"
    await use("git_commit", work, message="Second", all=True)
    await use("git_push", work, url=url, to="mine")
    await use("git_pull", work, url=url, branch="mine")
    assert not (path / "RAN").exists()
    plain_git(path, *plainly)
    assert (path / "RAN").exists(), "the canary would not have run in any case"


async def test_a_merge_driver_is_refused(work: Surroundings, upstream: Path):
    path = work.workspace.path
    configure(path, '[merge "evil"]', f"driver = {path}/canary")
    with pytest.raises(ToolRefused, match=r"section \[merge …\].*take it out"):
        await use("git_pull", work, url=f"file://{upstream}", branch="main")


async def test_a_git_folder_that_is_a_link_is_refused(work: Surroundings, upstream: Path):
    path = work.workspace.path
    (path / ".git").rename(path / "real")
    (path / ".git").symlink_to(upstream / ".git")
    assert "Second" in plain_git(path, "-c", "safe.directory=*", "log")
    with pytest.raises(ToolRefused, match=r"\.git is not a folder"):
        await use("git_log", work)
    (path / ".git").unlink()
    (path / ".git").write_text(f"gitdir: {upstream}/.git\n")
    with pytest.raises(ToolRefused, match=r"\.git is not a folder"):
        await use("git_commit", work, message="x")
    (path / ".git").unlink()
    (path / "real").rename(path / ".git")
    (path / ".git/config").rename(path / "config")
    (path / ".git/config").symlink_to(path / "config")
    with pytest.raises(ToolRefused, match=r"\.git/config is not a readable file of its own"):
        await use("git_status", work)


INJECTIONS: list[tuple[str, dict[str, object]]] = [
    ("git_diff", {"ref": "--output=PWNED"}),
    ("git_diff", {"ref": "--no-index"}),
    ("git_diff", {"ref": "HEAD..main"}),
    ("git_diff", {"ref": "HEAD", "paths": ["../private"]}),
    ("git_diff", {"ref": "HEAD", "paths": ["/etc/passwd"]}),
    ("git_log", {"ref": "--output=PWNED"}),
    ("git_log", {"ref": "-p\n--output=PWNED"}),
    ("git_add", {"paths": ["--pathspec-from-file=a.txt"]}),
    ("git_add", {"paths": ["../private"]}),
    ("git_add", {"paths": [".git/config"]}),
    ("git_add", {"paths": ["*.txt"]}),
    ("git_add", {"paths": [":(glob)**"]}),
    ("git_branch", {"name": "-D"}),
    ("git_branch", {"name": "--edit-description"}),
    ("git_branch", {"name": "x", "start": "--list"}),
    ("git_branch", {"name": "a..b"}),
    ("git_branch", {"name": "../../config"}),
    ("git_checkout", {"ref": "--orphan=x"}),
    ("git_checkout", {"ref": "-B"}),
    ("git_checkout", {"ref": "a.txt"}),
    ("git_checkout", {"ref": "-f", "create": True}),
    ("git_checkout", {"ref": "x", "create": True, "start": "--force"}),
    ("git_push", {"to": "--receive-pack=./canary"}),
    ("git_push", {"to": "main:refs/heads/x"}),
    ("git_push", {"branch": "+main"}),
    ("git_push", {"branch": "--exec=./canary"}),
    ("git_pull", {"branch": "--upload-pack=./canary"}),
    ("git_pull", {"branch": "-c"}),
    ("git_commit", {"message": "\0"}),
    ("git_commit", {"message": "red \x1b[31m and \x1b]0;title\x07"}),
]


@pytest.mark.parametrize(("tool", "arguments"), INJECTIONS)
async def test_no_argument_is_taken_for_an_option(
    work: Surroundings, upstream: Path, tool: str, arguments: dict[str, object]
):
    path = work.workspace.path
    if tool in {"git_push", "git_pull"}:
        arguments = {**arguments, "url": f"file://{upstream}"}
    before = run_git(path, "for-each-ref"), run_git(upstream, "for-each-ref")
    with pytest.raises(ToolError):
        await use(tool, work, **arguments)
    assert not (path / "RAN").exists()
    assert not list(path.rglob("*PWNED*"))
    assert (path / "a.txt").read_text() == "two\n"
    assert (run_git(path, "for-each-ref"), run_git(upstream, "for-each-ref")) == before


async def test_options_would_do_what_they_are_refused_for(work: Surroundings):
    path = work.workspace.path
    plain_git(path, "diff", "--output=PWNED")
    assert (path / "PWNED").exists()


async def test_a_message_that_looks_like_an_option_is_a_message(work: Surroundings):
    await use("git_commit", work, message="--amend --author=x", all=True)
    assert run_git(work.workspace.path, "log", "--format=%s") == "--amend --author=x\nFirst"


ADDRESSES = [
    "ext::./canary",
    "--upload-pack=./canary",
    "-cprotocol.ext.allow=always",
    "ssh://-oProxyCommand=./canary/x",
    "git@127.0.0.1:x",
    "ssh://127.0.0.1/x",
    "git://127.0.0.1/x",
    "http://127.0.0.1/x",
    "file:///etc",
    "/etc",
    "../remotes/up",
    "file://{remotes}/../secret",
    "file://{remotes}/x/../../secret",
    "file://{remotes}/%2e%2e/secret",
    "file://{remotes}/..%2fsecret",
    "file://localhost{remotes}/up",
    "file://{remotes}/up?x",
    "file://{remotes}/up#x",
    "file://{remotes}/up\n--upload-pack=./canary",
    "fd::17",
]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_no_other_address_is_reached(folder: Path, upstream: Path, address: str):
    settings = ToolsConfig(git=GitConfig(remotes=(f"file://{folder}/remotes/*",)))
    make_upstream(folder / "secret")
    sandbox = BareSandbox()
    surroundings = bare_surroundings(folder, settings, sandbox)
    url = address.format(remotes=folder / "remotes")
    with pytest.raises(ToolRefused, match=r"allowed are file://.*/remotes/\*"):
        await use("git_clone", surroundings, url=url)
    assert sandbox.commands == []


async def test_a_refusal_never_repeats_a_login(folder: Path):
    settings = ToolsConfig(git=GitConfig(remotes=("https://git.example.org/*",)))
    surroundings = bare_surroundings(folder, settings)
    with pytest.raises(ToolRefused, match="without a login") as refusal:
        await use("git_clone", surroundings, url=f"https://x:{PASSWORD}@git.example.org/a")
    assert PASSWORD not in str(refusal.value)


async def test_submodules_are_left_alone(folder: Path, upstream: Path, work: Surroundings):
    canary = work.workspace.path / "canary"
    change(upstream, ".gitmodules", f'[submodule "s"]\npath = s\nurl = ext::{canary}\n')
    commit = run_git(upstream, "rev-parse", "HEAD")
    run_git(upstream, "update-index", "--add", "--cacheinfo", f"160000,{commit},s")
    run_git(upstream, "commit", "--quiet", "--message=Submodule")
    (folder / "other").mkdir()
    surroundings = bare_surroundings(folder / "other", work.settings)
    await use("git_clone", surroundings, url=f"file://{upstream}")
    assert list((surroundings.workspace.path / "s").iterdir()) == []
    assert "s" not in (await said("git_status", surroundings)).split()
    assert not (work.workspace.path / "RAN").exists()
    plain_git(
        folder,
        *("-c", "protocol.ext.allow=always", "-c", "safe.directory=*"),
        *("clone", "--recurse-submodules", str(upstream), "plain"),
    )
    assert (work.workspace.path / "RAN").exists()


async def test_a_template_of_the_environment_brings_no_hooks(folder: Path, upstream: Path):
    (folder / "template/hooks").mkdir(parents=True)
    (folder / "template/hooks/post-checkout").write_text("#!/bin/sh\n")
    settings = ToolsConfig(
        git=GitConfig(remotes=(f"file://{folder}/remotes/*",)),
        sandbox=SandboxConfig(environment={"GIT_TEMPLATE_DIR": f"{folder}/template"}),
    )
    surroundings = bare_surroundings(folder, settings)
    await use("git_clone", surroundings, url=f"file://{upstream}")
    assert not (folder / "work/.git/hooks").exists()
    assert not (folder / "git/exchange/repository.git/hooks").exists()
    (folder / "plain").mkdir()
    plain_git(folder / "plain", "init", f"--template={folder}/template")
    assert (folder / "plain/.git/hooks/post-checkout").exists()


async def test_filters_of_a_cloned_repository_are_not_run(folder: Path, upstream: Path):
    """Such as those of git-lfs: the attributes come with the repository, the programs do not."""
    change(upstream, ".gitattributes", "*.txt filter=lfs diff=lfs merge=lfs -text\n")
    settings = ToolsConfig(git=GitConfig(remotes=(f"file://{folder}/remotes/*",)))
    surroundings = bare_surroundings(folder, settings)
    await use("git_clone", surroundings, url=f"file://{upstream}")
    assert (surroundings.workspace.path / "a.txt").read_text() == "two\n"


async def test_what_others_wrote_steers_no_terminal(folder: Path, upstream: Path):
    change(upstream, "a.txt", "\x1b[2Jgone\n", "Clear \x1b[2J\x9b31m the screen")
    settings = ToolsConfig(git=GitConfig(remotes=(f"file://{folder}/remotes/*",)))
    surroundings = bare_surroundings(folder, settings)
    await use("git_clone", surroundings, url=f"file://{upstream}")
    for text in (
        await said("git_log", surroundings),
        await said("git_diff", surroundings, ref="HEAD~1"),
    ):
        assert "\\x1b[2J" in text
        assert not {"\x1b", "\x9b"} & set(text)


async def test_an_enormous_diff_is_cut(folder: Path):
    surroundings = bare_surroundings(folder, sandbox=BareSandbox(max_output_bytes=100_000))
    await prepare_repository(surroundings, None)
    (surroundings.workspace.path / "big.txt").write_text("a line of some length\n" * 500_000)
    await use("git_add", surroundings, all=True)
    text = await said("git_diff", surroundings, staged=True)
    assert len(text) < 101_000
    assert "the diff is too long and ends here" in text
    assert "500000 +" in await said("git_diff", surroundings, staged=True, summary=True)


@pytest.fixture
def server(folder: Path, upstream: Path) -> Iterator[GitServer]:
    with git_server(folder, upstream.parent, LOGIN) as running:
        (folder / "logins").write_text(f"https://{LOGIN}@{running.url.removeprefix('https://')}\n")
        (folder / "logins").chmod(0o600)
        yield running


def https_settings(folder: Path, server: GitServer) -> ToolsConfig:
    return ToolsConfig(
        git=GitConfig(remotes=(f"{server.url}/*",), credentials_file=str(folder / "logins")),
        sandbox=SandboxConfig(
            environment={"GIT_SSL_CAINFO": str(server.certificate)},
            read_paths=(str(server.certificate),),
        ),
    )


@pytest.mark.parametrize("kind", ["bare", *CONFINED])
async def test_a_login_serves_its_remote_and_nobody_else(
    folder: Path, upstream: Path, server: GitServer, kind: str
):
    surroundings = await surroundings_in(kind, folder, https_settings(folder, server))
    workspace = surroundings.workspace
    told = [await said("git_clone", surroundings, url=f"{server.url}/up")]
    configure(workspace.path, "[credential]", "helper = !env > ENVIRONMENT; cat > GIVEN; :")
    configure(workspace.path, f'[url "{server.url}/stolen"]', f"insteadOf = {server.url}/up")
    (workspace.path / "a.txt").write_text("three\n")
    told.append(await said("git_commit", surroundings, message="Third", all=True))
    told.append(await said("git_push", surroundings))
    told.append(await said("git_pull", surroundings))
    assert run_git(upstream, "log", "-1", "--format=%s", "main") == "Third"
    assert set(server.seen) == {LOGIN}
    assert PASSWORD not in "".join(told)
    for file in workspace.path.rglob("*"):
        assert file.is_dir() or PASSWORD.encode() not in file.read_bytes()
    assert not (workspace.path / "ENVIRONMENT").exists()


@pytest.mark.parametrize("kind", CONFINED)
async def test_the_file_of_logins_is_not_read_by_a_command_of_the_workspace(
    folder: Path, server: GitServer, kind: str
):
    surroundings = await surroundings_in(kind, folder, https_settings(folder, server))
    workspace = surroundings.workspace
    await use("git_clone", surroundings, url=f"{server.url}/up")
    assert surroundings.sandbox
    script = f"cat {folder}/logins; env; cat {workspace.path.parent}/git/exchange/*/config"
    finished = await surroundings.sandbox.run(
        Command(
            argv=["sh", "-c", script],
            folder=workspace.path,
            cwd=workspace.path,
            uid=workspace.uid,
        )
    )
    assert PASSWORD not in finished.output.decode()
    assert "repositoryformatversion" not in finished.output.decode()
    assert PASSWORD in (folder / "logins").read_text()


async def test_a_login_that_is_refused_stays_in_its_file(folder: Path, server: GitServer):
    logins = folder / "logins"
    logins.write_text(logins.read_text().replace(PASSWORD, "wrong"))
    surroundings = bare_surroundings(folder, https_settings(folder, server))
    with pytest.raises(ToolError, match=r"logins come from tools\.git\.credentials_file"):
        await use("git_clone", surroundings, url=f"{server.url}/up")
    assert "robot:wrong" in logins.read_text()
    assert set(server.seen) == {"robot:wrong"}


async def test_a_redirect_is_not_followed(folder: Path, server: GitServer):
    surroundings = bare_surroundings(folder, https_settings(folder, server))
    with pytest.raises(ToolError, match="redirects are not followed"):
        await use("git_clone", surroundings, url=f"{server.url}/away/up")


async def test_a_file_of_logins_that_everybody_can_read_is_refused(folder: Path, server: GitServer):
    (folder / "logins").chmod(0o644)
    surroundings = bare_surroundings(folder, https_settings(folder, server))
    with pytest.raises(ToolRefused, match="chmod o-r"):
        await use("git_clone", surroundings, url=f"{server.url}/up")
    assert server.seen == []


@pytest.mark.parametrize("kind", CONFINED)
async def test_in_a_sandbox_a_test_run_cannot_reach_the_exchange(
    folder: Path, upstream: Path, kind: str
):
    """What git does with the network rests on nothing that a test could have written."""
    settings = ToolsConfig(git=GitConfig(remotes=(f"file://{folder}/remotes/*",)))
    surroundings = await surroundings_in(kind, folder, settings)
    await use("git_clone", surroundings, url=f"file://{upstream}")
    exchange = surroundings.workspace.path.parent / "git"
    makefile = f"test:\n\t-touch {exchange}/x {exchange}/exchange/x {exchange}/incoming/x\n"
    (surroundings.workspace.path / "Makefile").write_text(makefile)
    assert "cannot touch" in await said("make_test", surroundings)
    assert list(exchange.rglob("x")) == []
