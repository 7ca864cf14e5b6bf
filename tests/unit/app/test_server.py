"""The server of the application: where it listens, its private folder, and how it refuses."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from reid.app import application, server
from reid.errors import ConfigError
from reid.files import locked


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("street.example", False)],
)  # fmt: skip
def test_is_loopback(host: str, loopback: bool) -> None:
    assert server.is_loopback(host) is loopback


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            server.listen("127.0.0.1", port)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "in use" in str(caught.value)
    assert "--port" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("192.0.2.1", 0), ("no such host", 0)])
def test_an_address_of_another_machine_is_refused(host: str, port: int) -> None:
    with pytest.raises(ConfigError) as caught:
        server.listen(host, port)
    assert f"{host}:{port}" in str(caught.value)


def test_the_folder_is_private_and_gradio_settings_of_the_environment_are_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server.os, "environ", {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "HOME": "/root"})
    with server.private_folder() as folder:
        (folder / "upload").mkdir()
        (folder / "upload" / "crop.jpg").write_bytes(b"x")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert server.os.environ == {
            "HOME": "/root",
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
    assert not folder.exists()


def leave_folder(parent: Path, name: str, mode: int = 0o700, owner: bool = True) -> Path:
    """Make a folder as a killed program leaves it, or a similar one."""
    folder = parent / name
    folder.mkdir()
    (folder / "crop.jpg").write_bytes(b"x")
    if owner:
        (folder / server.OWNER_FILE).touch()
    folder.chmod(mode)
    return folder


def test_the_folders_of_killed_programs_are_removed_and_no_others(tmp_path: Path) -> None:
    killed = leave_folder(tmp_path, "reid-demo-abcd_123")
    kept = [
        leave_folder(tmp_path, "reid-demo-mine"),
        leave_folder(tmp_path, "reid-demo-abcd_1234"),
        leave_folder(tmp_path, "reid-demo-abcdefgh", mode=0o755),
        leave_folder(tmp_path, "reid-demo-noowner1", owner=False),
        leave_folder(tmp_path, "other"),
    ]
    target = leave_folder(tmp_path, "target")
    (tmp_path / "reid-demo-linked12").symlink_to(target)
    (tmp_path / "reid-demo-file1234").write_text("mine")
    running = leave_folder(tmp_path, "reid-demo-running1")
    with locked(running / server.OWNER_FILE):
        server.remove_leftovers(tmp_path)
    assert not killed.exists()
    assert all((folder / "crop.jpg").is_file() for folder in (*kept, target, running))
    assert (tmp_path / "reid-demo-file1234").read_text() == "mine"


def test_a_start_removes_what_a_killed_program_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = server.os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server.os, "environ", {})
    code = (
        "import os, signal\nfrom reid.app.server import private_folder\n"
        "with private_folder() as folder:\n (folder / 'crop.jpg').touch()\n os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("reid-demo-*")
    with server.private_folder() as folder:
        assert list(tmp_path.glob("reid-demo-*")) == [folder]
        assert folder != left


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the program without serving it; returns exit code, stdout and stderr."""
    monkeypatch.setattr(application.signal, "signal", lambda *_: None)
    monkeypatch.setattr(server.os, "environ", dict(server.os.environ))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = application.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_main_reports_a_taken_port_before_any_work(main, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, out, err = main("--port", other.getsockname()[1], "--data", tmp_path / "data")
    assert (code, out) == (1, "")
    assert err.startswith("error: cannot serve on 127.0.0.1:")
    assert err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_main_serves_other_machines_only_with_users(main, tiny_street: Path, tmp_path: Path) -> None:
    arguments = ("--port", 0, "--host", "0.0.0.0", "--data", tiny_street, "--weights", tmp_path / "none.pth")
    code, _, err = main(*arguments)
    assert code == 1
    assert err.startswith("error: --host 0.0.0.0")
    assert err.count("\n") == 1
    code, _, err = main(*arguments, "--users", tmp_path / "users.toml")
    assert code == 1
    warning, error = err.splitlines()
    assert warning.startswith("warning: ")
    assert "unprotected" in warning
    assert "none.pth" in error


def test_an_interruption_ends_with_a_line(main, monkeypatch: pytest.MonkeyPatch) -> None:
    from reid.app import data_preparation

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_preparation, "prepare_data", interrupted)
    code, out, err = main("--port", 0)
    assert (code, out) == (130, "")
    assert err.count("\n") == 1
