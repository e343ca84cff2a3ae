"""Fault-injection campaigns: what to do, doing it, keeping the records, and what they say."""

from proact_onnx.campaign.estimates import Estimate, mean_interval
from proact_onnx.campaign.run import Campaign
from proact_onnx.campaign.store import CampaignHeader, TrialResult, read_campaign
from proact_onnx.campaign.summary import BerSummary, CampaignResult, summarise

__all__ = [
    "BerSummary",
    "Campaign",
    "CampaignHeader",
    "CampaignResult",
    "Estimate",
    "TrialResult",
    "mean_interval",
    "read_campaign",
    "summarise",
]
