"""Settings: every key of the file, every option of the command line, and the page about both."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from proact_onnx.cli import app
from proact_onnx.cli.options import spell_default
from proact_onnx.data import Layout
from proact_onnx.errors import SettingsError
from proact_onnx.settings import (
    HardenSettings,
    InjectSettings,
    OutOfRange,
    Protocol,
    RuntimeSettings,
    Settings,
    ThresholdScale,
    read_settings,
)
from tests.command_line import Command

# Options that are actions of one call, not settings.
ACTIONS = {"--config", "--force", "--resume", "--help", "--version"}
ACTIONS_OF = {
    ("inspect", "--layers"),
    *(("replay", flag) for flag in ("--trial", "--fault", "--model", "--sites")),
    *(("report", f"--{name}") for name in ("output", "markdown", "csv-folder", "title")),
    ("report", "--confidence"),
    ("deploy-check", "--original"),
    ("deploy-check", "--output"),
}
ARGUMENTS = {"model", "models", "original", "hardened", "record", "runs"}
DOCUMENTATION = Path(__file__).parents[1] / "docs" / "settings.md"

# On the command line, what is said by the option alone.
FLAG = "(the option alone)"

# By key: how the file says it, how the command line says it differently, and what that means.
SAMPLES: dict[str, tuple[str, str, Any]] = {
    "data.calibration": ("'a.npz'", "b.npz", Path("b.npz")),
    "data.calibration_labels": ("'a.npy'", "b.npy", Path("b.npy")),
    "data.calibration_part": ("'train'", "test", "test"),
    "data.test": ("'a.npz'", "b.npz", Path("b.npz")),
    "data.test_labels": ("'a.npy'", "b.npy", Path("b.npy")),
    "data.test_part": ("'train'", "test", "test"),
    "preprocessing.layout": ("'nchw'", "nhwc", Layout.NHWC),
    "preprocessing.scale": ("0.5", "0.25", 0.25),
    "preprocessing.mean": ("[0.1, 0.2]", "0.3,0.4", (0.3, 0.4)),
    "preprocessing.std": ("0.5", "2,3,4", (2.0, 3.0, 4.0)),
    "preprocessing.resize": ("[8, 9]", "10x11", (10, 11)),
    "runtime.provider": ("'auto'", "cpu", "cpu"),
    "runtime.threads": ("3", "2", 2),
    "runtime.batch_size": ("7", "8", 8),
    "runtime.cache_memory": ("7", "0", 0),
    "runtime.operators": ("'a.so'", "b.so, c.so", (Path("b.so"), Path("c.so"))),
    "harden.method": ("'a'", "ranger", "ranger"),
    "harden.protect": ("'activations'", "linear", "linear"),
    "harden.granularity": ("'a'", "channel", "channel"),
    "harden.form": ("'a'", "smooth", "smooth"),
    "harden.out_of_range": ("'zero'", "clamp", OutOfRange.CLAMP),
    "harden.target": ("'openvino'", "npu", "npu"),
    "harden.opset": ("12", "13", 13),
    "harden.percentile": ("91", "99.5", 99.5),
    "harden.rescale": ("'tensor'", "channel", "channel"),
    "harden.monitor": ("false", FLAG, True),
    "harden.max_memory_overhead": ("0.25", "0.75", 0.75),
    "harden.max_latency": ("1.5", "1.25", 1.25),
    "harden.slack": ("1.5", "1.25", 1.25),
    "harden.calibration_images": ("70", "80", 80),
    "harden.accept_images": ("70", "80", 80),
    "harden.max_accuracy_drop": ("3", "2.5", 2.5),
    "harden.epochs_neuron": ("3", "0", 0),
    "harden.epochs": ("3", "4", 4),
    "harden.train_batch": ("3", "4", 4),
    "harden.learning_rate": ("0.5", "1e-3", 1e-3),
    "harden.halve_every": ("3", "4", 4),
    "harden.step": ("'relative'", "absolute", ThresholdScale.ABSOLUTE),
    "harden.train_ber": ("1e-3", "1e-4", 1e-4),
    "harden.temperature": ("3", "2.5", 2.5),
    "harden.regularisation": ("3", "0.5", 0.5),
    "harden.slope": ("3", "30", 30.0),
    "harden.slope_scale": ("'relative'", "absolute", ThresholdScale.ABSOLUTE),
    "harden.patience": ("3", "4", 4),
    "harden.distillation": ("false", FLAG, True),
    "harden.progressive": ("false", FLAG, True),
    "harden.epochs_together": ("3", "4", 4),
    "harden.search_ber": ("[1e-3, 1e-4]", "1e-7,3e-6", (1e-7, 3e-6)),
    "harden.search_trials": ("3", "4", 4),
    "harden.search_images": ("3", "4", 4),
    "harden.search_rounds": ("3", "4", 4),
    "harden.format": ("'Q7.8'", "float32", "float32"),
    "harden.seed": ("3", "4", 4),
    "inject.ber": ("[1e-3, 1e-4]", "1e-7,3e-6", (1e-7, 3e-6)),
    "inject.flips": ("3", "1,20", (1, 20)),
    "inject.single": ("false", FLAG, True),
    "inject.exhaustive": ("false", FLAG, True),
    "inject.margin": ("3", "0.5", 0.5),
    "inject.effect": ("'stuck-at-0'", "flip, stuck-at-1", ("flip", "stuck-at-1")),
    "inject.burst": ("2", "1,3", (1, 3)),
    "inject.burst_along": ("'bits'", "words", "words"),
    "inject.trials": ("3", "4", 4),
    "inject.half_width": ("3", "0.5", 0.5),
    "inject.protocol": ("'adaptive'", "paper", Protocol.PAPER),
    "inject.bits": ("'3-5'", "0-7,31", "0-7,31"),
    "inject.requirement": ("3", "90", 90.0),
    "inject.tolerance": ("3", "0.05", 0.05),
    "inject.judged_output": ("'a'", "scores", "scores"),
    "inject.per_class": ("false", FLAG, True),
    "inject.distance": ("false", FLAG, True),
    "inject.record_faults": ("false", FLAG, True),
    "inject.images": ("3", "4", 4),
    "inject.format": ("'Q7.8'", "float32", "float32"),
    "inject.targets": ("['bias']", "weight, threshold", ("weight", "threshold")),
    "inject.layers": ("'a*'", "b*,c", ("b*", "c")),
    "inject.confidence": ("0.9", "0.99", 0.99),
    "inject.seed": ("3", "4", 4),
    "compare.methods": ("'ranger'", "none,proact-layer", ("none", "proact-layer")),
    "compare.drop_limit": ("3", "2.5", 2.5),
    "compare.distance_ber": ("0.5", "1e-3", 1e-3),
    "compare.distance_trials": ("3", "4", 4),
    "compare.distance_images": ("3", "4", 4),
    "sensitivity.trials": ("3", "4", 4),
    "sensitivity.images": ("3", "4", 4),
    "profile.ber": ("3e-4", "1e-5", 1e-5),
    "profile.trials": ("3", "4", 4),
    "profile.images": ("3", "0", 0),
    "profile.activations": ("['a*']", "b*, c", ("b*", "c")),
    "cluster.workers": ("3", "4", 4),
    "cluster.ray": ("'auto'", "10.0.0.1:6379", "10.0.0.1:6379"),
    "cluster.gpus_per_worker": ("0.5", "2", 2.0),
    "deploy.runtimes": ("'a'", "b, c", ("b", "c")),
    "deploy.images": ("3", "5", 5),
    "deploy.rounds": ("3", "4", 4),
    "output.hardened": ("'a.onnx'", "b.onnx", Path("b.onnx")),
    "output.folder": ("'a'", "b", Path("b")),
    "output.plot": ("'a.png'", "b.svg", Path("b.svg")),
    "output.heatmap": ("'a.png'", "b.svg", Path("b.svg")),
    "output.distributions": ("'a.png'", "b.svg", Path("b.svg")),
}


class SeenError(Exception):
    """The settings are complete; nothing more is to be done."""


def keys() -> dict[str, Any]:
    """Every key of every table with its default."""
    found: dict[str, Any] = {}
    for table in dataclasses.fields(Settings):
        value = getattr(Settings(), table.name)
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                found[f"{table.name}.{field.name}"] = getattr(value, field.name)
        else:
            found[table.name] = value
    return found


def spelled(default: Any) -> str:
    return "" if default in (None, ()) else spell_default(default)


def options() -> Iterator[tuple[str, str, str, str]]:
    """Command, option, the key its help names and the default its help gives."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        for parameter in command.params:
            flag = parameter.opts[0]
            if flag in ACTIONS or flag in ARGUMENTS or (name, flag) in ACTIONS_OF:
                continue
            named = re.search(r"\\\[([a-z_.]+)(?:=(.*))?\]$", parameter.help)
            assert named, f"the help of {name} {flag} does not name its key: {parameter.help}"
            yield name, flag, named[1], named[2] or ""


def look_up(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def write(folder: Path, text: str) -> Path:
    path = folder / "proact.toml"
    path.write_text(text, encoding="utf-8")
    return path


def as_toml(key: str, literal: str) -> str:
    table, name = key.split(".")
    return f"[{table}]\n{name} = {literal}\n"


def test_samples_cover_every_key() -> None:
    assert set(SAMPLES) == set(keys()) - {"model"}


def test_every_option_names_a_key_and_its_default() -> None:
    found = list(options())
    defaults = keys()
    for command, flag, key, default in found:
        assert key in defaults, f"{command} {flag}"
        assert default == spelled(defaults[key]), f"{command} {flag}"
    assert {key for _, _, key, _ in found} == set(defaults) - {"model"}


# The model of a replay is that of its record; its options are those of inject.
@pytest.mark.parametrize(
    ("name", "flag", "key"), [option[:3] for option in options() if option[0] != "replay"]
)
def test_option_goes_before_the_file(
    name: str,
    flag: str,
    key: str,
    command: Command,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    literal, text, expected = SAMPLES[key]
    write(project, f"model = 'digits.onnx'\n{as_toml(key, literal)}")
    seen: list[Settings] = []

    def capture(model: Path | None, settings: Settings) -> Path:
        seen.append(settings)
        raise SeenError

    monkeypatch.setattr(f"proact_onnx.cli.{name.replace('-', '_')}.need_model", capture)
    for arguments in ([], [flag] if text is FLAG else [flag, text]):
        with pytest.raises(SeenError):
            command(name, *arguments)
    from_file, from_both = (look_up(settings, key) for settings in seen)
    assert from_both == expected
    assert type(from_both) is type(expected)
    assert from_file != expected


@pytest.mark.parametrize("key", SAMPLES)
def test_file_sets_every_key(key: str, tmp_path: Path) -> None:
    literal = SAMPLES[key][0]
    expected = {
        "data.calibration": tmp_path / "a.npz",
        "output.folder": tmp_path / "a",
        "runtime.operators": (tmp_path / "a.so",),
        "preprocessing.mean": (0.1, 0.2),
        "preprocessing.std": (0.5,),
        "preprocessing.resize": (8, 9),
        "preprocessing.layout": Layout.NCHW,
        "harden.max_accuracy_drop": 3.0,
        "harden.step": ThresholdScale.RELATIVE,
        "harden.monitor": False,
        "harden.distillation": False,
        "harden.progressive": False,
        "harden.search_ber": (1e-3, 1e-4),
        "compare.methods": ("ranger",),
        "compare.drop_limit": 3.0,
        "inject.ber": (1e-3, 1e-4),
        "inject.flips": (3,),
        "inject.single": False,
        "inject.exhaustive": False,
        "inject.effect": ("stuck-at-0",),
        "inject.burst": (2,),
        "inject.protocol": Protocol.ADAPTIVE,
        "inject.per_class": False,
        "inject.distance": False,
        "inject.record_faults": False,
        "inject.targets": ("bias",),
        "inject.layers": ("a*",),
        "profile.ber": 3e-4,
        "profile.activations": ("a*",),
        "deploy.runtimes": ("a",),
    }
    value = look_up(read_settings(write(tmp_path, as_toml(key, literal))), key)
    default = keys()[key]
    if key in expected:
        assert value == expected[key]
        assert type(value) is type(expected[key])
    else:
        assert str(value).endswith(literal.strip("'")) or value == float(literal)
        assert default is None or type(value) is type(default)


def test_a_hyphen_is_an_underscore(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "[runtime]\nbatch-size = 5\n"))
    assert settings.runtime == RuntimeSettings(batch_size=5)


def test_relative_paths_start_at_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    absolute = tmp_path / "absolute.npz"
    path = write(
        tmp_path / "project",
        f"model = '../net.onnx'\n[data]\ntest = 'd/t.npz'\ncalibration = '{absolute}'\n",
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = read_settings(Path("../project/proact.toml"))
    assert settings.model == tmp_path / "net.onnx"
    assert settings.data.test == path.parent / "d" / "t.npz"
    assert settings.data.calibration == absolute


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert read_settings(folder=tmp_path) == Settings()
    write(tmp_path, "[inject]\ntrials = 3\n")
    assert read_settings(folder=tmp_path).inject == InjectSettings(trials=3)


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    with pytest.raises(SettingsError, match=r"cannot read .*other\.toml: No such file"):
        read_settings(path)
    with pytest.raises(SettingsError, match="cannot read"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[inject", "is not valid TOML"),
        ("trials = 3", "unknown key 'trials': choose among cluster, compare, data, deploy, harden"),
        ("[injection]", "unknown key 'injection'"),
        ("[inject]\ntrails = 3", "unknown key 'inject.trails': choose among ber, bits, burst"),
        ("inject = 3", r"key 'inject' must be a table: write \[inject\]"),
        ("model = 3", "key 'model' must be text in quotes, not 3"),
        ("[inject]\ntrials = '3'", "key 'inject.trials' must be a whole number, not '3'"),
        ("[inject]\ntrials = true", "key 'inject.trials' must be a whole number, not True"),
        ("[inject]\ntrials = 3.0", "key 'inject.trials' must be a whole number, not 3.0"),
        ("[inject]\nber = [1e-6, 'x']", "key 'inject.ber' must be a number, not 'x'"),
        ("[inject]\neffect = []", r"table \[inject\]: no effect is given: name at least one"),
        ("[inject]\nburst = []", r"table \[inject\]: no burst length is given: name at least"),
        ("[inject]\nburst = 33", "burst must be between 1 and 32, not 33"),
        ("[inject]\neffect = 'melt'", "unknown effect 'melt': choose among flip, stuck-at-0"),
        ("[inject]\nburst_along = 'x'", "unknown burst-along 'x': choose among bits, words"),
        ("[inject]\nflips = 0", "flips must be at least 1, not 0"),
        ("[inject]\nsingle = 1", "key 'inject.single' must be true or false, not 1"),
        ("[inject]\nbits = '7-3'", "bits '7-3' cannot be understood: write positions and spans"),
        ("[inject]\nbits = 'sign'", "bits 'sign' cannot be understood: write positions"),
        (
            "[inject]\nprotocol = 'paper'\nimages = 3",
            "the paper's protocol is 500 trials on all images, and images is 3: leave images out",
        ),
        ("[inject]\nhalf_width = 0", "half-width must be between 0.001 and 50, not 0"),
        ("[inject]\nrequirement = 101", "requirement must be between 0 and 100, not 101"),
        ("[inject]\nber = nan", r"table \[inject\]: bit error rate nan is not a probability"),
        ("[inject]\nber = 1.5", "bit error rate 1.5 is not a probability: give a number from 0"),
        ("[inject]\nconfidence = 1", "confidence must be between 0.5 and 0.9999, not 1"),
        ("[profile]\nber = 2", r"table \[profile\]: bit error rate 2 is not a probability"),
        ("[profile]\ntrials = 0", "trials must be at least 1, not 0"),
        ("[profile]\nimages = -1", "images must be at least 0, not -1"),
        ("[harden]\ntarget = 'fpga'", "unknown target 'fpga': choose among onnxruntime, openvino"),
        ("[harden]\nopset = 6", "opset must be at least 7, not 6"),
        ("[deploy]\nimages = 0", "images must be at least 1, not 0"),
        ("[deploy]\nrounds = 0", "rounds must be at least 1, not 0"),
        ("[harden]\nslack = 0.9", r"table \[harden\]: slack must be at least 1, not 0.9"),
        ("[harden]\nlearning_rate = inf", "learning-rate must be at least 0, not inf"),
        ("[harden]\nslope = nan", "slope must be at least 0.001, not nan"),
        ("[harden]\nstep = 'none'", "must be one of relative, absolute, not 'none'"),
        ("[cluster]\nworkers = -1", r"table \[cluster\]: workers must be at least 0, not -1"),
        ("[cluster]\ngpus_per_worker = 1.5", "gpus-per-worker is 1.5: give a share below 1, or"),
        ("[data]\ntest_part = 'both'", "'data.test_part' must be one of train, test, not 'both'"),
        ("[runtime]\nprovider = 'tpu'", "unknown provider 'tpu': choose among auto, cpu, cuda"),
        ("[runtime]\nbatch-size = 1\nbatch_size = 2", "'runtime.batch_size' is given twice"),
        ("[preprocessing]\nlayout = 'hwc'", "must be one of auto, nchw, nhwc, not 'hwc'"),
        ("[preprocessing]\nresize = [8]", r"resize is \(8,\): give a height and a width"),
        ("[preprocessing]\nstd = 0", r"table \[preprocessing\]: std is \(0.0,\)"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=f"^{re.escape(str(path))}.*{message}") as raised:
        read_settings(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "proact.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"proact\.toml is not valid TOML"):
        read_settings(path)


def test_override_keeps_what_is_not_given() -> None:
    settings = Settings(harden=HardenSettings(slack=1.5))
    changed = settings.override("harden", {"slack": None, "epochs": 0})
    assert changed.harden == HardenSettings(slack=1.5, epochs=0)
    assert settings.harden.epochs == HardenSettings().epochs


def documented() -> dict[str, list[str]]:
    rows = [
        line.split("|")[1:-1]
        for line in DOCUMENTATION.read_text("utf-8").splitlines()
        if "|" in line
    ]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {row[0].strip("`"): row for row in cells if row[0].startswith("`")}


def test_the_page_on_settings_is_complete() -> None:
    rows, defaults = documented(), keys()
    assert set(rows) == set(defaults)
    for key, row in rows.items():
        assert len(row) == 6, key
        assert row[2].strip("`") == spelled(defaults[key]), key
        assert row[3], key


def test_the_page_on_settings_names_every_option() -> None:
    rows = documented()
    for command, flag, key, _ in options():
        named = re.findall(r"`(?:([\w-]+) )?(--[a-z-]+)`", rows[key][1])
        assert (command, flag) in named or ("", flag) in named, f"{command} {flag}"
