"""The command line from end to end, in a folder as a user has it."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.campaign import read_campaign
from proact_onnx.data import Preprocessing, load_dataset
from proact_onnx.harden import harden
from proact_onnx.model import provenance
from proact_onnx.settings import HardenSettings
from proact_onnx.thresholds import Granularity
from tests.command_line import Command, snapshot

COMMANDS = ["inspect", "harden", "inject", "sensitivity", "profile", "replay", "verify"]
QUICK = ["--calibration-images", 120, "--accept-images", 60, "--epochs", 1, "--epochs-neuron", 1]
FEW = ["--trials", 4, "--images", 30]


def words(text: str) -> str:
    """Text without the frames and line breaks of the help."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_the_whole_path_with_ranger(command: Command, project: Path) -> None:
    inspected = command("inspect")
    assert inspected.code == 0
    assert "82,138 parameters; fault space of 2,649,152 bits as stored" in inspected.out
    assert "/classifier/classifier.2/Relu" in inspected.out
    before = snapshot(project)

    hardened = command("harden", "--method", "ranger")
    assert (hardened.code, hardened.err) == (0, "")
    assert "clean accuracy: 99.43% before, 99.43% after (697 test images)" in hardened.out
    assert re.search(r"hardened in \d+\.\d s: digits\.hardened\.onnx\n", hardened.out)
    model = onnx.load(project / "digits.hardened.onnx")
    assert provenance(model)["method"] == "ranger"

    injected = command("inject", "--ber", "1e-6", *FEW, "--plot", "accuracy.png")
    assert injected.code == 0
    assert "engine: " in injected.err
    for name in ("digits", "digits.hardened"):
        header, trials = read_campaign(project / f"{name}.campaign.jsonl")
        found = [(trial.fault, trial.trial, trial.verdict.images) for trial in trials]
        assert found == [("ber=1e-06", number, 30) for number in range(4)]
        with (project / f"{name}.campaign.csv").open(encoding="utf-8") as stream:
            [row] = csv.DictReader(stream)
        assert (row["model"], row["ber"], row["trials"]) == (f"{name}.onnx", "1e-06", "4")
        assert float(row["golden_accuracy"]) == pytest.approx(header.golden["accuracy"])
        assert f"{100 * float(row['accuracy']):.2f}" in injected.out
        assert f"trials: {name}.campaign.jsonl  summary: {name}.campaign.csv\n" in injected.out
    assert re.search(r"digits\.onnx +digits\.hardened\.onnx", injected.out)
    assert "figure: accuracy.png" in injected.out
    assert (project / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    verified = command("verify")
    assert (verified.code, verified.err) == (0, "")
    assert verified.out.endswith("verified\n")
    assert "clean accuracy: original 99.43%, hardened 99.43%" in verified.out

    after = snapshot(project)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "digits.hardened.onnx",
        "digits.campaign.jsonl",
        "digits.campaign.csv",
        "digits.hardened.campaign.jsonl",
        "digits.hardened.campaign.csv",
        "accuracy.png",
    }


def test_harden_trains_and_goes_where_it_is_told(command: Command, project: Path) -> None:
    outcome = command("harden", *QUICK, "--granularity", "channel", "--output", "sub.onnx")
    assert outcome.code == 0
    assert "memory overhead: " in outcome.out
    entries = provenance(onnx.load(project / "sub.onnx"))
    assert entries["method"] == "proact"
    recorded = json.loads(entries["settings"])
    assert (recorded["granularity"], recorded["epochs"]) == (Granularity.CHANNEL, 1)
    assert not list(project.glob("*.checkpoint"))
    inspected = command("inspect", "sub.onnx")
    assert "hardened already: 7 activations are bounded" in inspected.out
    verified = command("verify", "digits.onnx", "sub.onnx")
    assert verified.out.endswith("verified\n")


def test_one_model_is_measured_alone(command: Command, project: Path) -> None:
    outcome = command("inject", "digits.onnx", "--ber", "0,1e-4", *FEW, "--output-folder", ".")
    assert outcome.code == 0
    assert "digits.onnx under faults" in outcome.out
    assert "accuracy in %" not in outcome.out
    faults = [trial.fault for trial in read_campaign(project / "digits.campaign.jsonl")[1]]
    assert faults == ["ber=0.0"] * 4 + ["ber=0.0001"] * 4


def test_rates_may_be_given_by_repeating_the_option(command: Command, project: Path) -> None:
    assert command("inject", "--ber", "1e-5", "--ber", "1e-4", *FEW).code == 0
    _, trials = read_campaign(project / "digits.campaign.jsonl")
    assert {trial.fault for trial in trials} == {"ber=1e-05", "ber=0.0001"}


def test_amounts_of_the_file_give_way_to_those_of_the_command_line(
    command: Command, project: Path
) -> None:
    assert command("inject", "digits.onnx", "--flips", "3", *FEW).code == 0
    _, trials = read_campaign(project / "digits.campaign.jsonl")
    assert {trial.fault for trial in trials} == {"flips=3"}
    arguments = ("--single", "--ber", "1e-5", "--effect", "stuck-at-0,flip", "--burst", "2")
    assert command("inject", "digits.onnx", *arguments, *FEW).code == 0
    _, trials = read_campaign(project / "digits.campaign.jsonl")
    assert {trial.fault for trial in trials[4:]} == {
        "ber=1e-05 stuck-at-0 burst=2",
        "ber=1e-05 burst=2",
        "single stuck-at-0 burst=2",
        "single burst=2",
    }


def test_a_figure_needs_a_rate(command: Command, project: Path) -> None:
    outcome = command("inject", "digits.onnx", "--single", *FEW, "--plot", "a.png")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "error: a figure shows accuracy over the bit error rate, and none is asked for: add "
        "--ber, or leave --plot out\n"
    )
    assert not list(project.glob("*.campaign.*"))


def test_further_measures_on_the_terminal(command: Command) -> None:
    outcome = command(
        "inject", "digits.onnx", "--ber", "1e-5", *FEW,
        "--requirement", 90, "--per-class", "--distance",
    )  # fmt: skip
    assert outcome.code == 0
    for heading in ("SDC-5", "P(below 90)", "L2 (Eq. 9)", "accuracy by class in %", "images run"):
        assert heading in outcome.out
    assert re.search(r"^ +9 +\d+ +\d+\.\d\d ", outcome.out, re.MULTILINE)


def test_the_most_critical_bits_and_one_of_them_repeated(command: Command, project: Path) -> None:
    arguments = ("--trials", 2, "--images", 20, "--bits", "10,30", "--heatmap", "atlas.png")
    outcome = command("sensitivity", "digits.onnx", *arguments)
    assert outcome.code == 0
    assert "digits.onnx under single upsets" in outcome.out
    assert "figure: atlas.png" in outcome.out
    assert (project / "atlas.png").read_bytes().startswith(b"\x89PNG")
    with (project / "digits.sensitivity.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["bit"] for row in rows} == {"10", "30"}
    record = project / "digits.sensitivity.jsonl"
    _, trials = read_campaign(record)
    assert len(trials) == 2 * len(rows)

    chosen = max(trials, key=lambda trial: trial.verdict.sdc)
    outcome = command("replay", record, "--fault", chosen.fault, "--trial", chosen.trial)
    assert outcome.code == 0
    assert "reproduced: the same numbers as recorded" in outcome.out
    assert f"{chosen.verdict.sdc} silently corrupted" in outcome.out
    assert "distance from the fault-free run" in outcome.out


def test_distributions_of_a_model_and_its_hardened_file(command: Command, project: Path) -> None:
    command("harden", "--method", "ranger")
    before = snapshot(project)
    arguments = ("--ber", "2e-5", "--trials", 3, "--images", 20, "--plot", "values.svg")
    outcome = command("profile", *arguments)
    assert outcome.code == 0
    assert len(max(outcome.out.splitlines(), key=len)) <= 100
    for name in ("digits", "digits.hardened"):
        assert f"{name}.onnx: engine: " in outcome.err
        assert re.search(rf"{name}\.onnx: accuracy \S+% without faults, \S+% with", outcome.out)
        assert f"{name}.onnx: values without faults, and at BER 2e-5 (3 fault maps" in outcome.out
        files = f"summary: {name}.profile.csv  histograms: {name}.profile.histograms.csv\n"
        assert files in outcome.out
        with (project / f"{name}.profile.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["state"] for row in rows] == ["fault-free", "ber=2e-05"] * (len(rows) // 2)
        for golden, faulty in zip(rows[::2], rows[1::2], strict=True):
            share = int(faulty["above_1"]) / int(faulty["values"])
            line = next(
                line
                for line in outcome.out.split(f"{name}.onnx: values")[1].splitlines()
                if line.strip().startswith(golden["activation"][:30])
            )
            assert f"{float(golden['max']):.4g}" in line
            assert f"{100 * share:.2f}" in line
    assert "figure: values.svg" in outcome.out
    after = snapshot(project)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        *(f"digits.profile{ending}" for ending in (".csv", ".histograms.csv")),
        *(f"digits.hardened.profile{ending}" for ending in (".csv", ".histograms.csv")),
        "values.svg",
    }
    assert command("profile", *arguments).code == 0
    for name in set(after) - {"values.svg"}:
        assert snapshot(project)[name] == after[name]


def test_activations_are_chosen_by_name(command: Command, project: Path) -> None:
    few = ("--trials", 1, "--images", 5)
    assert command("profile", "digits.onnx", *few, "--activations", "*classifier*").code == 0
    with (project / "digits.profile.csv").open(encoding="utf-8") as stream:
        names = {row["activation"] for row in csv.DictReader(stream)}
    assert names
    assert all("classifier" in name for name in names)


def test_an_interrupted_profile_writes_nothing(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    before = snapshot(project)
    monkeypatch.setattr("proact_onnx.campaign.DistributionStudy.run", stop)
    outcome = command("profile")
    assert outcome.code == 130
    assert outcome.err.startswith("interrupted: nothing was written; run the same command again")
    assert snapshot(project) == before


def test_a_trial_is_repeated_site_by_site(command: Command, project: Path) -> None:
    command("inject", "digits.onnx", "--ber", "1e-5", *FEW, "--record-faults")
    record = project / "digits.campaign.jsonl"
    [wanted] = [trial for trial in read_campaign(record)[1] if trial.trial == 2]
    outcome = command("replay", record.name, "--trial", 2, "--sites", "sites.csv")
    assert outcome.code == 0
    assert f"{wanted.flips} bits changed" in outcome.out
    with (project / "sites.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(len(row["bits"].split()) for row in rows) == wanted.flips
    for row in rows[:20]:
        assert f"{float(row['after']):.6g}" in outcome.out

    (project / "digits.onnx").rename(project / "moved.onnx")
    outcome = command("replay", record.name, "--trial", 2)
    assert outcome.code == 1
    assert re.search(r"the model of .* is not at .*digits\.onnx: name it with --model", outcome.err)
    assert command("replay", record.name, "--trial", 2, "--model", "moved.onnx").code == 0


def test_the_same_command_again_only_adds(command: Command, project: Path) -> None:
    record = project / "digits.campaign.jsonl"
    command("inject", "--ber", "1e-5", *FEW)
    first = record.read_bytes()
    assert command("inject", "--ber", "1e-5", *FEW).code == 0
    assert record.read_bytes() == first
    assert command("inject", "--ber", "1e-5", "--trials", 6, "--images", 30).code == 0
    assert record.read_bytes().startswith(first)
    assert len(read_campaign(record)[1]) == 6


def test_force_starts_a_record_over(command: Command, project: Path) -> None:
    record = project / "digits.campaign.jsonl"
    command("inject", "--ber", "1e-5", *FEW)
    outcome = command("inject", "--ber", "1e-5", "--trials", 3, "--seed", 1, "--force")
    assert outcome.code == 0
    header, trials = read_campaign(record)
    assert (header.identity["seed"], len(trials)) == (1, 3)
    assert not list(project.glob("*.replaced"))


def test_labels_of_the_file_do_not_outlive_its_images(command: Command, project: Path) -> None:
    toml = project / "proact.toml"
    toml.write_text(
        toml.read_text(encoding="utf-8").replace(
            'test = "test.npz"', 'test = "missing.npz"\ntest_labels = "missing.npy"'
        ),
        encoding="utf-8",
    )
    outcome = command("inject", "--data", "test.npz", "--ber", "1e-6", *FEW)
    assert outcome.code == 0


def test_without_labels_accuracy_is_agreement(command: Command, project: Path) -> None:
    with np.load(project / "test.npz") as arrays:
        np.save(project / "images.npy", arrays["images"][:50])
    outcome = command("inject", "--data", "images.npy", "--ber", "1e-6", *FEW)
    assert outcome.code == 0
    assert "accuracy means agreement with the fault-free run" in outcome.out
    assert read_campaign(project / "digits.campaign.jsonl")[0].golden["accuracy"] == 1.0


def test_results_in_a_pipe_keep_every_figure(project: Path) -> None:
    """Without a terminal the width is 100; with a narrow one, tables are as wide as they need."""
    for width in (None, "60"):
        environment = {"PATH": "/usr/bin:/bin"} | ({"COLUMNS": width} if width else {})
        done = subprocess.run(
            [sys.executable, "-m", "proact_onnx.cli", "inspect"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "1,536" in done.stdout
        assert "…" not in done.stdout


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(name: str, command: Command) -> None:
    outcome = command(*([name] if name else []), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "\\[" not in outcome.out
    text = words(outcome.out)
    if not name:
        for other in COMMANDS:
            assert other in text
        assert "key of proact.toml" in text
    if name == "harden":
        assert "Factor on profiled maxima, at least 1. [harden.slack=1.01]" in text
        assert "[data.calibration]" in text
    if name == "inject":
        assert "[inject.ber]" in text
        assert "[inject.format=Q15.16]" in text
        assert "Usage: proact-onnx inject [OPTIONS] [MODEL]..." in text


def test_version(command: Command) -> None:
    outcome = command("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"proact-onnx \d+\.\d+\.\d+\n", outcome.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick(name: str) -> None:
    code = (
        "import sys; from proact_onnx.cli import main\n"
        f"sys.argv = ['proact-onnx', '{name}', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'matplotlib', 'scipy', 'onnx_graphsurgeon'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistake_in_usage_is_typers_own(command: Command) -> None:
    for arguments in (["inject", "--trials", "abc"], ["inject", "--nothing"], ["nothing"]):
        outcome = command(*arguments)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err


class Interrupted:
    """A command in another process, stopped by Ctrl-C once a file has some lines."""

    def __init__(self, folder: Path, arguments: list[object], file: str, lines: int) -> None:
        # A shell starts background jobs deaf to Ctrl-C.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from proact_onnx.cli import main; main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        path = folder / file
        while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        self.out, self.err = process.communicate(timeout=60)
        self.code = process.returncode


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a process")
def test_an_interrupted_campaign_goes_on(command: Command, project: Path) -> None:
    arguments = ["inject", "--ber", "1e-5", "--trials", 3000, "--images", 20]
    record = project / "digits.campaign.jsonl"
    stopped = Interrupted(project, arguments, record.name, 10)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == (
        "interrupted: finished trials are kept; run the same command again to go on"
    )
    assert "Traceback" not in stopped.err
    kept = read_campaign(record)[1]
    assert 9 <= len(kept) < 3000
    wanted = len(kept) + 5
    again = ["inject", "--ber", "1e-5", "--trials", wanted, "--images", 20]
    assert command(*again).code == 0
    continued = read_campaign(record)[1]
    assert continued[: len(kept)] == kept
    assert command(*again, "--force").code == 0
    assert read_campaign(record)[1] == continued


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a process")
def test_an_interrupted_hardening_goes_on(command: Command, project: Path) -> None:
    arguments = ["harden", *QUICK[:4], "--epochs", 8, "--epochs-neuron", 8]
    stopped = Interrupted(project, arguments, "digits.hardened.onnx.checkpoint", 3)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == (
        "interrupted: finished layers are kept; run the same command with --resume to go on"
    )
    assert "Traceback" not in stopped.err
    assert not (project / "digits.hardened.onnx").exists()
    other = command(*arguments, "--slack", 1.02, "--resume")
    assert other.code == 1
    assert "belongs to a run with another settings.slack" in other.err
    assert command(*arguments, "--resume").code == 0
    assert not (project / "digits.hardened.onnx.checkpoint").exists()
    assert command(*arguments, "--output", "at-once.onnx").code == 0
    resumed, whole = (
        provenance(onnx.load(project / name)) for name in ("digits.hardened.onnx", "at-once.onnx")
    )
    assert resumed["thresholds_sha256"] == whole["thresholds_sha256"]


def test_interrupted_before_anything_is_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("proact_onnx.harden.harden", stop)
    outcome = command("harden")
    assert outcome.code == 130
    assert outcome.err == (
        "interrupted: no layer was finished yet, so nothing is kept; run the same command again\n"
    )


def test_the_library_hardens_as_the_command_does(command: Command, project: Path) -> None:
    command("harden", "--method", "ranger")
    report = harden(
        project / "digits.onnx",
        load_dataset(project / "calibration.npz"),
        project / "library.onnx",
        test=load_dataset(project / "test.npz"),
        settings=HardenSettings(method="ranger"),
        preprocessing=Preprocessing(scale=0.0625),
    )
    assert report.output.read_bytes() == (project / "digits.hardened.onnx").read_bytes()
