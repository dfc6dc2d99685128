"""Runs that are sent to others: nothing that is somebody's is in them, and nothing that matters is missing."""

from __future__ import annotations

import getpass
import json
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bench_record import MACHINE, RECORD
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul import bench, sim
from npumatmul.bench import Record, Row
from npumatmul.bench.record import Machine
from npumatmul.bench.sharing import Shared, read_runs, share
from npumatmul.cli.app import app
from npumatmul.errors import UnusableFileError

#: What could tell whose a machine is, in the forms that such things have.
SECRETS = [
    "alices-desktop", "alice", "/home/alice/models/secret-project.gguf", "C:\\Users\\alice", "f00dfeedcafe1234",
    "1234567890123456", "02:42:ac:11:00:02", "02:42:11:11:00:02", "192.168.17.4", "fe80::1ff:fe23:4567:890a",
    "SN-4711-0815-A", "alice@example.org", "rock5b-attic", "550e8400-e29b-41d4-a716-446655440000", "Müller",
    "run alice", "int8/alice", "6.1.75-alice+", "Cortex-A76 of alice", "build@alices-pc",
]  # fmt: skip


def spoilt(secret: str) -> Iterator[Record]:
    """Runs in which a text stands somewhere, each somewhere else: in every field that takes one."""
    for name, value in asdict(MACHINE).items():
        if isinstance(value, str) and name != "time":
            for text in (secret, f"{value} ({secret})", f"{value}-{secret}"):
                changed: Any = {name: text}
                yield replace(RECORD, machine=replace(MACHINE, **changed))
    yield replace(RECORD, machine=replace(MACHINE, governors={"npu": secret}))
    yield replace(RECORD, settings={"shapes": secret})
    row = RECORD.rows[0]
    for other in (
        replace(row, what=secret), replace(row, case={**row.case, "model": secret}), replace(row, marks=(secret,)),
        replace(row, marks=(f"throttled: {secret}",)), replace(row, figures={"checked": secret}),
    ):  # fmt: skip
        yield replace(RECORD, rows=[other])


@pytest.mark.parametrize("secret", SECRETS)
def test_no_text_that_is_somebodys_is_sent(secret: str) -> None:
    for record in spoilt(secret):
        shared = share([record])
        for text in (shared.to_json(), "\n".join(shared.contents())):
            assert secret.lower() not in text.lower()
            assert "alice" not in text.lower()
        assert shared.withheld


@pytest.mark.parametrize("name", ["alice", "serial", "hostname", "zone_alice", "n_alice"])
def test_no_name_of_a_field_is_sent_that_is_not_known(name: str) -> None:
    row = RECORD.rows[0]
    more: Any = {name: 4711}
    for record in (
        replace(RECORD, settings=more),
        replace(RECORD, rows=[replace(row, case={**row.case, **more})]),
        replace(RECORD, rows=[replace(row, figures=more)]),
        replace(RECORD, rows=[replace(row, seconds={**row.seconds, name: [1.0]})]),
        replace(RECORD, rows=[replace(row, seconds={name: [1.0]})]),
        replace(RECORD, rows=[replace(row, modelled={name: 1.0})]),
        replace(RECORD, machine=replace(MACHINE, clocks=more, temperatures={name: 40.0}, governors={name: "ondemand"})),
    ):
        text = share([record]).to_json()
        assert name not in text
        if record.machine is MACHINE:
            assert "4711" not in text


@given(
    st.text(min_size=3, max_size=20),
    st.sampled_from(["kernel", "cpu", "device", "chip", "host_kernels", "simulated_runs"]),
)
def test_texts_are_known_or_not_there(text: str, place: str) -> None:
    changed: Any = {place: text}
    kept = getattr(share([replace(RECORD, machine=replace(MACHINE, **changed))]).runs[0].machine, place)
    assert text.startswith(kept) or kept.removeprefix("sim:") in ("withheld 1", "rk3588")


def test_this_machine_is_not_named() -> None:
    names = [socket.gethostname(), getpass.getuser(), str(Path.home()), tempfile.gettempdir()]
    told = share([replace(RECORD, settings={"shapes": name}) for name in names if len(name) > 3]).to_json()
    assert not [name for name in names if len(name) > 3 and name in told]


def test_what_matters_is_kept() -> None:
    shared = share([RECORD])
    (run,) = shared.runs
    assert run.rows == RECORD.rows
    assert run.settings == RECORD.settings
    assert shared.withheld == {}
    kept, was = run.machine.flat(), MACHINE.flat()
    passing = {"time": "2026-01-31", "load": "0.5 0.2 0.1", "temperatures_npu": 42.0}
    assert {name: value for name, value in kept.items() if was[name] != value} == passing


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("matmul", {"types": "int8,w8a8,w4a8_g32", "shapes": "5x96x64", "cores": "1,3"}),
        ("cores", {"types": "int8", "shapes": "1x64x192", "masks": True}),
        ("layout", {"types": "fp16,int4", "k": 64, "n": 64, "rows": "1,8"}),
        ("bandwidth", {"sizes": "64"}),
        ("overhead", {"calls": 1}),
        ("batch", {"k": 64, "n": 64, "rows": "1,4"}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_that_benchmarks_say_is_withheld(what: str, options: dict[str, Any]) -> None:
    with npu.Device("sim:rk3588") as device:
        record = bench.run(what, device=device, repetitions=1, **options)
    shared = share([record])
    assert shared.runs[0].to_json_lines().splitlines()[1:] == record.to_json_lines().splitlines()[1:]
    assert shared.runs[0].settings == record.settings
    assert {place for place in shared.withheld if not place.startswith("machine")} == set()


@pytest.mark.parametrize(("timing", "compute"), [("realtime", "on"), ("off", "off"), ("realtime", "off")])
def test_what_the_simulator_was_told_to_do_is_sent(timing: str, compute: str) -> None:
    with npu.Device("sim:rk3588") as device, sim.configured(device, timing=timing, compute=compute):
        machine = bench.describe_machine(device)
    told = share([replace(RECORD, machine=machine)]).runs[0].machine
    assert told.simulated_runs == machine.simulated_runs != ""
    assert told.timed_on == f"CPU simulation of rk3588, {machine.simulated_runs}"


def test_systems_of_boards_are_told() -> None:
    board = Machine(
        device="rknn", simulated=False, chip="rk3588", npu_cores=3, runtime="2.3.2 (429f97ae6b@2025-04-09T09:09:27)",
        driver="0.9.8", npumatmul="0.1.0", python="3.11.2", numpy="2.4.6", kernel="6.1.115-vendor-rk35xx",
        host_kernels="neon", cpu="Cortex-A76", cpus=8, machine="aarch64", descriptor_limit=1024,
        time="2026-11-29T08:00:00+00:00", clocks={"npu": 10**9, "ddr": 2112 * 10**6, "cpu4": 2256 * 10**6},
        governors={"npu": "rknpu_ondemand", "cpu4": "schedutil"},
        temperatures={"soc": 41.6, "zone1_soc": 40.0}, load=(0.1, 0.2, 0.3),
    )  # fmt: skip
    told = share([Record(board, RECORD.rows)]).runs[0].machine
    assert (told.runtime, told.kernel, told.cpu, told.host_kernels) == ("2.3.2", "6.1.115", "Cortex-A76", "neon")
    assert (told.clocks, told.governors) == (board.clocks, board.governors)
    assert sorted(told.temperatures.values()) == [40, 42]


def test_cases_that_differ_still_do() -> None:
    rows = [Row("llm", {"model": f"/home/{name}/m", name: 1}, {"test": [1.0]}) for name in ("alice", "bob", "eve")]
    told = share([Record(MACHINE, rows), Record(MACHINE, rows)])
    assert len({row.key for row in told.runs[0].rows}) == 3
    assert [row.key for row in told.runs[0].rows] == [row.key for row in told.runs[1].rows]


def test_the_file_is_read_back_and_others_are_refused(tmp_path: Path) -> None:
    path, shared = tmp_path / "shared.json", share([RECORD, RECORD])
    path.write_text(shared.to_json())
    assert read_runs(path) == shared.runs
    for text, problem in (
        ('["npumatmul-bench-shared"]', "no file of npumatmul bench share"),
        ("{", "cannot be used"),
        (shared.to_json().replace('"version": 1', '"version": 2', 1), "another version"),
        (json.dumps({"format": "npumatmul-bench-shared", "version": 1, "runs": [{}]}), "no run of npumatmul bench"),
        (json.dumps({"format": "npumatmul-bench-shared", "version": 1, "runs": 1}), "no list"),
    ):
        path.write_text(text)
        with pytest.raises(UnusableFileError, match=problem):
            read_runs(path)


def test_runs_of_a_shared_file_are_shown_and_compared_like_others(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(share([RECORD]).to_json())
    two.write_text(share([RECORD, replace(RECORD, rows=RECORD.rows[1:])]).to_json())

    def bench_command(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["bench", *map(str, arguments)])

    assert "int8 1x64x32" in bench_command("show", one).stdout
    assert "int8 1x64x32" not in bench_command("show", two, "--number", 2).stdout
    assert bench_command("compare", one, one).exit_code == 0
    assert f"{two} holds 2 runs; npumatmul bench show" in str(bench_command("show", two).exception)
    assert f"--number is 3; {two} holds 2" in str(bench_command("show", two, "--number", 3).exception)


def test_tests_of_language_models_are_told() -> None:
    case: dict[str, Any] = {"model": "SmolLM2-135M-Instruct", "type": "w8a8", "test": "pp128", "depth": 2048}
    row = Row(
        "llm", case, {"test": [1.0]}, {"tokens_per_second": 128.0, "npu_bytes": 1 << 30, "parameters": 135_000_000}
    )
    assert share([Record(MACHINE, [row])]).runs[0].rows == [row]


def test_the_command_says_what_is_in_the_file_before_it_writes(tmp_path: Path) -> None:
    run, output = tmp_path / "run.json", tmp_path / "send.json"
    run.write_text(replace(RECORD, settings={"shapes": "/home/alice/shapes.csv"}).to_json())
    shown = CliRunner().invoke(app, ["bench", "share", str(run)])
    assert "nothing was written" in shown.stderr
    assert not output.exists()
    done = CliRunner().invoke(app, ["bench", "share", str(run), "-o", str(output)], catch_exceptions=False)
    assert done.exit_code == 0
    for line in Shared(read_runs(output)).contents()[:-1]:
        assert line in done.stderr
    assert "withheld: settings.shapes (1)" in done.stderr
    assert "alice" not in done.stderr + output.read_text()
