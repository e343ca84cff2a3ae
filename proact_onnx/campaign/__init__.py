"""Fault-injection campaigns: what to do, doing it, keeping the records, and what they say."""

from proact_onnx.campaign.detection import Detection
from proact_onnx.campaign.distance import LayerEffect
from proact_onnx.campaign.distributions import (
    Distributions,
    DistributionStudy,
    LayerDistribution,
)
from proact_onnx.campaign.estimates import Estimate, Spread, mean_interval
from proact_onnx.campaign.executor import Executor, LocalExecutor
from proact_onnx.campaign.histogram import Histogram
from proact_onnx.campaign.judge import Alarms, Verdict
from proact_onnx.campaign.reading import AtlasRecord, CampaignRecord, read_record
from proact_onnx.campaign.replay import FaultSite, Replay, ReplayedTrial, write_sites
from proact_onnx.campaign.run import Campaign, fault_models
from proact_onnx.campaign.sensitivity import Atlas, CellSummary, Sensitivity, write_atlas
from proact_onnx.campaign.store import CampaignHeader, TrialResult, read_campaign
from proact_onnx.campaign.summary import (
    CampaignResult,
    FaultSummary,
    Reading,
    gain,
    summarise,
)

__all__ = [
    "Alarms",
    "Atlas",
    "AtlasRecord",
    "Campaign",
    "CampaignHeader",
    "CampaignRecord",
    "CampaignResult",
    "CellSummary",
    "Detection",
    "DistributionStudy",
    "Distributions",
    "Estimate",
    "Executor",
    "FaultSite",
    "FaultSummary",
    "Histogram",
    "LayerDistribution",
    "LayerEffect",
    "LocalExecutor",
    "Reading",
    "Replay",
    "ReplayedTrial",
    "Sensitivity",
    "Spread",
    "TrialResult",
    "Verdict",
    "fault_models",
    "gain",
    "mean_interval",
    "read_campaign",
    "read_record",
    "summarise",
    "write_atlas",
    "write_sites",
]
