from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.downstream import ENCODER, EVALUATE, PRETRAIN, good, written
from tests.support.forkserver import ForkServer
from tests.support.model_hub import EXPIRED, READER, WRITER, ModelHub
from tests.support.pushing import (
    FAMILIES,
    NAME,
    ONE_STEP,
    PLANTED,
    Push,
    Pushed,
    arrived,
    snapshot,
)


@pytest.fixture(autouse=True)
def nothing_wrong(hub: ModelHub) -> None:
    hub.forget()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all of this machine's things lie, with a telling name."""
    return tmp_path_factory.mktemp("planted-alice-home")


@pytest.fixture(scope="session")
def online(commands: ForkServer) -> ForkServer:
    """Runs commands with a token, as a user whose name and secrets are planted."""
    return commands.within(PLANTED | {"HF_TOKEN": WRITER, "PUSHES": "in the background"})


@pytest.fixture(scope="session")
def push(online: ForkServer, home: Path) -> Push:
    """Push a run; whatever comes of it, the run is not changed, and no token is told."""

    def push(run: Path, repo_id: str, *options: object, token: str = WRITER, **env: str) -> Pushed:
        before = snapshot(run)
        waits = home / "waits"
        waits.unlink(missing_ok=True)
        command = online.run(
            "tests.support.hurried_push", run, repo_id, *options, cwd=home, HF_TOKEN=token, WAITS=str(waits), **env
        )
        assert "Traceback" not in command.text, command.text
        assert snapshot(run) == before, "the run was changed"
        for secret in (WRITER, READER, EXPIRED, *(PLANTED[name] for name in PLANTED if "KEY" in name)):
            assert secret not in command.text
        return Pushed(
            command.code, command.text, [float(w) for w in waits.read_text().split()] if waits.exists() else []
        )

    return push


@pytest.fixture(scope="session")
def run(online: ForkServer, home: Path, tinted_images: Path) -> Path:
    """A finished run of 8 steps, saved after 4 and 8, and evaluated."""
    shutil.copytree(tinted_images, home / "data of planted-alice")
    text = PRETRAIN.replace("reconstructions: {images: 0}", "reconstructions: {images: 2}")
    recipe = written(home / "pretrain.yaml", text, home / "data of planted-alice", home / "runs" / "tiny")
    good(online.run("mpp.pretrain", recipe, cwd=home))
    recipe = written(home / "evaluate.yaml", EVALUATE, home / "data of planted-alice")
    good(online.run("mpp.evaluate", recipe, f"encoder={home / 'runs' / 'tiny'}", cwd=home))
    return home / "runs" / "tiny"


@pytest.fixture(scope="session")
def unfinished(run: Path, home: Path) -> Path:
    """The same run when half of it was done, and nothing evaluated."""
    half = home / "runs" / "half"
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoints" / "step-000000008")
    shutil.rmtree(half / "evaluation")
    return half


@pytest.fixture(scope="session")
def published(run: Path, hub: ModelHub, push: Push) -> dict[str, bytes]:
    """The files of a push of the run as `NAME`."""
    hub.forget()
    arrived(push(run, NAME, "--license", "apache-2.0", "--reconstructions"))
    return hub.repos[NAME].commits[-1].files


@pytest.fixture(scope="session")
def others(
    run: Path, online: ForkServer, home: Path, tinted_images: Path, hub: ModelHub, push: Push
) -> dict[str, Path]:
    """Runs of one step of other families, pushed as `user/FAMILY`."""
    runs = {}
    for name, encoder in FAMILIES.items():
        size = "data.image_size=64" if name == "hybrid" else "data.image_size=16"
        recipe = written(home / f"{name}.yaml", PRETRAIN.replace(ENCODER, encoder), tinted_images, home / "runs" / name)
        good(online.run("mpp.pretrain", recipe, ONE_STEP, size, cwd=home))
        arrived(push(home / "runs" / name, f"user/{name}"))
        runs[name] = home / "runs" / name
    return runs


@pytest.fixture(scope="session")
def supervised(online: ForkServer, home: Path, tinted_images: Path) -> Path:
    text = PRETRAIN.replace("kind: masked_patch", "kind: supervised")
    recipe = written(home / "supervised.yaml", text, tinted_images, home / "runs" / "supervised")
    good(online.run("mpp.pretrain", recipe, ONE_STEP, cwd=home))
    return home / "runs" / "supervised"
