"""Images are built once per content, without a network, and a build that fails leaves nothing."""

import asyncio
import secrets
import tarfile
import time
from contextlib import suppress

import pytest
from agentgym_sandboxes import recipes
from agentgym_sandboxes.images import LABEL, Images
from agentgym_sandboxes.recipes import Debootstrap, Dockerfile, Root

from agentgym.errors import ConfigError, InfrastructureError, TaskError
from agentgym.loop import run_sync


@pytest.fixture
def images(docker_backend) -> Images:
    """Everything stands on the small local image."""
    return Images(docker_backend, {"python:*": docker_backend.default_image()})


@pytest.fixture
def recipe(tmp_path, docker_backend):
    """Makes Dockerfile recipes with lines that nobody else builds; what came of them is removed afterwards."""
    mark = secrets.token_hex(8)

    def made(*lines: str, files: dict[str, str] | None = None) -> Dockerfile:
        for name, text in (files or {}).items():
            (tmp_path / name).write_text(text)
        (tmp_path / "Dockerfile").write_text("\n".join(["FROM python:3.13-slim", f"RUN echo {mark}", *lines]))
        return Dockerfile(tmp_path)

    yield made
    from docker.errors import ImageNotFound

    client = docker_backend.client
    for image in client.api.images(filters={"label": LABEL}):
        if (image["Labels"] or {}).get(LABEL, "").startswith("test-"):
            with suppress(ImageNotFound):  # it went with one that stood on it
                client.api.remove_image(image["Id"], force=True)
    assert num_left(docker_backend, mark) == 0


def num_left(docker, mark: str) -> int:
    """Containers and images, those between included, that a build with this mark left."""
    api = docker.client.api
    found = [container for container in api.containers(all=True) if mark in container["Command"]]
    for image in api.images(all=True):
        if any(mark in step["CreatedBy"] for step in api.history(image["Id"])):
            found.append(image)
    return len(found)


def test_equal_content_is_built_once_and_another_content_or_mode_has_another_tag(images, recipe, tmp_path):
    said = []
    images.tell = said.append
    tag = run_sync(images.build("test-once", recipe("COPY a /a", files={"a": "1"})))
    assert tag.startswith("agentgym/test-once:")
    assert len(tag.rpartition(":")[2]) == 16
    assert any("Step" in line for line in said)
    said.clear()
    (tmp_path / "a").touch()  # a time is no content
    assert run_sync(images.build("test-once", recipe("COPY a /a"))) == tag
    assert said == []
    (tmp_path / "a").chmod(0o755)
    other = run_sync(images.build("test-once", recipe("COPY a /a")))
    (tmp_path / "a").write_text("2")
    assert len({tag, other, run_sync(images.build("test-once", recipe("COPY a /a")))}) == 3


def test_of_two_builders_at_once_one_builds(images, recipe):
    said = []
    images.tell = said.append

    async def both() -> list[str]:
        made = recipe("RUN sleep 1")
        return await asyncio.gather(*(images.build("test-twice", made) for _ in range(2)))

    one, two = run_sync(both())
    assert one == two
    assert sum("building" in line for line in said) == 1


def test_a_build_has_no_network(images, recipe):
    run_sync(images.build("test-closed", recipe('RUN test "$(ls /sys/class/net)" = lo')))


def test_a_from_that_is_neither_here_nor_mapped_names_the_map_and_the_fix(images, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM nowhere.example/thing:7\n")
    with pytest.raises(ConfigError, match=r"Dockerfile: FROM nowhere\.example/thing:7 .*base-image map.*base_map="):
        run_sync(images.build("test-from", Dockerfile(tmp_path)))


def test_a_failed_build_names_its_step_and_leaves_nothing(images, recipe, docker_backend):
    failing = recipe("RUN echo half > /half", "RUN exit 3", "RUN true")
    mark = failing.text().splitlines()[1].split()[-1]
    with pytest.raises(TaskError, match=r"Dockerfile: Step 4/\d+ : RUN exit 3 failed: .*returned a non-zero code: 3"):
        run_sync(images.build("test-fails", failing))
    assert num_left(docker_backend, mark) == 0


def test_a_build_past_its_time_ends_and_leaves_nothing(images, recipe, docker_backend):
    slow = recipe("RUN echo half > /half", "RUN sleep 60")
    began = time.monotonic()
    with pytest.raises(InfrastructureError, match="longer than 8 s"):
        run_sync(images.build("test-slow", slow, timeout_s=8))
    assert time.monotonic() - began < 40  # of the 60 that it would take
    assert num_left(docker_backend, slow.text().splitlines()[1].split()[-1]) == 0


def test_an_image_that_stands_on_the_default_one_does_not_become_the_default(images, recipe, docker_backend):
    before = docker_backend.default_image()
    run_sync(images.build("test-later", recipe()))
    assert docker_backend.default_image() == before


def test_a_cached_image_is_no_runs_and_outlives_the_reaper(images, recipe, docker_backend):
    tag = run_sync(images.build("test-kept", recipe()))
    docker_backend.reap()
    assert docker_backend.client.api.images(tag)


def test_a_tar_of_a_root_becomes_an_image_of_its_own_content(images, tmp_path, docker_backend):
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/word").write_text(secrets.token_hex(8))
    path = tmp_path / "root.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "usr", "usr")
    tag = run_sync(images.build("test-root", Root(path)))
    try:
        assert run_sync(images.build("test-root", Root(path))) == tag
        assert docker_backend.client.api.inspect_image(tag)["Config"]["Labels"]["agentgym.base"] == "1"
    finally:
        docker_backend.client.api.remove_image(tag)


def test_a_root_or_a_dockerfile_that_is_none_is_named(images, tmp_path):
    with pytest.raises(ConfigError, match="neither a tar nor a folder with a /usr"):
        run_sync(images.build("test-none", Root(tmp_path)))
    with pytest.raises(TaskError, match="Dockerfile cannot be read"):
        run_sync(images.build("test-none", Dockerfile(tmp_path)))
    with pytest.raises(ConfigError, match="no name of an image"):
        run_sync(images.build("Test None", Dockerfile(tmp_path)))


def test_stages_and_arguments_are_no_base_images():
    text = (
        "ARG V=3.13\nFROM --platform=linux/amd64 python:${V} AS one\nFROM scratch\nFROM debian\nCOPY --from=one /a /a\n"
    )
    text += "FROM one\n"
    assert recipes.bases(text) == ["python:3.13", "debian"]
    assert recipes.rebased(text, {"python:3.13": "here:1", "debian": "here:2"}).splitlines() == [
        "ARG V=3.13", "FROM --platform=linux/amd64 here:1 AS one", "FROM scratch", "FROM here:2",
        "COPY --from=one /a /a", "FROM one",
    ]  # fmt: skip


def test_the_map_prefers_a_name_to_a_pattern():
    names = {"*": "any", "python:*": "python", "python:3.13": "exact"}
    assert recipes.mapped("python:3.13", names) == "exact"
    assert recipes.mapped("python:3.9", {"python:*": "python", "*": "any"}) == "python"
    assert recipes.mapped("debian", {"python:*": "python"}) is None


def test_a_suite_with_other_packages_is_another_image():
    assert recipes.digest(repr(Debootstrap("bookworm"))) != recipes.digest(repr(Debootstrap("bookworm", ("python3",))))
