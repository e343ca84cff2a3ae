"""From settings to an executor; Ray is loaded only where it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from proact_onnx.campaign import Executor, LocalExecutor
from proact_onnx.errors import SettingsError
from proact_onnx.settings import ClusterSettings


@contextmanager
def open_cluster(settings: ClusterSettings) -> Iterator[Executor]:
    """Give an executor for campaigns: this process, local workers, or those of a Ray cluster.

    Args:
        settings: How many workers, and where.

    Raises:
        SettingsError: If Ray is not installed, or settings contradict each other.
        CampaignError: If no cluster answers at the address.
    """
    if not settings.workers and settings.ray is None:
        if settings.gpus_per_worker:
            raise SettingsError(
                "GPUs are given to workers, and there are none: add --workers or --ray, or leave "
                "--gpus-per-worker out"
            )
        yield LocalExecutor()
        return
    try:
        from proact_onnx.distribute.executor import RayExecutor
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise SettingsError(
            "--workers and --ray need Ray, which is not installed: run "
            "\"pip install 'proact-onnx[distributed]'\" on every machine that takes part"
        ) from error
    with RayExecutor(settings.workers, settings.ray, settings.gpus_per_worker) as executor:
        yield executor
