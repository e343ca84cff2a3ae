"""Errors a user can meet: each message says what is wrong, where, and what to do."""


class ProactError(Exception):
    """Base of every error that proact-onnx raises on purpose."""


class ModelError(ProactError):
    """The model file cannot be read, or its graph is not one the tool can work on."""


class RunError(ModelError):
    """ONNX Runtime stops with an error while it runs a model that it had accepted."""


class UnsupportedOperatorError(ModelError):
    """The mirror has no rule for an operator; the message names node, operator and opset."""


class DataError(ProactError):
    """The images or labels cannot be read, or do not fit the model's input."""


class SettingsError(ProactError):
    """An option or a key of ``proact.toml`` is unknown, malformed or out of range."""


class CampaignError(ProactError):
    """A campaign cannot be started, or its result file belongs to another campaign."""


class OutputError(ProactError):
    """A result cannot be written: the file exists already, or its folder is not writable."""
