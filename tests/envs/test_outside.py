"""What of a container is put back before a verifier runs, and what is taken away: told from the engine's list alone."""

from agentgym_envs.outside import ADDED, CHANGED, REMOVED, Change, hiding, to_put_back, to_take_away


def test_what_a_verifier_stands_on_is_put_back_and_the_agents_own_work_stays():
    found = [
        Change("/app", CHANGED), Change("/app/solution.py", ADDED), Change("/etc/passwd", CHANGED),
        Change("/usr", CHANGED), Change("/usr/bin", CHANGED), Change("/usr/bin/bash", CHANGED),
        Change("/usr/bin/cat", REMOVED), Change("/usr/bin/sqlite3", CHANGED), Change("/usr/bin/mine", ADDED),
        Change("/usr/lib/x86_64-linux-gnu/libc.so.6", CHANGED), Change("/usr/local/bin/python3.13", CHANGED),
        Change("/usr/local/lib/python3.13/json/decoder.py", CHANGED),
        Change("/usr/local/lib/python3.13/site-packages/_pytest/runner.py", CHANGED),
        Change("/usr/local/lib/python3.13/site-packages/numpy/version.py", CHANGED),
    ]  # fmt: skip
    assert to_put_back(found) == [
        "/usr/bin/bash", "/usr/bin/cat", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/local/bin/python3.13",
        "/usr/local/lib/python3.13/json/decoder.py",
        "/usr/local/lib/python3.13/site-packages/_pytest/runner.py",
    ]  # fmt: skip


def test_a_folder_of_programs_that_became_something_else_is_put_back_whole():
    assert to_put_back([Change("/usr/local", CHANGED), Change("/usr/local/bin", CHANGED)]) == ["/usr/local/bin"]


def test_hooks_and_preloaded_libraries_are_taken_away_and_packages_stay():
    packages = "/usr/local/lib/python3.13/site-packages"
    taken = ["/etc/ld.so.preload", "/conftest.py", f"{packages}/sitecustomize.py", f"{packages}/evil.pth"]
    kept = ["/app/conftest.py", f"{packages}/lark/__init__.py", "/etc/nginx/x.conf"]
    assert to_take_away(Change(path, ADDED) for path in (*taken, *kept)) == taken
    assert to_take_away([Change(f"{packages}/distutils-precedence.pth", CHANGED)]) == []


def test_a_program_that_hides_one_of_the_verifiers_is_taken_away_and_another_is_not():
    found = [Change(f"/usr/local/sbin/{name}", ADDED) for name in ("grep", "sqlite3", "mine")]
    found.append(Change("/root/.local/bin/env", ADDED))
    programs = ["/usr/bin/grep", "/usr/bin/sqlite3", *(change.path for change in found)]
    assert hiding(found, programs) == ["/root/.local/bin/env", "/usr/local/sbin/grep"]
