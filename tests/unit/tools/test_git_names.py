"""What may name a branch, a commit, a message, and a remote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_actors.errors import ToolError, ToolRefused
from agent_actors.tools.git.login import login
from agent_actors.tools.git.names import commit_message, ref_name, revision
from agent_actors.tools.git.remotes import Remote, allowed_remote

WRONG_NAMES = [
    *("", "-x", "--output=x", "a..b", "a b", "a\nb", "a:b", "a~1", "a^", "a?", "a*", "a[b"),
    *("/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "@", "a@{1}", "a\\b", "a\x7f"),
    *("a\u202eb", "x" * 201),
]


@pytest.mark.parametrize("name", ["main", "feature/x", "v1.0", "ü/ß", "a@b", "a-b", "HEAD"])
def test_names_of_branches_are_taken_as_they_are(name: str):
    assert ref_name(name) == name


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_what_git_would_take_for_something_else_is_no_name(name: str):
    with pytest.raises(ToolError, match="is not a name of a branch or tag"):
        ref_name(name)


@pytest.mark.parametrize("text", ["HEAD", "main~1", "HEAD^^", "v1~20^2", "a" * 40])
def test_a_revision_names_one_commit(text: str):
    assert revision(text) == text


@pytest.mark.parametrize("text", ["a..b", "^main", "~1", "-p", "main:a.txt", "@{1}", ":/fix", ""])
def test_ranges_and_files_are_no_revision(text: str):
    with pytest.raises(ToolError, match="names no single commit"):
        revision(text)


@given(st.text(max_size=30))
def test_no_accepted_name_can_be_an_option_or_leave_its_folder(text: str):
    for check in (ref_name, revision):
        try:
            name = check(text)
        except ToolError:
            continue
        assert not name.startswith("-")
        assert ".." not in name
        assert name.isprintable()


@pytest.mark.parametrize("message", ["", " \n", "a\0b", "\x1b[31m", "a\rb", "x" * 20_001])
def test_a_message_is_plain_text(message: str):
    with pytest.raises(ToolError, match="message"):
        commit_message(message)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("https://git.example.org/team/*", "https://git.example.org/team/app"),
        ("https://git.example.org/team/*", "https://GIT.example.org:443/team/sub/app.git/"),
        ("https://git.example.org/team/app", "https://git.example.org/team/app/"),
        ("https://*.example.org/*", "https://a.b.example.org/x"),
        ("https://*/*", "https://anywhere/x"),
        ("https://git.example.org:8443/*", "https://git.example.org:8443/my%20repo"),
        ("file:///srv/git/*", "file:///srv/git/app.git"),
    ],
)
def test_an_address_that_a_pattern_covers_is_allowed(pattern: str, url: str):
    assert allowed_remote(url, [pattern]).url


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("https://git.example.org/team/*", "https://git.example.org/team"),
        ("https://git.example.org/team/*", "https://git.example.org/other/app"),
        ("https://git.example.org/team/*", "https://git.example.org/team/../other/app"),
        ("https://git.example.org/team/*", "https://git.example.org/team/./app"),
        ("https://git.example.org/team/*", "https://git.example.org/team//app"),
        ("https://git.example.org/team/*", "https://git.example.org/team/%2e%2e/app"),
        ("https://git.example.org/team/*", "https://git.example.org/team\\..\\other"),
        ("https://git.example.org/team/*", "https://git.example.org/TEAM/app"),
        ("https://git.example.org/team/*", "https://git.example.org:8443/team/app"),
        ("https://git.example.org/team/*", "http://git.example.org/team/app"),
        ("https://git.example.org/team/*", "file:///team/app"),
        ("https://git.example.org/*", "https://git.example.org.evil.org/x"),
        ("https://git.example.org*", "https://git.example.org.evil.org/x"),
        ("https://git.example.org*", "https://git.example.org/x"),
        ("https://*.example.org/*", "https://example.org/x"),
        ("https://*.example.org/*", "https://evil.org/.example.org/x"),
        ("https://*.example.org/*", "https://evil.org?.example.org/x"),
        ("https://*.example.org/*", "https://evil.org#.example.org/x"),
        ("https://*.example.org/*", "https://evilexample.org/x"),
        ("https://git.*.org/*", "https://git.evil.org/x"),
        ("https://*/*", "https://user@host/x"),
        ("https://*/*", "https://user:pw@host/x"),
        ("https://*/*", "https://host/a@b"),
        ("https://*/*", "https://host/*"),
        ("https://*/*", "https://host/x y\nz"),
        ("https://*/*", "https:///x"),
        ("https://*/*", "ext::sh -c x"),
        ("file:///srv/git/*", "file:///srv/git/../secret"),
        ("file:///srv/git/*", "file://host/srv/git/x"),
        ("file:///srv/git/*", "/srv/git/x"),
        ("file:///srv/git/*", f"file:///srv/git/{'x' * 1000}"),
    ],
)
def test_an_address_that_no_pattern_covers_is_refused(pattern: str, url: str):
    with pytest.raises(ToolRefused, match="allowed are"):
        allowed_remote(url, [pattern])


@given(st.text(max_size=40), st.sampled_from(["", "https://git.example.org/team/", "file:///srv/"]))
def test_no_allowed_address_leaves_the_folder_of_its_pattern(text: str, start: str):
    try:
        remote = allowed_remote(start + text, ["https://git.example.org/team/*", "file:///srv/*"])
    except ToolRefused:
        return
    assert remote.path.startswith(("/team/", "/srv/"))
    assert ".." not in remote.path.split("/")
    assert remote.host in {"git.example.org", ""}


def test_without_remotes_in_the_configuration_none_may_be_reached():
    with pytest.raises(ToolRefused, match=r"tools\.git\.remotes is empty"):
        allowed_remote("https://git.example.org/x", [])


def test_a_login_is_found_by_its_host_and_port(tmp_path):
    file = tmp_path / "logins"
    file.write_text(
        "# a comment\nhttps://[broken\nhttp://a:plain@git.example.org\n"
        "https://a:other%40@other.example.org\nhttps://b:odd@git.example.org:8443\n"
        "https://c%40d:it%3Ais@git.example.org/some/path\nhttps://e:later@git.example.org\n"
    )
    file.chmod(0o600)
    remote = Remote(scheme="https", host="git.example.org", port="443", path="/x")
    assert login(remote, str(file)) == {"GIT_LOGIN_NAME": "c@d", "GIT_LOGIN_PASSWORD": "it:is"}
    elsewhere = Remote(scheme="https", host="example.org", port="443", path="/x")
    assert login(elsewhere, str(file)) == {}
    assert login(remote, "") == {}
    with pytest.raises(ToolRefused, match="cannot be read"):
        login(remote, str(tmp_path / "none"))
