"""A comparison folder made by hand, with campaigns whose trials are known."""

import json
from pathlib import Path
from typing import Any

from proact_onnx.campaign import CampaignHeader, TrialResult, Verdict
from proact_onnx.campaign.store import CampaignFile

IMAGES = 100
RATES = (1e-6, 1e-5)
# Right answers of 100 in every trial at each rate, with and without faults.
METHODS = {
    "none": ("unprotected", 90, (60, 10)),
    "ranger-layer": ("Ranger (layer-wise)", 90, (84, 40)),
    "proact": ("ProAct (hybrid)", 89, (88, 80)),
}
LAYERS = [
    {
        "activation": "/relu/Relu",
        "maximum": 3.0,
        "thresholds": {"ranger-layer": [3.03, 3.03, 3.03], "proact": [2.0, 2.0, 2.0]},
    },
    {
        "activation": "/last/Relu",
        "maximum": 40.0,
        "thresholds": {"ranger-layer": [40.4, 40.4, 40.4], "proact": [0.0, 2.5, 38.0]},
    },
]


def write_record(
    path: Path,
    model: str,
    golden: int,
    correct: tuple[int, ...],
    identity: dict[str, Any] | None = None,
    confidence: float = 0.95,
) -> None:
    """Write a campaign in which every trial at a rate gets as many images right."""
    header = CampaignHeader(
        identity={
            "model": "a" * 64,
            "data": "d" * 64,
            "layout": "auto",
            "scale": 0.0625,
            "mean": [],
            "std": [],
            "resize": None,
            "format": "Q15.16",
            "targets": [],
            "layers": [],
            "bits": None,
            "tolerance": 0.01,
            "per_class": False,
            "distance": False,
            "record_faults": False,
            "seed": 7,
            "images": IMAGES,
        }
        | (identity or {}),
        golden={
            "name": model,
            "accuracy": golden / IMAGES,
            "float_accuracy": golden / IMAGES,
            "images": IMAGES,
            "fault_space_bits": 32_000,
            "saturated": 0,
            "memory_overhead": 0.25,
            "labelled": True,
            "classifier": True,
            "classes": None,
            "confidence": confidence,
            "requirement": None,
            "half_width": None,
            "fault_space": [],
        },
        made_by={"proact-onnx": "0.1.0", "model": f"/models/{model}", "images": "test.npz (test)"},
    )
    with CampaignFile(path, header) as file:
        for rate, right in zip(RATES, correct, strict=True):
            for trial in range(60):
                verdict = Verdict(IMAGES, right, golden, IMAGES - right, 0, 0)
                file.append(TrialResult(f"ber={rate!r}", trial, 3, 3, verdict))


def comparison(folder: Path, model: str = "net.onnx", **changes: Any) -> Path:
    """Write a comparison of two methods with the unprotected model."""
    folder.mkdir()
    entries = []
    for number, (name, (title, golden, correct)) in enumerate(METHODS.items()):
        write_record(folder / f"{name}.campaign.jsonl", f"{name}.onnx", golden, correct)
        drop = (90 - golden) / 100
        entries.append(
            {
                "name": name,
                "title": title,
                "file": f"{name}.onnx",
                "sha256": f"{number}" * 64,
                "record": f"{name}.campaign.jsonl",
                "thresholds": 7 * number,
                "memory_overhead": 0.25,
                "clean_accuracy": golden / 100,
                "clean_drop": {"mean": drop, "low": drop - 0.005, "high": drop + 0.005},
                "seconds": (0.0, 0.75, 279.4)[number],
                "evaluations": 11 * number,
                "distance": {"mean": 1.5 / (1 + number), "low": 0.5, "high": 2.0},
                "settings": {"method": name, "slack": 1.01},
                "unknown": "is ignored",
            }
        )
    content = {
        "version": 1,
        "model": model,
        "command": "proact-onnx compare net.onnx",
        "made_by": {"proact-onnx": "0.1.0"},
        "confidence": 0.95,
        "drop_limit": 5.0,
        "images": IMAGES,
        "seed": 7,
        "reference": "proact",
        "entries": entries,
        "layers": LAYERS,
    }
    (folder / "comparison.json").write_text(json.dumps(content | changes))
    return folder
